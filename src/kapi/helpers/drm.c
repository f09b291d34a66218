// SPDX-License-Identifier: GPL-2.0
/*
 * DRM: files, buffers, sync objects, and mappings of device memory.
 *
 * See helpers.h.
 */
#include <drm/drm_device.h>
#include <drm/drm_drv.h>
#include <drm/drm_file.h>
#include <drm/drm_gem.h>
#include <drm/drm_mm.h>
#include <drm/drm_print.h>
#include <drm/drm_syncobj.h>
#include <drm/drm_vma_manager.h>
#include <linux/mm.h>
#include <linux/pagemap.h>

#include "../helpers.h"

bool kapi_drm_firmware_drivers_only(void)
{
	return drm_firmware_drivers_only();
}

bool kapi_drm_file_look_at_next(struct drm_file *file, int *handle,
				void (*look)(struct drm_gem_object *obj, int handle,
					     void *data),
				void *data)
{
	struct drm_gem_object *obj;

	spin_lock(&file->table_lock);
	/* Skips handles whose object is not there yet, or not any more. */
	obj = idr_get_next(&file->object_idr, handle);
	if (obj)
		look(obj, *handle, data);
	spin_unlock(&file->table_lock);
	return obj;
}

void kapi_drm_file_owner(struct drm_file *file, int *pid, char *comm)
{
	struct task_struct *task;
	struct pid *owner;

	rcu_read_lock();
	owner = rcu_dereference(file->pid);
	task = pid_task(owner, PIDTYPE_TGID);
	if (task) {
		*pid = pid_nr(owner);
		strscpy(comm, task->comm, TASK_COMM_LEN);
	}
	rcu_read_unlock();
}

void kapi_drm_visit_files(struct drm_device *dev,
			  void (*call)(struct drm_file *file, void *data),
			  void *data)
{
	struct drm_file *file;

	mutex_lock(&dev->filelist_mutex);
	list_for_each_entry(file, &dev->filelist, lhead)
		call(file, data);
	mutex_unlock(&dev->filelist_mutex);
}

void kapi_drm_mm_show(const struct drm_mm *mm, struct seq_file *seq)
{
	struct drm_printer printer = drm_seq_file_printer(seq);

	drm_mm_print(mm, &printer);
}

bool kapi_drm_gem_object_is_shared(struct drm_gem_object *obj)
{
	return drm_gem_object_is_shared_for_memory_stats(obj);
}

bool kapi_drm_gem_object_is_active(struct drm_gem_object *obj)
{
	return !dma_resv_test_signaled(obj->resv, dma_resv_usage_rw(true));
}

void kapi_drm_gem_object_get(struct drm_gem_object *obj)
{
	drm_gem_object_get(obj);
}

void kapi_drm_gem_object_put(struct drm_gem_object *obj)
{
	drm_gem_object_put(obj);
}

u64 kapi_drm_gem_object_mmap_offset(struct drm_gem_object *obj)
{
	return drm_vma_node_offset_addr(&obj->vma_node);
}

void kapi_drm_syncobj_put(struct drm_syncobj *syncobj)
{
	drm_syncobj_put(syncobj);
}

int kapi_vm_io_prepare(struct vm_area_struct *vma, int cache)
{
	if (vma_is_cow_mapping(vma))
		return -EINVAL;
	vm_flags_set(vma, VM_IO | VM_PFNMAP | VM_DONTEXPAND | VM_DONTDUMP);
	vma->vm_page_prot = vm_get_page_prot(vma->vm_flags);
	vma->vm_page_prot = pgprot_decrypted(vma->vm_page_prot);
	if (cache == 1)
		vma->vm_page_prot = pgprot_noncached(vma->vm_page_prot);
	else if (cache == 2)
		vma->vm_page_prot = pgprot_writecombine(vma->vm_page_prot);
	return 0;
}

struct io_ptes {
	struct mm_struct *mm;
	unsigned long pfn;
	pgprot_t prot;
};

static int set_io_pte(pte_t *pte, unsigned long addr, void *data)
{
	struct io_ptes *io = data;

	/* Another thread's fault may have been first. */
	if (pte_none(ptep_get(pte)))
		set_pte_at(io->mm, addr, pte,
			   pte_mkspecial(pfn_pte(io->pfn, io->prot)));
	io->pfn++;
	return 0;
}

/*
 * Not vmf_insert_pfn(): on x86 that takes the caching mode from what is
 * reserved for the memory, and what is not reserved is uncached. Drivers
 * can reserve only write-combining. The driver has claimed the memory for
 * itself, so that it is not mapped otherwise.
 */
vm_fault_t kapi_vm_io_fault(struct vm_fault *vmf, struct drm_gem_object *obj,
			    phys_addr_t phys)
{
	struct vm_area_struct *vma = vmf->vma;
	unsigned long table = ALIGN_DOWN(vmf->address, PMD_SIZE);
	unsigned long start = max(table, vma->vm_start);
	unsigned long end = min(table + PMD_SIZE, vma->vm_end);
	unsigned long pages = obj->size >> PAGE_SHIFT;
	unsigned long index = linear_page_index(vma, start) -
			      drm_vma_node_start(&obj->vma_node);
	struct io_ptes io = {
		.mm = vma->vm_mm,
		.pfn = PHYS_PFN(phys) + index,
		.prot = vma->vm_page_prot,
	};

	/* Checked by mmap, but what is beyond belongs to others. */
	if (index >= pages || (end - start) >> PAGE_SHIFT > pages - index)
		return VM_FAULT_SIGBUS;

	switch (apply_to_page_range(io.mm, start, end - start, set_io_pte, &io)) {
	case 0:
		return VM_FAULT_NOPAGE;
	case -ENOMEM:
		return VM_FAULT_OOM;
	default:
		return VM_FAULT_SIGBUS;
	}
}
