# Needs make and Python 3.11 or later; uses uv where it is on the PATH, venv and pip otherwise.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help demo check test test-failed test-all mutants bench install lock clean

PYTHON ?= python3
# One more than the two cores it is made for: tests that kill, cut and freeze things wait for half of their time.
WORKERS ?= 3
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin

help:
	@echo "make demo      two servers: full load, pull, live listener, resync, proof of equality (two minutes at most)"
	@echo "make test      every test on PostgreSQL 18, what depends on the version on 15 and 16 too"
	@echo "make test-failed  what failed in the last run, once more and alone"
	@echo "make check     ruff, import-linter, mypy, unit tests: seconds, no server"
	@echo "make test-all  every test on every crossing of 15, 16 and 18"
	@echo "make mutants   plants known bugs one at a time: a test must catch each (ONLY=B12 for one; ten minutes)"
	@echo "make bench     this project beside the hand-written pipe and a subscription, in one run"
	@echo "make lock      pins the packages anew (needs uv)"

demo: .venv/base.stamp
	$(BIN)/replicator demo

check: .venv/dev.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/unit

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

test-failed: .venv/dev.stamp
	$(BIN)/python -m pytest -m "not slow" --last-failed --last-failed-no-failures none

test-all: .venv/dev.stamp
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --matrix

mutants: .venv/dev.stamp
	$(BIN)/python -m tests.mutants $(ONLY)

bench: .venv/bench.stamp
	$(BIN)/python -m tests.benchmarks

install: .venv/dev.stamp

# One environment, filled as far as a target needs it: base < dev < bench. A stamp is older than its
# requirements when they changed.
.venv/base.stamp: requirements/base.txt pyproject.toml
.venv/dev.stamp: requirements/dev.txt pyproject.toml
.venv/bench.stamp: requirements/bench.txt pyproject.toml

# Byte code is written here and now: the environment may forbid it later (PYTHONDONTWRITEBYTECODE), and then
# every start of the tool would compile its packages again.
.venv/%.stamp: $(BIN)/python
ifdef UV
	uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/$*.txt
	uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
else
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --compile -r requirements/$*.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
endif
	$(BIN)/python -m compileall -q replicator
	@touch $@

$(BIN)/python:
ifdef UV
	uv venv --quiet --allow-existing --python '>=3.11' .venv
else
	$(PYTHON) -m venv .venv
endif

# `make lock UPGRADE=--upgrade` takes the newest. The later files keep to the versions of the earlier ones, so that one environment can hold all three.
COMPILE = uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --custom-compile-command "make lock" $(UPGRADE)
lock:
	$(COMPILE) pyproject.toml --extra embedded --extra otel --extra serve --group build -o requirements/base.txt
	$(COMPILE) pyproject.toml --all-extras --group build --group dev -c requirements/base.txt -o requirements/dev.txt
	$(COMPILE) pyproject.toml --all-extras --group build --group dev --group bench -c requirements/dev.txt \
		-o requirements/bench.txt

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
