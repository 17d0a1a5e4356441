# `make serve` and `make test` need Python 3.11 or later and nothing else; both set `.venv` up first.
PYTHON ?= python3
BIN := .venv/bin
UV := $(BIN)/uv
INSTALLED := .venv/.installed
PEER_INSTALLED := .venv-peer/.installed
STUBS_INSTALLED := .venv-stubs/.installed

.PHONY: install serve demo test test-waiting test-rest test-fast faults bench lint format generate check-generated tools browser interop interop-build dist lock clean

install: $(INSTALLED)

# uv is bootstrapped by pip, hash-checked like everything else, and does the rest in seconds. Modules are compiled here:
# where they cannot be written later, every command would take several times as long to start.
$(INSTALLED): pyproject.toml requirements-dev.lock requirements-uv.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Leadkeep needs Python 3.11 or later; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv || \
	  { echo "This Python has no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements-dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q service generated
	@touch $@

serve: install
	@$(BIN)/leadkeep serve

demo: install
	@$(BIN)/python examples/demo.py

# What mostly waits (for outages, stops and restarts of real services) runs beside the rest, which computes. What
# measures, or holds the service to its deadlines, runs after both and alone. With PYTEST_ARGS only what they name runs.
WAITING := $(addprefix tests/faults/test_,access_kill.py database_cannot_write.py database_outage.py database_refuses.py \
  embedded_outage.py full_spool_disk.py key_rotation.py kill.py other_spools.py poolers.py refused_connections.py \
  repeats_in_an_outage.py sentinel.py standby_away.py start_without_database.py stop.py stop_under_load.py strangers.py \
  superseded_primary.py synchronous_standby.py task_death.py wrong_clocks.py) tests/interop \
  $(addprefix tests/storage/,database postgres test_frozen_server.py) \
  $(addprefix tests/cli/test_,backup.py superseded_server.py)
MEASURING := $(addprefix tests/,faults/test_chaos_short.py faults/test_daily_file_kill.py http/test_conformance.py test_footprint.py)
# Else every worker of every run rewrites the assertions of all modules.
PYTEST := PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest
test: install
ifdef PYTEST_ARGS
	@$(PYTEST) $(PYTEST_ARGS)
else
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=line test-waiting test-rest
	@$(PYTEST) $(MEASURING)
endif

test-waiting:
	@tests/side_by_side waiting $(WAITING)

test-rest:
	@tests/side_by_side rest $(addprefix --ignore=,$(WAITING) $(MEASURING))

# What a change is tried with: nothing that starts the service, or many servers of PostgreSQL.
test-fast: install
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder -r f --fast --ignore=tests/faults --ignore=tests/interop --ignore=tests/storage/postgres/test_embedded.py

# Races, kills and freezes the service and PostgreSQL, and makes it refuse, for about an hour, and writes docs/faults.md and docs/faults.svg.
# Before that strangers besiege it for forty minutes, and calls come at three times the capacity.
faults: install
	@FAULTS=whole $(PYTEST) $(addprefix tests/faults/test_,kill.py daily_file_kill.py one_person_many_submissions.py \
	  database_refuses.py poolers.py races.py refused_connections.py stop_under_load.py wrong_clocks.py) \
	  tests/clients/test_generated_clients.py tests/rpc/tokens/test_token_rules.py
	@$(BIN)/python -m tests.faults.strangers
	@$(BIN)/python -m tests.faults.overload
	@$(BIN)/python -m tests.faults.malformed_http
	@$(BIN)/python -m tests.faults.chaos $(FAULTS_ARGS)

# Never part of a test run: it takes an hour and a half, and only its ratios mean anything. `BENCH_ARGS` go to it.
bench: install $(PEER_INSTALLED)
	@$(BIN)/python -m bench $(BENCH_ARGS)

# What Leadkeep is measured beside runs in an environment of its own.
$(PEER_INSTALLED): requirements-peer.lock $(INSTALLED)
	@$(PYTHON) -m venv --clear --without-pip .venv-peer
	@$(UV) pip sync --quiet --require-hashes --python .venv-peer/bin/python requirements-peer.lock
	@touch $@

lint: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/buf lint
	@$(BIN)/buf format --diff --exit-code
	@$(BIN)/buf breaking --against protos/released.binpb

format: install
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write

generate: $(STUBS_INSTALLED)
	@.venv-stubs/bin/python -m grpc_tools.protoc --proto_path=protos --python_out=generated --pyi_out=generated \
	  --grpc_python_out=generated protos/leadkeep/v1/*.proto
	@$(BIN)/python -m clients.policy.generate
	@$(BIN)/python -m clients.openapi.generate

# Stubs refuse an older gRPC and protobuf than those that made them. So they are made with the oldest that callers may have.
$(STUBS_INSTALLED): requirements-stubs.lock $(INSTALLED)
	@UV_PYTHON_DOWNLOADS=never $(UV) venv --quiet --clear --python 3.11 .venv-stubs || \
	  { echo "The stubs are made with Python 3.11: the grpcio-tools that makes them has no later wheel" >&2; exit 1; }
	@$(UV) pip sync --quiet --require-hashes --python .venv-stubs/bin/python requirements-stubs.lock
	@touch $@

# Stubs, reasons and OpenAPI are committed so that nobody needs our tools to use them; this catches what moved without them.
GENERATED := generated clients/policy/reasons.json service/http/openapi.json
check-generated: generate
	@git diff --exit-code -- $(GENERATED) || { echo "stale: run 'make generate' and commit it" >&2; exit 1; }
	@test -z "$$(git status --porcelain -- $(GENERATED))" || { git status --short -- $(GENERATED) >&2; exit 1; }

# Compilers and callers of other languages, and what OpenAPI is tried with. Tests that need them are skipped without.
TOOLS := $(CURDIR)/.venv-tools
LANGUAGES := tests/contract/languages
tools: $(TOOLS)/.installed
$(TOOLS)/.installed: $(wildcard $(LANGUAGES)/*) requirements-tools.lock $(INSTALLED)
	@mkdir -p $(TOOLS)
	@$(PYTHON) -m venv --clear --without-pip $(TOOLS)/python
	@$(UV) pip sync --quiet --require-hashes --python $(TOOLS)/python/bin/python requirements-tools.lock
	@cd $(LANGUAGES) && GOBIN=$(TOOLS)/bin go install tool && rm -rf $(TOOLS)/conformance && \
	  cp -r --no-preserve=mode "$$(go list -m -f '{{.Dir}}' connectrpc.com/conformance)/proto" $(TOOLS)/conformance
	@cp $(LANGUAGES)/package.json $(LANGUAGES)/package-lock.json $(TOOLS) && npm ci --silent --no-audit --no-fund --prefix $(TOOLS)
	@mvn --quiet --batch-mode --file $(LANGUAGES)/pom.xml dependency:copy -Dtools=$(TOOLS)
	@chmod +x $(TOOLS)/protoc-*/protoc $(TOOLS)/bin/*
	@for jar in $(TOOLS)/protoc-*/*.jar; do $(PYTHON) -m zipfile -e $$jar $$(dirname $$jar); done # google/protobuf/*.proto
	@touch $@

# The page of examples/browser. Tests open it in Chromium where there is one, and are skipped without.
PAGE := examples/browser
browser: $(PAGE)/dist/page.js
$(PAGE)/dist/page.js: $(addprefix $(PAGE)/,package-lock.json buf.gen.yaml tsconfig.json) $(wildcard $(PAGE)/src/*.ts) \
  $(wildcard protos/leadkeep/v1/*.proto) clients/policy/reasons.json
	@npm ci --silent --no-audit --no-fund --prefix $(PAGE)
	@npm run --silent build --prefix $(PAGE)

# The examples of clients, built as their README says and driven through restarts, refused connections and outages.
interop: interop-build browser
	@FAULTS=whole $(PYTEST) -rA tests/interop tests/clients/test_browser.py

interop-build: tools
	@$(BIN)/python -m tests.interop.build

# What a release consists of: the wheel, the contract as files to generate clients from, with the policy of clients, as
# a descriptor set (with google/rpc for the details of errors), for tools that read no reflection and no files, and as an
# OpenAPI document.
VERSION = $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
DIST := dist
dist: install
	@rm -rf $(DIST) && mkdir $(DIST)
	@$(UV) build --quiet --wheel --out-dir $(DIST) --require-hashes --build-constraints requirements-dev.lock
	@tar -czf $(DIST)/leadkeep-protos-$(VERSION).tar.gz protos/leadkeep third_party/googleapis clients/policy/*.json
	@$(BIN)/python -m grpc_tools.protoc --proto_path=protos --proto_path=third_party/googleapis --include_imports \
	  --include_source_info --descriptor_set_out=$(DIST)/leadkeep-$(VERSION).binpb \
	  protos/leadkeep/v1/*.proto third_party/googleapis/google/rpc/*.proto
	@cp service/http/openapi.json $(DIST)/leadkeep-$(VERSION).openapi.json

# Versions and hashes only: no registry's address belongs in a lock.
COMPILE = $(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header
lock: install
	@$(COMPILE) pyproject.toml --output-file requirements.lock
	@$(COMPILE) pyproject.toml --group dev --constraint requirements.lock --output-file requirements-dev.lock
	@$(COMPILE) --group peer --constraint requirements.lock --output-file requirements-peer.lock
	@$(COMPILE) --group stubs --output-file requirements-stubs.lock
	@$(COMPILE) examples/python/requirements.in --constraint requirements-dev.lock --output-file examples/python/requirements.txt
	@$(COMPILE) --group tools --output-file requirements-tools.lock
	@grep '^uv==' requirements-dev.lock | cut -d' ' -f1 | $(COMPILE) - --output-file requirements-uv.lock

clean:
	@rm -rf .venv .venv-peer .venv-stubs .venv-tools .venv-interop .pytest_cache .mypy_cache .ruff_cache $(addprefix $(PAGE)/,node_modules dist src/gen)
