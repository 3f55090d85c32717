# `make perf` and `make test` do all the set-up themselves: the plugin's environment in .venv, and the engine
# environment (vLLM, LMCache, router, S3 server) in the user's cache folder, once for each lock.

PYTHON ?= python3
VENV := .venv
# The most boots of a tier that `make perf` takes.
BOOTS ?= 1
BIN := $(VENV)/bin
WORKFLOWS = $(wildcard .github/workflows/*.yml docs/ci/github*.yml)
# The plugin with all that `make perf` needs, and that with what tests, benchmarks and linters need.
INSTALLED := $(VENV)/.installed
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help perf article test unit sessions engine-test versions faults docker-test ray-test attach-test pnfs-lab pnfs-lab-wrong pnfs-lab-netem pnfs-lab-slow pnfs-lab-perf pnfs-lab-test bench report-test footprint power docs lint workflows format setup clean
.DELETE_ON_ERROR:

help: ## Print these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

perf: setup ## One boot of every tier that this machine has (BOOTS=6: six), for baselines that need more; compare with the others
	$(BIN)/pytest -m perf --record-baselines --kv-boots $(BOOTS) --benchmark-disable tests/perf

article: setup ## The article's four scenarios at three context lengths, one boot each: its chart and its table (PNFS=lab: with the pNFS lab)
ifeq ($(PNFS),lab)
	$(BIN)/python -m lab.pnfs.perf --target article --memory-mib 6144
else
	$(BIN)/pytest -m perf --kv-profile cpu-article --kv-boots 1 --record-baselines --benchmark-disable tests/perf
endif

# Sessions of stubs wait as much as they compute: more than twice as many workers as processors keep those busy.
WORKERS = -n $$(($$(getconf _NPROCESSORS_ONLN) * 2 + 1)) --maxprocesses 16 --dist worksteal --durations=10

test: $(READY) setup ## Unit tests, sessions on stubs but the long ones, and tests that share one real pair (18 minutes at most)
	$(BIN)/pytest $(WORKERS) -m "not long" tests/sessions tests/unit
	$(BIN)/pytest -n 2 --dist loadfile --durations=10 -m "not long" tests/integration

unit: $(READY) ## The unit tests alone (four minutes at most, on two idle processors)
	$(BIN)/pytest -n logical --maxprocesses 16 --dist worksteal --durations=10 tests/unit

sessions: $(READY) ## Whole sessions of pytest with the plugin, and of its commands, on stubs, the long ones too (ten minutes)
	$(BIN)/pytest $(WORKERS) tests/sessions

engine-test: $(READY) setup ## What the probes of a boot show on each tier of the real engine, in both modes (about a quarter of an hour)
	$(BIN)/pytest tests/engine --ignore=tests/engine/test_versions.py
	$(BIN)/pytest -m long tests/integration

versions: $(READY) setup ## Real pairs of older versions of vLLM and LMCache, and one that is refused (half an hour, 10 GB)
	$(BIN)/pytest tests/engine/test_versions.py

faults: $(READY) setup ## Every fault on the real engine: none may pass, each is named (about 40 minutes)
	$(BIN)/pytest tests/faults

docker-test: $(READY) setup ## A real pair in containers (needs a Docker daemon and debootstrap; a quarter of an hour)
	$(BIN)/pytest tests/docker

ray-test: $(READY) setup ## Sessions over three machines with Ray, made of network namespaces, the last of them real (needs root; 25 minutes)
	$(PIP) -e '.[ray]'
	$(BIN)/pytest tests/ray

attach-test: $(READY) setup ## A real pair that the test boots by itself, attached to, with a second client beside it (five minutes)
	$(BIN)/pytest tests/attach

pnfs-lab: $(READY) ## A real pNFS-over-RDMA mount in a guest, proved by the doctor (root; a quarter of an hour once, then a minute)
	$(BIN)/python -m lab.pnfs doctor

pnfs-lab-wrong: $(READY) ## Every wrong mount, arranged in that guest: each is refused or invalid for its own reason (five minutes)
	$(BIN)/python -m lab.pnfs wrong

pnfs-lab-perf: $(READY) setup ## The perf tests on that guest: LMCache on its mount, vLLM beside it (five minutes), or in there too (MODE=in-process: eight)
ifeq ($(MODE),in-process)
	$(BIN)/python -m lab.pnfs.perf --target inside --memory-mib 8192 --max-map-count 4000000
else
	$(BIN)/python -m lab.pnfs.perf --target perf
endif

pnfs-lab-test: $(READY) setup ## A short session on that guest, whose account must hold to the byte (root; ten minutes)
	$(BIN)/pytest tests/lab

pnfs-lab-netem: $(READY) setup ## What delay, loss and a slow link in that guest make of `doctor --bench` (ten minutes)
	$(BIN)/python -m lab.pnfs netem

pnfs-lab-slow: $(READY) setup ## Sessions on links with delay, loss and a low rate: the exact gate must not change (a quarter of an hour)
	$(BIN)/python -m lab.pnfs.slow

bench: $(READY) ## The client's own errors, beside other clients (needs a C compiler; ten minutes)
	$(PIP) -e '.[bench]'
	$(BIN)/python -m benchmarks.client.run
	$(BIN)/python -m benchmarks.client.scale
	$(BIN)/python -m benchmarks.trace_start

report-test: $(READY) ## The HTML report in headless Chromium; skips where there is none (RUN=FOLDER: of a real run)
	$(PIP) -e '.[browser]'
	KVCACHE_REPORT_RUN='$(abspath $(RUN))' $(BIN)/pytest tests/browser

footprint: $(READY) ## What the plugin costs suites that do not use it, and what weighs how much on disk (five minutes)
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.install_size

power: $(READY) setup ## How often each kind of gate is wrong: simulated, then on the real engine (a day; goes on where it was stopped)
	$(BIN)/python -m benchmarks.power.simulate --sessions 20000
	$(BIN)/python -m benchmarks.power.exact
	$(BIN)/python -m benchmarks.power.two_steps
	$(BIN)/python -m benchmarks.power.nightly
	$(BIN)/python -m benchmarks.power.levers
	$(BIN)/python -m benchmarks.power.engine

docs: $(READY) ## The documentation as a site, in build/site; warnings are errors (half a minute)
	@$(BIN)/python -c 'import material' 2>/dev/null || $(PIP) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: $(READY) ## ruff, mypy (strict) and the layers of the packages
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

workflows: $(READY) ## actionlint (with shellcheck) and zizmor on workflows, action and CI examples (a minute at the first time)
	$(PIP) -e '.[workflows]'
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/actionlint $(WORKFLOWS)
	$(BIN)/zizmor --offline --no-progress --quiet $(WORKFLOWS) action.yml

format: $(READY) ## Format, and mend what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

setup: $(INSTALLED) ## The engine environment alone, once for each lock
	$(BIN)/pytest-kvcache setup

# pip compiles on one processor, and that of CPython 3.11 takes twice as long for the rest.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check
INSTALL = $(PIP) --no-compile
COMPILE = @$(BIN)/python -m compileall -qq -j 0 -x '/(tests?|pip)/' $(VENV)/lib || true

# Both are made anew when pyproject.toml changes.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "needs CPython 3.11 or newer, found " + sys.version.split()[0] + ": make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade pip
	$(INSTALL) -e .
	$(COMPILE)
	@touch $(INSTALLED)

$(READY): $(INSTALLED)
	$(INSTALL) -e '.[dev]'
	$(COMPILE)
	@touch $(READY)

clean: ## Remove the plugin's environment (the engine's stays: `pytest-kvcache setup --path` says where)
	rm -rf $(VENV) build dist
