# Two commands do all: `make demo` runs the policy in the box on LIBERO, `make test` passes the tests.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Threads that wait for one another soon sleep, since tests and simulators share the cores (see policy/__init__.py).
export GOMP_SPINCOUNT ?= 10000

.PHONY: demo test lint install clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	$(BIN)/python -m pytest -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(READY)

# A GPU machine gets torch with CUDA, a CPU machine its CPU build where the package index offers one.
$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e ".[policy,sim,datasets,dev]"
	@touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
