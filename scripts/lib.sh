#!/usr/bin/env bash
# What the other scripts share; sourced by them.

# as_root runs its arguments as root, with the BANGER_* variables kept.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
    return
  fi
  if ! command -v sudo >/dev/null; then
    echo "$0: this needs root, and there is no sudo: run it as root" >&2
    return 1
  fi
  local kept=() name
  for name in "${!BANGER_@}"; do
    kept+=("$name=${!name}")
  done
  sudo env "PATH=$PATH" "${kept[@]}" "$@"
}

# distribution prints the ID of the one that this host runs; see os-release(5).
distribution() {
  # shellcheck source=/dev/null
  (source /etc/os-release && echo "$ID")
}
