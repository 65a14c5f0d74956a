# The front door.  Every target does its own set-up: nothing has to be installed by hand.
#
# An environment is made in .venv with $(PYTHON); one stamp file per set of packages says what is in it, so that
# nothing is installed twice, and a change of pyproject.toml installs again.

PYTHON ?= python3
TESTARGS ?=
BENCHARGS ?=
CHAOSARGS ?=
DEMOARGS ?=
FUZZARGS ?=
STRESSARGS ?=

# For install, uninstall and deb; the scripts in packaging/ have the defaults.
export PREFIX DESTDIR SYSTEM_SITE DEB_PYTHON

BIN := .venv/bin
RUN := $(BIN)/python

# A stamp says nothing any more when the interpreter it was made with is gone.
$(shell test -x $(RUN) || rm -f .venv/.stamp-*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test chaos stress test-systemd fuzz lint format types bench wheel man install uninstall deb clean

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  Python 3.11 or newer, on Linux.  Another interpreter: make test PYTHON=python3.13 (after make clean)'
	@echo '  Some tests only: make test TESTARGS="tests/core -k merge"'

demo: .venv/.stamp-demo ## Run the example pipeline: capture, filter, encode as three processes.
	@$(RUN) -m examples.pipeline $(DEMOARGS)

test: .venv/.stamp-test ## Run the tests on all cores.
	@$(BIN)/pytest -n logical $(TESTARGS)

fuzz: .venv/.stamp-test ## Give the broker a million wrong packets, some through its sockets (FUZZARGS="--inputs 5000 --live 500").
	@$(RUN) -m tests.fuzz $(FUZZARGS)

chaos: .venv/.stamp-test ## Kill the broker 10,000 times while everybody uses it, and see that nobody notices.
	@$(RUN) -m tests.chaos $(CHAOSARGS)

stress: .venv/.stamp-test ## Signal a million points through the ring while everybody waits, imports and asks (STRESSARGS="--rounds 20000").
	@$(RUN) -m tests.stress $(STRESSARGS)

lint: .venv/.stamp-lint ## Check the style of the code.
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: .venv/.stamp-lint ## Rewrite the code in the project's style.
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: .venv/.stamp-lint ## Check the types.
	@$(BIN)/mypy

bench: .venv/.stamp-bench ## Measure latency and rates side by side with the alternatives.
	@$(RUN) -m benchmarks --docs docs/performance.md --json build/benchmarks.json $(BENCHARGS)

wheel: .venv/.stamp-test ## Build sdist and wheel into dist/.
	@$(RUN) -m build --no-isolation

man: .venv/.stamp-install ## Build the manual pages into build/man/.
	@$(RUN) -m docs --man build/man

# The manual says where: PREFIX=/usr/local, DESTDIR=, PYTHON= for the interpreter that runs the programs, SYSTEM_SITE=yes for its packages.
install: .venv/.stamp-install ## Install the broker as a system service, in an environment of its own below PREFIX.
	@PYTHON='$(PYTHON)' RUN='$(RUN)' packaging/install.sh

uninstall: ## Remove what make install put there.
	@packaging/uninstall.sh

deb: .venv/.stamp-install ## Build a Debian package into dist/.
	@RUN='$(RUN)' packaging/deb.sh

test-systemd: .venv/.stamp-install ## Test package, units and installation under a real systemd (root, Debian).
	@RUN='$(RUN)' TESTARGS='$(TESTARGS)' tests/systemd/run.sh

clean: ## Remove the environment and everything built.
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find fencebroker daemon docs tests examples benchmarks .ci -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# The checks come before the environment, so that a wrong interpreter gets one clear line and leaves nothing behind.
# --clear: this rule runs only when there is no working interpreter in .venv.
$(RUN):
	@$(PYTHON) -c pass 2>/dev/null || { echo 'fencebroker: "$(PYTHON)" is not there or does not run; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) and sys.platform.startswith("linux") else "fencebroker: needs Python 3.11 or newer on Linux, and $(PYTHON) is Python %d.%d on %s; name another one: make PYTHON=python3.11" % (v[0], v[1], sys.platform))'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'fencebroker: $(PYTHON) has no venv module; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@$(PYTHON) -m venv --clear .venv

.venv/.stamp-%: pyproject.toml | $(RUN)
	@echo 'installing fencebroker[$*] into .venv'
	@$(RUN) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
