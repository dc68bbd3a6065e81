# make quickstart: the whole job on embedded data.  make test: everything CI runs.  Both are safe to run again.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
FLOPS = 100k,300k,1M

.PHONY: quickstart test

quickstart: $(VENV)/installed
	$(BIN)/python -m ofa.train --resume
	$(BIN)/python -m predictors.collect --threads 1
	$(BIN)/python -m predictors.select --threads 1 --flops $(FLOPS)
	$(BIN)/python -m export.onnx --threads 1
	$(BIN)/python -m predictors.report --threads 1

test: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed; name one with make PYTHON=...')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	touch $@
