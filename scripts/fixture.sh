#!/usr/bin/env bash
# Makes the state directories that the tests copy: state has one kernel, the image
# debian and no VM; state-systemd has an image with an init, Docker and sshd besides.
# Kept between runs. Usage: fixture.sh DIR
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

dir=${1:?usage: fixture.sh DIR}
banger=$(cd "$(dirname "$0")/.." && pwd)/bin/banger
complete=$dir/complete

run=$(mktemp -d /tmp/banger-fixture.XXXXXX)
export BANGER_STATE_DIR=$dir/state BANGER_RUN_DIR=$run BANGER_CONFIG=$dir/none.toml
finish() {
  as_root "$banger" system stop >/dev/null 2>&1 || true
  as_root rm -rf "$run"
}
trap finish EXIT

[ -e "$complete" ] || as_root rm -rf "$dir"
mkdir -p "$dir"
if [ ! -e "$complete" ]; then
  as_root "$banger" kernel pull </dev/null
  # The tests call it debian, whatever it is.
  as_root "$banger" image bootstrap "$(distribution)" debian </dev/null
fi

# A boot with this build puts the initramfs of this build's agent in place.
as_root "$banger" vm run --rm -- true </dev/null
as_root "$banger" system stop </dev/null
as_root rm -f "$dir/state/bangerd.log"
touch "$complete"

# An image of another list of packages is made anew.
systemd=$dir/state-systemd
packages="systemd-sysv,dbus,docker.io,iptables,apparmor,openssh-server"
if ! as_root grep -qsx "$packages" "$systemd.packages"; then
  as_root rm -rf "$systemd" "$systemd.part"
  as_root cp -a --reflink=auto --sparse=always "$dir/state" "$systemd.part"
  export BANGER_STATE_DIR=$systemd.part
  as_root "$banger" image bootstrap debian debian-systemd --include "$packages" </dev/null
  as_root "$banger" system stop </dev/null
  as_root rm -f "$systemd.part/bangerd.log"
  as_root mv "$systemd.part" "$systemd"
  echo "$packages" | as_root tee "$systemd.packages" >/dev/null
fi
echo "fixture: $dir/state"
