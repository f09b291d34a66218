/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR MIT */
/*
 * User memory for virtio-gpu: extension of the virtgpu DRM interface.
 *
 * The driver has the ioctls of <drm/virtgpu_drm.h> as well. Probe for this
 * extension with DRM_IOCTL_VIRTGPU_GETPARAM and VIRTGPU_PARAM_USERPTR_MODES:
 * a driver without it returns -EINVAL.
 */
#ifndef _UAPI_VIRTGPU_USERPTR_DRM_H
#define _UAPI_VIRTGPU_USERPTR_DRM_H

#include <drm/drm.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define DRM_VIRTGPU_USERPTR_REGISTER	0x40
#define DRM_VIRTGPU_BO_QUERY		0x41
#define DRM_VIRTGPU_USERPTR_PREFETCH	0x42
#define DRM_VIRTGPU_SVM_ENABLE		0x43
#define DRM_VIRTGPU_SVM_PREFETCH	0x44
#define DRM_VIRTGPU_SVM_WAIT		0x46
#define DRM_VIRTGPU_SVM_QUERY		0x47

/* Parameters of DRM_IOCTL_VIRTGPU_GETPARAM. */
#define VIRTGPU_PARAM_USERPTR_MODES		0x1000
#define VIRTGPU_PARAM_USERPTR_MEMORY_MODELS	0x1001

/* Value of VIRTGPU_PARAM_USERPTR_MODES. */
#define VIRTGPU_USERPTR_MODE_PINNED	(1 << 0)
#define VIRTGPU_USERPTR_MODE_MIRRORED	(1 << 1)
#define VIRTGPU_USERPTR_MODE_SVM	(1 << 2)
#define VIRTGPU_USERPTR_MODE_FD		(1 << 3)

/* drm_virtgpu_userptr_register.flags: exactly one of PINNED and MIRRORED. */
#define VIRTGPU_USERPTR_PINNED		(1 << 0)
#define VIRTGPU_USERPTR_MIRRORED	(1 << 1)
#define VIRTGPU_USERPTR_RDONLY		(1 << 2)
#define VIRTGPU_USERPTR_FD		(1 << 3)
#define VIRTGPU_USERPTR_PREFAULT	(1 << 4)
#define VIRTGPU_USERPTR_EVENT		(1 << 5)
#define VIRTGPU_USERPTR_SPARSE		(1 << 6)

/* How long the device's view of a buffer lasts. */
#define VIRTGPU_MEMORY_MODEL_PERMANENT	1
#define VIRTGPU_MEMORY_MODEL_DYNAMIC	2
#define VIRTGPU_MEMORY_MODEL_REVOCABLE	3

/* drm_virtgpu_bo_query.state */
#define VIRTGPU_BO_STATE_VALID		1
#define VIRTGPU_BO_STATE_REVOKED	2
#define VIRTGPU_BO_STATE_LOST		3

/* drm_event.type of struct drm_virtgpu_userptr_event. */
#define VIRTGPU_EVENT_USERPTR		0x90001000

/* drm_virtgpu_userptr_event.reason */
#define VIRTGPU_EVENT_REASON_UNMAP	1
#define VIRTGPU_EVENT_REASON_MM_GONE	2
#define VIRTGPU_EVENT_REASON_LOST	3

/* drm_virtgpu_svm_enable.flags */
#define VIRTGPU_SVM_EVENT		(1 << 0)
#define VIRTGPU_SVM_EXACT		(1 << 1)

/* Largest drm_virtgpu_svm_enable.workers */
#define VIRTGPU_SVM_MAX_WORKERS		8

/* drm_virtgpu_svm_prefetch.flags */
#define VIRTGPU_SVM_PREFETCH_WRITE	(1 << 0)

/* drm_virtgpu_svm_wait.op: all jobs of a ring, or a comparison, unsigned. */
#define VIRTGPU_SVM_WAIT_RING		0
#define VIRTGPU_SVM_WAIT_EQ		1
#define VIRTGPU_SVM_WAIT_NE		2
#define VIRTGPU_SVM_WAIT_GT		3
#define VIRTGPU_SVM_WAIT_GE		4
#define VIRTGPU_SVM_WAIT_LT		5
#define VIRTGPU_SVM_WAIT_LE		6

/* drm_virtgpu_svm_query.state */
#define VIRTGPU_SVM_STATE_ACTIVE	1
#define VIRTGPU_SVM_STATE_LOST		2

/* drm_virtgpu_svm_query.access and drm_virtgpu_svm_event.access */
#define VIRTGPU_SVM_ACCESS_READ		1
#define VIRTGPU_SVM_ACCESS_WRITE	2
#define VIRTGPU_SVM_ACCESS_ATOMIC	4

/* drm_virtgpu_svm_query.reason and drm_virtgpu_svm_event.reason */
#define VIRTGPU_SVM_REASON_BAD_ADDRESS	1
#define VIRTGPU_SVM_REASON_BAD_ACCESS	2
#define VIRTGPU_SVM_REASON_NO_MEMORY	3
#define VIRTGPU_SVM_REASON_NO_ATOMIC	4
#define VIRTGPU_SVM_REASON_MM_GONE	5
#define VIRTGPU_SVM_REASON_LOST		6

/* drm_virtgpu_svm_query.ring and drm_virtgpu_svm_event.ring: no job's fault. */
#define VIRTGPU_SVM_NO_RING		0xffffffff

/* drm_event.type of struct drm_virtgpu_svm_event. */
#define VIRTGPU_EVENT_SVM		0x90001001

/**
 * struct drm_virtgpu_userptr_register - let the device use user memory
 */
struct drm_virtgpu_userptr_register {
	/** @addr: in: address, a multiple of the page size; 0 with FD */
	__u64 addr;
	/** @size: in: bytes, a multiple of the page size and blob alignment */
	__u64 size;
	/** @flags: in: mask of VIRTGPU_USERPTR_* */
	__u32 flags;
	/** @fd: in: memfd with FD, else 0 */
	__s32 fd;
	/** @fd_offset: in: bytes, a multiple of the page size; 0 without FD */
	__u64 fd_offset;
	/** @blob_id: in: passed to the host; 0 with blob_mem GUEST */
	__u64 blob_id;
	/** @blob_mem: in: VIRTGPU_BLOB_MEM_GUEST or _HOST3D_GUEST */
	__u32 blob_mem;
	/** @bo_handle: out: GEM handle; closing it ends the registration */
	__u32 bo_handle;
	/** @res_handle: out: resource id */
	__u32 res_handle;
	/** @memory_model: out: VIRTGPU_MEMORY_MODEL_* */
	__u32 memory_model;
	/** @cookie: in: returned in events */
	__u64 cookie;
	/** @pad: must be zero */
	__u64 pad;
};

/**
 * struct drm_virtgpu_bo_query - ask about a buffer of any kind
 */
struct drm_virtgpu_bo_query {
	/** @bo_handle: in: GEM handle */
	__u32 bo_handle;
	/** @flags: out: flags of the registration, 0 for other buffers */
	__u32 flags;
	/** @memory_model: out: VIRTGPU_MEMORY_MODEL_* */
	__u32 memory_model;
	/** @state: out: VIRTGPU_BO_STATE_* */
	__u32 state;
	/** @addr: out: address of the registration, 0 for other buffers */
	__u64 addr;
	/** @size: out: bytes */
	__u64 size;
	/** @resident_bytes: out: bytes of guest memory the buffer holds */
	__u64 resident_bytes;
	/** @mapped_bytes: out: bytes the device can reach */
	__u64 mapped_bytes;
	/** @entries: out: memory entries sent to the device */
	__u64 entries;
	/** @maps: out: MAP commands sent */
	__u64 maps;
	/** @invalidations: out: INVALIDATE commands sent */
	__u64 invalidations;
	/** @retries: out: lookups repeated because the memory changed */
	__u64 retries;
	/** @faults: out: pages looked up, those found present included */
	__u64 faults;
};

/**
 * struct drm_virtgpu_userptr_prefetch - make a part of a registration usable
 */
struct drm_virtgpu_userptr_prefetch {
	/** @bo_handle: in: GEM handle */
	__u32 bo_handle;
	/** @flags: in: must be zero */
	__u32 flags;
	/** @offset: in: bytes, a multiple of the page size */
	__u64 offset;
	/** @length: in: bytes, a multiple of the page size */
	__u64 length;
	/** @done: out: bytes from @offset that the device can reach now */
	__u64 done;
};

/**
 * struct drm_virtgpu_userptr_event - memory registered with EVENT is gone
 *
 * Read from the open file. One event tells of all that happened to a
 * registration since the last: of a range with everything in it, and of the
 * highest reason.
 */
struct drm_virtgpu_userptr_event {
	/** @base: type VIRTGPU_EVENT_USERPTR, and bytes of the whole */
	struct drm_event base;
	/** @bo_handle: GEM handle of the registration */
	__u32 bo_handle;
	/** @reason: VIRTGPU_EVENT_REASON_* */
	__u32 reason;
	/** @addr: address of what is gone */
	__u64 addr;
	/** @size: bytes of what is gone */
	__u64 size;
	/** @cookie: of the registration */
	__u64 cookie;
};

/**
 * struct drm_virtgpu_svm_enable - let jobs use every address of the process
 *
 * After DRM_IOCTL_VIRTGPU_CONTEXT_INIT and before the first job.
 */
struct drm_virtgpu_svm_enable {
	/** @flags: in: mask of VIRTGPU_SVM_EVENT and VIRTGPU_SVM_EXACT */
	__u32 flags;
	/** @workers: in: threads that serve faults, 0 for 2 */
	__u32 workers;
	/** @cookie: in: returned in the event */
	__u64 cookie;
	/** @va_end: out: end of the addresses that jobs may use */
	__u64 va_end;
	/** @max_faults: out: faults that the device has on the way at once */
	__u32 max_faults;
	/** @pad: must be zero */
	__u32 pad;
};

/**
 * struct drm_virtgpu_svm_prefetch - make a range of addresses usable now
 */
struct drm_virtgpu_svm_prefetch {
	/** @addr: in: address, a multiple of the page size */
	__u64 addr;
	/** @length: in: bytes, a multiple of the page size */
	__u64 length;
	/** @flags: in: VIRTGPU_SVM_PREFETCH_WRITE or 0 */
	__u32 flags;
	/** @pad: must be zero */
	__u32 pad;
	/** @done: out: bytes from @addr that the device can reach now */
	__u64 done;
};

/**
 * struct drm_virtgpu_svm_wait - wait for jobs, or for what they write
 */
struct drm_virtgpu_svm_wait {
	/** @addr: in: of a __u64, a multiple of 8; 0 with WAIT_RING */
	__u64 addr;
	/** @value: in: compared with the __u64; 0 with WAIT_RING */
	__u64 value;
	/** @mask: in: bits of the __u64 that count; 0 with WAIT_RING */
	__u64 mask;
	/**
	 * @deadline_ns: in: absolute CLOCK_MONOTONIC time; 0 asks without
	 * waiting, negative waits for ever
	 */
	__s64 deadline_ns;
	/** @op: in: VIRTGPU_SVM_WAIT_* */
	__u32 op;
	/** @ring: in: ring with WAIT_RING, else 0 */
	__u32 ring;
	/** @flags: in: must be zero */
	__u32 flags;
	/** @pad: must be zero */
	__u32 pad;
};

/**
 * struct drm_virtgpu_svm_query - ask about the address space of the context
 */
struct drm_virtgpu_svm_query {
	/** @state: out: VIRTGPU_SVM_STATE_* */
	__u32 state;
	/** @reason: out: VIRTGPU_SVM_REASON_*, 0 while active */
	__u32 reason;
	/** @access: out: VIRTGPU_SVM_ACCESS_* that was the cause, or 0 */
	__u32 access;
	/** @ring: out: ring that was the cause, or VIRTGPU_SVM_NO_RING */
	__u32 ring;
	/** @addr: out: address that was the cause, or 0 */
	__u64 addr;
	/** @va_end: out: end of the addresses that jobs may use */
	__u64 va_end;
	/** @mapped_bytes: out: bytes the device can reach */
	__u64 mapped_bytes;
	/** @faults: out: faults of the device that were served */
	__u64 faults;
	/** @coalesced: out: of these, on pages that others have mapped */
	__u64 coalesced;
	/** @pages: out: pages mapped, counted each time */
	__u64 pages;
	/** @maps: out: MAP commands sent */
	__u64 maps;
	/** @entries: out: memory entries sent to the device */
	__u64 entries;
	/** @invalidations: out: INVALIDATE commands sent */
	__u64 invalidations;
	/** @retries: out: lookups repeated because the memory changed */
	__u64 retries;
	/** @evictions: out: times pages were evicted for want of room */
	__u64 evictions;
	/** @exclusive: out: pages given to the device alone */
	__u64 exclusive;
	/** @bad: out: faults refused */
	__u64 bad;
};

/**
 * struct drm_virtgpu_svm_event - the context is lost
 *
 * Read from the open file, once, if the context was enabled with EVENT.
 */
struct drm_virtgpu_svm_event {
	/** @base: type VIRTGPU_EVENT_SVM, and bytes of the whole */
	struct drm_event base;
	/** @reason: VIRTGPU_SVM_REASON_* */
	__u32 reason;
	/** @access: VIRTGPU_SVM_ACCESS_* that was the cause, or 0 */
	__u32 access;
	/** @addr: address that was the cause, or 0 */
	__u64 addr;
	/** @cookie: of drm_virtgpu_svm_enable */
	__u64 cookie;
	/** @ring: ring that was the cause, or VIRTGPU_SVM_NO_RING */
	__u32 ring;
	/** @pad: zero */
	__u32 pad;
};

#define DRM_IOCTL_VIRTGPU_USERPTR_REGISTER \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_USERPTR_REGISTER, \
		 struct drm_virtgpu_userptr_register)
#define DRM_IOCTL_VIRTGPU_BO_QUERY \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_BO_QUERY, \
		 struct drm_virtgpu_bo_query)
#define DRM_IOCTL_VIRTGPU_USERPTR_PREFETCH \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_USERPTR_PREFETCH, \
		 struct drm_virtgpu_userptr_prefetch)
#define DRM_IOCTL_VIRTGPU_SVM_ENABLE \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_SVM_ENABLE, \
		 struct drm_virtgpu_svm_enable)
#define DRM_IOCTL_VIRTGPU_SVM_PREFETCH \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_SVM_PREFETCH, \
		 struct drm_virtgpu_svm_prefetch)
#define DRM_IOCTL_VIRTGPU_SVM_WAIT \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_SVM_WAIT, \
		 struct drm_virtgpu_svm_wait)
#define DRM_IOCTL_VIRTGPU_SVM_QUERY \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_SVM_QUERY, \
		 struct drm_virtgpu_svm_query)

#if defined(__cplusplus)
}
#endif

#endif /* _UAPI_VIRTGPU_USERPTR_DRM_H */
