// SPDX-License-Identifier: GPL-2.0
/*
 * An exporter of dma-bufs for tests. Debian's kernel has none for a guest without
 * other hardware whose memory can be revoked while it is mapped, as that of
 * vfio-pci can. It is an importer as well, of any kind.
 */
#include <linux/dma-buf.h>
#include <linux/dma-fence.h>
#include <linux/dma-mapping.h>
#include <linux/dma-resv.h>
#include <linux/file.h>
#include <linux/highmem.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/virtio_dma_buf.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "virtgpu_test_exporter.h"

#define MAX_PAGES 1024

struct exported {
	/* The reservation of the dma-buf protects these two. */
	bool revoked;
	unsigned int mappings;
	wait_queue_head_t unmapped;
	wait_queue_head_t released;
	bool hold;
	bool waiting;
	bool unbound;
	unsigned int count;
	struct page *pages[] __counted_by(count);
};

static int exported_pin(struct dma_buf_attachment *attach)
{
	struct exported *exported = attach->dmabuf->priv;

	return exported->revoked ? -ENODEV : 0;
}

static void exported_unpin(struct dma_buf_attachment *attach)
{
}

/* A device may have memory only as long as it has a driver. */
static void exported_check(struct exported *exported, struct device *dev)
{
	if (!READ_ONCE(dev->driver))
		WRITE_ONCE(exported->unbound, true);
}

static struct sg_table *exported_map(struct dma_buf_attachment *attach,
				     enum dma_data_direction dir)
{
	struct exported *exported = attach->dmabuf->priv;
	struct sg_table *table;
	int err;

	if (exported->revoked)
		return ERR_PTR(-ENODEV);
	WRITE_ONCE(exported->waiting, true);
	err = wait_event_killable(exported->released,
				  !READ_ONCE(exported->hold));
	WRITE_ONCE(exported->waiting, false);
	if (err)
		return ERR_PTR(err);
	exported_check(exported, attach->dev);
	table = kzalloc_obj(*table);
	if (!table)
		return ERR_PTR(-ENOMEM);
	err = sg_alloc_table_from_pages(table, exported->pages, exported->count,
					0, (size_t)exported->count << PAGE_SHIFT,
					GFP_KERNEL);
	if (err)
		goto free;
	err = dma_map_sgtable(attach->dev, table, dir, 0);
	if (err)
		goto free_table;
	WRITE_ONCE(exported->mappings, exported->mappings + 1);
	return table;

free_table:
	sg_free_table(table);
free:
	kfree(table);
	return ERR_PTR(err);
}

static void exported_unmap(struct dma_buf_attachment *attach,
			   struct sg_table *table, enum dma_data_direction dir)
{
	struct exported *exported = attach->dmabuf->priv;

	exported_check(exported, attach->dev);
	dma_unmap_sgtable(attach->dev, table, dir, 0);
	sg_free_table(table);
	kfree(table);
	WRITE_ONCE(exported->mappings, exported->mappings - 1);
	wake_up_all(&exported->unmapped);
}

static int exported_mmap(struct dma_buf *buf, struct vm_area_struct *vma)
{
	struct exported *exported = buf->priv;

	return vm_map_pages(vma, exported->pages, exported->count);
}

static void exported_free(struct exported *exported)
{
	unsigned int i;

	for (i = 0; i < exported->count && exported->pages[i]; i++)
		__free_page(exported->pages[i]);
	kfree(exported);
}

static void exported_release(struct dma_buf *buf)
{
	struct exported *exported = buf->priv;

	WARN_ON(exported->mappings);
	exported_free(exported);
}

static const struct dma_buf_ops exported_ops = {
	.pin = exported_pin,
	.unpin = exported_unpin,
	.map_dma_buf = exported_map,
	.unmap_dma_buf = exported_unmap,
	.mmap = exported_mmap,
	.release = exported_release,
};

static int exporter_create(struct virtgpu_test_exporter_create *args)
{
	DEFINE_DMA_BUF_EXPORT_INFO(info);
	struct exported *exported;
	struct dma_buf *buf;
	unsigned int i;

	if (!args->pages || args->pages > MAX_PAGES)
		return -EINVAL;
	exported = kzalloc_flex(*exported, pages, args->pages);
	if (!exported)
		return -ENOMEM;
	exported->count = args->pages;
	init_waitqueue_head(&exported->unmapped);
	init_waitqueue_head(&exported->released);
	for (i = 0; i < exported->count; i++) {
		exported->pages[i] = alloc_page(GFP_HIGHUSER | __GFP_ZERO);
		if (!exported->pages[i])
			goto free;
	}
	info.ops = &exported_ops;
	info.size = (size_t)exported->count << PAGE_SHIFT;
	info.flags = O_RDWR;
	info.priv = exported;
	buf = dma_buf_export(&info);
	if (IS_ERR(buf)) {
		exported_free(exported);
		return PTR_ERR(buf);
	}
	args->fd = dma_buf_fd(buf, O_CLOEXEC);
	if (args->fd < 0)
		dma_buf_put(buf);
	return args->fd < 0 ? args->fd : 0;

free:
	exported_free(exported);
	return -ENOMEM;
}

static int exporter_revoke(const struct virtgpu_test_exporter_revoke *args)
{
	unsigned long timeout = msecs_to_jiffies(args->timeout_ms);
	struct dma_buf *buf = dma_buf_get(args->fd);
	struct exported *exported;
	unsigned int i;
	long left;
	int err = -ETIME;

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	if (buf->ops != &exported_ops) {
		err = -EINVAL;
		goto put;
	}
	exported = buf->priv;
	dma_resv_lock(buf->resv, NULL);
	exported->revoked = true;
	dma_buf_invalidate_mappings(buf);
	left = dma_resv_wait_timeout(buf->resv, DMA_RESV_USAGE_BOOKKEEP, false,
				     timeout);
	dma_resv_unlock(buf->resv);
	if (left <= 0)
		goto put;
	if (!wait_event_timeout(exported->unmapped,
				!READ_ONCE(exported->mappings), timeout))
		goto put;
	for (i = 0; i < exported->count; i++)
		memset_page(exported->pages[i], 0, VIRTGPU_TEST_EXPORTER_POISON,
			    PAGE_SIZE);
	err = 0;
put:
	dma_buf_put(buf);
	return err;
}

static int exporter_hold(struct virtgpu_test_exporter_hold *args)
{
	struct dma_buf *buf = dma_buf_get(args->fd);
	struct exported *exported;
	int err = -EINVAL;

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	if (buf->ops == &exported_ops) {
		exported = buf->priv;
		WRITE_ONCE(exported->hold, args->hold);
		wake_up_all(&exported->released);
		args->waiting = READ_ONCE(exported->waiting);
		args->unbound = READ_ONCE(exported->unbound);
		err = 0;
	}
	dma_buf_put(buf);
	return err;
}

static void attached_invalidate(struct dma_buf_attachment *attach)
{
}

static const struct dma_buf_attach_ops attached_ops = {
	.invalidate_mappings = attached_invalidate,
};

static const struct dma_buf_attach_ops attached_peer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = attached_invalidate,
};

static int exporter_attach(const struct virtgpu_test_exporter_attach *args,
			   struct device *dev)
{
	struct dma_buf *buf = dma_buf_get(args->fd);
	struct dma_buf_attachment *attach;
	struct sg_table *table;
	int err;

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	err = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		goto put;
	attach = dma_buf_dynamic_attach(buf, dev,
					args->peer2peer ? &attached_peer_ops :
							  &attached_ops, NULL);
	if (IS_ERR(attach)) {
		err = PTR_ERR(attach);
		goto put;
	}
	table = dma_buf_map_attachment_unlocked(attach, DMA_BIDIRECTIONAL);
	if (IS_ERR(table))
		err = PTR_ERR(table);
	else
		dma_buf_unmap_attachment_unlocked(attach, table,
						  DMA_BIDIRECTIONAL);
	dma_buf_detach(buf, attach);
put:
	dma_buf_put(buf);
	return err;
}

static int exporter_uuid(struct virtgpu_test_exporter_uuid *args)
{
	struct dma_buf *buf = dma_buf_get(args->fd);
	uuid_t uuid;
	int err;

	if (IS_ERR(buf))
		return PTR_ERR(buf);
	err = virtio_dma_buf_get_uuid(buf, &uuid);
	if (!err)
		export_uuid(args->uuid, &uuid);
	dma_buf_put(buf);
	return err;
}

/* What a file has imported, if anything. */
struct importer {
	/* Protects these three. */
	struct mutex lock;
	struct dma_buf *buf;
	struct dma_buf_attachment *attach;
	struct dma_fence *fence;
	/* The reservation of the dma-buf protects these three. */
	struct sg_table *table;
	bool holds;
	bool told;
	struct work_struct unmap;
};

static const char *importer_name(struct dma_fence *fence)
{
	return "virtgpu-test-importer";
}

static const struct dma_fence_ops importer_fence_ops = {
	.get_driver_name = importer_name,
	.get_timeline_name = importer_name,
};

static void importer_unmap(struct importer *importer)
{
	if (importer->table)
		dma_buf_unmap_attachment(importer->attach, importer->table,
					 DMA_BIDIRECTIONAL);
	importer->table = NULL;
}

/* As an importer that must not sleep for long in the callback. */
static void importer_unmap_work(struct work_struct *work)
{
	struct importer *importer = container_of(work, struct importer, unmap);
	struct dma_resv *resv = importer->buf->resv;

	dma_resv_lock(resv, NULL);
	importer_unmap(importer);
	dma_resv_unlock(resv);
}

static void importer_end(struct importer *importer)
{
	struct dma_buf *buf = importer->buf;

	dma_resv_lock(buf->resv, NULL);
	importer_unmap(importer);
	dma_resv_unlock(buf->resv);
	dma_buf_detach(buf, importer->attach);
	/* It is not scheduled any more. */
	cancel_work_sync(&importer->unmap);
	dma_buf_put(buf);
	importer->buf = NULL;
}

static void importer_invalidate(struct dma_buf_attachment *attach)
{
	struct importer *importer = attach->importer_priv;

	importer->told = true;
	if (!importer->holds)
		schedule_work(&importer->unmap);
}

static const struct dma_buf_attach_ops importer_ops = {
	.allow_peer2peer = true,
	.invalidate_mappings = importer_invalidate,
};

static const struct dma_buf_attach_ops importer_unrevocable_ops = {
	.allow_peer2peer = true,
};

static int importer_import(struct importer *importer, struct device *dev,
			   const struct virtgpu_test_exporter_import *args)
{
	struct dma_buf *buf;
	int err;

	if (importer->buf)
		return -EBUSY;
	buf = dma_buf_get(args->fd);
	if (IS_ERR(buf))
		return PTR_ERR(buf);
	importer->buf = buf;
	err = dma_coerce_mask_and_coherent(dev, DMA_BIT_MASK(64));
	if (err)
		goto put;
	importer->attach = dma_buf_dynamic_attach(buf, dev,
						  args->unrevocable ? &importer_unrevocable_ops :
								      &importer_ops,
						  importer);
	if (IS_ERR(importer->attach)) {
		err = PTR_ERR(importer->attach);
		goto put;
	}
	dma_resv_lock(buf->resv, NULL);
	importer->table = dma_buf_map_attachment(importer->attach,
						 DMA_BIDIRECTIONAL);
	err = PTR_ERR_OR_ZERO(importer->table);
	if (err)
		importer->table = NULL;
	dma_resv_unlock(buf->resv);
	if (err)
		importer_end(importer);
	return err;

put:
	dma_buf_put(buf);
	importer->buf = NULL;
	return err;
}

static void importer_end_work(struct importer *importer)
{
	if (!importer->fence)
		return;
	dma_fence_signal(importer->fence);
	dma_fence_put(importer->fence);
	importer->fence = NULL;
}

static int importer_begin_work(struct importer *importer)
{
	struct dma_resv *resv = importer->buf->resv;
	struct dma_fence *fence;
	int err;

	if (importer->fence)
		return 0;
	err = dma_resv_reserve_fences(resv, 1);
	if (err)
		return err;
	fence = kzalloc_obj(*fence);
	if (!fence)
		return -ENOMEM;
	dma_fence_init(fence, &importer_fence_ops, NULL,
		       dma_fence_context_alloc(1), 1);
	dma_resv_add_fence(resv, fence, DMA_RESV_USAGE_BOOKKEEP);
	importer->fence = fence;
	return 0;
}

static int importer_imported(struct importer *importer,
			     struct virtgpu_test_exporter_imported *args)
{
	struct dma_resv *resv;
	int err = 0;

	if (!importer->buf)
		return -EINVAL;
	resv = importer->buf->resv;
	/* Who waits for the fence may have the reservation. */
	if (!args->works)
		importer_end_work(importer);
	dma_resv_lock(resv, NULL);
	if (args->works)
		err = importer_begin_work(importer);
	importer->holds = args->holds;
	if (importer->told && !importer->holds)
		schedule_work(&importer->unmap);
	args->mapped = !!importer->table;
	args->told = importer->told;
	dma_resv_unlock(resv);
	return err;
}

static struct miscdevice exporter;

/* What can be mapped, in a way in which it is no page. */
static void *special_page;

static int exporter_open(struct inode *inode, struct file *file)
{
	struct importer *importer = kzalloc_obj(*importer);

	if (!importer)
		return -ENOMEM;
	mutex_init(&importer->lock);
	INIT_WORK(&importer->unmap, importer_unmap_work);
	file->private_data = importer;
	return 0;
}

static int exporter_close(struct inode *inode, struct file *file)
{
	struct importer *importer = file->private_data;

	importer_end_work(importer);
	if (importer->buf)
		importer_end(importer);
	mutex_destroy(&importer->lock);
	kfree(importer);
	return 0;
}

/*
 * Maps one page over and over, in the way of drivers whose memory has no pages:
 * a processor may use it, but no one is to look it up.
 */
static int exporter_mmap(struct file *file, struct vm_area_struct *vma)
{
	unsigned long addr;
	vm_fault_t fault;

	vm_flags_set(vma, VM_MIXEDMAP);
	for (addr = vma->vm_start; addr < vma->vm_end; addr += PAGE_SIZE) {
		fault = vmf_insert_mixed(vma, addr, PHYS_PFN(virt_to_phys(special_page)));
		if (fault != VM_FAULT_NOPAGE)
			return -ENOMEM;
	}
	return 0;
}

static long exporter_ioctl(struct file *file, unsigned int cmd,
			   unsigned long arg)
{
	struct importer *importer = file->private_data;
	void __user *user = (void __user *)arg;
	union {
		struct virtgpu_test_exporter_create create;
		struct virtgpu_test_exporter_revoke revoke;
		struct virtgpu_test_exporter_hold hold;
		struct virtgpu_test_exporter_attach attach;
		struct virtgpu_test_exporter_uuid uuid;
		struct virtgpu_test_exporter_import import;
		struct virtgpu_test_exporter_imported imported;
	} args;
	int err;

	switch (cmd) {
	case VIRTGPU_TEST_EXPORTER_CREATE:
		if (copy_from_user(&args.create, user, sizeof(args.create)))
			return -EFAULT;
		err = exporter_create(&args.create);
		if (!err && copy_to_user(user, &args.create, sizeof(args.create)))
			return -EFAULT;
		return err;
	case VIRTGPU_TEST_EXPORTER_REVOKE:
		if (copy_from_user(&args.revoke, user, sizeof(args.revoke)))
			return -EFAULT;
		return exporter_revoke(&args.revoke);
	case VIRTGPU_TEST_EXPORTER_HOLD:
		if (copy_from_user(&args.hold, user, sizeof(args.hold)))
			return -EFAULT;
		err = exporter_hold(&args.hold);
		if (!err && copy_to_user(user, &args.hold, sizeof(args.hold)))
			return -EFAULT;
		return err;
	case VIRTGPU_TEST_EXPORTER_ATTACH:
		if (copy_from_user(&args.attach, user, sizeof(args.attach)))
			return -EFAULT;
		return exporter_attach(&args.attach, exporter.this_device);
	case VIRTGPU_TEST_EXPORTER_UUID:
		if (copy_from_user(&args.uuid, user, sizeof(args.uuid)))
			return -EFAULT;
		err = exporter_uuid(&args.uuid);
		if (!err && copy_to_user(user, &args.uuid, sizeof(args.uuid)))
			return -EFAULT;
		return err;
	case VIRTGPU_TEST_EXPORTER_IMPORT:
		if (copy_from_user(&args.import, user, sizeof(args.import)))
			return -EFAULT;
		mutex_lock(&importer->lock);
		err = importer_import(importer, exporter.this_device, &args.import);
		mutex_unlock(&importer->lock);
		return err;
	case VIRTGPU_TEST_EXPORTER_IMPORTED:
		if (copy_from_user(&args.imported, user, sizeof(args.imported)))
			return -EFAULT;
		mutex_lock(&importer->lock);
		err = importer_imported(importer, &args.imported);
		mutex_unlock(&importer->lock);
		if (!err && copy_to_user(user, &args.imported, sizeof(args.imported)))
			return -EFAULT;
		return err;
	}
	return -ENOTTY;
}

static const struct file_operations exporter_fops = {
	.owner = THIS_MODULE,
	.open = exporter_open,
	.release = exporter_close,
	.unlocked_ioctl = exporter_ioctl,
	.mmap = exporter_mmap,
};

static struct miscdevice exporter = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "virtgpu-test-exporter",
	.fops = &exporter_fops,
	.mode = 0600,
};

static int __init exporter_init(void)
{
	int err;

	special_page = (void *)get_zeroed_page(GFP_KERNEL);
	if (!special_page)
		return -ENOMEM;
	err = misc_register(&exporter);
	if (err)
		free_page((unsigned long)special_page);
	return err;
}
module_init(exporter_init);

static void __exit exporter_exit(void)
{
	misc_deregister(&exporter);
	free_page((unsigned long)special_page);
}
module_exit(exporter_exit);

MODULE_IMPORT_NS("DMA_BUF");
MODULE_DESCRIPTION("Exporter of dma-bufs that can be revoked, for tests");
MODULE_LICENSE("GPL");
