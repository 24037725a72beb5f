# make install | quickstart | test | test-all | test-gpu | test-newest-triton | lint
PYTHON ?= python3
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: install quickstart test test-all test-gpu test-newest-triton lint clean

install: .venv/installed

# A CUDA build of torch brings its own triton; a CPU build has none, and the tests compile and interpret with the release
# that CUDA builds of torch 2.11 bring.
TRITON := triton==3.6.0

# torch comes first and by itself: whatever depends on it would otherwise choose a build of its own
.venv/installed: setup.py constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "diffcse-scale needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs,eval,lora,onnx,plot,search]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt $(TRITON) || echo "no triton here: its tests are skipped"
	touch $@

quickstart: install
	$(BIN)/deepspeed train.py --deepspeed_config ds_configs/zero2.json

test: install
	$(BIN)/pytest -m 'not slow and not slurm and not realdata and not gpu'

# The jobs of the local SLURM mostly wait: beside the other slow tests they cost little, one worker to a file.
test-all: test
	$(BIN)/pytest -m 'slow or slurm or realdata' -n 2 --dist loadfile

# On a machine with a GPU: the Triton kernels on it.
test-gpu: install
	$(BIN)/pytest -m gpu

# The kernels' tests with the newest triton, which is put beside the environment and not into it.
test-newest-triton: install
	$(BIN)/pip install --quiet --no-deps --upgrade --target .triton-newest triton
	PYTHONPATH=.triton-newest $(BIN)/pytest tests/kernels -k 'triton or interpreter or compile'

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv .triton-newest build *.egg-info
