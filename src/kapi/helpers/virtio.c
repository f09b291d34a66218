// SPDX-License-Identifier: GPL-2.0
/*
 * Virtio, and scatter lists for its queues.
 *
 * See helpers.h.
 */
#include <linux/pci.h>
#include <linux/scatterlist.h>
#include <linux/virtio.h>
#include <linux/virtio_config.h>

#include "../helpers.h"

bool kapi_virtio_has_feature(const struct virtio_device *vdev, unsigned int bit)
{
	return virtio_has_feature(vdev, bit);
}

int kapi_virtio_find_vqs(struct virtio_device *vdev, unsigned int count,
			 struct virtqueue **vqs, struct virtqueue_info *infos)
{
	return virtio_find_vqs(vdev, count, vqs, infos, NULL);
}

void kapi_virtio_del_vqs(struct virtio_device *vdev)
{
	vdev->config->del_vqs(vdev);
}

void kapi_virtio_device_ready(struct virtio_device *vdev)
{
	virtio_device_ready(vdev);
}

void kapi_virtio_synchronize_cbs(struct virtio_device *vdev)
{
	virtio_synchronize_cbs(vdev);
}

bool kapi_virtio_get_shm_region(struct virtio_device *vdev,
				struct virtio_shm_region *region, u8 id)
{
	return virtio_get_shm_region(vdev, region, id);
}

bool kapi_virtio_claim_memory(struct virtio_device *vdev, u64 start, u64 len)
{
	return devm_request_mem_region(&vdev->dev, start, len,
				       dev_name(&vdev->dev));
}

u32 kapi_virtio_config_read32(struct virtio_device *vdev, unsigned int offset)
{
	__le32 value = 0;

	might_sleep();
	vdev->config->get(vdev, offset, &value, sizeof(value));
	return le32_to_cpu(value);
}

bool kapi_virtio_pci_config(struct virtio_device *vdev, u8 *space)
{
	struct device *parent = vdev->dev.parent;

	if (!dev_is_pci(parent))
		return false;
	/* What cannot be read is all ones. */
	for (int at = 0; at < PCI_CFG_SPACE_SIZE; at++)
		pci_read_config_byte(to_pci_dev(parent), at, &space[at]);
	return true;
}

bool kapi_virtio_has_config(struct virtio_device *vdev)
{
	return vdev->config->get;
}

struct device *kapi_virtio_device_parent(struct virtio_device *vdev)
{
	return vdev->dev.parent;
}

void kapi_virtio_unlimit_segments(struct virtio_device *vdev)
{
	struct device *dev = vdev->dev.parent;
	size_t max = dma_max_mapping_size(dev);

	dma_set_max_seg_size(dev, min_t(size_t, max, UINT_MAX));
}

void kapi_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int length)
{
	sg_set_buf(sg, buf, length);
}
