# Two commands set everything up on a fresh machine with Python 3.11: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= build/demo

.PHONY: demo test lint bench-smoke clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py --work $(DEMO_DIR)

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

bench-smoke: $(VENV)/.bench
	$(BIN)/python bench/bench_cpu.py --smoke

# One stamp per set of extras; a change of the project's files installs again.
$(VENV)/.demo: EXTRAS := demo
$(VENV)/.dev: EXTRAS := demo,dev
$(VENV)/.bench: EXTRAS := demo,bench
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
