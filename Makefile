# `make demo` and `make test` are all that a newcomer needs; each makes .venv from constraints.txt when it is missing.
PYTHON ?= python3
BIN := .venv/bin
WORKERS ?= 2

.PHONY: demo test slow faults corruption hostile fuzz divergence results tables docs docs-check lint lock clean

demo: .venv/.ready
	@$(BIN)/ebmtraj demo --out runs/demo --overwrite

test: .venv/.dev
	@$(BIN)/pytest -n $(WORKERS) -m "not slow"

slow: .venv/.dev
	@$(BIN)/pytest -m slow

faults: .venv/.dev
	@OMP_NUM_THREADS=1 $(BIN)/python benchmarks/faults.py --out docs/results/faults.json

results: demo
	@$(BIN)/python docs/make_tables.py --from runs/demo

# What is promised of damaged, foreign and random input, measured anew (docs/reliability.md): 25, 1, 5 and 2 minutes
corruption hostile divergence: .venv/.dev
	@$(BIN)/python benchmarks/$@.py --out docs/results/$@.json

fuzz: .venv/.dev
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[fuzz]"
	@$(BIN)/python benchmarks/fuzz.py --out docs/results/fuzz.json

tables: .venv/.ready
	@$(BIN)/python docs/make_tables.py
	@$(BIN)/python docs/make_cli.py

docs: .venv/.dev
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q && echo "build/site/index.html"

docs-check: .venv/.dev
	@$(BIN)/python docs/check_commands.py

lint: .venv/.dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python docs/make_tables.py --check
	@$(BIN)/python docs/make_cli.py --check

lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -q -e ".[dev]"
	.venv-lock/bin/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt
	rm -rf .venv-lock

clean:
	rm -rf .venv .venv-lock build *.egg-info .pytest_cache .mypy_cache .ruff_cache

.venv/.ready: pyproject.toml constraints.txt
	@echo "making .venv (once; a minute or two) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.ready
	@$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
