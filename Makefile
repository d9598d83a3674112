# LlamaFlow. `make` lists the targets. Everything is installed into this folder: see docs/install.md.

# The first Python ≥ 3.11 that is found; or name one: make setup PYTHON=/path/to/python3.12
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11 python; do \
	if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then echo $$name; break; fi; done)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup up demo test test-slow test-conformance test-n8n chaos lint docs lock lock-jars clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## install everything into this folder (quick when nothing changed)
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python 3.11 or newer was found. Install one, or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) scripts/bootstrap.py

up: setup ## run the whole service in the foreground, on http://127.0.0.1:8000
	@exec $(BIN)/llamaflow up

demo: setup ## show one real job from a dataset on S3 to better answers
	@exec $(BIN)/llamaflow demo

test: setup ## check and test everything, in tiers
	@exec $(BIN)/python scripts/run_tests.py

test-slow: setup ## the tests that take minutes each
	@exec $(BIN)/python scripts/run_tests.py --slow

test-conformance: setup ## the Node client, LangChain and the openai command line, which it installs first
	@exec $(BIN)/python scripts/clients.py

test-n8n: setup ## the shipped workflows on a real n8n, which it installs first (1.7 GB); SLOW=--slow for the real model
	@exec $(BIN)/python -m scripts.n8n $(SLOW)

chaos: setup ## random faults for MINUTES=60, from SEED=… if one is to be tried again
	@CHAOS_SEED=$(SEED) CHAOS_MINUTES=$(or $(MINUTES),60) exec $(BIN)/python scripts/run_tests.py --slow fault -k test_chaos -s

lint: setup ## format check, lint, import contracts, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

docs: setup ## write the pages that are made from the code
	$(BIN)/python -m scripts.make_docs

lock: setup ## resolve the Python packages anew (writes requirements*.lock)
	$(BIN)/python scripts/lock_packages.py

lock-jars: setup ## resolve the Java parts anew (writes app/nextflow/jars.lock)
	$(BIN)/python scripts/lock_jars.py

clean: ## remove the environment and caches; keeps .llamaflow/, which holds your data
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
