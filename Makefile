# Each target sets up what it needs; a second call sets up nothing. docs/development.md says more.
PORT ?= 3000
MINUTES ?= 10
ANSWERS ?= 1000000
SEED ?= 1
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: install demo run test check lint types soak faults fuzz bench lock clean

install: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install
	$(BIN)/crypto-pipeline up --demo --port $(PORT)

run: install
	$(BIN)/crypto-pipeline up --port $(PORT)

test: install
	$(BIN)/pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: install
	$(BIN)/mypy

check: lint types test
	$(BIN)/crypto-pipeline exec -- dagster definitions validate

soak: install
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.minute --minutes $(MINUTES)

faults: install
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.soak --minutes $(MINUTES) --seed $(SEED)

# Figures of each as JSON in build/bench. Forty minutes; docs/performance.md says what they mean.
# FREQTRADE=path/to/freqtrade (in an environment of its own) runs it beside ours.
bench: install
	mkdir -p build/bench
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.backfill --naive $(if $(FREQTRADE),--freqtrade $(FREQTRADE)) \
		--json build/bench/backfill.json
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.backfill --paced --json build/bench/paced.json
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.backfill --growth --days 8 --json build/bench/growth.json
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.store --million 50 --json build/bench/store.json
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.budget --seconds 20 --json build/bench/budget.json
	for symbols in 10 40 160; do \
		$(BIN)/python -m crypto_pipeline_tests.benchmarks.minute --minutes 3 --symbols $$symbols \
			--json build/bench/minute$$symbols.json || exit 1; \
	done

fuzz: install
	$(BIN)/python -m crypto_pipeline_tests.benchmarks.fuzz --answers $(ANSWERS) --seed $(SEED)

# Needs uv; every other target installs what this wrote.
lock:
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-header --quiet --output-file requirements.lock

clean:
	rm -rf .venv .crypto_pipeline build dist *.egg-info
