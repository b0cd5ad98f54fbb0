# Bonafide: what a person types. `make` alone explains.

BIN := $(or $(CARGO_TARGET_DIR),target)/debug
ARGS ?=
# Where rustup puts cargo; a shell opened before that does not know it.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

.PHONY: help deps build demo test lint run bench bench-quick clean

help:
	@echo 'make demo    two hosts, real programs, one policy: one story (root)'
	@echo 'make run     a node on this machine, observing, until Ctrl-C (root); ARGS="--policy FILE" and more'
	@echo 'make test    everything: format, lints, dependencies, unit tests, scenarios (root)'
	@echo 'make bench   the numbers this project claims, measured here (root); bench-quick: fewer rounds'
	@echo 'make build   all binaries, in $(BIN)'
	@echo 'make lint    format, lints and dependencies only'
	@echo 'make deps    installs what is missing'
	@echo 'make clean   removes what was built'

deps:
	@deploy/install-deps

build: deps
	cargo build --workspace --locked

demo: build
	@$(BIN)/bonafide-demo $(ARGS)

run: build
	@$(BIN)/bonafide run $(ARGS)

test: lint
	@.ci/test

# What is built to be shipped is what is measured.
bench bench-quick: deps
	cargo build --release --workspace --locked
	@$(dir $(BIN))release/bonafide-bench $(if $(filter bench-quick,$@),--quick) $(ARGS)

lint: deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	@.ci/check-dependencies

clean:
	cargo clean
