# make demo: train and sample in minutes; make test: the suite; make check: what CI runs
PYTHON ?= python3
BIN := .venv/bin
PEERS := torch-fidelity==0.4.0 prdc==0.2  # their metadata asks for torchvision, which has no CPU build

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.run: .venv/bin/python pyproject.toml constraints.txt
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e .
	touch $@

.venv/.dev: .venv/.run
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --no-deps $(PEERS)
	touch $@

demo: .venv/.run
	$(BIN)/python scripts/demo.py

test: .venv/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

check: lint test

.PHONY: demo test lint check
