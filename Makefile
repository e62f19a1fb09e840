# `make demo` and `make test` install everything they need; `make help` lists all targets.
# STACK=modern (or petastorm, spark35), PYTHON=/path/to/python and VENV=folder override the choices of tools/setup.sh.
VENV   ?= .venv
CONFIG ?= conf/bikeshare.yaml
ARGS   ?=
# A job with a section `search` searches, one with a section `grower` grows, one with a section `improver` improves.
has     = $(shell grep -l '^$(1):' "$(CONFIG)" 2>/dev/null)
JOB     = $(if $(call has,search),search,$(if $(call has,grower),grow,$(if $(call has,improver),improve,finetune)))

# All targets use the Spark and the Python of the environment, on this machine, whatever the shell's variables say.
unexport SPARK_HOME PYTHONPATH PYTHONHOME HADOOP_CONF_DIR YARN_CONF_DIR PYSPARK_SUBMIT_ARGS MASTER
# Without bytecode each of the hundreds of processes of the tests would compile torch and Spark again.
unexport PYTHONDONTWRITEBYTECODE
export VENV STACK PYTHON
export SPARK_CONF_DIR        := $(CURDIR)/conf
export PYSPARK_PYTHON        := $(abspath $(VENV))/bin/python
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
RUN = "$(VENV)/bin/python" -m
# Each process has one Spark session for all its files, takes up to 4 GB, and waits for its JVM half of the time: four keep two
# cores busy. PROCESSES=2 where memory is short.
PROCESSES ?= 4
TESTS = $(RUN) pytest -n $(PROCESSES) --dist loadfile
# Spark's own search for its home fails if the path contains a space.
FIND_SPARK = import importlib.util; print(importlib.util.find_spec('pyspark').submodule_search_locations[0])

# The folders with Python that are the project's: what else lies in the checkout is its owner's.
CODE = benchmarks conf examples jobs notebooks sparkdiff tests tools

.PHONY: help demo test unit quick pytest faults bench gallery lint format site picture setup clean distclean

help:                   ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' Makefile

demo:                   ## fine-tune the bike-sharing pipeline (CONFIG=conf/digits.yaml, ARGS="fineTuner.maxEpochs=50"), search or grow
	@bash tools/setup.sh java demo
	@SPARK_HOME="$$("$(VENV)/bin/python" -c "$(FIND_SPARK)")" "$(VENV)/bin/spark-submit" jobs/$(JOB).py --config "$(CONFIG)" $(ARGS)

test: lint              ## lint, then all tests but the nightly ones: half an hour to an hour on two cores
	@bash tools/setup.sh java dev
	$(TESTS) $(ARGS)

unit:                   ## the tests without Spark: a minute
	@bash tools/setup.sh dev
	$(TESTS) tests/unit $(ARGS)

quick:                  ## the tests without Spark, every stage against Spark, and the Estimator, without the slow ones: five minutes
	@bash tools/setup.sh java dev
	$(TESTS) -m "not slow" tests/unit tests/laws tests/parity tests/api/test_estimator.py $(ARGS)

pytest:                 ## chosen tests in one process, without lint (ARGS="tests/laws -x")
	@bash tools/setup.sh java dev
	$(RUN) pytest $(ARGS)

faults:                 ## kill and stall training processes, each fault 3 times; writes docs/measured/reliability.md
	@bash tools/setup.sh java dev
	"$(VENV)/bin/python" benchmarks/faults.py --runs 3 --write docs/measured/reliability.md $(ARGS)

bench:                  ## all benchmarks, some hours: a table with date, machine and versions in runs/bench (ARGS=--smoke: minutes)
	@bash tools/setup.sh java dev
	"$(VENV)/bin/python" benchmarks/run_all.py $(ARGS)

lint: setup             ## ruff (rules and format) and mypy
	$(RUN) ruff check $(CODE)
	$(RUN) ruff format --check $(CODE)
	$(RUN) mypy

format: setup           ## format the code with ruff, and apply its fixes
	$(RUN) ruff check --fix --exit-zero --quiet $(CODE)
	$(RUN) ruff format $(CODE)

gallery:                ## run the five jobs of examples/, and write docs/gallery.md with their reports: a quarter of an hour (ARGS=digits: one)
	@bash tools/setup.sh java dev
	"$(VENV)/bin/python" examples/run.py $(ARGS)

docs/gallery.md:
	@$(MAKE) --no-print-directory gallery

site: docs/gallery.md   ## build the documentation as a site in site/; warnings are errors (the first time with the gallery)
	@bash tools/setup.sh dev
	@bash tools/site.sh

picture: demo           ## draw docs/report.png, the picture of the demo's report in README, by Chromium
	"$(VENV)/bin/python" tools/picture.py runs/bikeshare docs/report.png

setup:                  ## install the environment for developers
	@bash tools/setup.sh dev

clean:                  ## delete caches and Spark's temporary files; runs/ holds models and stays
	rm -rf .pytest_cache .ruff_cache .mypy_cache .hypothesis build dist site *.egg-info spark-warehouse metastore_db derby.log
	find . -name __pycache__ -type d -not -path "./.venv*" -prune -exec rm -rf {} +

distclean: clean        ## delete the environment too
	rm -rf "$(VENV)"
