# Set-up is part of every target: .venv is made when it is missing, out of date or half-made.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
STARTED := $(VENV)/.installing
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Tests share the machine's cores among processes, and nothing but `posology fetch` may use a network.
TEST_ENV := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

.PHONY: demo test test-all lint format bench install clean-demo
.DEFAULT_GOAL := test

install: $(INSTALLED)

# $(STARTED) stands while an installation runs. Where the next make still finds it, the installation was interrupted
# or failed, and .venv is made from scratch.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Posology needs Python 3.11 or newer: make PYTHON=/path/to/python3.11")'
	@if test -e $(STARTED); then rm -rf $(VENV); fi
	@mkdir -p $(VENV) && rm -f $@ && touch $(STARTED)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV): a few minutes, several hundred megabytes the first time" >&2
	$(PIP) torch
	$(PIP) --editable '.[demo,dev,hub,serve,export,track]'
	@mv $(STARTED) $@

demo: $(INSTALLED)
	HF_HUB_OFFLINE=1 $(BIN)/posology demo --out demo

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(TEST_ENV) $(BIN)/python -m pytest --quiet -m "not slow" --numprocesses 2

test-all: lint
	$(TEST_ENV) $(BIN)/python -m pytest --quiet --numprocesses 2

bench: $(INSTALLED)
	@set -e; for script in benchmarks/*.py; do \
	  test -e "$$script" || { echo "no scripts in benchmarks/" >&2; exit 1; }; \
	  echo "== $$script" >&2; HF_HUB_OFFLINE=1 $(BIN)/python "$$script"; \
	done

clean-demo:
	rm -rf demo
