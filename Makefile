# Two commands matter: `make run` and `make test`. Everything they need is fetched into .venv and .run.

.DEFAULT_GOAL := help
.PHONY: help run test check audit fuzz crowd format bench simulate chaos lock mutants soak clean

# The first Python that is new enough and really works: version managers leave commands that only print an error.
WORKS := import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
CANDIDATES = $(or $(PYTHON),python3 python3.13 python3.12 python3.11)
FOUND = $(firstword $(foreach name,$(CANDIDATES),$(shell $(name) -c '$(WORKS)' 2>/dev/null && echo $(name))))
SETUP = $(or $(FOUND),$(error None of "$(CANDIDATES)" is a Python 3.11, 3.12 or 3.13 with venv (Debian: apt install python3 python3-venv); PYTHON=/path/to/python names another))

# Each line that runs long is one exec: make then hands SIGTERM to the program itself, not to a shell that forgets it.

help: ## Show this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(MAKEFILE_LIST)

run: ## Start Greenroom in the foreground; Ctrl-C stops all of it (PORT=8000)
	@exec $(SETUP) -m backend.local.setup run
	@exec .venv/bin/python -m backend.local

# Tests mostly wait: two files of them at a time take half as long. WORKERS=0 runs one after the other, for a debugger.
WORKERS ?= 2

test: ## Run every test; ARGS="..." goes to pytest
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m backend.local.livekit
	@exec .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: ## Check format, style, types, imports, lengths and documentation
	@exec $(SETUP) -m backend.local.setup check
	@.venv/bin/ruff format --check --quiet
	@.venv/bin/ruff check --quiet
	@.venv/bin/mypy
	@.venv/bin/lint-imports
	@.venv/bin/python -m pytest -q tests/unit/test_conventions.py
	@exec .venv/bin/python -m backend.local.audit

audit: ## Look the locked packages up among known vulnerabilities, where that data can be had
	@exec $(SETUP) -m backend.local.setup check
	@exec .venv/bin/python -m backend.local.audit

fuzz: ## Send every endpoint what its description allows and forbids (FUZZ_SECONDS=300); ARGS="..." goes to pytest
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m backend.local.livekit
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-300} exec .venv/bin/python -m pytest tests/integration/test_fuzz.py $(ARGS)

crowd: ## Open 10,000 connections that say nothing and see what the others notice; ARGS=20000
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m backend.local.livekit
	@exec .venv/bin/python -m tests.benchmarks.crowd $(ARGS)

format: ## Format the code and mend what ruff can mend
	@exec $(SETUP) -m backend.local.setup check
	@.venv/bin/ruff check --fix --quiet
	@.venv/bin/ruff format

bench: ## Measure Greenroom beside livekit-agents, in one run; ARGS="..." for parts of it
	@exec $(SETUP) -m backend.local.setup bench
	@exec .venv/bin/python -m backend.local.livekit
	@exec .venv/bin/python -m tests.benchmarks.bench $(ARGS)

simulate: ## Simulate the pool against a fixed one and draw docs/pool.md
	@exec $(SETUP) -m backend.local.setup simulate
	@exec .venv/bin/python -m tests.benchmarks.simulate

chaos: ## Kill, freeze and end each part while it holds calls, and write docs/reliability.md; ARGS="--only redis"
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m backend.local.livekit
	@exec .venv/bin/python -m tests.chaos $(ARGS)

mutants: ## Break each Redis operation on purpose and see that a test notices; ARGS="heartbeat" for one
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m tests.mutants $(ARGS)

soak: ## Take calls for minutes while processes are killed and agents misbehave; ARGS="--minutes 10 --write"
	@exec $(SETUP) -m backend.local.setup test
	@exec .venv/bin/python -m backend.local.livekit
	@exec .venv/bin/python -m tests.soak $(ARGS)

# Wants uv. Versions that are locked stay unless a requirement forbids them; ARGS=--upgrade lifts all.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate $(ARGS)

lock: ## Write the lock files from pyproject.toml
	$(COMPILE) --extra demo --extra embedded --output-file requirements.lock pyproject.toml
	$(COMPILE) --group dev --constraint requirements.lock --output-file requirements-dev.lock
	$(COMPILE) --group plots --constraint requirements.lock --output-file requirements-plots.lock
	$(COMPILE) --group peer --output-file requirements-peer.lock
	$(COMPILE) --group audit --output-file requirements-audit.lock
	$(COMPILE) --group tools --output-file requirements-tools.lock
	npm install --prefix backend/orchestrator/page --package-lock-only --ignore-scripts --omit-lockfile-registry-resolved

clean: ## Remove all that make fetched and all state; stop Greenroom first
	rm -rf .venv .run .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache backend/orchestrator/page/node_modules
	find backend tests -name __pycache__ -type d -prune -exec rm -rf {} +
