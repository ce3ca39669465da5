# `make demo` and `make test` work in a fresh clone and can be repeated: both first set up the virtual environment .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
DEMO := runs/demo
# Shorter than the full presets: 512 + 512 points per step instead of 2048 + 2048.
SHORT := --batch-size 512 --overwrite

WEIGHTS := weights

.PHONY: help setup demo weights test test-slow docs bench bench-quality lint format clean

help:
	@echo "make demo       set up .venv, train three toys and the digits in a few minutes, and list the pictures"
	@echo "make weights    train the small generators of a release (about 40 minutes), and write them to share into $(WEIGHTS)"
	@echo "make test       set up .venv, then check style, types and imports, and run the tests"
	@echo "make test-slow  set up .venv, then run the tests marked slow, which make test leaves out"
	@echo "make bench      time the loss against plain torch, torch.compile and JAX, and the parts of a step (about 15 minutes)"
	@echo "make bench-quality  compare quality over the time of training with flow matching (about an hour; goes on where it stopped)"
	@echo "make docs       build the site of the documentation in build/site"
	@echo "make format     format the code with ruff"
	@echo "make clean      remove .venv and the runs of make demo"

# What a run needs, and what the developers of the library need besides.
setup: .venv/ready

.venv/demo-ready: pyproject.toml setup.py constraints.txt
	@echo "Setting up the virtual environment .venv (a few minutes, once) ..."
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[train,fast]'
	@touch $@

.venv/ready: .venv/demo-ready
	@echo "Adding the tools of the developers to .venv (a few minutes, once) ..."
	$(INSTALL) -e '.[dev]'
	@touch $@

demo: .venv/demo-ready
	@echo "Training moons, swiss_roll, checker and digits in a short form into $(DEMO): under 5 minutes on two cores."
	$(BIN)/drifting train toy --dataset moons $(SHORT) --save-dir $(DEMO)/moons
	$(BIN)/drifting train toy --dataset swiss_roll $(SHORT) --save-dir $(DEMO)/swiss_roll
	$(BIN)/drifting train toy --dataset checker $(SHORT) --save-dir $(DEMO)/checker
	$(BIN)/drifting train digits --overwrite --save-dir $(DEMO)/digits
	$(BIN)/drifting sample $(DEMO)/digits --num-samples 100 --overwrite --out $(DEMO)/digits/grid.png
	@echo "Done. The pictures:"
	@ls $(DEMO)/*/*.png $(DEMO)/*/*.gif
	@echo "The reports, with samples through the training and its curves, to open in a browser:"
	@ls $(DEMO)/*/report.html

# MNIST is read from $DRIFTING_DATA, or downloaded from the Hub.
weights: setup
	$(BIN)/python experiments/make_weights.py --save-dir $(WEIGHTS)

# One test process per core, each with one thread: busy threads of several processes would wait for each other.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# Long tests, which `make test` covers in a shorter form: whole runs of several processes, every preset, compiled runs.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and not gpu and not network' -n auto --dist worksteal

# One thread and processor time, so that the ratios hold on a busy machine. JAX comes from the extra `bench`.
bench: setup
	$(INSTALL) -e '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/field.py --memory
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/steps.py

# Figures of real data: MNIST and CIFAR-10 are read from $DRIFTING_DATA, or downloaded from the Hub.
bench-quality: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/quality.py --save-dir runs/quality

# The site from docs/ and the docstrings, in build/site. Any broken link is an error.
docs: setup
	$(BIN)/mkdocs build --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(DEMO)
