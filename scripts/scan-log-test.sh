#!/bin/bash
# SPDX-License-Identifier: GPL-2.0
# Self-test of scan-log.sh, in KTAP: every sample is found, every pattern is hit
# by a sample, and a healthy log is not.
set -uo pipefail
cd "$(dirname "$0")" || exit

samples=$(cat <<'LIST'
[    1.0] WARNING: CPU: 0 PID: 1 at mm/gup.c:70 try_grab_folio+0x1/0x2
[    1.0] WARNING: possible circular locking dependency detected
[    1.0] WARNING: possible recursive locking detected
[    1.0] WARNING: inconsistent lock state
[    1.0] inconsistent {HARDIRQ-ON-W} -> {IN-HARDIRQ-W} usage.
[    1.0] WARNING: possible irq lock inversion dependency detected
[    1.0] WARNING: suspicious RCU usage
[    1.0] WARNING: held lock freed!
[    1.0] WARNING: bad unlock balance detected!
[    1.0] INFO: trying to register non-static key.
[    1.0] [ BUG: Invalid wait context ]
[    1.0] BUG: KASAN: slab-use-after-free in foo+0x1/0x2
[    1.0] BUG: KCSAN: data-race in foo / bar
[    1.0] BUG: unable to handle page fault for address: ffff888000000000
[    1.0] BUG virtio-gpu-vbufs (Not tainted): Objects remaining on __kmem_cache_shutdown()
[    1.0] BUG kmalloc-64 (Tainted: G O): Poison overwritten
[    1.0] UBSAN: array-index-out-of-bounds in drivers/gpu/x.c:1:2
[    1.0] unreferenced object 0xffff888004ab8400 (size 192):
[    1.0] kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)
[    1.0] refcount_t: underflow; use-after-free.
[    1.0] DMA-API: virtio-pci 0000:01:00.0: device driver has pending DMA allocations
[    1.0] DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0x1000 [fault reason 0x06] PTE Read access is not set
[    1.0] INFO: task cat:123 blocked for more than 120 seconds.
[    1.0] INFO: task cat:123 blocked in I/O wait for more than 120 seconds.
[    1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [sh:1]
[    1.0] watchdog: Watchdog detected hard LOCKUP on cpu 0
[    1.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
[    1.0] rcu: INFO: rcu_preempt self-detected stall on CPU
[    1.0] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 31s!
[    1.0] Oops: Oops: 0002 [#1] SMP KASAN PTI
[    1.0] Oops: general protection fault, probably for non-canonical address 0xdffffc0000000000: 0000 [#1]
[    1.0] Kernel panic - not syncing: Attempted to kill init!
[    1.0] Unable to handle kernel NULL pointer dereference
[    1.0] BUG: sleeping function called from invalid context at kernel/locking/mutex.c:1
[    1.0] BUG: scheduling while atomic: sh/1/0x00000002
[    1.0] BUG: Bad page state in process sh  pfn:12345
[    1.0] BUG: Bad rss-counter state mm:00000000 type:MM_ANONPAGES val:1
[    1.0] pagealloc: memory corruption
[    1.0] pagealloc: single bit error
[    1.0] list_add corruption. prev->next should be next (ffff8880), but was 0000.
[    1.0] ODEBUG: free active (active state 0) object type: work_struct hint: x+0x0
[    1.0] double free detected in tcache
[    1.0] rust_kernel: panicked at src/main.rs:1:2:
[    1.0] Kernel stack overflow: Corrupted stack end detected inside scheduler
[    1.0] Call Trace:
[    1.0] turning off the locking correctness validator.
[    1.0] kmemleak: Kernel memory leak detector disabled
[    1.0] Out of memory: Killed process 153 (virtgpu-tests) total-vm:8kB, anon-rss:4kB
VIRTGPU-GUEST-LOCKDEP off
VIRTGPU-GUEST-ERROR insmod failed
VIRTGPU-GUEST-RMMOD failed
LIST
)
healthy=$(cat <<'LIST'
[    0.0] Kernel command line: console=ttyS0 panic=-1 oops=panic
[    0.0] ... MAX_LOCKDEP_SUBCLASSES:  8
[    1.0] kmemleak: Kernel memory leak detector initialized (mem pool available: 62000)
[    1.0] kmemleak: Automatic memory scanning thread started
[    1.0] virtgpu_userptr: loading out-of-tree module taints kernel.
[    1.0] DMA-API: preallocated 65536 debug entries
[    1.0] DMA-API: debugging enabled by kernel config
[    1.0] Freeing unused kernel image (initmem) memory: 4664K
[    1.0] Memory cgroup out of memory: Killed process 153 (virtgpu-tests)
VIRTGPU-GUEST-LOCKDEP on
VIRTGPU-GUEST-TAINTED 12288
VIRTGPU-GUEST-DONE rc=0
LIST
)

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
number=0 failed=0
# Names pass when the list of complaints is empty.
report_list() { # LIST NAME
	printf '%s' "$1"
	if [ -z "$1" ]; then report 0 "$2"; else report 1 "$2"; fi
}
report() { # STATUS NAME
	number=$((number + 1))
	if [ "$1" = 0 ]; then
		echo "ok $number $2"
	else
		echo "not ok $number $2"
		failed=1
	fi
}

echo "KTAP version 1"
missed=
while read -r line; do
	echo "$line" >"$tmp/log"
	! ./scan-log.sh "$tmp/log" >/dev/null || missed+="# not found: $line"$'\n'
done <<<"$samples"
report_list "$missed" every_sample_found

idle=
while read -r pattern; do
	grep -qE "$pattern" <<<"$samples" || idle+="# without sample: $pattern"$'\n'
done < <(./scan-log.sh --patterns)
report_list "$idle" every_pattern_has_a_sample

echo "$healthy" >"$tmp/log"
report "$(./scan-log.sh "$tmp/log" >"$tmp/out"; echo $?)" healthy_log_passes
sed 's/^/# /' "$tmp/out"

for taint in 4097 12800; do # proprietary, warning
	echo "VIRTGPU-GUEST-TAINTED $taint" >"$tmp/log"
	report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" "taint_${taint}_found"
done

# The kernel kills a process of a group that wants too much memory, and says so with a stack.
cat >"$tmp/log" <<'LOG'
[    1.0] virtgpu-tests invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=0
[    1.0] CPU: 1 UID: 0 PID: 153 Comm: virtgpu-tests Tainted: G O
[    1.0] Call Trace:
[    1.0]  <TASK>
[    1.0] Memory cgroup out of memory: Killed process 153 (virtgpu-tests)
LOG
report "$(./scan-log.sh "$tmp/log" >/dev/null; echo $?)" oom_report_passes
echo "[    2.0] Call Trace:" >>"$tmp/log"
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" other_stack_after_it_found

# What Linux's driver has left in the log, and the same from this one.
theirs="[    1.0] WARNING: drivers/gpu/drm/drm_mm.c:965 at drm_mm_takedown+0x22/0x30"
mark="[    2.0] VIRTGPU-GUEST-OURS tainted=512"
printf '%s\n' "$theirs" "$mark" "VIRTGPU-GUEST-TAINTED 12800" >"$tmp/log"
report "$(./scan-log.sh "$tmp/log" >/dev/null; echo $?)" what_was_before_this_driver_passes
printf '%s\n' "$theirs" "$mark" "$theirs" >"$tmp/log"
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" what_comes_with_this_driver_is_found
printf '%s\n' "[    2.0] VIRTGPU-GUEST-THEIRS tainted=0" "$theirs" "VIRTGPU-GUEST-TAINTED 512" >"$tmp/log"
report "$(./scan-log.sh "$tmp/log" >/dev/null; echo $?)" what_is_after_this_driver_passes
printf '%s\n' "[    2.0] VIRTGPU-GUEST-THEIRS tainted=512" >"$tmp/log"
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" taint_before_that_is_found
printf '%s\n' "$mark" "VIRTGPU-GUEST-TAINTED 12928" >"$tmp/log" # an oops
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" new_taint_is_found

# Loaded in turns: that warning passes where Linux's driver is unloaded, and nowhere else.
begin="[    2.0] VIRTGPU-GUEST-LINUX-UNLOADS"
end="[    2.0] VIRTGPU-GUEST-LINUX-UNLOADED"
cut="[    1.0] ------------[ cut here ]------------"
stack="[    1.0] Call Trace:"
closing="[    1.0] ---[ end trace 0000000000000000 ]---"
printf '%s\n' "$begin" "$cut" "$theirs" "$stack" "$closing" "$end" "VIRTGPU-GUEST-TAINTED 12800" >"$tmp/log"
report "$(./scan-log.sh "$tmp/log" >/dev/null; echo $?)" what_linux_leaves_when_unloaded_passes
printf '%s\n' "$begin" "$end" "$theirs" >"$tmp/log"
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" the_same_when_it_is_gone_is_found
printf '%s\n' "$begin" "$end" "VIRTGPU-GUEST-TAINTED 12800" >"$tmp/log"
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" taint_without_that_warning_is_found
for line in "$stack" "[    1.0] WARNING: mm/gup.c:70 at try_grab_folio+0x1/0x2" "[    1.0] BUG: KASAN: slab-use-after-free in foo"; do
	printf '%s\n' "$begin" "$cut" "$theirs" "$stack" "$line" "$closing" "$end" >"$tmp/log"
	name=$(sed 's/.*\] \([A-Za-z]*\).*/\1/' <<<"$line")
	report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" "other_${name}_while_it_is_unloaded_is_found"
done
printf '%s\n' "$begin" "$cut" "$theirs" "$stack" "$closing" "$end" "VIRTGPU-GUEST-TAINTED 12928" >"$tmp/log" # an oops
report "$(! ./scan-log.sh "$tmp/log" >/dev/null; echo $?)" other_taint_beside_that_warning_is_found
echo "1..$number"
exit $failed
