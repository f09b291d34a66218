/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Headers for which the module generates bindings of its own, because
 * kernel::bindings lacks them. Kbuild lists those that are emitted.
 */

/* First, so that bindgen sees the enum before its users. */
#include <linux/hrtimer_types.h>

#include <drm/drm_debugfs.h>
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_file.h>
#include <drm/drm_gem.h>
#include <drm/drm_gem_shmem_helper.h>
#include <drm/drm_ioctl.h>
#include <drm/drm_mm.h>
#include <drm/drm_syncobj.h>
#include <linux/dma-buf.h>
#include <linux/dma-fence-chain.h>
#include <linux/dma-fence-unwrap.h>
#include <linux/dma-fence.h>
#include <linux/dma-resv.h>
#include <linux/scatterlist.h>
#include <linux/sync_file.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>
#include <linux/virtio_dma_buf.h>

#include "helpers.h"
