# The commands of this project; each makes what it needs first. See the README.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := $(CURDIR)/.demo
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
DEMO_ENV := DAGSTER_HOME=$${DAGSTER_HOME:-$(DEMO)/dagster} RAG_LAKE_URI=$${RAG_LAKE_URI:-$(DEMO)/lake} \
  RAG_SOURCE_URI=$${RAG_SOURCE_URI:-$(CURDIR)/examples/corpus}

.PHONY: demo dev ask test test-lowest test-newest lint check-definitions servers docs reference lock audit release-check clean

demo: $(VENV)/.run  ## index the sample corpus and ask it some questions
	@$(BIN)/python examples/demo.py

dev: $(VENV)/.run  ## the Dagster UI and daemon on what the demo indexed (or on your RAG_* settings)
	@$(BIN)/rag-assets init $(DEMO)/dagster > /dev/null
	@$(DEMO_ENV) $(BIN)/dg dev --host 127.0.0.1 --port $${PORT:-3000}

ask: $(VENV)/.run  ## make ask Q='…'
	@$(DEMO_ENV) $(BIN)/rag-serving ask "$(Q)"

# One process more than there are cores: many tests wait for other processes. The bytecode of the project is kept, for
# those other processes would compile all of it at each start.
test: $(VENV)/.dev  ## everything that must hold
	@$(MAKE) --no-print-directory -j3 servers lint check-definitions
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses $$(($$($(BIN)/python -c 'import os; print(os.cpu_count())') + 1)) \
	  --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/lint-imports

check-definitions: $(VENV)/.dev
	@$(BIN)/dg check toml
	@RAG_SOURCE_URI=examples/corpus $(BIN)/dg check defs
	@RAG_SOURCE_URI=examples/corpus $(BIN)/python -W ignore -m dagster definitions validate -w workspace.yaml

servers: $(VENV)/.dev  ## the Redis, S3 and Kafka servers that the tests start on loopback, the browser and Helm
	@$(BIN)/python -m tests.servers install .servers

reference: $(VENV)/.dev  ## write the generated pages of docs/reference
	@$(BIN)/python docs/generate_reference.py

docs: $(VENV)/.dev  ## build the documentation site, with search, into build/docs
	@$(BIN)/sphinx-build --fail-on-warning --quiet docs build/docs && echo built build/docs/index.html

# Torch is left out of the constraints: which of its builds to take is the user's choice.
CONSTRAINED := assets celery client http k8s kafka llm mcp otel pandas postgres serving ui
lock: $(VENV)/.dev  ## pin what is installed now, for development and, with hashes, for users
	@echo '# The development environment, pinned by make lock; constraints.txt is for users.' > requirements/dev.lock
	@$(PIP) freeze --exclude-editable | sed -e 's/+cpu$$//' -e '/^rag-shards/d' >> requirements/dev.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	  --constraint requirements/dev.lock $(CONSTRAINED:%=--extra %) pyproject.toml --output-file requirements/constraints.txt
	@echo pinned requirements/dev.lock and requirements/constraints.txt

audit: $(VENV)/.dev  ## look up the constraints in a database of vulnerabilities (needs the network)
	@test -x $(VENV)-audit/bin/pip-audit || ($(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet pip-audit)
	@$(VENV)-audit/bin/pip-audit --require-hashes --disable-pip --requirement requirements/constraints.txt

release-check: $(VENV)/.dev  ## build the release and try every extra from the wheel alone
	@$(BIN)/python -m tests.release_check

test-lowest test-newest: test-%: $(VENV)/.dev  ## the tests at the lowest or newest versions that pyproject.toml allows
	@$(BIN)/python -m tests.bounds $* $(PYTEST_ARGS)

$(VENV)/.run: pyproject.toml requirements/dev.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (a minute or two the first time)"
	@$(PIP) install --constraint requirements/dev.lock --editable '.[assets,serving,ui]'
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	@$(PIP) install --constraint requirements/dev.lock --editable '.[dev]'
	@touch $@

clean:  ## remove the environment, the demo and the test servers
	rm -rf $(VENV) .venv-* .demo .servers
