/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR MIT */
#ifndef _VIRTGPU_TEST_EXPORTER_H
#define _VIRTGPU_TEST_EXPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Makes a dma-buf of this many pages; @fd is the answer. */
struct virtgpu_test_exporter_create {
	__u32 pages;
	__s32 fd;
};

/*
 * Takes the memory of a dma-buf away from its importers, and fills it with
 * VIRTGPU_TEST_EXPORTER_POISON when they have let go of it. ETIME if they have
 * not after @timeout_ms.
 */
struct virtgpu_test_exporter_revoke {
	__s32 fd;
	__u32 timeout_ms;
};

#define VIRTGPU_TEST_EXPORTER_POISON	0x5a

/*
 * From now on with @hold, until a call without, importers wait when they map
 * the dma-buf. @waiting is the answer: whether one does; and @unbound: whether
 * a device without driver was ever let have or kept the memory.
 */
struct virtgpu_test_exporter_hold {
	__s32 fd;
	__u32 hold;
	__u32 waiting;
	__u32 unbound;
};

/*
 * Attaches a device without hardware to somebody else's dma-buf, and maps it, for
 * a moment; with @peer2peer it takes memory without pages.
 */
struct virtgpu_test_exporter_attach {
	__s32 fd;
	__u32 peer2peer;
};

/* The UUID under which the host knows somebody else's dma-buf. */
struct virtgpu_test_exporter_uuid {
	__s32 fd;
	__u8 uuid[16];
};

#define VIRTGPU_TEST_EXPORTER_CREATE \
	_IOWR('x', 0, struct virtgpu_test_exporter_create)
#define VIRTGPU_TEST_EXPORTER_REVOKE \
	_IOW('x', 1, struct virtgpu_test_exporter_revoke)
#define VIRTGPU_TEST_EXPORTER_HOLD \
	_IOWR('x', 2, struct virtgpu_test_exporter_hold)
#define VIRTGPU_TEST_EXPORTER_ATTACH \
	_IOW('x', 3, struct virtgpu_test_exporter_attach)
#define VIRTGPU_TEST_EXPORTER_UUID \
	_IOWR('x', 4, struct virtgpu_test_exporter_uuid)

#endif
