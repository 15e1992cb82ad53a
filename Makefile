# Every target sets up .venv by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

PYTEST := $(BIN)/python -m pytest --numprocesses=auto --dist=loadfile --no-loadscope-reorder \
	--max-worker-restart=0

QUICK := tests/initializers tests/runs tests/tracing tests/training tests/signal/test_foreign.py \
	tests/signal/test_probe.py tests/datadep/test_devices.py tests/datadep/test_reference.py \
	tests/datadep/test_transformations.py tests/test_models.py tests/test_modules.py \
	tests/test_nnx.py tests/test_readme.py tests/test_rectifiers.py

.PHONY: reproduce test test-quick modes lint docs bench faults clean

# He et al. 2015, Figure 3: a 30-layer network trains with He initialisation; Xavier stays at chance.
reproduce: $(VENV)/installed
	$(BIN)/python -m experiments.convergence_30 --scale=laptop --workdir=runs/convergence_30

test: $(VENV)/installed-test
	$(PYTEST)

# What another version of JAX would break first, for a second Python: VENV=.venv-newest
# PYTHON=python3.13
test-quick: $(VENV)/installed-test
	$(PYTEST) -m "not slow" $(QUICK)

# The suite with 64-bit types, and without compilation (tests of compiled programs are skipped).
modes: $(VENV)/installed-test
	JAX_ENABLE_X64=1 $(PYTEST)
	JAX_DISABLE_JIT=1 $(PYTEST)

lint: $(VENV)/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation site, in docs/_build/html.
docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

# Speed and memory as ratios; fails if a goal that was met on record is missed by more than its spread.
bench: $(VENV)/installed-bench
	$(BIN)/python -m benchmarks.run

# Kills, stops, full disks, damaged checkpoints: every run must end with the same files as without.
faults: $(VENV)/installed-test
	$(BIN)/python -m tests.faults.campaign

clean:
	rm -rf .venv .venv-newest

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[train]'
	touch $@

$(VENV)/installed-bench: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[bench]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	touch $@ $(VENV)/installed

$(VENV)/installed-test: setup.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@ $(VENV)/installed
