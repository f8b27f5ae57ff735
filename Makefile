# Two commands on a fresh clone: `make demo` and `make test`. Both set up VENV (default .venv) on their own;
# later runs skip the setup until pyproject.toml or constraints.txt change.
PYTHON ?= python3
VENV ?= .venv
EXTRAS := dev,hf,notebooks,onnx,timm
# a process for each core, a thread for each process: the small nets of tests gain nothing from more threads
PYTEST_FLAGS ?= --numprocesses auto --maxprocesses 8 --dist worksteal

BIN := $(VENV)/bin
# constraints.txt names one torch, so that no other package brings a newer build along
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Its shipped C does not compile on Python 3.11 and later, so it is generated anew; its requirements ask for an old numpy,
# and what is used of it needs nothing that dynext does not bring.
LEARN2LEARN := --no-deps --config-settings=--build-option=build_ext learn2learn==0.2.0

.PHONY: demo test lint notebooks clean

demo: $(VENV)/.installed
	$(BIN)/dynext demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS) --durations=30

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# in full, with their outputs stored; takes the better part of an hour, and Fashion-MNIST (see README)
notebooks: $(VENV)/.installed-dev
	$(BIN)/python notebooks/execute.py

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(LEARN2LEARN) \
		|| echo "learn2learn could not be built; the tests that compare with it are skipped"
	@touch $@ $(VENV)/.installed
