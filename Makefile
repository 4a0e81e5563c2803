# Everything runs in .venv, which the first target that needs it creates. Only python3 (>= 3.10), a C compiler and make are needed.
PYTHON ?= python3
BIN := .venv/bin
# The allocator settings keep large network buffers from being returned to the system and faulted in again at every frame.
FAST_MALLOC := MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

# What a robot runs, and the files that it leaves behind: tested with numpy 1.26, too, which ROS 2 Jazzy has.
ON_A_ROBOT := tests/ros tests/inference tests/mapping tests/bags tests/sources tests/network_input

.PHONY: help setup demo test test-numpy1 test-slow lint docs clean

help:
	@echo "make demo       set up, then the whole line: city, bag, player + node + evaluator over DDS, score, pictures"
	@echo "make test       set up, then the test suite"
	@echo "make test-numpy1  what runs on a robot, with numpy 1.26 (in .venv-numpy1)"
	@echo "make test-slow  the tests that take long, too"
	@echo "make lint       ruff, mypy, and who may import whom"
	@echo "make docs       the pages as a site with the API, every link checked: build/docs/index.html"
	@echo "make clean      remove .venv and runs/"

setup: .venv/ready

# $(call make_venv,folder,constraints). nuscenes-devkit is another reader in tests. Its metadata refuses numpy 2, with which it works: so it comes
# without its dependencies.
define make_venv
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: Python >= 3.10 is needed, $(PYTHON) is `$(PYTHON) --version 2>&1`; name another: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip "setuptools<80" wheel
	$(1)/bin/python -m pip install --quiet -c $(2) -e ".[all,dev]"
	$(1)/bin/python -m pip install --quiet -c $(2) --no-deps nuscenes-devkit
	$(1)/bin/python tools/build_messages.py
endef

.venv/ready: setup.py constraints.txt
	$(call make_venv,.venv,constraints.txt)
	@touch $@

.venv-numpy1/ready: setup.py constraints-numpy1.txt
	$(call make_venv,.venv-numpy1,constraints-numpy1.txt)
	@touch $@

demo: setup
	$(FAST_MALLOC) $(BIN)/python -m occ_ros.demo runs/demo

test: setup
	$(BIN)/python -m pytest -m "not slow" -n logical --maxprocesses 2

test-numpy1: .venv-numpy1/ready
	.venv-numpy1/bin/python -m pytest -m "not slow" -n logical --maxprocesses 2 $(ON_A_ROBOT)

test-slow: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/docs: .venv/ready
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[docs]"
	@touch $@

clean:
	rm -rf .venv .venv-numpy1 runs build/docs
