# `make demo` and `make test` work in a fresh clone and when run again: both set up the virtual environment .venv first.
PYTHON ?= python3
BIN := .venv/bin
DEMO := runs/demo
# A short form of the full presets: 512 + 512 points a step in place of 2048 + 2048.
SHORT := --batch-size 512 --overwrite

.PHONY: help setup demo test test-slow lint format clean

help:
	@echo "make demo       set up, train three toys and the digits in a few minutes, and name the pictures"
	@echo "make test       set up, then lint, types, layering and tests"
	@echo "make test-slow  set up, then the long tests that make test leaves out"
	@echo "make format     rewrite the code in the house style"
	@echo "make clean      remove the virtual environment and the demo's pictures"

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	@echo "Setting up the virtual environment .venv (a few minutes, once) ..."
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@echo "Training moons, swiss_roll, checker and digits in a short form into $(DEMO): under 5 minutes on two cores."
	$(BIN)/drifting train toy --dataset moons $(SHORT) --save-dir $(DEMO)/moons
	$(BIN)/drifting train toy --dataset swiss_roll $(SHORT) --save-dir $(DEMO)/swiss_roll
	$(BIN)/drifting train toy --dataset checker $(SHORT) --save-dir $(DEMO)/checker
	$(BIN)/drifting train digits --overwrite --save-dir $(DEMO)/digits
	$(BIN)/drifting sample $(DEMO)/digits --num-samples 100 --overwrite --out $(DEMO)/digits/grid.png
	@echo "Done. The pictures:"
	@ls $(DEMO)/*/*.png $(DEMO)/*/*.gif

# As many tests at a time as there are cores, each with one thread: two busy threads of two processes wait for each other.
test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist worksteal

# What is long and covered in a shorter form by `make test`: whole runs of several processes, every preset, compiled runs.
test-slow: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'slow and not gpu and not network' -n auto --dist worksteal

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
