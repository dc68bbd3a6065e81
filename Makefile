# make quickstart: the whole job on embedded data.  make test: everything CI runs.  make check: the quick part of it.
# All are safe to run again.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FLOPS = 100k,300k,1M

.PHONY: quickstart check test coverage help

quickstart: $(VENV)/installed
	@echo "2 to 3 minutes on a recent CPU, up to 6 on an older one: train, measure 100 subnets, select, tune, export, report"
	$(BIN)/ofa train --resume
	$(BIN)/ofa collect --threads 1 --count 100
	$(BIN)/ofa select --threads 1 --flops $(FLOPS)
	$(BIN)/ofa tune --resume
	$(BIN)/ofa export --threads 1
	$(BIN)/ofa report --threads 1

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Which lines the tests run. Not a part of test: counting them takes a quarter more time.
coverage: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered

# The pages that --help prints, after flags or docstrings of commands changed; a test compares them.
help: $(VENV)/installed
	$(BIN)/python -m engine.command

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@
