# What a newcomer and CI run. Every target installs what it needs first (scripts/install-deps).

SHELL := /bin/bash
.DELETE_ON_ERROR:
.PHONY: help deps build demo up down status services services-down test test-full test-matrix bench lint

# End-to-end tests mostly wait for servers and for each other's: three of them at a time keep a core busy.
export RUST_TEST_THREADS ?= $(shell echo $$((3 * $$(nproc))))

# People install Rust for themselves; a shell without their profile finds it here.
export PATH := $(PATH):$(HOME)/.cargo/bin

# Crash points are compiled into test builds only. One feature set and one profile for lint,
# tests and end-to-end tests, so that nothing is compiled twice.
FEATURES := --features bunny/failpoints

help:
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' Makefile | expand -t 16

deps:
	@scripts/install-deps

build: deps
	cargo build --release --bin bunny --bin demo

demo: build ## Mirror a pgbench database before your eyes, prove it, clean up
	@target/release/demo

up: build ## Start servers and bunny and leave them running; start again what is down
	@scripts/stack up

down: ## Stop what make up or make services started; the data stays
	@scripts/stack down

status: ## Show what of it runs
	@scripts/stack status

services: deps ## Start only Postgres (source, destination, catalog) and Kafka
	@scripts/services start .local/services
	@scripts/stack env
	@cat .local/env

services-down: ## Stop them; refused while bunny runs on them
	@scripts/stack services-down

# Some crates have tests of their own against a server, ignored where none is in the environment.
test: deps ## Unit, property and end-to-end tests on real servers
	@scripts/install-deps --clients
	cargo build --workspace --all-targets $(FEATURES)
	scripts/with-services cargo test --workspace $(FEATURES) -- --include-ignored

test-full: deps ## Everything: also memory bounds, soak and the matrix (about an hour)
	@scripts/install-deps --clients --registry --connect --extensions
	cargo build --workspace --all-targets $(FEATURES),bunny-tests/full
	scripts/with-services cargo test --workspace $(FEATURES),bunny-tests/full -- --include-ignored
	$(MAKE) test-matrix

test-matrix: deps ## What depends on versions over PostgreSQL 14 to 18, mixed both ways; PAIRS="18:18 15:18" for some
	cargo build --workspace --bin bunny --test e2e $(FEATURES)
	scripts/test-matrix $(PAIRS)

bench: deps ## BunnyDB and native logical replication side by side on PostgreSQL 18; BENCH="--help" for more
	cargo build --release --bin bunny --bin bench
	bin=$$(scripts/install-postgres 18) && \
	  SOURCE_PG_BIN=$$bin DESTINATION_PG_BIN=$$bin CATALOG_PG_BIN=$$bin target/release/bench $(BENCH)

lint: deps ## rustfmt and clippy, warnings are errors
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(FEATURES) -- -D warnings
