#!/usr/bin/env bash
# Installs what is in bin/ on this machine, or takes it away again.
# Usage: [PREFIX=/usr/local] [DESTDIR=] [PURGE=] install.sh install|uninstall
#
# With DESTDIR, for making packages, files are put there and nothing is started.
# Uninstall leaves VMs, images and kernels, unless PURGE is set.
set -euo pipefail

prefix=${PREFIX:-/usr/local}
destdir=${DESTDIR:-}
bin=$destdir$prefix/bin
units=$destdir$prefix/lib/systemd/system
sysusers=$destdir$prefix/lib/sysusers.d
completions=("$destdir$prefix/share/bash-completion/completions/banger"
  "$destdir$prefix/share/zsh/site-functions/_banger"
  "$destdir$prefix/share/fish/vendor_completions.d/banger.fish")
cd "$(dirname "$0")/.."

# by_systemd tells whether units are to be started and stopped.
by_systemd() { [ -z "$destdir" ] && [ -d /run/systemd/system ]; }

# unit_runs tells whether systemd runs the daemon.
unit_runs() { by_systemd && systemctl --quiet is-active bangerd.service; }

# answers tells whether a daemon listens; asking through the command line would start one.
socket=${BANGER_RUN_DIR:-/run/banger}/bangerd.sock
answers() { grep -qF " $socket" /proc/net/unix; }

need_root() {
  if [ -z "$destdir" ] && [ "$(id -u)" -ne 0 ]; then
    echo "$1: this needs root: sudo make $1, or name a DESTDIR" >&2
    exit 1
  fi
}

install_banger() {
  need_root install
  if [ ! -x bin/banger ] || [ ! -x bin/bangerd ]; then
    echo "install: there is no bin/banger and bin/bangerd: run make build first, as yourself" >&2
    exit 1
  fi
  install -D -m 0755 -t "$bin" bin/banger bin/bangerd
  for unit in bangerd.service bangerd.socket banger-vms.service banger.slice; do
    install -d -m 0755 "$units"
    sed "s|@bindir@|$prefix/bin|" "systemd/$unit" >"$units/$unit"
    chmod 0644 "$units/$unit"
  done
  install -D -m 0644 systemd/banger.sysusers "$sysusers/banger.conf"
  local shells=(bash zsh fish) i
  for i in 0 1 2; do
    install -d -m 0755 "$(dirname "${completions[i]}")"
    bin/banger completion "${shells[i]}" >"${completions[i]}"
  done
  echo "installed banger $(bin/banger --version | awk '{print $NF}') in $destdir$prefix"
  [ -z "$destdir" ] || return 0
  getent group banger >/dev/null || groupadd --system banger
  if ! by_systemd; then
    echo "there is no systemd here: root's first command starts the daemon"
    return
  fi
  # A daemon that a command line started makes room for that of systemd; VMs run on.
  if ! unit_runs && answers; then
    "$bin/banger" system stop
  fi
  systemctl daemon-reload
  systemctl --quiet enable bangerd.service banger-vms.service
  if unit_runs; then
    systemctl restart bangerd.service
    echo "bangerd is that of this version now; VMs ran on"
  else
    systemctl start bangerd.socket bangerd.service
  fi
  systemctl start banger-vms.service # not restarted: to stop it would stop the VMs
}

uninstall_banger() {
  need_root uninstall
  if [ -z "$destdir" ] && [ -x "$bin/banger" ]; then
    local running
    running=$("$bin/banger" vm list --json | grep -c '"state": "running"' || true)
    if [ "$running" -gt 0 ]; then
      echo "uninstall: $running VMs are running, and would be nobody's: banger vm stop them first" >&2
      "$bin/banger" vm list >&2
      exit 1
    fi
    if by_systemd && [ -e "$units/banger-vms.service" ]; then
      systemctl --quiet disable --now banger-vms.service # while there is a daemon that it can ask
    fi
    ! answers || "$bin/banger" system stop
  fi
  if by_systemd && [ -e "$units/bangerd.service" ]; then
    systemctl --quiet disable --now bangerd.socket bangerd.service
  fi
  rm -f "$bin/banger" "$bin/bangerd" "$sysusers/banger.conf" "${completions[@]}" \
    "$units/bangerd.service" "$units/bangerd.socket" "$units/banger-vms.service" "$units/banger.slice"
  if by_systemd; then
    systemctl daemon-reload
  fi
  [ -z "$destdir" ] || return 0
  local state=${BANGER_STATE_DIR:-/var/lib/banger}
  if [ -n "${PURGE:-}" ]; then
    # In a VM of banger's, its agent has mounts beside the sockets: they are not ours.
    local run=${socket%/*}
    rm -rf --one-file-system "$state" "$run/vm" /etc/banger
    rm -f "$socket"
    rmdir --ignore-fail-on-non-empty "$run" 2>/dev/null || true
    ! getent group banger >/dev/null || groupdel banger
    echo "uninstalled; nothing of banger is left"
  elif [ -e "$state" ]; then
    echo "uninstalled; VMs, images and kernels are still in $state: PURGE=1 removes them too"
  fi
}

case "${1:-}" in
  install) install_banger ;;
  uninstall) uninstall_banger ;;
  *)
    echo "usage: $0 install|uninstall" >&2
    exit 2
    ;;
esac
