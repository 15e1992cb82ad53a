# Every target sets up .venv by itself.
PYTHON ?= python3
BIN := .venv/bin

PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder \
	--max-worker-restart=0

.PHONY: reproduce test modes lint docs bench faults clean

# He et al. 2015, Figure 3: a 30-layer network trains with He initialisation; Xavier stays at chance.
reproduce: .venv/installed
	$(BIN)/python -m experiments.convergence_30 --scale=laptop --workdir=runs/convergence_30

test: .venv/installed-test
	$(PYTEST)

# The suite with 64-bit types, and without compilation (tests of compiled programs are skipped).
modes: .venv/installed-test
	JAX_ENABLE_X64=1 $(PYTEST)
	JAX_DISABLE_JIT=1 $(PYTEST)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in docs/_build/html.
docs: .venv/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Speed and memory as ratios; fails if a ratio is over its limit.
bench: .venv/installed-bench
	$(BIN)/python -m benchmarks.run

# Kills, stops, full disks, damaged checkpoints: every run must end with the same files as without.
faults: .venv/installed-test
	$(BIN)/python -m tests.faults.campaign

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[train]'
	touch $@

.venv/installed-bench: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	touch $@ .venv/installed

.venv/installed-docs: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@ .venv/installed

.venv/installed-test: setup.py | .venv/bin/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@ .venv/installed
