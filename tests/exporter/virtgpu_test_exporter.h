/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note OR MIT */
#ifndef _VIRTGPU_TEST_EXPORTER_H
#define _VIRTGPU_TEST_EXPORTER_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Makes a dma-buf of this many pages; @fd is returned. */
struct virtgpu_test_exporter_create {
	__u32 pages;
	__s32 fd;
};

/*
 * Takes the memory of a dma-buf away from its importers, and fills it with
 * VIRTGPU_TEST_EXPORTER_POISON when they have unmapped it. ETIME if they have
 * not after @timeout_ms.
 */
struct virtgpu_test_exporter_revoke {
	__s32 fd;
	__u32 timeout_ms;
};

#define VIRTGPU_TEST_EXPORTER_POISON	0x5a

/*
 * From now on with @hold, until a call without, importers wait when they map
 * the dma-buf. @waiting is returned: whether one does; and @unbound: whether
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

/*
 * Attaches a device without hardware to somebody else's dma-buf, which needs no
 * pages, and maps it, until the exporter takes the memory away or the file is
 * closed. One dma-buf for a file. @unrevocable: it does not want to know of that.
 */
struct virtgpu_test_exporter_import {
	__s32 fd;
	__u32 unrevocable;
};

/*
 * From now on with @works a fence says that the device works on the import, and
 * with @holds the import stays mapped when the exporter revokes it. Both are
 * over with a call without. @mapped is returned: whether it is; and @told:
 * whether the exporter has revoked it.
 */
struct virtgpu_test_exporter_imported {
	__u32 works;
	__u32 holds;
	__u32 mapped;
	__u32 told;
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
#define VIRTGPU_TEST_EXPORTER_IMPORT \
	_IOW('x', 5, struct virtgpu_test_exporter_import)
#define VIRTGPU_TEST_EXPORTER_IMPORTED \
	_IOWR('x', 6, struct virtgpu_test_exporter_imported)

#endif
