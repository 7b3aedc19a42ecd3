# vambrace: 'make demo' shows the whole flow, 'make test' proves it; both set up everything they need.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES ?= yes

.PHONY: demo demo-domains gallery test unit lint bench soak fuzz packages clean

# What hashes, signs and encrypts in the demos: nist, or sm for SM2, SM3 and SM4.
SUITE ?= nist
demo: $(VENV)/ready
	$(BIN)/python -m examples.patients.demo --suite $(SUITE)

demo-domains: $(VENV)/ready
	$(BIN)/python -m examples.domains.demo --suite $(SUITE)

# Software that people run, in Realms: all of it, or one example.
EXAMPLE ?=
gallery: $(VENV)/ready
	$(BIN)/python -m examples.gallery $(EXAMPLE) --suite $(SUITE)

# The server's tests share one emulated machine, which needs all processors.
test: lint
	$(BIN)/pytest -m "not server" --numprocesses auto
	$(BIN)/pytest -m server

unit: $(VENV)/ready
	$(BIN)/pytest -m "not server" --numprocesses auto

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/mypy

# What needs long: property tests, each for VAMBRACE_SOAK_SECONDS, and many power cuts and Realms on the emulated server.
soak: $(VENV)/ready
	$(BIN)/pytest --soak -m soak

# Coverage-guided fuzzing: each target, or those in FUZZ, for so many seconds.
FUZZ ?=
FUZZ_SECONDS ?= 600
fuzz: $(VENV)/ready
	$(BIN)/python tests/fuzz/run.py $(FUZZ) --seconds $(FUZZ_SECONDS)

bench: $(VENV)/ready
	$(BIN)/python -m bench --json build/bench.json

packages:
ifeq ($(PACKAGES),yes)
	scripts/packages
endif

$(VENV)/ready: pyproject.toml setup.py $(wildcard core/*.[ch] core/python/*.[ch]) | packages
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -e .[dev]
	touch $@

clean:
	rm -rf build $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find vambrace -name '*.so' -delete
