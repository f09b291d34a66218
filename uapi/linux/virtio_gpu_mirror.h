/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR MIT */
/*
 * Virtio GPU Device: the mirror extension
 *
 * A device follows the page tables of guest processes. The guest says page by
 * page what the device may reach, and invalidates it before the memory is used
 * for something else. docs/protocol.md has the rules; this is the layout, next
 * to that of <linux/virtio_gpu.h>.
 *
 * Experimental: the feature bits, the numbers of the commands and the place in
 * the configuration space are not registered.
 */
#ifndef _UAPI_LINUX_VIRTIO_GPU_MIRROR_H
#define _UAPI_LINUX_VIRTIO_GPU_MIRROR_H

#include <linux/types.h>

/*
 * Spaces, the mirror queue and the event queue:
 * VIRTIO_GPU_CMD_SPACE_*, VIRTIO_GPU_CMD_MAP, VIRTIO_GPU_CMD_INVALIDATE
 */
#define VIRTIO_GPU_F_MIRROR		22
/*
 * The guest resolves faults of the device; needs VIRTIO_GPU_F_MIRROR:
 * VIRTIO_GPU_CMD_FAULT_RESOLVE, VIRTIO_GPU_EVENTQ_FAULT,
 * VIRTIO_GPU_EVENTQ_RING_DONE, VIRTIO_GPU_SPACE_FAULTS
 */
#define VIRTIO_GPU_F_PAGE_FAULT		23

/* Virtqueues, beside the control queue (0) and the cursor queue (1). */
#define VIRTIO_GPU_MIRROR_VQ		2
#define VIRTIO_GPU_EVENT_VQ		3

/* The fewest descriptors of a mirror queue. */
#define VIRTIO_GPU_MIRROR_MIN_QUEUE_SIZE	64
/* Descriptors of it that MAP and SPACE_CREATE leave free. */
#define VIRTIO_GPU_MIRROR_RESERVED		32

/* Where struct virtio_gpu_mirror_config is in the configuration space. */
#define VIRTIO_GPU_MIRROR_CONFIG_OFFSET		32
/* virtio_gpu_mirror_config.mirror_version of what is described here. */
#define VIRTIO_GPU_MIRROR_VERSION		1

/* virtio_gpu_mirror_config.device_state */
#define VIRTIO_GPU_DEVICE_STATE_OK		0
#define VIRTIO_GPU_DEVICE_STATE_LOST		1

/**
 * struct virtio_gpu_mirror_config - the extension's part of the configuration
 *	space, at VIRTIO_GPU_MIRROR_CONFIG_OFFSET; valid with VIRTIO_GPU_F_MIRROR
 * @mirror_version: VIRTIO_GPU_MIRROR_VERSION
 * @max_entries: most entries of a MAP, not 0
 * @max_spaces: most spaces at a time
 * @event_slots: buffers that the driver should keep in the event queue
 * @granularity: what addresses and lengths are multiples of, a power of two
 * @device_state: VIRTIO_GPU_DEVICE_STATE_*, announced by a configuration
 *	change notification
 * @max_faults: most faults of a space that are not resolved; valid with
 *	VIRTIO_GPU_F_PAGE_FAULT
 * @padding: 0
 */
struct virtio_gpu_mirror_config {
	__le32 mirror_version;
	__le32 max_entries;
	__le32 max_spaces;
	__le32 event_slots;
	__le32 granularity;
	__le32 device_state;
	__le32 max_faults;
	__le32 padding;
};

enum virtio_gpu_mirror_cmd {
	/* the response is a status */
	VIRTIO_GPU_CMD_SPACE_CREATE = 0x0400,
	/* the used entry is the response */
	VIRTIO_GPU_CMD_SPACE_DESTROY,
	/* the response is a status */
	VIRTIO_GPU_CMD_MAP,
	/* the used entry is the response */
	VIRTIO_GPU_CMD_INVALIDATE,
	/* the used entry is the response */
	VIRTIO_GPU_CMD_FAULT_RESOLVE,
};

/* What the device writes in response to a command with status: one __le32. */
enum virtio_gpu_mirror_status {
	VIRTIO_GPU_MIRROR_OK = 0,
	/* not well-formed, or names memory outside of guest RAM */
	VIRTIO_GPU_MIRROR_INVALID,
	/* MAP: there is no such space */
	VIRTIO_GPU_MIRROR_NO_SUCH_SPACE,
	/* the device lacks memory */
	VIRTIO_GPU_MIRROR_NO_MEMORY,
	/* SPACE_CREATE: there are max_spaces already */
	VIRTIO_GPU_MIRROR_LIMIT,
};

/*
 * Masks of what may be done with memory. ATOMIC alone is a fault of an atomic
 * access that is not coherent with the processors; a MAP allows it together
 * with the others: EXCLUSIVE, the device alone has the page.
 */
#define VIRTIO_GPU_ACCESS_READ		(1 << 0)
#define VIRTIO_GPU_ACCESS_WRITE		(1 << 1)
#define VIRTIO_GPU_ACCESS_ATOMIC	(1 << 2)
#define VIRTIO_GPU_ACCESS_EXCLUSIVE	7

/**
 * struct virtio_gpu_mirror_hdr - begin of every command of the mirror queue
 * @type: VIRTIO_GPU_CMD_*
 * @flags: 0
 * @space_id: the space, chosen by the driver, not 0
 * @padding: 0
 */
struct virtio_gpu_mirror_hdr {
	__le32 type;
	__le32 flags;
	__le32 space_id;
	__le32 padding;
};

/* virtio_gpu_space_create.kind */
#define VIRTIO_GPU_SPACE_RESOURCE	1
#define VIRTIO_GPU_SPACE_CONTEXT	2

/* virtio_gpu_space_create.flags, with VIRTIO_GPU_F_PAGE_FAULT */
#define VIRTIO_GPU_SPACE_FAULTS		(1 << 0)

/**
 * struct virtio_gpu_space_create - VIRTIO_GPU_CMD_SPACE_CREATE
 * @hdr: the header
 * @kind: VIRTIO_GPU_SPACE_RESOURCE (addresses are bytes from the resource's
 *	start) or VIRTIO_GPU_SPACE_CONTEXT (addresses are guest-virtual)
 * @id: id of the resource, or of the context
 * @size: bytes of addresses, from 0 on
 * @access: the most that any MAP may allow
 * @flags: VIRTIO_GPU_SPACE_*
 */
struct virtio_gpu_space_create {
	struct virtio_gpu_mirror_hdr hdr;
	__le32 kind;
	__le32 id;
	__le64 size;
	__le32 access;
	__le32 flags;
};

/**
 * struct virtio_gpu_space_destroy - VIRTIO_GPU_CMD_SPACE_DESTROY
 * @hdr: the header
 */
struct virtio_gpu_space_destroy {
	struct virtio_gpu_mirror_hdr hdr;
};

/**
 * struct virtio_gpu_map_entry - a stretch of guest memory
 * @addr: guest-physical address, or DMA address with VIRTIO_F_ACCESS_PLATFORM
 * @length: bytes, not 0
 * @access: VIRTIO_GPU_ACCESS_READ, with or without VIRTIO_GPU_ACCESS_WRITE; or
 *	VIRTIO_GPU_ACCESS_EXCLUSIVE, in a space with VIRTIO_GPU_SPACE_FAULTS
 */
struct virtio_gpu_map_entry {
	__le64 addr;
	__le32 length;
	__le32 access;
};

/**
 * struct virtio_gpu_map - VIRTIO_GPU_CMD_MAP
 * @hdr: the header
 * @start: first address in the space
 * @length: bytes, the sum of those of the entries
 * @nr_entries: entries that follow, struct virtio_gpu_map_entry; not 0
 * @padding: 0
 */
struct virtio_gpu_map {
	struct virtio_gpu_mirror_hdr hdr;
	__le64 start;
	__le64 length;
	__le32 nr_entries;
	__le32 padding;
};

/**
 * struct virtio_gpu_invalidate - VIRTIO_GPU_CMD_INVALIDATE
 * @hdr: the header
 * @start: first address in the space
 * @last: last address, not the one after it
 */
struct virtio_gpu_invalidate {
	struct virtio_gpu_mirror_hdr hdr;
	__le64 start;
	__le64 last;
};

enum virtio_gpu_fault_status {
	/* the access can be tried again */
	VIRTIO_GPU_FAULT_OK = 0,
	/* nothing is mapped there */
	VIRTIO_GPU_FAULT_BAD_ADDRESS,
	/* the access is not allowed */
	VIRTIO_GPU_FAULT_BAD_ACCESS,
	/* the access can be tried again, and may well fault again */
	VIRTIO_GPU_FAULT_RETRY,
};

/**
 * struct virtio_gpu_fault_resolve - VIRTIO_GPU_CMD_FAULT_RESOLVE
 * @hdr: the header
 * @fault_id: virtio_gpu_mirror_event.id of the fault
 * @status: VIRTIO_GPU_FAULT_*
 * @padding: 0
 */
struct virtio_gpu_fault_resolve {
	struct virtio_gpu_mirror_hdr hdr;
	__le64 fault_id;
	__le32 status;
	__le32 padding;
};

enum virtio_gpu_mirror_event_type {
	/* an access is stalled, and waits for VIRTIO_GPU_CMD_FAULT_RESOLVE */
	VIRTIO_GPU_EVENTQ_FAULT = 1,
	/* the space is gone; nothing is accessed through it any more */
	VIRTIO_GPU_EVENTQ_SPACE_LOST,
	/* a job of a context in fault mode is over */
	VIRTIO_GPU_EVENTQ_RING_DONE,
};

/* virtio_gpu_mirror_event.access of VIRTIO_GPU_EVENTQ_RING_DONE */
enum virtio_gpu_ring_done_result {
	VIRTIO_GPU_RING_DONE_OK = 0,
	/* an operation failed */
	VIRTIO_GPU_RING_DONE_FAILED,
	/* an access at the address was not possible; the context is lost */
	VIRTIO_GPU_RING_DONE_FAULTED,
	/* the context was lost, or its end came first */
	VIRTIO_GPU_RING_DONE_CANCELLED,
};

/**
 * struct virtio_gpu_mirror_event - what the device writes to the event queue
 * @type: VIRTIO_GPU_EVENTQ_*
 * @space_id: the space
 * @access: FAULT: VIRTIO_GPU_ACCESS_READ, _WRITE or _ATOMIC;
 *	RING_DONE: VIRTIO_GPU_RING_DONE_*
 * @info: FAULT: the ring of the job plus 1, or 0; RING_DONE: the ring
 * @address: FAULT: the address in the space; RING_DONE: that of the access, of
 *	VIRTIO_GPU_RING_DONE_FAULTED
 * @id: FAULT: names the fault; RING_DONE: fence_id of the job
 */
struct virtio_gpu_mirror_event {
	__le32 type;
	__le32 space_id;
	__le32 access;
	__le32 info;
	__le64 address;
	__le64 id;
};

#endif /* _UAPI_LINUX_VIRTIO_GPU_MIRROR_H */
