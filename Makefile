# Everything a newcomer or contributor types. Each target sets up .venv first when it has to.
#
#   make serve              the service on http://127.0.0.1:8000, with the embedded model
#   make test               the tests           (make test ARGS="-k trajectory")
#   make demo               a training cycle under load, before and after, with a report: 20 minutes
#   make check              format, lint, types, import rules, and the files of deploy/
#   make test-rewards       our scores against the real packages, which it installs; long
#   make bench              whether sampler and learner are as fast as they were
#
# PYTHON=/path/to/python chooses the interpreter for the virtual environment (3.11 or newer).

.DEFAULT_GOAL := help
.PHONY: help install serve test demo test-rewards check format bench clean

VENV   := .venv
PY     := $(VENV)/bin/python
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
ARGS   ?=
PYTHON ?=

# The stamp is named after what was installed: the part of pyproject.toml that concerns installing,
# the pinned versions, and the place of the folder. While it exists, nothing is installed again.
INPUTS := $(shell { sed '/^\# Tools/,$$d' pyproject.toml; cat constraints.txt; pwd; } | cksum | cut -d' ' -f1)
STAMP  := $(VENV)/.installed-$(INPUTS)
# Left behind by an installation that did not finish: the next one lays every package anew.
BEGUN  := $(VENV)/.begun

help:
	@sed -n 's/^#   //p' Makefile

install: $(STAMP)

$(STAMP):
	@set -e; \
	for candidate in $(if $(PYTHON),"$(PYTHON)",python3.12 python3.11 python3 python3.13 python3.14); do \
	  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	  then python=$$candidate; break; fi; \
	done; \
	if [ -z "$${python:-}" ]; then \
	  echo "make: no usable Python: 3.11 or newer with the venv module is needed." >&2; \
	  echo "      Install one (Debian and Ubuntu: apt-get install python3 python3-venv)," >&2; \
	  echo "      or name it: make PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then "$$python" -m venv --clear $(VENV); fi; \
	echo "Installing into $(VENV) ($$($(PY) -V)); the first time takes some minutes."; \
	again=; if [ -e $(BEGUN) ]; then again=--force-reinstall; fi; \
	touch $(BEGUN); \
	$(PIP) $$again hatchling; \
	$(PIP) $$again --no-build-isolation --editable '.[dev]'; \
	$(PY) -m pip check; \
	rm -f $(BEGUN) $(VENV)/.installed-*; \
	touch $@

# `exec` hands Ctrl-C and termination straight to the service.
serve: $(STAMP)
	@exec $(VENV)/bin/cogrpo serve $(ARGS)

test: $(STAMP)
	@$(PY) -m pytest $(ARGS)

# The report goes to demo/report.md.
demo: $(STAMP)
	@exec $(PY) -m demo $(ARGS)

# Environments of the packages go to .venv-rewards, or to COGRPO_TEST_ENVS.
test-rewards: $(STAMP)
	@$(PY) -m pytest -s -m slow tests/trainer/rewards/test_parity.py $(ARGS)

check: $(STAMP)
	@$(PY) -m ruff format --check
	@$(PY) -m ruff check
	@$(PY) -m mypy
	@$(VENV)/bin/lint-imports --no-logo
	@$(PY) deploy/check.py

format: $(STAMP)
	@$(PY) -m ruff format
	@$(PY) -m ruff check --fix

# Ratios of this version against the committed ones, with a tolerance: docs/performance.md.
bench: $(STAMP)
	@exec $(VENV)/bin/cogrpo bench check $(ARGS)

clean:
	rm -rf $(VENV) .venv-rewards dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
