#!/usr/bin/env bash
# Installs schemathesis, which generates requests from the API's description, in
# a directory of its own, unless it is there already. Usage: schemathesis.sh DIR
set -euo pipefail
exec </dev/null

dir=${1:?usage: schemathesis.sh DIR}
requirements=$(cd "$(dirname "$0")/.." && pwd)/test/e2e/schemathesis/requirements.txt

if [ -x "$dir/bin/schemathesis" ] && cmp -s "$requirements" "$dir/requirements.txt"; then
  exit 0
fi
echo "installing schemathesis"
rm -rf "$dir"
python3 -m venv "$dir"
"$dir/bin/pip" install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r "$requirements"
cp "$requirements" "$dir/requirements.txt"
