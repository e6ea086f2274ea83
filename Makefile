# What a person types. Each target does what is missing and nothing twice.
#
#   make run      set the machine up, build everything, run a container in a VM
#   make test     everything that must hold, from formatting to real engines with real VMs
#   make bench    what it costs, beside runc (BENCH_FLAGS, docs/performance.md)
#   make kernel   the guest's kernel, compiled small: a quarter of an hour and more, once
#   make install  PREFIX=/usr/local DESTDIR=

PREFIX ?= /usr/local
DESTDIR ?=
CARGO ?= cargo

TARGET := x86_64-unknown-linux-gnu
RELEASE := target/release
RUNTIME := $(RELEASE)/kata-runtime
SHIM := $(RELEASE)/containerd-shim-kata-v2
AGENT := target/guest/$(TARGET)/release/kata-agent

.PHONY: all run setup build assets kernel test lint unit e2e bench bench-short install clean

all: build

run:
	@scripts/demo.sh

setup:
	@scripts/setup.sh

build:
	$(CARGO) build --release --locked -p kata-runtime -p containerd-shim-kata-v2
	RUSTFLAGS="-C target-feature=+crt-static" CARGO_TARGET_DIR=target/guest \
		$(CARGO) build --release --locked -p kata-agent --target $(TARGET)

assets: build
	$(RUNTIME) image build

# Another source or other fragments: KERNEL_FLAGS="--kernel-fragment full".
kernel: build
	@scripts/setup.sh --kernel
	$(RUNTIME) image build --kernel-source $(KERNEL_FLAGS)

# $(call timed,TARGET): makes the target and says how long it took.
timed = @begun=$$(date +%s); $(MAKE) --no-print-directory $(1) && echo "== $(1): $$(($$(date +%s) - begun)) s"

test:
	@scripts/setup.sh --test
	$(call timed,lint)
	$(call timed,unit)
	$(call timed,assets)
	$(call timed,e2e)
	$(call timed,bench-short)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

unit:
	$(CARGO) test --workspace --exclude kata-e2e --locked

# Two tests at a time: a VM without KVM keeps a core busy while it boots.
e2e: assets
	RUST_TEST_THREADS=2 $(CARGO) test -p kata-e2e --locked --no-fail-fast

# Shows that the benchmark works; numbers come from a whole run on a machine that does nothing else.
bench-short: assets
	$(CARGO) run -p kata-e2e --locked --bin bench -- --rounds 1 --only container,pod

# GUEST=kernel measures with the small kernel.
GUEST ?= assets
bench: $(GUEST)
	@scripts/setup.sh --test
	$(CARGO) run -p kata-e2e --locked --bin bench -- $(BENCH_FLAGS)

install:
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/bin $(RUNTIME) $(SHIM)
	install -D -m 0755 -t $(DESTDIR)$(PREFIX)/libexec $(AGENT)
	install -D -m 0644 -t $(DESTDIR)$(PREFIX)/share/doc/kata-containers crates/config/configuration.toml

clean:
	$(CARGO) clean
