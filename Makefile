# make install | quickstart | test | test-all | lint
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: install quickstart test test-all lint clean

install: .venv/installed

# torch comes first and by itself: whatever depends on it would otherwise choose a build of its own
.venv/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "diffcse-scale needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,eval,plot]'
	touch $@

quickstart: install
	$(BIN)/deepspeed train.py --deepspeed_config ds_configs/zero2.json

test: install
	$(BIN)/pytest -m 'not slow and not slurm and not realdata and not gpu'

test-all: test
	$(BIN)/pytest -m 'slow or slurm or realdata'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv build *.egg-info
