# The door to the project: `make help` says what there is. Every target installs or builds what it needs.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where the Python environment is made (2.5 GB with vLLM).
export KVASIR_VENV ?= $(CURDIR)/.venv
# The daemon that demo, end-to-end tests and benchmarks run.
export KVASIR_BIN ?= $(CURDIR)/.build/release/kvasir
PY := $(KVASIR_VENV)/bin/python
# More arguments for a test runner or a benchmark: make test-e2e ARGS='-k preemption', make bench-vllm ARGS=--quick
ARGS ?=

.PHONY: help
help: ## what can be made here
	@printf 'Kvasir: a store for the KV cache of LLM servers.\n\n'
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@printf '\nFirst time here: make demo (a few minutes to build, then less than one).\n'

# --- build -------------------------------------------------------------------------------------------

.PHONY: build
build: need-swift ## the daemon and its command line: .build/release/kvasir
	@echo '==> swift build -c release --product kvasir'
	@swift build -c release --product kvasir

.PHONY: setup-python
setup-python: ## .venv with the Python package and the tools that check it
	@scripts/setup-python.sh

.PHONY: setup-vllm
setup-vllm: ## the same with vLLM for CPUs (Python 3.11, 765 MB of downloads, once)
	@scripts/setup-vllm.sh

# A daemon named in KVASIR_BIN is taken as it is.
.PHONY: need-daemon
ifeq ($(origin KVASIR_BIN),file)
need-daemon: build
else
need-daemon:
	@[ -x "$(KVASIR_BIN)" ] || { echo "error: KVASIR_BIN names $(KVASIR_BIN), which is not there" >&2; exit 1; }
endif

.PHONY: need-swift
need-swift:
	@command -v swift >/dev/null || { \
	    echo 'error: there is no `swift` on the PATH.' >&2; \
	    echo '       Kvasir needs Swift 6.2 or newer on Linux: https://www.swift.org/install/linux' >&2; exit 1; }

# --- demo ----------------------------------------------------------------------------------------------

# Needs nothing but Swift: no Python, no network.
.PHONY: demo
demo: need-daemon ## engines and daemon are killed, and new ones answer from what is left (a minute, after the build)
	@$(KVASIR_BIN) demo --model models/tiny-kjv $(ARGS)

.PHONY: demo-vllm
demo-vllm: need-daemon setup-vllm ## the same with a real vLLM (Python 3.11, 765 MB of downloads, once)
	@$(PY) demo/vllm_demo.py $(ARGS)

# --- tests -----------------------------------------------------------------------------------------------

# Where vLLM can't run, the end-to-end tests are left out and that is said; under CI that is a failure.
.PHONY: test
test: test-swift need-daemon ## all tests: Swift, Python, end to end with vLLM
	@if scripts/setup-vllm.sh --check || [ "$${CI:-}" = true ]; then \
	    scripts/setup-vllm.sh && $(MAKE) test-python test-e2e; \
	else \
	    $(MAKE) test-python; \
	    echo 'SKIPPED: the end-to-end tests, because vLLM can not run here (the line above says why).'; \
	    echo '         What ran does not show that vLLM works with Kvasir.'; \
	fi

.PHONY: test-swift
test-swift: need-swift ## the Swift tests
	@echo '==> swift test'
	@swift test $(ARGS)

.PHONY: test-sanitizers
test-sanitizers: need-swift ## store, server, client and engine under ThreadSanitizer and AddressSanitizer
	@for kind in thread address; do \
	    case $$kind in \
	    thread) filter='KVStoreTests.(StoreTests|DiskStoreTests)|KVArenaTests|KVClientTests|KVRequestLogTests|KVDiskTests.IO|CKernelsTests.PoolTests|KvasirEngineTests' ;; \
	    address) filter='KVStoreTests|KVArenaTests|KVClientTests|KVRequestLogTests|RESPTests|KVDiskTests|KVDiskFormatTests|CKernelsTests|ReferenceLMTests' ;; \
	    esac; \
	    echo "==> swift test --sanitize=$$kind"; \
	    LSAN_OPTIONS=suppressions=$(CURDIR)/Tests/leak-suppressions.txt:print_suppressions=0 \
	        KVASIR_SIMULATION_EVENTS=4000 KVASIR_SIMULATION_SEEDS=3 swift test --sanitize=$$kind --scratch-path .build/$$kind \
	        --filter "$$filter"; \
	done

.PHONY: fuzz
fuzz: need-swift ## the RESP parsers under libFuzzer and AddressSanitizer: make fuzz FUZZ_SECONDS=300
	@KV_FUZZ=1 swift build -c release --product FuzzRESP --scratch-path .build/fuzz
	@mkdir -p .build/fuzz/corpus
	@.build/fuzz/release/FuzzRESP .build/fuzz/corpus -dict=Fuzz/resp.dict -max_len=1100 \
	    -max_total_time=$(or $(FUZZ_SECONDS),60) -artifact_prefix=.build/fuzz/

.PHONY: test-python
test-python: setup-python need-daemon ## the Python package's tests, against a real daemon
	@echo '==> pytest python/tests'
	@cd python && $(PY) -m pytest tests --ignore=tests/e2e $(ARGS)

.PHONY: test-e2e
test-e2e: setup-vllm need-daemon ## real vLLMs and a real daemon: restarts, two engines, TP=2, preemption, kill -9 …
	@echo '==> pytest python/tests/e2e'
	@cd python && $(PY) -m pytest tests/e2e $(ARGS)

# The seed is printed; SEED=… repeats its choices.
.PHONY: torture
torture: setup-python need-daemon ## kill -9 the server N times under load, and check every promise: make torture N=200
	@cd python && KVASIR_BIN='$(KVASIR_BIN)' $(PY) tests/torture.py --kills $(or $(N),200) $(if $(SEED),--seed $(SEED))

# Faults, torn and reordered writes, crashes; some 3,000 seeds of the log a minute. Seeds are printed.
.PHONY: torture-simulated
torture-simulated: need-swift ## the same on simulated disks, from N seeds: make torture-simulated N=1000
	@KVASIR_SIMULATION_SEEDS=$(or $(N),1000) swift test --filter 'LogSimulationTests'
	@KVASIR_SIMULATION_SEEDS=$$(( ($(or $(N),1000) + 19) / 20 )) swift test --filter 'DiskSimulationTests'

# --- benchmarks --------------------------------------------------------------------------------------------

.PHONY: bench
bench: need-daemon ## what the daemon reaches beside the machine's own limits
	@$(KVASIR_BIN) bench $(ARGS)

.PHONY: bench-vllm
bench-vllm: need-daemon setup-vllm ## vLLM with Kvasir: TTFT, cost when nothing is reused, a crowded engine
	@$(PY) bench/vllm_bench.py $(ARGS)

# --- style -------------------------------------------------------------------------------------------------

PYTHON_HERE := scripts demo bench python
.PHONY: lint
lint: need-swift setup-python ## what the style checks say; changes nothing
	@echo '==> swift format lint'
	@swift format lint --strict -r Sources Tests Package.swift
	@echo '==> ruff, mypy'
	@$(KVASIR_VENV)/bin/ruff check $(PYTHON_HERE)
	@$(KVASIR_VENV)/bin/ruff format --check --exclude '*.md' $(PYTHON_HERE)
	@cd python && $(PY) -m mypy
	@$(PY) -m mypy --config-file scripts/mypy.ini
	@echo '==> bash -n'
	@for script in scripts/*.sh .ci/run; do bash -n $$script; done

.PHONY: format
format: need-swift setup-python ## put the style right where a tool can
	@swift format -i -r Sources Tests Package.swift
	@$(KVASIR_VENV)/bin/ruff check --fix $(PYTHON_HERE)
	@$(KVASIR_VENV)/bin/ruff format --exclude '*.md' $(PYTHON_HERE)

.PHONY: clean
clean: ## remove what was built, logs and results; the Python environment stays
	rm -rf .build out .ruff_cache .mypy_cache python/.mypy_cache python/.ruff_cache python/.pytest_cache
	find scripts demo bench python -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: clean-all
clean-all: clean ## the same with the Python environment
	rm -rf $(KVASIR_VENV)
