#!/usr/bin/env bash
# Makes the environments of the libraries that ours is compared with, in pinned versions: the last TRL with a PPO trainer
# and the newest one. Usage: benchmarks/speed/setup.sh [PYTHON [VERSION…]]; two minutes and 1 GB each.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
python="${1:-python3}"
versions=("${@:2}")
[ "${#versions[@]}" -gt 0 ] || versions=(1.12.0 1.16.0)
# The pins of this package but for TRL itself, of which there are two here.
pins="$(mktemp)"
trap 'rm -f "$pins"' EXIT
grep -v '^trl==' "$here/../../constraints.txt" > "$pins"
for version in "${versions[@]}"; do
  environment="$here/.venv-trl-$version"
  "$python" -m venv "$environment"
  pip=("$environment/bin/python" -m pip install --quiet --disable-pip-version-check -c "$pins")
  # torch goes first and by itself: where a CPU build of it is offered pip then takes that one.
  "${pip[@]}" torch
  "${pip[@]}" "trl==$version" peft psutil
done
