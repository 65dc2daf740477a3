#!/usr/bin/env bash
# Makes the state directories that the tests copy: state has one kernel, the image
# debian and no VM; state-systemd has an image with an init, Docker and sshd besides;
# state-host has a stopped VM that plays a host for banger (see hosttest.HostVM).
# Kept between runs, unless another revision of banger has put something into a database
# that this one does not know. Usage: fixture.sh DIR
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

dir=${1:?usage: fixture.sh DIR}
top=$(cd "$(dirname "$0")/.." && pwd)
banger=$top/bin/banger
complete=$dir/complete # has the checksums of what made it: the migrations and the daemon
made=$(cd "$top" && sha256sum internal/store/migrations/*.sql bin/bangerd)

run=$(mktemp -d /tmp/banger-fixture.XXXXXX)
export BANGER_STATE_DIR=$dir/state BANGER_RUN_DIR=$run/state BANGER_CONFIG=$dir/none.toml
daemons=(state)
finish() {
  for name in "${daemons[@]}"; do
    if [ -d "$dir/state-$name.part" ]; then # it came to nothing; its VM would run on
      export BANGER_STATE_DIR=$dir/state-$name.part
      for vm in $(BANGER_RUN_DIR=$run/$name as_root "$banger" vm list --quiet 2>/dev/null </dev/null); do
        BANGER_RUN_DIR=$run/$name as_root "$banger" vm delete --force "$vm" >/dev/null 2>&1 </dev/null || true
      done
    fi
    BANGER_RUN_DIR=$run/$name as_root "$banger" system stop >/dev/null 2>&1 || true
  done
  as_root rm -rf "$run"
}
trap finish EXIT

if [ -e "$complete" ] && grep -F .sql "$complete" | grep -qvxF -e "$made"; then
  echo "fixture: made by another revision, so it is made anew" >&2
  rm -f "$complete"
fi
[ -e "$complete" ] || as_root rm -rf "$dir"
mkdir -p "$dir"
if [ ! -e "$complete" ]; then
  as_root "$banger" kernel pull </dev/null
  # The tests call it debian, whatever it is.
  as_root "$banger" image bootstrap "$(distribution)" debian </dev/null
fi

# A boot with this build puts the initramfs of this build's agent in place.
if [ ! -e "$complete" ] || [ "$(cat "$complete")" != "$made" ]; then
  as_root "$banger" vm run --rm -- true </dev/null
  as_root "$banger" system stop </dev/null
  as_root rm -f "$dir/state/bangerd.log"
  echo "$made" >"$complete"
fi

# variant NAME IMAGE PACKAGES [VM-FLAGS... -- COMMAND...] makes state-NAME of a copy of
# state, with an image of these packages, and with the rest a VM called NAME that has
# run the command and is stopped. Of another list it is made anew.
variant() {
  local name=$1 image=$2 packages=$3 state=$dir/state-$1
  local wanted="$packages${4:+ ${*:4}}"
  if as_root grep -qsxF -e "$wanted" "$state.packages"; then
    return
  fi
  as_root rm -rf "$state" "$state.part"
  as_root cp -a --reflink=auto --sparse=always "$dir/state" "$state.part"
  local -x BANGER_STATE_DIR=$state.part BANGER_RUN_DIR=$run/$name
  as_root "$banger" image bootstrap debian "$image" --include "$packages" </dev/null
  if [ $# -gt 3 ]; then
    as_root "$banger" vm run --name "$name" --image "$image" --init "${@:4}" </dev/null
    as_root "$banger" vm stop --timeout 2m "$name" </dev/null
  fi
  as_root "$banger" system stop </dev/null
  as_root rm -f "$state.part/bangerd.log"
  as_root mv "$state.part" "$state"
  echo "$wanted" | as_root tee "$state.packages" >/dev/null
}

# They take as long as dpkg does: at the same time. The command may be quicker than
# systemd, which it therefore does not ask (--root).
daemons+=(systemd host)
variant systemd debian-systemd systemd-sysv,dbus,docker.io,iptables,apparmor,openssh-server,buildah &
systemd=$!
variant host debian-host \
  systemd-sysv,systemd-resolved,libnss-resolve,dbus,udev,kmod,qemu-system-x86,e2fsprogs,dmsetup,nftables,make \
  --memory 4G --cpus 1 --root-size 20G --disk 40G -- systemctl --root=/ mask --quiet \
  apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
  getty@tty1.service systemd-update-utmp.service systemd-update-utmp-runlevel.service
wait "$systemd"
echo "fixture: $dir/state"
