#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing on this machine; does
# nothing when all are there. Usage: deps.sh run|test|lint|api
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

case "${1:-}" in
  run) packages=(qemu-system-x86 mmdebstrap e2fsprogs kmod xz-utils zstd util-linux ca-certificates) ;;
  test) packages=(openssh-client rsync diffutils nftables docker-registry skopeo umoci busybox-static) ;;
  lint) packages=(shellcheck) ;;
  api) packages=(python3 python3-venv) ;;
  *)
    echo "usage: $0 run|test|lint|api" >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "$0: no apt on this machine: install what provides ${packages[*]} yourself" >&2
  exit 1
fi

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

echo "installing ${missing[*]}"
install_missing() {
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null
}
# Package lists that are absent or out of date are the usual reason to fail.
if ! install_missing; then
  as_root apt-get update -qq </dev/null
  install_missing
fi
