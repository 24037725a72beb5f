# make install | quickstart | test | test-slow | test-all | test-gpu | gpu-check | test-newest-triton | rehearse-cuda | fuzz |
#     crash-points | storms | lint | docs | dist
PYTHON ?= python3
# PYTHON makes the environment; the jobs of slurm/ would mistake it for their own setting
unexport PYTHON
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: install quickstart test test-slow test-all test-gpu gpu-check test-newest-triton rehearse-cuda fuzz crash-points storms lint docs dist clean

install: .venv/installed

# A CUDA build of torch brings its own triton; a CPU build has none, and the tests compile and interpret with the release
# that CUDA builds of torch 2.11 bring.
TRITON := triton==3.6.0

# install torch first and by itself; otherwise the packages that depend on it choose a build
.venv/installed: setup.py kernels/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "diffcse-scale needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --constraint constraints.txt --editable ./kernels --editable '.[dev,docs,eval,lora,onnx,plot,search]'
	$(BIN)/python -c 'import triton' 2>/dev/null || $(BIN)/pip install --quiet --constraint constraints.txt $(TRITON) || echo "no triton here: its tests are skipped"
	touch $@

quickstart: install
	$(BIN)/deepspeed train.py --deepspeed_config ds_configs/zero2.json

# For two cores. Each test file runs on one worker. Default tests wait often, so there is time for a third worker; the
# others start up to four ranks.
BY_FILE := --dist loadfile --no-loadscope-reorder
PARALLEL := -n 2 $(BY_FILE)

test: install
	$(BIN)/pytest -n 3 $(BY_FILE) -m 'not slow and not slurm and not realdata and not gpu'

test-all: test test-slow

# SAMPLE='--sample 75:SEED' runs three quarters of these tests, drawn by the seed.
SAMPLE :=
test-slow: install
	$(BIN)/pytest $(PARALLEL) -m 'slow or slurm or realdata' $(SAMPLE)

# On the local SLURM: jobs that are suspended, signalled in their first moments, or requeued in vain, ten of each.
storms: install
	DIFFCSE_STORMS=10 $(BIN)/pytest tests/slurm/test_storms.py

# On a machine with a GPU: tests of the kernels and the trainer on it. The other targets, except gpu-check, use no GPU.
test-gpu: install
	DIFFCSE_TEST_DEVICE=cuda $(BIN)/pytest -m gpu

# On a machine with a GPU, the first ten minutes: doctor, kernels, crossovers, short runs, the step with and without
# torch.compile (docs/first_gpu_hour.md).
gpu-check: install
	$(BIN)/python -m studies.gpu_check

# The kernels' tests with the newest triton, which is installed beside the environment and not into it.
test-newest-triton: install
	$(BIN)/pip install --quiet --no-deps --upgrade --target .triton-newest triton
	PYTHONPATH=.triton-newest $(BIN)/pytest $(PARALLEL) tests/kernels -k 'triton or interpreter or compile'

# On a machine without a GPU: the training step on a fake GPU, with a CUDA build of torch (4.5 GB) in .venv-cuda.
rehearse-cuda: install
	tests/support/rehearse_cuda.sh -n 2

# Thousands of inputs for everything that reads users' files: recipes, corpora, models, folders of embeddings, runs.
FUZZ := --inputs 2000 --seed 0
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz $(FUZZ)

# Programs crash at each of their file-system events, in three ways in which a disk loses data, and are then continued.
CRASHES := --percent 100
crash-points: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.crash_points $(CRASHES)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

# The site: all pages, and the reference from the docstrings. A warning is an error, and a broken link is a warning.
SPHINX := --fail-on-warning --keep-going --quiet -c docs --doctree-dir build/doctrees . build/docs

docs: install
	$(BIN)/sphinx-build $(SPHINX)
	@echo "the site is in build/docs/index.html"

# What is published: a wheel of the kernels and one of the trainer.
dist: install
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist ./kernels .

clean:
	rm -rf .venv .venv-cuda .triton-newest build dist *.egg-info
