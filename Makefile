# Gatehouse. `make help` lists the targets; `make run` and `make test` are the two that a newcomer needs.
SHELL := /bin/sh
GO ?= go
BIN := bin/gatehouse

VERSION ?= $(shell sed -n 's/^## \[\([0-9][^]]*\)\].*/\1/p' CHANGELOG.md | head -n 1)
COMMIT  ?= $(shell git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION) -X main.commit=$(COMMIT)

# Tools are pinned here and run through the module proxy, so nothing is installed outside the module cache.
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GOVULNCHECK   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
BENCHSTAT     := golang.org/x/perf/cmd/benchstat@latest

ROUNDS ?= 5
FUZZTIME ?= 60s
EVENT_HUB ?=

.DEFAULT_GOAL := help
.PHONY: help run build test quickstart-check conformance bench bench-sync soak fuzz lint vuln tidy-check clean need-go need-cc need-curl need-rabbitmq

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build ## build, then run everything on this machine: emulated API Manager, key manager, backend and gateway
	$(BIN) quickstart $(if $(EVENT_HUB),--event-hub $(EVENT_HUB))

build: need-go ## build bin/gatehouse: static, stripped, with the version stamped
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/gatehouse

test: need-go need-cc need-curl need-rabbitmq build ## everything that must hold, race detector on, over a real RabbitMQ that it starts itself
	$(GO) vet ./...
	$(GO) test -race -shuffle=on -timeout 14m ./...
	sh integration/quickstart-check.sh

quickstart-check: build need-curl ## run the printed requests of quickstart from outside and compare the counts
	sh integration/quickstart-check.sh

conformance: need-go ## against the real Qpid broker, Keycloak and oidc-provider (needs java, javac, mvn, node, npm and their registries)
	$(GO) test -count=1 -tags conformance -timeout 20m ./integration/conformance/...

bench: need-go ## gateway against a bare reverse proxy on one core, and the hot functions
	GATEHOUSE_BENCH_ROUNDS=$(ROUNDS) $(GO) test -count=1 -run '^TestThroughputAgainstReverseProxy$$' -v -timeout 20m ./integration/bench
	$(GO) test -run '^$$' -bench . -benchmem ./proxy/... ./throttle/... ./keymanager/... ./subscription/... ./agent/event/...

bench-sync: need-go need-rabbitmq ## deny policy to enforcement, loading a million subscriptions, events a second
	GATEHOUSE_BENCH_SYNC=1 $(GO) test -count=1 -run '^TestBenchSync' -v -timeout 30m ./integration/bench

soak: need-go need-rabbitmq ## the long runs: key rotation, a million tokens, 500 fault sequences, and 20 with RabbitMQ killed and restarted
	GATEHOUSE_SOAK=1 $(GO) test -count=1 -run 'UnderLoad|Million|Garbage|MemoryOfMany' -v -timeout 60m ./keymanager/...
	GATEHOUSE_SOAK=1 GATEHOUSE_SYNC_SEQUENCES=10000 $(GO) test -count=1 -run 'StateMachine|Soak|EveryHistoryEndsEqual' -v -timeout 120m ./agent/sync/... ./integration/...

fuzz: need-go ## each fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do \
	  for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz' || true); do \
	    echo "== $$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 50x $$p || exit 1; \
	  done; \
	done

lint: need-go ## golangci-lint with the chosen list
	$(GO) run $(GOLANGCI_LINT) run ./...

vuln: need-go ## known vulnerabilities in what we import
	$(GO) run $(GOVULNCHECK) ./...

tidy-check: need-go ## fail when go.mod or go.sum are not tidy
	$(GO) mod tidy -diff

clean: ## remove what the build made
	rm -rf bin dist

need-go:
	@command -v $(GO) >/dev/null 2>&1 || { echo "make: go is missing: install Go 1.26 or later" >&2; exit 1; }
need-cc:
	@command -v cc >/dev/null 2>&1 || command -v gcc >/dev/null 2>&1 || { echo "make: a C compiler is missing (the race detector needs it): install gcc" >&2; exit 1; }
need-curl:
	@command -v curl >/dev/null 2>&1 || { echo "make: curl is missing: install curl" >&2; exit 1; }
need-rabbitmq:
	@sh deploy/need-rabbitmq.sh
