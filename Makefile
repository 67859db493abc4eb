# Needs make and Python 3.11 or newer. Everything else goes into .venv, which the first target that needs it builds.
.DEFAULT_GOAL := help
.PHONY: help venv serve demo test lint format bench prove compat lock clean

VENV ?= .venv
PYTHON ?=
# More than cores: many tests wait for real printers, processes and servers.
WORKERS ?= 4
PYTHONS := python3.13 python3.12 python3.11 python3
PY := $(VENV)/bin/python
# Tried on SQLite alone: what takes long and asks of the database no more than others do, who try it on both.
ON_SQLITE_ALONE := schemathesis or every_query or misbehaviours or link_faults or test_walk or cloud_links or cloud_accounts \
	or printer_actions or discovered or test_live or test_tasks or slips or weather or advice or plate_facts or hostile \
	or change_profile or change_print or every_route or round_trip or change_of_clocks or inside_auth or flag_of_its_own \
	or answers_nonsense or status_word or interlock_that_does_not_hold or has_not_signed or points_to_no_order
# Some machines switch the cache of compiled modules off: each of the hundred processes and more that a run of tests
# starts would compile the product anew.
unexport PYTHONDONTWRITEBYTECODE
# The last thing written, so that an installation that broke off is not taken for a whole one.
STAMP := $(VENV)/.installed

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' Makefile

venv: $(STAMP) ## Build .venv from the locks (PYTHON=... picks the interpreter)

# A name on the PATH proves nothing: version managers leave names behind that do not run, and Debian's python3 comes
# without ensurepip.
$(STAMP): requirements.txt requirements-dev.txt
	@for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)) ""; do \
		if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then break; fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo "No usable Python among: $(if $(PYTHON),$(PYTHON),$(PYTHONS)). It takes 3.11 or newer with venv and ensurepip" \
			"(Debian and Ubuntu: apt install python3-venv). To name another: make venv PYTHON=/path/to/python" >&2; \
		exit 1; \
	fi; \
	echo "Building $(VENV) with $$("$$python" --version)"; \
	"$$python" -m venv --clear $(VENV)
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-compile --require-hashes -r requirements-dev.txt
	@# All at once and on every core; a few packages carry files that are no valid Python, hence "or true".
	@$(PY) -m compileall -qq -j 0 $(VENV)/lib || true
	@touch $@

serve: $(STAMP) ## Run the whole farm in one process for development, on http://127.0.0.1:5000
	FLASK_ENV=development AUTO_DB_CREATE=1 $(PY) app.py

demo: $(STAMP) ## An Etsy order is printed and shipped, simulated (ONCE=1 ends after one round)
	$(PY) demo.py $(if $(filter-out 0,$(ONCE)),--once)

test: $(STAMP) ## All tests on SQLite, then those of the database on PostgreSQL (TEST_DATABASE_URL=... or its own)
	$(PY) -m pytest -n $(WORKERS) --dist worksteal
	$(PY) -m pytest -n $(WORKERS) --dist worksteal --postgresql -m "database and not prove" -k "not ($(ON_SQLITE_ALONE))"

lint: $(STAMP) ## Check style, format and types, and that every test can be collected
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	@# Beside mypy, which uses one core; what it compiles is compiled for `make test`.
	@$(PY) -m pytest --collect-only -qq >/dev/null & collected=$$!; $(PY) -m mypy && \
		{ wait $$collected || $(PY) -m pytest --collect-only -q; }

format: $(STAMP) ## Put style and format right where a program can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(STAMP) ## Measure, and print the numbers
	$(PY) -m bench

prove: $(STAMP) ## The long forms of the promises: thousands of cases, kills and restarts
	$(PY) -m pytest -m prove -o faulthandler_timeout=3600
	$(PY) -m pytest --postgresql -m "prove and database" -o faulthandler_timeout=3600

compat: $(STAMP) ## Let other people's programs talk to the simulator (from PyPI, in a .venv-compat of their own)
	test -x .venv-compat/bin/python || $(PY) -m venv .venv-compat
	.venv-compat/bin/python -m pip install --quiet --disable-pip-version-check -r tests/compat/requirements.txt
	COMPAT_PYTHON=$(abspath .venv-compat/bin/python) $(PY) -m pytest -m compat tests/compat

lock: $(STAMP) ## Pin requirements*.in with hashes (UPGRADE=1 takes the newest)
	$(PY) -m pip install --quiet --disable-pip-version-check uv
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
		requirements.in -o requirements.txt
	$(PY) -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--custom-compile-command "make lock" $(if $(UPGRADE),--upgrade) \
		requirements.in requirements-dev.in -o requirements-dev.txt

clean: ## Remove .venv and all caches; data and secrets in instance/ stay
	rm -rf $(VENV) .venv-compat .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
