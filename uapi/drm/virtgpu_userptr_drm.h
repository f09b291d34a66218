/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR MIT */
/*
 * User memory for virtio-gpu: extension of the virtgpu DRM interface.
 *
 * The driver answers the ioctls of <drm/virtgpu_drm.h> as well. Probe for this
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
	/** @retries: out: submissions repeated because pages moved */
	__u64 retries;
	/** @faults: out: pages faulted in */
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

#define DRM_IOCTL_VIRTGPU_USERPTR_REGISTER \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_USERPTR_REGISTER, \
		 struct drm_virtgpu_userptr_register)
#define DRM_IOCTL_VIRTGPU_BO_QUERY \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_BO_QUERY, \
		 struct drm_virtgpu_bo_query)
#define DRM_IOCTL_VIRTGPU_USERPTR_PREFETCH \
	DRM_IOWR(DRM_COMMAND_BASE + DRM_VIRTGPU_USERPTR_PREFETCH, \
		 struct drm_virtgpu_userptr_prefetch)

#if defined(__cplusplus)
}
#endif

#endif /* _UAPI_VIRTGPU_USERPTR_DRM_H */
