# SPDX-License-Identifier: GPL-2.0
#
# Entry points for people; `make help` lists them. The work is done by scripts/,
# inside a build root in the cache. (Kbuild reads the file Kbuild, not this one.)

# A kernel tree with Rust metadata to build the module against. Without it, the
# stock Debian kernel's tree is made and used.
KDIR ?=
SUITE ?=
LIST ?=
CHANGED ?=
ALL ?=
SECONDS ?=
# A variable of the shell's, too, which it takes from the environment.
unexport SECONDS

.DEFAULT_GOAL := module
# One step after the other: the steps themselves use all CPUs.
.NOTPARALLEL:

.PHONY: module
module: ## the module, for KDIR or else for the stock Debian kernel
ifeq ($(KDIR),)
	+@scripts/module.sh stock
	@echo "==> build/module/stock/virtgpu_userptr.ko"
else
	$(MAKE) -C $(KDIR) M=$(CURDIR) MO=$(CURDIR)/build/module/kdir modules
	@echo "==> build/module/kdir/virtgpu_userptr.ko"
endif

.PHONY: demo
demo: ## build everything and show a device job on malloc'ed memory
	@scripts/demo.sh

.PHONY: check
check: ## tests of everything; ALL=1 runs all of them, SUITE=name one suite, LIST=1 names the suites, CHANGED=1 skips what has passed as it is
ifneq ($(LIST),)
	@scripts/check.sh --list
else
	@VIRTGPU_CHANGED='$(CHANGED)' VIRTGPU_ALL='$(ALL)' scripts/check.sh $(SUITE)
endif

.PHONY: quick
quick: ## what needs no guest: host tests and lint
	@scripts/check.sh host lint

.PHONY: bench
bench: ## the measures, in a kernel without debugging; bench/results/ has them and a picture
	@scripts/bench.sh $(BENCH_ARGS)

.PHONY: stress
stress: ## mirrored memory at random in the debug kernel (DURATION=600 in seconds, SEED=number)
	@scripts/stress.sh

.PHONY: fuzz
fuzz: ## ioctls at random in the debug kernel (SECONDS=60, SEED=number)
	@FUZZ_SECONDS='$(SECONDS)' FUZZ_SEED='$(SEED)' scripts/fuzz.sh

.PHONY: shell
shell: ## an interactive guest (KERNEL=stock|debug|release, MEM=2G)
	@scripts/shell.sh

.PHONY: programs
programs: ## the device, the client library and the guest's programs
	@scripts/programs.sh

.PHONY: deb
deb: ## Debian packages in build/deb: the module's source for DKMS, and the tools
	@scripts/deb.sh

.PHONY: fmt
fmt: ## format all Rust code
	@scripts/fmt.sh

.PHONY: lint
lint: ## suite lint: style, warnings, layers, documentation
	@scripts/check.sh lint

.PHONY: rust-analyzer
rust-analyzer: ## rust-project.json for editors
	@scripts/rust-analyzer.sh

.PHONY: clean
clean: ## remove what was built in this clone (the cache stays)
	rm -rf build rust-project.json

.PHONY: help
help: ## this text
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 22
	@echo
	@echo "The cache (build root, kernels): VIRTGPU_CACHE, else ~/.cache/virtgpu-userptr"
