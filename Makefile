# Two commands on a fresh clone: `make demo` and `make test`. Both set up VENV (default .venv) on their own;
# later runs skip the setup until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
EXTRAS := dev,notebooks,onnx,timm
# a process for each core, a thread for each process: the small nets of tests gain nothing from more threads
PYTEST_FLAGS ?= --numprocesses auto --maxprocesses 8 --dist worksteal

BIN := $(VENV)/bin
# constraints.txt names one torch, so that no other package brings a newer build along
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test lint clean

demo: $(VENV)/.installed
	$(BIN)/dynext demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis dist

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing dynext into $(VENV) (once; torch is large)"
	$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing dynext with its development extras into $(VENV) (once; torch is large)"
	$(INSTALL) --editable '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.installed
