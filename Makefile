# Everything that people and CI do with this repository. `make` alone lists it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# What an installed package is made of: a change of any of these installs it anew.
SOURCES := pyproject.toml CMakeLists.txt LICENSE \
	$(shell find csrc/core csrc/bindings vendor -type f) \
	$(shell find loom_gguf -type f -not -path '*/__pycache__/*' -not -name '*.so' -not -name '_core.pyi')
CPP := $(shell find csrc -name '*.h' -o -name '*.cpp')

.DEFAULT_GOAL := help
# Targets share one environment: two pips at once would ruin it.
.NOTPARALLEL:
.PHONY: help demo test lint lint-python lint-cpp types format stubs check-stubs docs check-docs cpp-test clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# One stamp for each set of dependencies: base, test (and all of base), dev (and all of test).
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

define install
	@echo "Installing loom_gguf in $(VENV). Unless pip has llama-cpp-python in its cache, it compiles llama.cpp now:"
	@echo "about ten minutes on two cores, silent all the while, once."
	$(BIN)/python -m pip install '.$(1)'
	@touch $(2)
endef

$(VENV)/.base: $(SOURCES) | $(BIN)/python
	$(call install,,$@)
$(VENV)/.test: $(SOURCES) | $(BIN)/python
	$(call install,[test],$(VENV)/.base $@)
$(VENV)/.dev: $(SOURCES) | $(BIN)/python
	$(call install,[dev],$(VENV)/.base $(VENV)/.test $@)

demo: $(VENV)/.base ## install in .venv and run the demo
	$(BIN)/loom-gguf demo

test: $(VENV)/.test ## install in .venv and run the test suite
	$(BIN)/pytest

lint: lint-python lint-cpp types ## style and types of all code

lint-python: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint-cpp: $(VENV)/.dev
	$(BIN)/clang-format --dry-run -Werror $(CPP)

types: $(VENV)/.dev
	$(BIN)/mypy

format: $(VENV)/.dev ## bring all code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

stubs: $(VENV)/.dev ## write loom_gguf/_core.pyi from the extension
	$(BIN)/python scripts/make_stubs.py

check-stubs: $(VENV)/.dev ## fail where loom_gguf/_core.pyi is out of date
	$(BIN)/python scripts/make_stubs.py --check

docs: $(VENV)/.base ## write docs/cli.md from the command line's own help
	$(BIN)/python scripts/generate_cli_docs.py

check-docs: $(VENV)/.base ## fail where docs/cli.md is out of date
	$(BIN)/python scripts/generate_cli_docs.py --check
	$(BIN)/python scripts/fidelity_table.py --check

# llama-cpp-python brings the ggml that the tests run: any of the stamps will do.
cpp-test: $(VENV)/.base ## the C++ core's tests under AddressSanitizer and UBSan (needs doctest and cmake)
	cmake -S . -B build/sanitize -DLOOM_BUILD_TESTS=ON -DLOOM_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build build/sanitize --parallel
	ctest --test-dir build/sanitize --output-on-failure

clean: ## remove all that these targets made; pip's cache stays
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f hidden_states.safetensors hidden_states.png
