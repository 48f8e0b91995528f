# Each target does the set-up that it needs; a second run does it again only if something changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup test test-slow demo lint format docs wheel clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): pyproject.toml stvid/version.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 10) else f"stvid needs Python 3.10 or newer, this is {v.major}.{v.minor}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || { echo "setup: making a virtual environment in $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "setup: installing stvid and its dependencies into $(VENV) (once; torch is large: minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

setup: $(STAMP)  ## Make .venv and install stvid into it

test: $(STAMP)  ## Run the tests (minutes)
	$(BIN)/python -m pytest -n auto --maxprocesses 4

test-slow: $(STAMP)  ## Run all tests that need no GPU, the slow ones too
	$(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not gpu"

demo: $(STAMP)  ## Train on the embedded demo set, test, and predict a file (about 5 minutes on 2 cores, after set-up)
	$(BIN)/python tools/demo.py

lint: $(STAMP)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)  ## Put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## Build the documentation as a site, into site/
	@$(BIN)/python -c "import mkdocs, mkdocstrings, mike" 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel: $(STAMP)  ## Build dist/*.whl
	rm -rf build  # setuptools would pack what an earlier build left there
	$(BIN)/python -m build --wheel

clean:  ## Remove what the other targets made, runs excepted
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
