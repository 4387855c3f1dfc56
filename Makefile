# Every command of this project. `make` lists them.
VENV := .venv
PYTHON_BIN := $(VENV)/bin/python
PYTEST := $(PYTHON_BIN) -m pytest
# So many at a time (tests/scheduling.py, tests/conftest.py): a model has a core of its own; the others
# mostly wait, for processes and for clocks. What failed in company is judged alone: it had a part of
# the machine, and others' noise.
beside = $(PYTEST) --numprocesses $(1) --dist loadscope --no-loadscope-reorder -m "$(2)" \
	|| $(PYTEST) --last-failed --last-failed-no-failures none -m "$(2)"
SHELL_FILES := start_gunicorn.sh examples/demo.sh requirements/install.sh requirements/make_locks.sh requirements/nginx.sh .ci/run

# Thousands of short processes import this project; without its bytecode each compiles it anew.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help install fmt lint type test test-fast test-long prove docs demo bench clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1 # /' | column -t -s '#'

install: ## the full environment in .venv: CPU builds of torch and vLLM, every engine, the tests' tools
	@bash requirements/install.sh full $(VENV)

fmt: install ## format the code
	$(VENV)/bin/ruff check --fix-only --quiet .
	$(VENV)/bin/ruff format .

lint: install ## ruff and shellcheck
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/shellcheck $(SHELL_FILES)

type: install ## mypy, strict
	$(VENV)/bin/mypy

test: lint type ## everything that must hold, with the real engines; at most 20 minutes
	$(call beside,2,model and not slow and not quiet)
	$(call beside,3,not model and not slow and not quiet)
	$(PYTEST) -m "not slow and quiet"

test-fast: install ## what needs no process and no model; under a minute
	$(PYTEST) -m "not slow and not server and not model"

test-long: lint type ## the full counts: thousands of kills, races and requests
	$(call beside,2,model and not quiet)
	$(call beside,3,not model and not quiet)
	$(PYTEST) -m quiet

prove: install ## break every promise in turn and demand that its test turns red
	$(PYTHON_BIN) -m tests.prove

docs: install ## the tables in README and docs, made from the code
	$(PYTHON_BIN) docs/tables.py

demo: ## a whole pool with a real model on this machine, GPU or not (PORT=... moves it)
	@bash requirements/install.sh light $(VENV)
	@exec bash examples/demo.sh

bench: install ## the benchmarks; writes benchmarks/results/ and docs/benchmarks.md
	$(PYTHON_BIN) -m benchmarks

clean: ## remove what the commands above made
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache build *.egg-info
