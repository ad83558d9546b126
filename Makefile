# Commands for operators and contributors. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
LOCAL := $(PY) -m deploy.local
# -n 2: the smallest machine has two cores. The tests of a file run in one process.
PYTEST := $(PY) -m pytest -n 2 --dist loadfile

DETACH ?=
ARGS ?=
TOPIC ?=
ONLY ?=

.PHONY: run stop status logs test check cluster test-cluster faults bench bench-peers dlq reconcile events lock \
	contracts help venv venv-dev

run: venv ## start the embedded stack, upgrade a sample prompt, serve until Ctrl-C (DETACH=1 returns when ready)
	@exec $(LOCAL) run $(if $(DETACH),--detach) $(ARGS)

stop: venv ## stop the stack; work in progress is finished first
	@$(LOCAL) stop

status: venv ## show state, address and memory of each part (ARGS=--json)
	@$(LOCAL) status $(ARGS)

logs: venv ## show the last log lines of every part (ARGS=gateway for one, ARGS=-f to follow)
	@$(LOCAL) logs $(ARGS)

cluster: venv ## start the stack on Apache Kafka, Redis and a MongoDB-wire server (needs Java 17 and Maven)
	@exec $(LOCAL) run --cluster $(if $(DETACH),--detach) $(ARGS)

test: venv-dev ## run unit, contract, component, adapter and end-to-end tests on the embedded servers
	@$(PYTEST) -m "not cluster and not faults" $(ARGS)

test-cluster: venv-dev ## run the cluster tests on Apache Kafka, Redis and a MongoDB-wire server
	@$(PY) -m pytest -m "cluster and not faults" $(ARGS)

faults: venv-dev ## kill every part in turn under load and check that nothing is lost
	@$(PY) -m pytest tests/faults -m faults --capture=no $(ARGS)

check: venv-dev ## check format, lint, types, imports, schemas, generated docs and links
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

contracts: venv-dev ## write the generated files: schemas, AsyncAPI, settings, event tables
	@$(PY) -m shared.contracts.schema_files
	@$(PY) -m deploy.local.generated_docs

bench: venv-dev ## run every benchmark (ONLY=name for one) and write benchmarks/results.json and RESULTS.md
	@$(PY) -m benchmarks $(if $(ONLY),--only $(ONLY)) $(ARGS)

bench-peers: venv-dev ## run the benchmarks including the peers
	@$(PY) -m benchmarks --peers $(if $(ONLY),--only $(ONLY)) $(ARGS)

dlq: venv ## list, show, replay or drop dead letters (ARGS=list, ARGS="show --topic …", ARGS=--help)
	@$(LOCAL) env -- $(PY) -m shared.messaging.operate.dlq $(or $(ARGS),list)

events: venv ## list the topics, or follow one (TOPIC=upgrades.completed.v1)
	@$(LOCAL) env -- $(PY) -m shared.messaging.operate.events $(TOPIC) $(ARGS)

reconcile: venv ## recount the ledger, compare it with counters and holds (Error 1: a difference, Error 3: not everything was compared)
	@$(LOCAL) env -- $(PY) -m services.usage.reconciling.command $(ARGS)

lock: venv-dev ## compile the lock files from requirements.in and requirements-dev.in
	@$(PY) -m pip install --quiet --disable-pip-version-check uv
	@for name in requirements requirements-dev; do \
		UV_CUSTOM_COMPILE_COMMAND="make lock" $(VENV)/bin/uv pip compile --quiet --generate-hashes --universal \
			--python-version 3.11 --no-emit-index-url --no-header --no-annotate -o $$name.lock $$name.in; done

help: ## show this table
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The installed lock file is kept, so a start with an unchanged lock needs no network.
venv:
	@cmp -s requirements.lock $(VENV)/.installed-requirements.lock || ./.ci/install requirements.lock $(PYTHON)

venv-dev: venv
	@cmp -s requirements-dev.lock $(VENV)/.installed-requirements-dev.lock || ./.ci/install requirements-dev.lock $(PYTHON)
