# Everything from nothing but Python 3.11+, pip and make.
#   make sweep   set up, then the 35-configuration sweep on the embedded model
#   make test    set up, then the whole test suite
#   make check   lint, formatting and types
#   make docs    the documentation site in docs/_build, without network
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup sweep test check docs clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.version_info >= (3, 11) or sys.exit("Python %s is too old: 3.11 or newer is needed. Install it, or name one: make setup PYTHON=python3.11" % v)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

sweep: setup
	$(BIN)/python run.py -m sweep=embed35

# One worker a core, each computing with one thread: small tensors only wait for a second one.
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m sphinx -W -n --keep-going -q docs docs/_build

clean:
	rm -rf .venv outputs docs/_build *.egg-info .pytest_cache .ruff_cache .mypy_cache
