#!/usr/bin/env bash
# Runs every fuzz target of the module for a while. Usage: fuzz.sh DURATION
set -euo pipefail

duration=${1:?usage: fuzz.sh DURATION}
packages=$(go list ./...)
for package in $packages; do
  listed=$(go test -list '^Fuzz' "$package") # what does not build is not passed over
  for target in $(grep '^Fuzz' <<<"$listed" || true); do
    echo "fuzz $package $target"
    # What is merely interesting is not made small: that alone takes up to a minute.
    go test -run '^$' -fuzz "^$target\$" -fuzztime "$duration" -fuzzminimizetime 10x "$package"
  done
done
