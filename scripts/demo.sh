#!/usr/bin/env bash
# From a fresh build to a command in a VM, showing each command as it runs.
# Uses the default directories, or those BANGER_STATE_DIR, BANGER_RUN_DIR and
# BANGER_CONFIG name.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

cd "$(dirname "$0")/.."

# show prints a command, then runs it as root.
show() {
  if [ "$(id -u)" -eq 0 ]; then
    echo "# banger $*"
  else
    echo "\$ sudo bin/banger $*"
  fi
  as_root bin/banger "$@" </dev/null
}

# was_running tells whether a daemon holds this installation already: asking
# through the command line would start one.
socket=${BANGER_RUN_DIR:-/run/banger}/bangerd.sock
was_running() {
  as_root test -S "$socket" && grep -qF " $socket" /proc/net/unix
}

started=yes
if was_running; then
  started=no
fi
finish() {
  if [ "$started" = yes ]; then
    echo "stopping the daemon this demo started"
    show system stop || true
  else
    echo "the daemon was running before this demo; it goes on running"
  fi
}
trap finish EXIT

if [ -n "$(as_root bin/banger kernel list --quiet </dev/null)" ]; then
  echo "the kernel is there already"
else
  show kernel pull
fi
image=$(distribution)
if as_root bin/banger image show "$image" >/dev/null 2>&1 </dev/null; then
  echo "the image $image is there already"
else
  show image bootstrap "$image"
fi
if [ "$image" = debian ]; then # the default
  show vm run --rm -- uname -a
else
  show vm run --rm --image "$image" -- uname -a
fi
