#!/usr/bin/env bash
# Runs every fuzz target of the module for a while. Usage: fuzz.sh DURATION
set -euo pipefail

duration=${1:?usage: fuzz.sh DURATION}
for package in $(go list ./...); do
  for target in $(go test -list '^Fuzz' "$package" | grep '^Fuzz' || true); do
    echo "fuzz $package $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" "$package"
  done
done
