// SPDX-License-Identifier: GPL-2.0-only
/*
 * A plugin of QEMU's for measure P10: it counts the instructions of the kernel that a thread of the
 * guest executes between two moments of its choice, in system calls and in page faults, and where
 * it executes them. What interrupts execute meanwhile and what other threads do in the kernel while
 * it waits is counted apart, without the interrupts of the local timer, which are not counted.
 *
 * The thread says when by a store that no other program has: `mov %rsi, DISPLACEMENT(%rdi)`, with
 * one of the displacements below.
 *
 *   START  counts from now on; what is stored is the address of the handler of timer interrupts.
 *   STOP   writes struct reply where the store went, and as many of struct block behind it as there
 *          are, at most as many as is stored.
 *
 * What is counted are translation blocks of QEMU's, each as often as it is entered, with all of its
 * instructions. One that a page fault leaves early counts in full, and again when it goes on.
 *
 * An interrupt ends with its iretq. Other threads run from one __switch_to_asm() to another: that
 * function alone stores the stack pointer in one task_struct and loads that of another.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "qemu.h"

EXPORT int qemu_plugin_version = 7;

/* What the program in the guest knows, too: bench/src/meter/counter.rs. */
#define START 0x76677001u
#define STOP 0x76677002u

struct block {
	__u64 address;
	__u32 instructions;
	__u32 executions;
};

struct reply {
	/* Of the thread. */
	__u64 instructions;
	/* Of interrupts and of other threads. */
	__u64 others;
	/* Interrupts of the timer. */
	__u64 ticks;
	__u64 blocks;
	/* Whether it was told everything that was counted. */
	__u64 complete;
	/* How often the thread let another one run: in a call, not in an interrupt. */
	__u64 breaks;
};

/* Many more than a kernel has that are executed. Powers of two. */
#define MOST_BLOCKS (1u << 19)
#define BUCKETS (MOST_BLOCKS * 2)
/* What one reply has room for. */
#define MOST_TOLD (1u << 16)

/* What the translated code changes by itself. */
struct counters {
	/* Interrupts that have not returned. */
	__u64 depth;
	/* How often each block was entered since the last flush(). */
	__u64 executions[MOST_BLOCKS];
};

static struct qemu_plugin_scoreboard *score;
/* In the order of their first translation. */
static struct block blocks[MOST_BLOCKS];
static __u32 block_count;
/* One more than the number of a block, by its hash. */
static __u32 buckets[BUCKETS];
static bool overflow;

static bool is_counting;
static __u64 timer_handler;
/* Where the thread's task_struct has its stack pointer, if it is known yet. */
static __u64 thread;
/* Whether another thread runs. */
static bool is_away;
/* Whether the outermost interrupt is the timer's. */
static bool is_tick;
/* What it was in when it was switched away from. */
static struct {
	__u64 depth;
	bool is_tick;
} left;
/* How often the thread has entered each block. */
static __u64 executions[MOST_BLOCKS];
static __u64 others;
static __u64 ticks;
static __u64 breaks;
static struct {
	struct reply head;
	struct block blocks[MOST_TOLD];
} reply;

static struct counters *counters_of(unsigned int vcpu)
{
	return qemu_plugin_scoreboard_find(score, vcpu);
}

/* block_of - the number of a block, the same one each time that it is translated */
static __u32 block_of(__u64 address, __u32 instructions)
{
	__u64 hash = (address * 31 + instructions) * 0x9e3779b97f4a7c15ull;
	__u32 bucket = (hash >> 40) % BUCKETS;

	for (; buckets[bucket]; bucket = (bucket + 1) % BUCKETS) {
		__u32 number = buckets[bucket] - 1;

		if (blocks[number].address == address &&
		    blocks[number].instructions == instructions)
			return number;
	}
	if (block_count == MOST_BLOCKS) {
		overflow = true;
		return 0;
	}
	blocks[block_count] = (struct block){ .address = address, .instructions = instructions };
	buckets[bucket] = ++block_count;
	return block_count - 1;
}

/* flush - adds what was executed since the last time to where it belongs */
static void flush(struct counters *counters)
{
	bool is_interrupt = counters->depth;

	for (__u32 i = 0; i < block_count; i++) {
		__u64 count = counters->executions[i];

		if (!count)
			continue;
		counters->executions[i] = 0;
		if (is_interrupt && is_tick)
			continue;
		if (is_interrupt || is_away)
			others += count * blocks[i].instructions;
		else
			executions[i] += count;
	}
}

static void start(struct counters *counters, __u64 handler)
{
	memset(counters->executions, 0, block_count * sizeof(counters->executions[0]));
	memset(executions, 0, block_count * sizeof(executions[0]));
	counters->depth = 0;
	timer_handler = handler;
	thread = 0;
	is_away = false;
	others = 0;
	ticks = 0;
	breaks = 0;
	is_counting = true;
}

static void stop(struct counters *counters, __u64 address, __u64 room)
{
	struct bytes bytes = { .data = (__u8 *)&reply };
	__u64 count = 0;

	flush(counters);
	is_counting = false;
	reply.head = (struct reply){
		.others = others,
		.ticks = ticks,
		.complete = !overflow,
		.breaks = breaks,
	};
	if (room > MOST_TOLD)
		room = MOST_TOLD;
	for (__u32 i = 0; i < block_count; i++) {
		if (!executions[i])
			continue;
		reply.head.instructions += executions[i] * blocks[i].instructions;
		if (count == room) {
			reply.head.complete = false;
			continue;
		}
		reply.blocks[count] = blocks[i];
		reply.blocks[count++].executions = executions[i];
	}
	reply.head.blocks = count;
	bytes.len = sizeof(reply.head) + count * sizeof(reply.blocks[0]);
	if (!qemu_plugin_write_memory_vaddr(address, &bytes))
		fprintf(stderr, "count: the guest's memory cannot be written\n");
}

static void told(unsigned int vcpu, __u32 info, __u64 address, void *data)
{
	__u64 value = qemu_plugin_mem_get_value(info).data.u64;

	if ((uintptr_t)data == START)
		start(counters_of(vcpu), value);
	else
		stop(counters_of(vcpu), address, value);
}

static void interrupted(unsigned int vcpu, int type, __u64 from, __u64 to, void *data)
{
	struct counters *counters = counters_of(vcpu);

	(void)from;
	(void)data;
	if (!is_counting)
		return;
	if (counters->depth) {
		counters->depth++;
	} else if (type == INTERRUPT) {
		flush(counters);
		counters->depth = 1;
		is_tick = to == timer_handler;
		ticks += is_tick;
	}
}

/* returns - an interrupt does, or an exception in an interrupt */
static void returns(unsigned int vcpu, void *data)
{
	struct counters *counters = counters_of(vcpu);

	(void)data;
	if (counters->depth == 1)
		flush(counters);
	counters->depth--;
}

/* leaves - the processor leaves a thread, whose stack pointer it stores at an address */
static void leaves(unsigned int vcpu, __u32 info, __u64 address, void *data)
{
	struct counters *counters = counters_of(vcpu);

	(void)info;
	(void)data;
	if (!is_counting)
		return;
	flush(counters);
	if (!thread)
		thread = address;
	if (thread == address) {
		left.depth = counters->depth;
		left.is_tick = is_tick;
		is_away = true;
		breaks += !counters->depth;
	}
	counters->depth = 0;
}

/* enters - the processor loads the stack pointer of another thread */
static void enters(unsigned int vcpu, __u32 info, __u64 address, void *data)
{
	struct counters *counters = counters_of(vcpu);

	(void)info;
	(void)data;
	if (!is_counting || thread != address)
		return;
	flush(counters);
	counters->depth = left.depth;
	is_tick = left.is_tick;
	is_away = false;
}

/* says_when - which of the two stores an instruction is, 0 if it is none */
static __u32 says_when(const struct qemu_plugin_insn *insn)
{
	static const __u8 store[] = { 0x48, 0x89, 0xb7 };
	__u8 code[sizeof(store) + sizeof(__u32)];
	__u32 displacement;

	if (qemu_plugin_insn_data(insn, code, sizeof(code)) != sizeof(code) ||
	    memcmp(code, store, sizeof(store)))
		return 0;
	memcpy(&displacement, code + sizeof(store), sizeof(displacement));
	return displacement == START || displacement == STOP ? displacement : 0;
}

/* has_switch - whether instructions from one on are those of __switch_to_asm() about the stack */
static bool has_switch(const struct qemu_plugin_tb *tb, size_t index)
{
	static const __u8 store[] = { 0x48, 0x89, 0xa7 }, load[] = { 0x48, 0x8b, 0xa6 };
	__u8 first[7], second[7];

	if (index + 1 >= qemu_plugin_tb_n_insns(tb))
		return false;
	return qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, index), first, 7) == 7 &&
	       qemu_plugin_insn_data(qemu_plugin_tb_get_insn(tb, index + 1), second, 7) == 7 &&
	       !memcmp(first, store, 3) && !memcmp(second, load, 3) &&
	       !memcmp(first + 3, second + 3, sizeof(__u32));
}

static bool is_iretq(const struct qemu_plugin_insn *insn)
{
	__u8 code[2];

	return qemu_plugin_insn_data(insn, code, sizeof(code)) == sizeof(code) &&
	       code[0] == 0x48 && code[1] == 0xcf;
}

static void translated(struct qemu_plugin_tb *tb, void *data)
{
	__u64 address = qemu_plugin_tb_vaddr(tb);
	size_t count = qemu_plugin_tb_n_insns(tb);
	struct entry entry = { .score = score };
	struct qemu_plugin_insn *last;

	(void)data;
	if (!count)
		return;
	/* The upper half of the addresses is the kernel's. */
	if (!(address >> 63)) {
		for (size_t i = 0; i < count; i++) {
			struct qemu_plugin_insn *insn = qemu_plugin_tb_get_insn(tb, i);
			__u32 when = says_when(insn);

			if (when)
				qemu_plugin_register_vcpu_mem_cb(insn, told, NO_REGISTERS, WRITES,
								 (void *)(uintptr_t)when);
		}
		return;
	}
	for (size_t i = 0; i < count; i++) {
		if (!has_switch(tb, i))
			continue;
		qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i), leaves,
						 NO_REGISTERS, WRITES, NULL);
		qemu_plugin_register_vcpu_mem_cb(qemu_plugin_tb_get_insn(tb, i + 1), enters,
						 NO_REGISTERS, READS, NULL);
	}
	entry.offset = offsetof(struct counters, executions) +
		       block_of(address, count) * sizeof(__u64);
	qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(tb, INLINE_ADD, entry, 1);
	last = qemu_plugin_tb_get_insn(tb, count - 1);
	if (is_iretq(last)) {
		entry.offset = offsetof(struct counters, depth);
		qemu_plugin_register_vcpu_insn_exec_cond_cb(last, returns, NO_REGISTERS, NOT_EQUAL,
							    entry, 0, NULL);
	}
}

EXPORT int qemu_plugin_install(__u64 id, const struct qemu_info *info, int argc, char **argv)
{
	(void)argc;
	(void)argv;
	if (strcmp(info->target_name, "x86_64") || !info->system_emulation ||
	    info->system.max_vcpus != 1) {
		fprintf(stderr, "count: for x86-64 machines with one processor only\n");
		return -1;
	}
	score = qemu_plugin_scoreboard_new(sizeof(struct counters));
	qemu_plugin_register_vcpu_tb_trans_cb(id, translated, NULL);
	qemu_plugin_register_vcpu_discon_cb(id, INTERRUPT | EXCEPTION, interrupted, NULL);
	return 0;
}
