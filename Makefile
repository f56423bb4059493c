# PYTHON=/path/to/python3 chooses the interpreter; see scripts/find-python.sh for what is taken
# without it. What is built stays in this folder: .venv, target, bench/load/target, bench/.venv.
# BENCH=... passes options on to bench/suite.py: "--only echo", "--publish" (docs/benchmarks.md).
.DEFAULT_GOAL := help
.NOTPARALLEL:
unexport CARGO_TARGET_DIR CARGO_BUILD_TARGET MAKEFLAGS

client := cargo build --release --manifest-path bench/load/Cargo.toml

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

.PHONY: demo
demo: build client ## build everything and run the demonstration
	.venv/bin/python examples/demo.py

.PHONY: test
test: ## build everything and run all checks and tests
	@scripts/setup.sh tools extension
	@$(client)
	@scripts/check.sh lint unit loom pytest conformance load

.PHONY: build
build: ## make .venv and build the extension into it
	@scripts/setup.sh extension

.PHONY: lint
lint: ## format, lint and type checks only
	@scripts/setup.sh tools
	@scripts/check.sh lint

.PHONY: unit
unit: ## Rust tests only: no interpreter in them, loom, the load client's
	@scripts/setup.sh
	@scripts/check.sh unit loom load

.PHONY: pytest
pytest: ## Python tests only (PYTEST_ADDOPTS="-k name" picks some)
	@scripts/setup.sh tools extension
	@$(client)
	@scripts/check.sh pytest

.PHONY: conformance
conformance: ## CPython's own tests of asyncio only, on kloop
	@scripts/setup.sh extension
	@scripts/check.sh conformance

.PHONY: client
client:
	@$(client)

.PHONY: bench
bench: build client ## compare with the other loops, in one run, and write a report
	@.venv/bin/python bench/environment.py
	bench/.venv/bin/python bench/suite.py $(BENCH)

.PHONY: bench-quick
bench-quick: build client ## the same with few cases, in under three minutes
	@.venv/bin/python bench/environment.py
	bench/.venv/bin/python bench/suite.py --quick $(BENCH)

.PHONY: clean
clean: ## remove all that was built, .venv too
	rm -rf .venv target bench/.venv bench/load/target python/kloop/_kloop*.so .mypy_cache .ruff_cache .pytest_cache
	find python tests bench examples -name __pycache__ -prune -exec rm -rf {} +
