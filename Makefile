# What people and machines run by hand. `make` alone lists it.

.DEFAULT_GOAL := help
.PHONY: help setup demo tour simulate chaos planted fuzz bench test test-nodes test-rabbitmq check docs deb rpm tarball image release test-install

BUILT = $${CARGO_TARGET_DIR:-target}
# Both in one build, so that the tool finds the daemon beside itself.
with_daemon = --package chainwriter --package chainwriter-tools --bin chainwriter --bin $(1)
build = test -e $(BUILT)/debug/$(1) || echo 'building (the first time takes some minutes)'; cargo build --locked $(call with_daemon,$(1))

help: ## list these
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## bring RabbitMQ and Anvil for the tests and the demo (instant when they are there)
	@scripts/setup.sh

demo: setup ## show the daemon at work on a private broker and chain, and check what it promises
	@$(call build,demo)
	@$(BUILT)/debug/demo

tour: setup ## a private broker and chain for docs/getting-started/tour.md, until Ctrl-C
	@$(call build,tour)
	@$(BUILT)/debug/tour

DURATION ?= 600
SEED ?=
WORKERS ?= 2
JOURNAL ?= sqlite
BATCH ?= 1
CLUSTER ?= 1
NODE ?=
simulate: ## run the whole program over fakes, in virtual time, seed after seed for DURATION=600 seconds (SEED= the first)
	@CHAINWRITER_SECONDS=$(DURATION) CHAINWRITER_SEED=$(SEED) cargo test --quiet --locked --lib simulation::tests::as_long_as_asked -- --ignored --nocapture

chaos: setup ## simulate for a tenth of DURATION=600 seconds, then kill, cut and freeze real parts for all of it (SEED=, WORKERS=2, JOURNAL=postgres, BATCH=20, CLUSTER=3)
	@test "$(JOURNAL)" = sqlite || scripts/setup.sh postgres
	@$(MAKE) --no-print-directory simulate DURATION=$$(($(DURATION) / 10)) SEED=$(SEED)
	@$(call build,chaos)
	@$(BUILT)/debug/chaos --duration $(DURATION) $(SEED:%=--seed %) --workers $(WORKERS) --journal $(JOURNAL) --batch $(BATCH) --cluster $(CLUSTER)

bench: setup ## measure throughput, cost, latency and growth on a private broker and chain (NODE=geth|anvil ONLY=throughput,latency MESSAGES=40000 RUNS=3)
	@test "$(NODE)" = anvil || scripts/setup.sh geth || test -z "$(NODE)"
	@cargo build --quiet --release --locked $(call with_daemon,bench)
	@$(BUILT)/release/bench $(NODE:%=--node %) $(ONLY:%=--only %) $(MESSAGES:%=--messages %) $(RUNS:%=--runs %)
	@test -n "$(ONLY)" || cargo bench --quiet --locked --package chainwriter-tools --bench micro

planted: ## plant known bugs one at a time and say which seed of the simulation finds each (builds once for each)
	@cargo test --quiet --locked --test planted the_simulation -- --ignored --nocapture

fuzz: ## give changed bytes to all that reads bytes from outside, for DURATION=600 seconds each (ONLY="letters sheets"; needs a nightly Rust)
	@scripts/setup.sh fuzz
	@scripts/fuzz.sh $(DURATION) $(ONLY)

test: setup ## run every test, against a real broker and a real chain too
	@scripts/setup.sh clock postgres producers
	CHAINWRITER_REQUIRE_SERVICES=1 RUST_MIN_STACK=536870912 cargo test --workspace --all-features --locked

NODES ?=
AT_MOST ?=
test-nodes: setup ## run each property of a write on each real node: Geth, Hardhat, Ganache, Anvil at three forks (NODES="geth ganache" ONLY="replaced" AT_MOST=720)
	@NODES="$(NODES)" ONLY="$(ONLY)" SECONDS_AT_MOST="$(AT_MOST)" scripts/test-nodes.sh

test-rabbitmq: setup ## run the tests of deliveries and dead letters on another RabbitMQ than the system's (needs root once; ONLY="operators:: security::")
	@scripts/test-rabbitmq.sh $(ONLY)

deb rpm tarball: ## build this package into dist/, as every other time from the same commit
	@scripts/setup.sh packaging
	@scripts/package.sh $@

image: ## build an OCI image of the program alone into dist/
	@scripts/setup.sh packaging image
	@scripts/package.sh image
	@scripts/test-image.sh

release: ## build all packages, the SBOM and the checksums into dist/
	@scripts/setup.sh packaging image
	@scripts/package.sh deb rpm tarball image

test-install: ## install the Debian package on real, booted Debians and use it as an operator does (ON="bookworm trixie"; needs root)
	@scripts/setup.sh deb nspawn anvil
	@test "$$CHAINWRITER_PROFILE" = dev || scripts/setup.sh packaging
	@scripts/package.sh deb
	@scripts/test-install.sh $(ON)

docs: ## build the book of docs/ into target/book
	@scripts/setup.sh mdbook
	@PATH="$$PWD/.tools/bin:$$PATH" mdbook build docs

check: ## format, lints, documentation, dependencies, systemd unit, alerts, deployments, the contract's build
	cargo fmt --all --check
	cargo clippy --locked -- -D warnings
	cargo clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --document-private-items --all-features --locked
	scripts/check-deny.sh
	scripts/check-unit.sh
	scripts/check-alerts.sh
	scripts/check-deploy.sh
	scripts/build-contracts.sh --check
