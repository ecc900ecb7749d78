# `make demo` and `make test` each work as the first command after a clone. `make help` lists the rest.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml scripts/setup.sh $(wildcard exclfs/mirror/*.c exclfs/mirror/*.h)
export PYTHON

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test fmt fmt-check lint types floors ask-always filesystems sequences tests mounted mounted-asked programs unmounted proofs sanitize fuzz stress programs-at-length hold-open-rounds bench bench-report bench-check bench-holding bench-syscalls bench-why bench-memory clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 26

# The package is installed editable: Python changes need nothing, a change of the C sources builds it again. A dev
# environment serves the demo as well, so the demo never installs less than is there.
.venv/.exclfs: $(SOURCES)
	@scripts/setup.sh $(if $(wildcard .venv/.exclfs-dev),dev)
	@touch $@ $(wildcard .venv/.exclfs-dev)

.venv/.exclfs-dev: $(SOURCES)
	@scripts/setup.sh dev
	@touch .venv/.exclfs $@

setup: .venv/.exclfs ## system packages, .venv and exclfs in it; no more

demo: .venv/.exclfs ## a real tree, real cleaners, and what they are told
	@$(BIN)/python examples/demo.py

# Two parts at a time, in the order in which they fill two processors.
test: fmt-check lint types floors ## everything that CI runs
	@$(MAKE) --no-print-directory -j2 --output-sync=target mounted programs unmounted mounted-asked proofs

fmt: .venv/.exclfs-dev ## format the Python sources
	@$(BIN)/ruff format .

fmt-check: .venv/.exclfs-dev
	@$(BIN)/ruff format --quiet --check . || { echo 'run: make fmt'; exit 1; }

lint: .venv/.exclfs-dev ## ruff
	@$(BIN)/ruff check --quiet .

types: .venv/.exclfs-dev ## mypy --strict on exclfs/
	@$(BIN)/mypy --no-error-summary

floors: .venv/.exclfs-dev ## import-linter: imports go down only
	@said=$$($(BIN)/lint-imports 2>&1) || { echo "$$said"; exit 1; }

tests: .venv/.exclfs-dev ## pytest; make tests ARGS='-k refusals'
	@$(BIN)/pytest -q $(ARGS)

mounted: .venv/.exclfs-dev ## the tests of how requests are answered
	@$(BIN)/pytest -q -m 'mount and not program' $(ARGS)

programs: .venv/.exclfs-dev ## those of commands and libraries that need a mount
	@$(BIN)/pytest -q -m 'mount and program' $(ARGS)

unmounted: .venv/.exclfs-dev ## those that mount nothing
	@$(BIN)/pytest -q -m 'not mount' --ignore=tests/proof $(ARGS)

proofs: .venv/.exclfs-dev ## the models and every interleaving of them
	@$(BIN)/pytest -q -m 'not mount' tests/proof $(ARGS)

mounted-asked: .venv/.exclfs-dev ## as mounted, with a verdict asked for everything
	@EXCLFS_TEST_OPTIONS='{"ask_always": true}' $(BIN)/pytest -q -m 'mount and not program' $(ARGS)

ask-always: .venv/.exclfs-dev ## all tests that mount, with a verdict asked for everything
	@EXCLFS_TEST_OPTIONS='{"ask_always": true}' $(BIN)/pytest -q -m mount $(ARGS)

# The table at length and the tests that compare a mount with a tree beside it, wherever the kernel and mkfs allow.
filesystems: .venv/.exclfs-dev ## a mount compared with the tree behind it on ext4, xfs, btrfs and tmpfs; needs root
	@for kind in $(or $(ON),ext4 xfs btrfs tmpfs); do \
		echo "on $$kind:"; \
		EXCLFS_TEST_FILESYSTEM=$$kind $(BIN)/pytest -q $$(grep -lE '\btwins: Twins\b' tests/mount/test_*.py) \
			tests/mount/test_behind_the_mount.py $(ARGS) || exit 1; \
	done
	@EXCLFS_CONFORMANCE=$(or $(EACH),4) $(BIN)/pytest -q --timeout=0 tests/conformance $(ARGS)

sequences: .venv/.exclfs-dev ## what several users do at random, compared with a tree beside; needs root; make sequences EXAMPLES=5000 ON=xfs
	@EXCLFS_SEQUENCES=$(or $(EXAMPLES),1000) EXCLFS_TEST_FILESYSTEM=$(ON) $(BIN)/pytest -q tests/conformance/test_sequences.py $(ARGS)

sanitize: .venv/.exclfs-dev ## tests/mirror and the mounted tests under AddressSanitizer + UBSan, then ThreadSanitizer
	@scripts/sanitize.sh asan $(ARGS)
	@scripts/sanitize.sh tsan $(ARGS)

fuzz: ## libFuzzer on the mirror's request parser; make fuzz SECONDS=600
	@scripts/fuzz.sh $(or $(SECONDS),60)

stress: .venv/.exclfs-dev ## 100,000 contested rounds of each kind of removal, and the proofs at length; needs root
	@$(BIN)/python scripts/stress.py $(ARGS)
	@EXCLFS_PROOF_EXAMPLES=2000 $(BIN)/pytest -q --timeout=0 tests/proof

programs-at-length: .venv/.exclfs-dev ## fio, stress-ng, git, sqlite … for as long as SECONDS=60 says; needs root
	@EXCLFS_AT_LENGTH=$(or $(SECONDS),60) EXCLFS_DURABLE_ROUNDS=300 EXCLFS_OVERLAY_ROUNDS=1000 \
		$(BIN)/pytest -q --timeout=3600 tests/mount/test_third_parties.py tests/mount/test_durability.py tests/mount/test_overlays_that_stay.py $(ARGS)

hold-open-rounds: .venv/.exclfs ## a million rounds each that a closed file must never refuse; needs root
	@$(BIN)/python scripts/hold_open_rounds.py $(ARGS)

# Trees on tmpfs and on loop devices of images there; some 6 GiB of memory at a time.
scale: .venv/.exclfs-dev ## tests/scale with a million files, and what they took; needs root, SCALE_ON=DIR with room
	@EXCLFS_SCALE=full PYTEST_DEBUG_TEMPROOT=$(or $(SCALE_ON),/dev/shm) nice -n 10 \
	    $(BIN)/pytest -q --timeout=3600 tests/scale $(ARGS)

bench: .venv/.exclfs ## exclfs beside bindfs and others, as ratios; QUICK=1: under three minutes; needs root
	@mkdir -p .bench
	@$(BIN)/python benchmarks/compare.py $(if $(QUICK),--quick) --json .bench/last.json $(ARGS)

bench-report: .venv/.exclfs ## write docs/performance.md and its plots from the last make bench
	@$(BIN)/python benchmarks/report.py .bench/last.json

CHECKED := --peer exclfs --peer 'exclfs, nopassthrough' --peer 'exclfs, noidle_poll' --peer bindfs
bench-check: .venv/.exclfs ## say which row has become slower since benchmarks/accepted.json; NEW=FILE: without measuring
	@mkdir -p .bench
	@$(if $(NEW),,$(BIN)/python benchmarks/compare.py --rounds 7 --on tmpfs --group metadata --group data $(CHECKED) --json .bench/check.json $(ARGS))
	@$(BIN)/python benchmarks/check.py $(or $(NEW),.bench/check.json)

bench-holding: .venv/.exclfs ## what holding costs, its holder and everybody else; needs root; the same ARGS
	@$(BIN)/python benchmarks/holding.py $(ARGS)

bench-syscalls: .venv/.exclfs ## system calls of the server for each operation, beside its peers; needs root and strace
	@$(BIN)/python benchmarks/syscalls.py $(ARGS)

bench-why: .venv/.exclfs ## how long `exclfs why` takes beside fuser and lsof; needs root
	@$(BIN)/python benchmarks/why.py $(ARGS)

bench-memory: .venv/.exclfs-dev ## the server's memory for each known inode, and what is left of it; needs root
	@$(BIN)/python benchmarks/memory.py $(ARGS)

clean: ## remove what make has made
	rm -rf .venv build dist *.egg-info .hypothesis .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -f exclfs/mirror/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
