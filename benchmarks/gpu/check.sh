#!/usr/bin/env bash
# What a machine with GPUs can do of this library, in under eight minutes, as a table:
#   benchmarks/gpu/check.sh [--output FILE.json] [--only NAME…] [--accelerator cpu]
# PYTHON names the environment to use; by default that of `make install`.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
exec "${PYTHON:-$here/../../.venv/bin/python}" "$here/check.py" "$@"
