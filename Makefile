# Two commands set everything up on a fresh machine with Python 3.11: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_DIR ?= build/demo

.PHONY: demo test lint types browser install bench-smoke smoke-cpu smoke-cost smoke-tune gpu-check clean

demo: $(VENV)/.demo
	$(BIN)/python scripts/demo.py --work $(DEMO_DIR)

test: lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/python -m mypy

# The tests of report.html open it in Chromium, and are skipped where there is none.
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		export DEBIAN_FRONTEND=noninteractive; \
		(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core) > /dev/null 2>&1 \
			|| echo "Chromium could not be installed: the browser tests are skipped"; \
	else echo "there is no Chromium, and only root can install it: the browser tests are skipped"; fi

# All that tests and smoke runs need; pip writes to the environment once at a time.
install: $(VENV)/.dev $(VENV)/.bench

bench-smoke: smoke-cost smoke-cpu smoke-tune

# Side by side, threads that wait for work would take it from each other.
smoke-cost smoke-cpu smoke-tune: export OMP_NUM_THREADS = 1

smoke-cost: $(VENV)/.bench
	$(BIN)/python bench/bench_cost.py --smoke

smoke-cpu: $(VENV)/.bench
	$(BIN)/python bench/bench_cpu.py --smoke

smoke-tune: $(VENV)/.bench
	$(BIN)/python bench/bench_tune.py --smoke

# On a machine with a GPU, with the Python that has torch with CUDA: make gpu-check BIN=$$(dirname $$(which python)).
gpu-check:
	$(BIN)/python bench/gpu_check.py

# One stamp per set of extras; a change of the project's files installs again.
$(VENV)/.demo: EXTRAS := demo
$(VENV)/.dev: EXTRAS := demo,dev
$(VENV)/.bench: EXTRAS := demo,bench,tune
# Python compiles what it imports; all that pip installs takes most of its time.
$(VENV)/.%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e ".[$(EXTRAS)]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
