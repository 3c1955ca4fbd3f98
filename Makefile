# Everything from nothing but Python 3.11+, pip and make.
#   make sweep      set up, then the 35-configuration sweep on the embedded model
#   make test       set up, then the whole test suite, in a random order
#   make test-fast  the tests without the slow ones, to run while editing
#   make matrix     the tests of floating-point paths under each set of CPU instructions
#   make seeds      the statistical tests with ten seeds
#   make gpu        tests, sweeps, GRPO and embeddings on a GPU, in one table
#   make check      lint, formatting and types
#   make docs       the documentation site in docs/_build, without network
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# What a sweep needs, and on top of it what tests, checks and docs need.
RUNTIME := .venv/.runtime
READY := .venv/.ready
# One worker for each core, each with one thread: a second thread slows down small tensors.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist worksteal

.PHONY: setup sweep test test-fast matrix seeds gpu check docs clean

setup: $(READY)

$(RUNTIME): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("Python %s is too old: 3.11 or newer is needed. Install it, or name one: make setup PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@touch $@

$(READY): $(RUNTIME)
	$(PIP) --editable '.[dev]'
	@touch $@

sweep: $(RUNTIME)
	$(BIN)/python run.py -m sweep=embed35

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m 'not slow and not real_model'

matrix: setup
	$(BIN)/python -m tests.matrix

seeds: setup
	$(BIN)/python -m tests.matrix --seeds 10

gpu: setup
	$(BIN)/python -m benchmarks.gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W -n --keep-going -q docs docs/_build

clean:
	rm -rf .venv outputs docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
