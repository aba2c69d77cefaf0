# The commands of the project. Each may be run first, and again: what is done is not done twice.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# One compiler can need 2 GB: no more jobs than the memory carries.
JOBS ?= $(shell awk -v cores=$$(nproc) '/MemTotal/ { n = int($$2 / 2097152); \
  if (n > cores) n = cores; print n < 1 ? 1 : n }' /proc/meminfo)
export PATH := $(HOME)/.cargo/bin:$(PATH)
export CMAKE_BUILD_PARALLEL_LEVEL := $(JOBS)
export CTEST_PARALLEL_LEVEL := $(JOBS)

cpp_files = find $(wildcard src include tests examples bench fuzz) -name '*.cpp' -o -name '*.h' -o -name '*.cu'

.PHONY: help setup build serve test test-sanitize test-cuda fuzz check format clean

# Of each fuzzer.
FUZZ_SECONDS ?= 60

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' Makefile

serve: build ## build, then serve the demo model with its adapters (or MODEL=..., ARGS=...) on 127.0.0.1:3000
	@exec build/release/lorry serve $(MODEL) $(ARGS)

build: build/release/build.ninja ## install what is missing and build build/release/lorry
	@cmake --build --preset release --target lorry

test: check build/release/build.ninja ## build and run every test, the real clients among them
	@cmake --build --preset release
	@ctest --preset release
	@for script in tests/*/run.sh; do \
	  [ -e "$$script" ] || continue; echo "== $$script"; "$$script"; done

test-sanitize: build/asan/build.ninja build/tsan/build.ninja ## unit tests under ASan+UBSan, the threaded ones under TSan
	@cmake --build --preset asan
	@ctest --preset asan
	@cmake --build --preset tsan --target threaded_tests
	@# g++ 12's TSan cannot live with every setting of address randomisation: off where that is allowed.
	@$$(setarch -R true 2>/dev/null && echo setarch -R) ctest --preset tsan

fuzz: setup ## the fuzzers of our parsers, FUZZ_SECONDS (60) each
	@fuzz/run.py --seconds $(FUZZ_SECONDS)

test-cuda: build/cuda-toolkit/version build/cuda/build.ninja ## compile and link the CUDA backend; its tests run where there is a GPU
	@cmake --build --preset cuda --target test_ops_gpu
	@build/cuda/tests/test_ops_gpu --gtest_brief=1

build/cuda-toolkit/version:
	@tools/setup_cuda.sh

check: setup ## layers, sizes, format
	@python3 -m unittest discover -q -s tests/tools -p '*_test.py'
	@tools/check_layers.py
	@tools/check_sizes.py
	@$(cpp_files) | xargs -r -P $(JOBS) -n 16 clang-format-19 --dry-run -Werror
	@echo "check: layers, sizes and format are in order"

format: setup ## rewrite our C++ files as .clang-format says
	@$(cpp_files) | xargs -r clang-format-19 -i

setup: ## install what is missing (system packages, Rust)
	@tools/setup.sh

clean: ## remove the build trees
	@rm -rf build

build/%/build.ninja: setup
	@[ -e $@ ] || cmake --preset $*
