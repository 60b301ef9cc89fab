#!/bin/sh
# The newest TRL in an environment of its own, .venv-trl-latest, for `benchmarks/speed/collect.py --grpo`.
# usage: benchmarks/speed/setup_latest.sh [PYTHON]
set -eu
cd "$(dirname "$0")/../.."
"${1:-python3}" -m venv .venv-trl-latest
# torch first and by itself, as in the Makefile; the same versions of it and of transformers as the package is measured with.
.venv-trl-latest/bin/python -m pip install --quiet -c constraints.txt torch
.venv-trl-latest/bin/python -m pip install --quiet -c constraints.txt -r benchmarks/speed/peers/trl-latest.txt
.venv-trl-latest/bin/python -c 'import trl; print("trl", trl.__version__)'
