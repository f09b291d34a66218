/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the plugin needs of QEMU's interface for plugins, version 7 (QEMU 11.1), whose header is in
 * no package of Debian's.
 */
#ifndef QEMU_H
#define QEMU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <linux/types.h>

#define EXPORT __attribute__((visibility("default")))

struct qemu_plugin_tb;
struct qemu_plugin_insn;
struct qemu_plugin_scoreboard;

/* Only what is asked for. */
struct qemu_info {
	const char *target_name;
	struct {
		int min;
		int cur;
	} version;
	bool system_emulation;
	struct {
		int smp_vcpus;
		int max_vcpus;
	} system;
};

struct entry {
	struct qemu_plugin_scoreboard *score;
	size_t offset;
};

struct value {
	int type;
	union {
		__u64 u64;
		__u64 u128[2];
	} data;
};

/* GLib's GByteArray. */
struct bytes {
	__u8 *data;
	unsigned int len;
};

enum { NO_REGISTERS = 0 };
enum { INLINE_ADD = 0 };
enum { NOT_EQUAL = 3 };
enum { READS = 1, WRITES = 2 };
enum { INTERRUPT = 1, EXCEPTION = 2 };

typedef void (*translated_fn)(struct qemu_plugin_tb *tb, void *data);
typedef void (*executed_fn)(unsigned int vcpu, void *data);
typedef void (*accessed_fn)(unsigned int vcpu, __u32 info, __u64 address, void *data);
typedef void (*interrupted_fn)(unsigned int vcpu, int type, __u64 from, __u64 to, void *data);

void qemu_plugin_register_vcpu_tb_trans_cb(__u64 id, translated_fn fn, void *data);
void qemu_plugin_register_vcpu_discon_cb(__u64 id, int types, interrupted_fn fn, void *data);
void qemu_plugin_register_vcpu_mem_cb(struct qemu_plugin_insn *insn, accessed_fn fn, int registers,
				      int accesses, void *data);
void qemu_plugin_register_vcpu_tb_exec_inline_per_vcpu(struct qemu_plugin_tb *tb, int op,
						       struct entry entry, __u64 operand);
void qemu_plugin_register_vcpu_insn_exec_cond_cb(struct qemu_plugin_insn *insn, executed_fn fn,
						 int registers, int condition, struct entry entry,
						 __u64 operand, void *data);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);
__u64 qemu_plugin_tb_vaddr(const struct qemu_plugin_tb *tb);
struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *tb, size_t index);
size_t qemu_plugin_insn_data(const struct qemu_plugin_insn *insn, void *to, size_t size);
struct value qemu_plugin_mem_get_value(__u32 info);
bool qemu_plugin_write_memory_vaddr(__u64 address, struct bytes *bytes);
struct qemu_plugin_scoreboard *qemu_plugin_scoreboard_new(size_t size);
void *qemu_plugin_scoreboard_find(struct qemu_plugin_scoreboard *score, unsigned int vcpu);

#endif
