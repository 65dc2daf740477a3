# The ways into this repository. `make demo` shows it, `make test` proves it.

SHELL       := /bin/bash
VERSION     := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
GO          ?= go
GOFLAGS_ALL := -trimpath
LDFLAGS     := -s -w -X main.version=$(VERSION)
AGENT       := internal/agentbin/bin/banger-agent
FIXTURE     := $(CURDIR)/.cache/fixture

export CGO_ENABLED := 0

.PHONY: build install uninstall lint lint-go lint-shell openapi deps deps-test deps-lint deps-api fixture test test-all test-host test-firecracker fuzz bench demo clean

# Static binaries in bin/. The agent comes first: bangerd embeds it. It carries
# no version, so that an unchanged agent stays byte for byte the same.
build:
	$(GO) build $(GOFLAGS_ALL) -buildvcs=false -ldflags '-s -w' -o $(AGENT) ./cmd/banger-agent
	$(GO) build $(GOFLAGS_ALL) -ldflags '$(LDFLAGS)' -o bin/bangerd ./cmd/bangerd
	$(GO) build $(GOFLAGS_ALL) -ldflags '$(LDFLAGS)' -o bin/banger ./cmd/banger

# What was built, below PREFIX (/usr/local), with units of systemd; DESTDIR is for
# packages. Uninstall leaves VMs and images, unless PURGE is set.
PREFIX ?= /usr/local
install uninstall:
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' PURGE='$(PURGE)' scripts/install.sh $@

# Writes the description of the API that is checked in; a test compares it.
openapi:
	$(GO) test -count=1 -run '^TestDocumentIsCheckedIn$$' ./internal/server -update

lint: lint-go lint-shell

lint-go:
	@unformatted=$$(gofmt -l api client cmd internal test); \
	if [ -n "$$unformatted" ]; then echo "gofmt needed:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) test ./internal/archtest

lint-shell: deps-lint
	shellcheck scripts/*.sh .ci/run

# What running VMs and making images needs from the host.
deps:
	@scripts/deps.sh run

# The programs that the tests drive VMs with.
deps-test:
	@scripts/deps.sh test

deps-lint:
	@scripts/deps.sh lint

# What throws generated requests at the API: from PyPI, pinned by hashes.
deps-api:
	@scripts/deps.sh api
	@scripts/schemathesis.sh $(CURDIR)/.cache/schemathesis

# A kernel and a Debian image, made once by the real command line; the tests
# copy it.
fixture: deps build
	scripts/fixture.sh $(FIXTURE)

# Everything, real VM boots included. Needs root: the daemon runs as root.
test: fixture deps-test deps-api
	scripts/test.sh $(FIXTURE) -count=1 -p 2 -parallel 3 -timeout 40m ./...

# As test, and everything on the host in a VM, with the race detector (needs a C compiler),
# 500 deaths of the daemon and each fuzz target.
test-all: fixture deps-test deps-api
	CGO_ENABLED=1 BANGER_TEST_HOST=all scripts/test.sh $(FIXTURE) -race -count=1 -p 1 -timeout 60m ./...
	BANGER_CHAOS_KILLS=500 scripts/test.sh $(FIXTURE) -count=1 -run '^TestKilledAtRandom$$' -timeout 120m -v ./test/e2e
	$(MAKE) fuzz

# All tests of the VM that plays a host; make test runs a selection of them.
test-host: fixture
	BANGER_TEST_HOST=all scripts/test.sh $(FIXTURE) -count=1 -timeout 60m -v ./test/host

# The suite of drivers against a real Firecracker, which BANGER_FIRECRACKER and
# BANGER_JAILER name: here where KVM serves, and in the VM that plays a host.
test-firecracker: fixture
	@if [ -z "$$BANGER_FIRECRACKER" ] || [ -z "$$BANGER_JAILER" ]; then \
	  echo 'BANGER_FIRECRACKER and BANGER_JAILER have to name the programs of a release: docs/engines.md'; exit 1; fi
	scripts/test.sh $(FIXTURE) -count=1 -timeout 30m -v -run '^(TestConformance|TestFirecracker)$$' ./internal/vmm/firecracker ./test/host

# Each fuzz target for ten seconds.
fuzz:
	scripts/fuzz.sh 10s

# Ours against the least that could do the same; BENCH=run-true selects one.
BENCH ?= .
bench: fixture
	@scripts/test.sh $(FIXTURE) -run '^$$' -bench '(?i)$(subst -,,$(BENCH))' -benchtime 1x -timeout 60m ./test/bench \
	  | grep --line-buffered -Ev '^(Benchmark|goos|goarch|pkg|cpu|PASS)'

# From nothing to `uname -a` in a VM of its own.
demo: deps build
	@scripts/demo.sh

clean:
	rm -rf bin .cache $(AGENT)
