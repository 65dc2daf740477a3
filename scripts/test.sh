#!/usr/bin/env bash
# Runs `go test` as root with the fixture in its environment, and says at the end which
# of the end-to-end tests took longest.
# Usage: test.sh FIXTURE GO-TEST-ARGUMENTS...
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

fixture=${1:?usage: test.sh FIXTURE GO-TEST-ARGUMENTS...}/state
shift

# newest prints the newest of the files named, or fails saying what is missing.
newest() {
  local file found=
  for file in "$@"; do
    if [ -e "$file" ] && { [ -z "$found" ] || [ "$file" -nt "$found" ]; }; then
      found=$file
    fi
  done
  if [ -z "$found" ]; then
    echo "$0: no $1: make clean, then make fixture" >&2
    return 1
  fi
  echo "$found"
}

# Only root may look into a state directory.
if [ "$(id -u)" -ne 0 ]; then
  as_root env "CGO_ENABLED=${CGO_ENABLED:-0}" "GOCACHE=$(go env GOCACHE)" \
    "GOMODCACHE=$(go env GOMODCACHE)" "$0" "${fixture%/state}" "$@"
  exit
fi

BANGER_FIXTURE=$fixture
BANGER_BIN=$(cd "$(dirname "$0")/.." && pwd)/bin
BANGER_TEST_VMLINUX=$(newest "$fixture"/kernels/*/vmlinux)
BANGER_TEST_INITRD=$(newest "$fixture"/kernels/*/initramfs-*.cpio)
BANGER_SCHEMATHESIS=$(cd "$(dirname "$0")/.." && pwd)/.cache/schemathesis/bin/schemathesis
[ -x "$BANGER_SCHEMATHESIS" ] || BANGER_SCHEMATHESIS=
export BANGER_FIXTURE BANGER_BIN BANGER_TEST_VMLINUX BANGER_TEST_INITRD BANGER_SCHEMATHESIS
BANGER_TEST_TIMES=$(mktemp /tmp/banger-times.XXXXXX)
export BANGER_TEST_TIMES
status=0
go test "$@" </dev/null || status=$?
if [ -s "$BANGER_TEST_TIMES" ]; then
  echo "the slowest tests:"
  sort -rn "$BANGER_TEST_TIMES" | head -15
fi
rm -f "$BANGER_TEST_TIMES"
exit "$status"
