#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# scan-log.sh FILE...: prints every line of a guest's console log that means that
# something went wrong in the kernel, and fails if there is one.
# scan-log.sh --self-test: shows that each pattern finds what it is there for.
set -euo pipefail

# One extended regular expression a line; in the self-test, every one of them
# must be hit by a sample.
patterns=$(cat <<'LIST'
WARNING:
BUG:
BUG [a-z-]+ .*(Not tainted|Tainted)
KASAN:
UBSAN:
KCSAN:
possible circular locking
possible recursive locking
inconsistent lock state
inconsistent \{
lock order inversion|irq lock inversion
suspicious RCU usage
held lock freed|lock held when returning|still has locks held|lock held at task exit
INFO: trying to register non-static key
bad unlock balance
Invalid wait context
unreferenced object 0x
kmemleak: [0-9]+ new suspected
refcount_t:
DMA-API:
DMAR: .*[Ff]ault
blocked for more than [0-9]+ seconds
blocked in I/O wait for more than
soft lockup
hard LOCKUP
rcu:? .*(detected|self-detected) .*stall
workqueue lockup
Objects remaining
Oops
general protection fault
unable to handle (kernel|page)
Kernel panic
Unable to handle kernel
sleeping function called from invalid context
scheduling while atomic
Bad page
bad page state|Bad page map|Bad rss-counter
[Pp]agealloc: .*(corruption|single bit error)
Poison overwritten|Redzone overwritten|[Mm]emory corruption
list_(add|del) corruption
ODEBUG:
double free
rust_kernel: panicked|panicked at
stack-protector|kernel stack overflow|Corrupted stack
Call Trace:
turning off the locking correctness validator
detector disabled
(^|[] ])Out of memory: Killed process
VIRTGPU-GUEST-LOCKDEP off
VIRTGPU-GUEST-ERROR
VIRTGPU-GUEST-RMMOD failed
LIST
)

# A group of processes that has had too much memory is killed because a test wants that; a kernel
# without memory is not wanted by any test.
#
# What an otherwise healthy guest prints and what none of this project's code
# can cause. Each with its reason.
#  - "Kernel command line:" repeats what we passed (hung_task_panic, …).
#  - lockdep prints its table sizes, "MAX_LOCKDEP…", and its own name.
#  - DMA-API debugging says at boot that it is there and how large its table is.
exceptions='Kernel command line:|Command line:|MAX_LOCK|DMA-API: (preallocated [0-9]+ debug entries|debugging enabled by kernel config)'

# What Linux's driver says when it is unloaded on a device with a host-visible window, in which it has
# left something; here for a line that is left out.
theirs="What Linux's driver has left in the host-visible window:"

# The part of the log that counts: where Linux's driver was loaded before this one or
# after it, not what came before OURS nor after THEIRS. Its warnings are not ours. Where it is loaded in
# turns with this one, that is but one warning, with its stack, while it is unloaded.
ours() {
	tr -d '\r' <"$1" | awk -v "theirs=$theirs" '
		BEGIN { counts = 1 }
		/VIRTGPU-GUEST-OURS tainted=/ { counts = 1; text = "" }
		# A report that a group of processes has had too much memory has a stack, too.
		/ invoked oom-killer: / { report = NR }
		/Call Trace:/ && report && NR - report < 10 { report = 0; next }
		/VIRTGPU-GUEST-LINUX-UNLOAD/ { unloads = /UNLOADS$/ }
		unloads && /WARNING: [^ ]* at drm_mm_takedown\+/ { warning = NR; text = text theirs "\n"; next }
		/Call Trace:/ && warning && NR - warning < 30 { warning = 0; next }
		counts { text = text $0 "\n" }
		/VIRTGPU-GUEST-THEIRS tainted=/ { counts = 0 }
		END { printf "%s", text }'
}

scan() {
	local text tainted before
	text=$(ours "$1")
	grep -aE "$patterns" <<<"$text" | grep -avE "$exceptions" || true
	# Taint: out-of-tree (4096), unsigned (8192) and, as KUnit tests set it,
	# test (262144) are what we are; anything else is a report we missed.
	tainted=$(sed -nE 's/.*VIRTGPU-GUEST-(TAINTED |THEIRS tainted=)//p' <<<"$text" | tail -n1)
	before=$(sed -n 's/.*VIRTGPU-GUEST-OURS tainted=//p' <<<"$text" | tail -n1)
	# A warning (512).
	! grep -qxF "$theirs" <<<"$text" || before=$((${before:-0} | 512))
	if [ -n "$tainted" ] && [ $((tainted & ~(4096 | 8192 | 262144 | ${before:-0}))) -ne 0 ]; then
		echo "kernel taint $tainted: more than out-of-tree and unsigned"
	fi
}

if [ "${1:-}" = --self-test ]; then
	exec "$(dirname "$0")/scan-log-test.sh"
fi
if [ "${1:-}" = --patterns ]; then
	echo "$patterns"
	exit
fi
found=$(for f; do scan "$f"; done)
[ -z "$found" ] || { echo "$found"; exit 1; }
