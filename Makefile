# Everything an operator or a contributor types. `make help` shows it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LOCAL := $(PY) -m deploy.local
# -n 2: as many test processes as the smallest machine has cores; a file's tests stay together.
PYTEST := $(PY) -m pytest -n 2 --dist loadfile

DETACH ?=
ARGS ?=
TOPIC ?=
ONLY ?=

.PHONY: run stop status logs test check cluster test-cluster faults bench bench-peers dlq reconcile events lock \
	contracts help venv venv-dev

run: venv ## start the embedded stack, upgrade a sample prompt, serve until Ctrl-C (DETACH=1 returns when ready)
	@exec $(LOCAL) run $(if $(DETACH),--detach) $(ARGS)

stop: venv ## end the stack; what was begun is finished first
	@$(LOCAL) stop

status: venv ## show what runs, where, and with how much memory (ARGS=--json)
	@$(LOCAL) status $(ARGS)

logs: venv ## show the last lines of every part (ARGS=gateway for one, ARGS=-f to follow)
	@$(LOCAL) logs $(ARGS)

cluster: venv ## the same services on Apache Kafka, Redis and a MongoDB-wire server (needs Java 17 and Maven)
	@exec $(LOCAL) run --cluster $(if $(DETACH),--detach) $(ARGS)

test: venv-dev ## unit, contract, component, adapter and end-to-end tests on the embedded stack
	@$(PYTEST) -m "not cluster and not faults" $(ARGS)

test-cluster: venv-dev ## the suite on Apache Kafka, Redis and a MongoDB-wire server
	@$(PY) -m pytest -m "cluster and not faults" $(ARGS)

faults: venv-dev ## break everything in turn under load and check what held
	@$(PY) -m pytest tests/faults -m faults --capture=no $(ARGS)

check: venv-dev ## format, lint, types, import contracts, schema diff, generated docs, links in the docs
	@failed=""; \
	step() { name="$$1"; shift; echo "check: $$name"; "$$@" || failed="$$failed $$name"; }; \
	step format $(VENV)/bin/ruff format --check --quiet . ; \
	step lint $(VENV)/bin/ruff check --quiet . ; \
	step types $(VENV)/bin/mypy ; \
	step imports $(VENV)/bin/lint-imports --no-cache ; \
	step schemas $(PY) -m shared.contracts.schema_files --check ; \
	step generated $(PY) -m deploy.local.generated_docs --check ; \
	step links $(PY) -m tests.contract.docs_links ; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

contracts: venv-dev ## write the files that are generated from the code: schemas, AsyncAPI, settings, event tables
	@$(PY) -m shared.contracts.schema_files
	@$(PY) -m deploy.local.generated_docs

bench: venv-dev ## every benchmark as ratios (ONLY=name for one), into benchmarks/results.json and RESULTS.md
	@$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench-peers: venv-dev ## the benchmarks with the peers
	@$(PY) -m benchmarks --peers $(if $(ONLY),--only $(ONLY)) $(ARGS)

dlq: venv ## list, show, replay or drop dead letters (ARGS=list, ARGS="show --topic …", ARGS=--help)
	@$(LOCAL) env -- $(PY) -m shared.messaging.operate.dlq $(or $(ARGS),list)

events: venv ## follow a topic, readably (TOPIC=upgrades.completed.v1; without it, the topics are listed)
	@$(LOCAL) env -- $(PY) -m shared.messaging.operate.events $(TOPIC) $(ARGS)

reconcile: venv ## recount the ledger, compare it with counters and holds (Error 1: a difference, Error 3: not compared)
	@$(LOCAL) env -- $(PY) -m services.usage.reconciling.command $(ARGS)

lock: venv-dev ## compile the lock files from requirements.in and requirements-dev.in
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@for name in requirements requirements-dev; do \
		UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/bin/uv pip compile --quiet --generate-hashes --universal \
			--python-version 3.11 --no-emit-index-url --no-header --no-annotate -o $$name.lock $$name.in; done

help: ## this table
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# What is installed is what the lock said when it was installed: a second start needs no network.
venv:
	@cmp -s requirements.lock $(VENV)/.installed-requirements.lock || ./.ci/install requirements.lock $(PYTHON)

venv-dev: venv
	@cmp -s requirements-dev.lock $(VENV)/.installed-requirements-dev.lock || ./.ci/install requirements-dev.lock $(PYTHON)
