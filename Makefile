# distfs. `make run` on a fresh machine needs make and Python 3.11 or later, nothing else.
PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip --disable-pip-version-check --quiet
# More flags for what a target runs: make run ARGS="--port 9000", make test ARGS="-k upload"
ARGS   ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test collect check lint types rules docs format integration-test soak fuzz bench clean

help: ## show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/run.stamp ## start all of distfs on this machine: http://127.0.0.1:8080, data under ./data
	@exec $(PY) -m distfs up $(ARGS)

# Half of the time tests wait: for a node to be given up, a disk, a process that starts. So more workers than cores.
WORKERS ?= 8
test: $(VENV)/dev.stamp ## every test, with real processes and a real PostgreSQL
	$(PY) -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder $(ARGS)

# Compiles the tests once: else each worker of a first `make test` would.
collect: $(VENV)/dev.stamp
	$(PY) -m pytest --collect-only -qq

check: lint types rules ## format, lint, types, and the rules of tests/unit/test_tidy.py
lint: $(VENV)/dev.stamp
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
types: $(VENV)/dev.stamp
	$(PY) -m mypy --strict distfs tests bench
rules: $(VENV)/dev.stamp
	$(PY) -m pytest -q tests/unit/test_tidy.py

docs: $(VENV)/dev.stamp ## write the pages that are made from code: docs/metrics.md, docs/events.md, monitoring/alerts.yml
	$(PY) -c 'from distfs.telemetry.metrics_page import page; open("docs/metrics.md", "w").write(page())'
	$(PY) -c 'from distfs.telemetry.events import page; open("docs/events.md", "w").write(page())'
	$(PY) -c 'from distfs.alerting.rules import page; open("monitoring/alerts.yml", "w").write(page())'

format: $(VENV)/dev.stamp ## let ruff format and fix what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

integration-test: $(VENV)/run.stamp ## files of 10 to 600 MB, there and back, with curl
	PYTHON=$(CURDIR)/$(PY) tests/integration-test.sh

SECONDS ?= 600
soak: $(VENV)/dev.stamp ## random walks of kills, damage and drains for SECONDS=600; prints seeds, and steps that fail
	$(PY) -m tests.faults.walk --seconds $(SECONDS) $(ARGS)

fuzz: $(VENV)/dev.stamp ## hostile bytes for everything that reads bytes, for SECONDS=600 in all; a find is kept in tests/fuzz/corpus
	$(PY) -m tests.fuzz --seconds $(SECONDS) $(ARGS)

bench: $(VENV)/dev.stamp ## speed and memory against a bare-socket floor, on this machine
	$(PY) -m bench $(ARGS)

clean: ## remove what make made; the data folder stays
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './data/*' -exec rm -rf {} +

# --- the virtual environment -------------------------------------------------------------------
# The stamps make a second `make run` start at once; dev after run, so that -j never runs two pips.

$(PY):
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else \
	    "distfs needs Python 3.11 or later, and $(PYTHON) is %d.%d: try make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -m venv --clear $(VENV) || { rm -rf $(VENV); \
	    echo '$(PYTHON) cannot make a virtual environment; on Debian or Ubuntu: apt-get install python3-venv' >&2; \
	    exit 1; }

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(PY)
	@echo 'installing distfs into $(VENV) (once)' >&2
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PY) -m ensurepip >/dev/null
	@$(PIP) install --constraint constraints.txt setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[embedded,codes,compression,metrics]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp
	@$(PIP) install --no-compile --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@
