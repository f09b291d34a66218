/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Inline functions and macros of the kernel, as functions that Rust can call.
 * A helper does what the function in its name does; those that do more say so.
 */
#ifndef KAPI_HELPERS_H
#define KAPI_HELPERS_H

#include <linux/dma-direction.h>
#include <linux/hmm.h>
#include <linux/mm_types.h>
#include <linux/types.h>

struct device;
struct dma_buf;
struct dma_fence;
struct dma_fence_chain;
struct dma_resv;
struct drm_device;
struct drm_file;
struct drm_gem_object;
struct drm_mm;
struct drm_syncobj;
struct file;
struct folio;
struct module;
struct page;
struct scatterlist;
struct seq_file;
struct sg_table;
struct task_struct;
struct vhost_task;
struct virtio_device;
struct virtio_shm_region;
struct virtqueue;
struct virtqueue_info;
struct vm_area_struct;
struct vm_fault;
struct wait_queue_head;
struct workqueue_struct;

/* linux/virtio_config.h */
bool kapi_virtio_has_feature(const struct virtio_device *vdev, unsigned int bit);
int kapi_virtio_find_vqs(struct virtio_device *vdev, unsigned int count,
			 struct virtqueue **vqs, struct virtqueue_info *infos);
void kapi_virtio_del_vqs(struct virtio_device *vdev);
void kapi_virtio_device_ready(struct virtio_device *vdev);
void kapi_virtio_synchronize_cbs(struct virtio_device *vdev);
bool kapi_virtio_get_shm_region(struct virtio_device *vdev,
				struct virtio_shm_region *region, u8 id);
/*
 * devm_request_mem_region(): returns whether the memory was free, which then
 * is the driver's until it is unbound.
 */
bool kapi_virtio_claim_memory(struct virtio_device *vdev, u64 start, u64 len);
/* A little-endian 32-bit field of the configuration space. */
u32 kapi_virtio_config_read32(struct virtio_device *vdev, unsigned int offset);
/*
 * The first 256 bytes of the PCI configuration of the function that vdev is;
 * false if it is none.
 */
bool kapi_virtio_pci_config(struct virtio_device *vdev, u8 *space);
/* Whether vdev has device-specific configuration at all. */
bool kapi_virtio_has_config(struct virtio_device *vdev);
struct device *kapi_virtio_device_parent(struct virtio_device *vdev);
/* dma_set_max_seg_size() to what the device's mappings allow. */
void kapi_virtio_unlimit_segments(struct virtio_device *vdev);

/* linux/scatterlist.h */
void kapi_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int length);

/* linux/wait.h */
void kapi_init_waitqueue_head(struct wait_queue_head *head);
void kapi_wake_up_all(struct wait_queue_head *head);
/*
 * wait_event_timeout() on condition(data), and its killable and interruptible
 * variants. Returns the jiffies left (at least 1), 0 on time-out, or -ERESTARTSYS.
 */
long kapi_wait_event_timeout(struct wait_queue_head *head,
			     bool (*condition)(void *data), void *data,
			     unsigned long timeout);
long kapi_wait_event_killable_timeout(struct wait_queue_head *head,
				      bool (*condition)(void *data), void *data,
				      unsigned long timeout);
long kapi_wait_event_interruptible_timeout(struct wait_queue_head *head,
					   bool (*condition)(void *data),
					   void *data, unsigned long timeout);

/* linux/mutex.h */
struct mutex;
int kapi_mutex_lock_killable(struct mutex *lock);

/* linux/sched/mm.h */
void kapi_fs_reclaim_acquire(void);
void kapi_fs_reclaim_release(void);

/* linux/idr.h */
struct ida;
void kapi_ida_init(struct ida *ida);
bool kapi_ida_is_empty(const struct ida *ida);

/* linux/workqueue.h: flags are WQ_MEM_RECLAIM | WQ_UNBOUND. */
struct workqueue_struct *kapi_alloc_reclaim_workqueue(const char *name);

/* linux/dma-fence.h, linux/dma-fence-chain.h */
struct dma_fence *kapi_dma_fence_get(struct dma_fence *fence);
void kapi_dma_fence_put(struct dma_fence *fence);
bool kapi_dma_fence_is_signaled(struct dma_fence *fence);
void kapi_dma_fence_set_error(struct dma_fence *fence, int error);
bool kapi_dma_fence_begin_signalling(void);
void kapi_dma_fence_end_signalling(bool cookie);
struct dma_fence_chain *kapi_dma_fence_chain_alloc(void);
void kapi_dma_fence_chain_free(struct dma_fence_chain *chain);
/*
 * dma_fence_wait_timeout(), interruptible, for each fence that @fence contains
 * and that is not of timeline @context. Returns the jiffies left (at least 1),
 * 0 on time-out, or a negative error.
 */
long kapi_dma_fence_wait_others(struct dma_fence *fence, u64 context,
				unsigned long timeout);

/* drm/drm_drv.h */
bool kapi_drm_firmware_drivers_only(void);

/* drm/drm_file.h */
/*
 * Calls @look, under the file's table_lock, with the object that has the lowest
 * handle not below *handle, which becomes that handle; false if there is none.
 */
bool kapi_drm_file_look_at_next(struct drm_file *file, int *handle,
				void (*look)(struct drm_gem_object *obj, int handle,
					     void *data),
				void *data);
/* Process id and name (TASK_COMM_LEN bytes); left alone if it is gone. */
void kapi_drm_file_owner(struct drm_file *file, int *pid, char *comm);
/* Calls for each file of the device, under its filelist_mutex. */
void kapi_drm_visit_files(struct drm_device *dev,
			  void (*call)(struct drm_file *file, void *data),
			  void *data);
/* drm_mm_print() */
void kapi_drm_mm_show(const struct drm_mm *mm, struct seq_file *seq);

/* drm/drm_gem.h, drm/drm_syncobj.h, drm/drm_vma_manager.h */
void kapi_drm_gem_object_get(struct drm_gem_object *obj);
void kapi_drm_gem_object_put(struct drm_gem_object *obj);
u64 kapi_drm_gem_object_mmap_offset(struct drm_gem_object *obj);
/* drm_gem_object_is_shared_for_memory_stats() */
bool kapi_drm_gem_object_is_shared(struct drm_gem_object *obj);
/* Whether jobs use it. */
bool kapi_drm_gem_object_is_active(struct drm_gem_object *obj);
void kapi_drm_syncobj_put(struct drm_syncobj *syncobj);

/*
 * Prepares the new area @vma for kapi_vm_io_fault(). @cache is 0 for cached,
 * 1 for uncached, 2 for write-combining. -EINVAL for a private area, which
 * would get copies of the pages.
 */
int kapi_vm_io_prepare(struct vm_area_struct *vma, int cache);
/*
 * Lets the area show the memory at @phys, that of its object, in the page of
 * the fault and in its neighbours under the same page table.
 */
vm_fault_t kapi_vm_io_fault(struct vm_fault *vmf, struct drm_gem_object *obj,
			    phys_addr_t phys);

/* linux/mm.h */
/* A stretch of memory: address and bytes. */
struct kapi_run {
	u64 addr;
	u64 length;
};

/*
 * Physical addresses of @count pages as runs, in order; neighbours that touch
 * are merged. @runs has room for @count. Returns the number of runs.
 */
unsigned long kapi_pages_to_runs(struct page **pages, unsigned long count,
				 struct kapi_run *runs);
/*
 * Gives up one pin on every page of @count runs, and marks the pages dirty with
 * @dirty. May sleep.
 */
void kapi_unpin_runs(const struct kapi_run *runs, unsigned long count, bool dirty);
unsigned long kapi_rlimit_memlock(void);
void kapi_cond_resched(void);
/* totalram_pages(), in bytes */
u64 kapi_total_memory(void);
/* access_ok() */
bool kapi_access_ok(unsigned long addr, unsigned long size);
/* get_task_comm() of the current task; @name has room for TASK_COMM_LEN bytes. */
void kapi_current_comm(char *name);
/* The current task is a workqueue's worker. */
bool kapi_current_is_worker(void);
/* fatal_signal_pending() */
bool kapi_current_is_killed(void);
struct mm_struct;
/* Adds to mm->pinned_vm, unless that would exceed @limit; returns whether it did. */
bool kapi_mm_charge_pinned(struct mm_struct *mm, u64 pages, u64 limit);
void kapi_mm_uncharge_pinned(struct mm_struct *mm, u64 pages);

/*
 * memfd_pin_folios() for bytes [start, end], after a check of the file's seals
 * that holds until the pages are pinned. On success every page of the range
 * carries a pin of its own, as pin_user_pages() would have left it, and @runs
 * (room for one entry a page) describes the range. Returns the number of runs,
 * -EPERM if the file is sealed against writing and not @sealed, -EINVAL if it is not a memfd, or
 * another error; then nothing is pinned.
 */
long kapi_memfd_pin_range(struct file *file, loff_t start, loff_t end,
			  struct folio **folios, unsigned int max_folios,
			  bool sealed, struct kapi_run *runs, loff_t *done);

/* linux/mmu_notifier.h */
struct mmu_interval_notifier;
struct mmu_notifier_range;
bool kapi_mmu_range_blockable(const struct mmu_notifier_range *range);
void kapi_mmu_interval_set_seq(struct mmu_interval_notifier *notifier,
			       unsigned long seq);
bool kapi_mmu_interval_read_retry(struct mmu_interval_notifier *notifier,
				  unsigned long seq);

/* linux/hmm.h */
/* Constants, since a lookup has hundreds of pages, and a call for each would cost more. */
enum kapi_hmm_pfn {
	KAPI_HMM_PFN_VALID = HMM_PFN_VALID,
	KAPI_HMM_PFN_WRITE = HMM_PFN_WRITE,
	KAPI_HMM_PFN_ERROR = HMM_PFN_ERROR,
	KAPI_HMM_PFN_FLAGS = HMM_PFN_FLAGS,
};

/*
 * hmm_range_fault_unlocked_timeout() on addresses [@start, @end), all of which
 * must be there, for writing with @write. @timeout is in jiffies. On success
 * @seq is for mmu_interval_read_retry(). Memory of memfd_secret() is -EFAULT, and
 * so is a shadow stack with @write.
 */
int kapi_hmm_fault(struct mmu_interval_notifier *notifier, unsigned long start,
		   unsigned long end, unsigned long *pfns, bool write,
		   unsigned long timeout, unsigned long *seq);
/* The same for what is there anyway: nothing is faulted in. */
int kapi_hmm_look(struct mmu_interval_notifier *notifier, unsigned long start,
		  unsigned long end, unsigned long *pfns, unsigned long timeout,
		  unsigned long *seq);

enum kapi_area_flag {
	KAPI_AREA_READ = 1,
	KAPI_AREA_WRITE = 2,
	/* No pages of its own, or pages that devices must not have. */
	KAPI_AREA_SPECIAL = 4,
	KAPI_AREA_SHADOW_STACK = 8,
	/* A write gives the process a page that no other has. */
	KAPI_AREA_PRIVATE_ANONYMOUS = 16,
	KAPI_AREA_ANONYMOUS = 32,
	KAPI_AREA_SEQUENTIAL = 64,
	KAPI_AREA_RANDOM = 128,
	KAPI_AREA_HUGETLB = 256,
	/* A userfaultfd is told of accesses. */
	KAPI_AREA_USERFAULTFD = 512,
	/* A write goes to pages that others may have. */
	KAPI_AREA_SHARED = 1024,
};

struct kapi_area {
	unsigned long start;
	unsigned long end;
	/* A mask of kapi_area_flag. */
	u32 flags;
};

/*
 * What is mapped at @addr of the current process: 1 if anything is, 0, or
 * -EINTR on a fatal signal.
 */
int kapi_current_area(unsigned long addr, struct kapi_area *area);
enum kapi_fault_wait {
	/* Until a fatal signal. */
	KAPI_FAULT_WAIT_KILLABLE,
	/* Until any signal. */
	KAPI_FAULT_WAIT_INTERRUPTIBLE,
	/* Not where handle_mm_fault() can do without: -EAGAIN. */
	KAPI_FAULT_WAIT_NOT,
};

/*
 * Faults in @count pages of the current process from @start on, for writing with
 * @write; takes no reference. Returns the number of pages, at least 1, or an error
 * about the first.
 */
long kapi_current_fault_in(unsigned long start, unsigned long count, bool write,
			   enum kapi_fault_wait wait);
/* TASK_SIZE of the current process. */
unsigned long kapi_current_task_size(void);

/* linux/rmap.h */
/*
 * make_device_exclusive() for a page of the current process, with mmap_lock;
 * -EINTR on a fatal signal, -EOPNOTSUPP also without CONFIG_DEVICE_PRIVATE. On
 * success *folio is locked and carries a reference, and *phys is the page's address.
 */
int kapi_current_make_exclusive(unsigned long addr, void *owner,
				struct folio **folio, u64 *phys);
/* folio_unlock() and folio_put() */
void kapi_folio_unlock_put(struct folio *folio);

/*
 * linux/sched/vhost_task.h; without CONFIG_VHOST_TASK the first returns -EOPNOTSUPP. From its
 * creation until it was stopped a task has a reference to the module.
 */
struct vhost_task *kapi_vhost_task_create(bool (*work)(void *data),
					  void (*killed)(void *data), void *data,
					  const char *name);
void kapi_vhost_task_start(struct vhost_task *task);
void kapi_vhost_task_wake(struct vhost_task *task);
/* Waits for the thread. */
void kapi_vhost_task_stop(struct vhost_task *task);
/* The first half of set_notify_signal(); waking @task is the other. */
void kapi_set_notify_signal(struct task_struct *task);
/* __set_current_state(TASK_RUNNING) */
void kapi_set_current_running(void);

/*
 * Something is mapped in [@start, @end) of the current process: 1 or 0, or
 * -EINTR on a fatal signal.
 */
int kapi_current_has_vma(unsigned long start, unsigned long end);
/*
 * pin_user_pages() for reading, of @count pages of the current process that are
 * mapped by areas which the process could make writable, or by any with
 * @enforced. Otherwise -EFAULT or -EPERM; -EINTR on a fatal signal.
 */
long kapi_current_pin_readable(unsigned long start, unsigned long count,
			       bool enforced, struct page **pages);
/*
 * The first part of [@start, @end) of the current process where nothing is
 * mapped: 1 if there is one, 0, or -EINTR on a fatal signal.
 */
int kapi_current_hole(unsigned long start, unsigned long end,
		      struct kapi_run *hole);
/* What kapi_page_mark_dirty() was called for last; all 0 before. */
struct kapi_dirtied {
	/* The folio that has become dirty. */
	struct kapi_run folio;
	/* One more than the number of a block of memory that was online. */
	u64 online;
};

/*
 * folio_mark_dirty(), folio_get() and folio_put() for the page at @phys. The
 * first two can be called for any address: they warn and do nothing if no
 * process can have mapped what is there. The first does not look again whether
 * the memory beside the page of the last call is online.
 */
void kapi_page_mark_dirty(u64 phys, struct kapi_dirtied *dirtied);
bool kapi_page_get(u64 phys);
void kapi_page_put(u64 phys);

/* linux/dma-mapping.h */
u64 kapi_dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
		      bool write, bool *ok);
/* @sync: the CPU is to see what the device has written since the last time. */
void kapi_dma_unmap_phys(struct device *dev, u64 addr, size_t size, bool write,
			 bool sync);
/* Bytes of the bounce buffers that @dev uses together with others; 0 if unknown. */
size_t kapi_dma_bounce_pool(struct device *dev);

/* linux/dma-resv.h: without a context. */
int kapi_dma_resv_lock_interruptible(struct dma_resv *resv);
void kapi_dma_resv_unlock(struct dma_resv *resv);

/* linux/dma-buf.h */
void kapi_get_dma_buf(struct dma_buf *buf);
/*
 * A table of one entry without page, for len bytes of device memory as dev sees
 * them; empty if len is 0. An error pointer, or to be undone by the second.
 */
struct sg_table *kapi_dma_map_io(struct device *dev, phys_addr_t phys, size_t len,
				 enum dma_data_direction dir);
void kapi_dma_unmap_io(struct device *dev, struct sg_table *sgt,
		       enum dma_data_direction dir);
/* Of memory that kapi_dma_map_phys() has mapped. */
bool kapi_dma_needs_sync(struct device *dev);
void kapi_dma_sync_for_device(struct device *dev, u64 addr, size_t size);
void kapi_dma_sync_for_cpu(struct device *dev, u64 addr, size_t size);
/* Whether the addresses of dev's mappings are physical. */
bool kapi_dma_is_physical(struct device *dev);

#endif /* KAPI_HELPERS_H */
