// SPDX-License-Identifier: GPL-2.0
/*
 * Inline functions and macros of the kernel, as functions that Rust can call.
 * helpers.h says what they do where that differs from their namesakes.
 */

#include <linux/dma-buf.h>
#include <linux/dma-mapping.h>
#include <linux/fcntl.h>
#include <linux/fs.h>
#include <linux/hugetlb.h>
#include <linux/magic.h>
#include <linux/mm.h>
#include <linux/mmu_notifier.h>
#include <linux/pagemap.h>
#include <linux/pci.h>
#include <linux/pgtable.h>
#include <linux/scatterlist.h>
#include <linux/sched/mm.h>
#include <linux/sched/signal.h>
#include <linux/shmem_fs.h>
#include <linux/swiotlb.h>
#include <linux/uaccess.h>
#include <linux/userfaultfd_k.h>

#include "helpers.h"

unsigned long kapi_pages_to_runs(struct page **pages, unsigned long count,
				 struct kapi_run *runs)
{
	unsigned long used = 0;

	for (unsigned long i = 0; i < count; i++) {
		u64 phys = page_to_phys(pages[i]);

		if (used && runs[used - 1].addr + runs[used - 1].length == phys) {
			runs[used - 1].length += PAGE_SIZE;
		} else {
			runs[used].addr = phys;
			runs[used].length = PAGE_SIZE;
			used++;
		}
	}
	return used;
}

/* Pages unpinned in one go: the kernel does not reschedule inside. */
#define UNPIN_SLICE 4096UL

void kapi_unpin_runs(const struct kapi_run *runs, unsigned long count, bool dirty)
{
	for (unsigned long i = 0; i < count; i++) {
		struct page *page = pfn_to_page(PHYS_PFN(runs[i].addr));
		unsigned long left = runs[i].length >> PAGE_SHIFT;

		while (left) {
			unsigned long part = min(left, UNPIN_SLICE);

			unpin_user_page_range_dirty_lock(page, part, dirty);
			page = pfn_to_page(page_to_pfn(page) + part);
			left -= part;
		}
		cond_resched();
	}
}

unsigned long kapi_rlimit_memlock(void)
{
	return rlimit(RLIMIT_MEMLOCK);
}

void kapi_cond_resched(void)
{
	cond_resched();
}

u64 kapi_total_memory(void)
{
	return (u64)totalram_pages() << PAGE_SHIFT;
}

bool kapi_access_ok(unsigned long addr, unsigned long size)
{
	return access_ok((void __user *)addr, size);
}

void kapi_current_comm(char *name)
{
	strscpy(name, current->comm, TASK_COMM_LEN);
}

bool kapi_current_is_worker(void)
{
	return current->flags & PF_WQ_WORKER;
}

bool kapi_current_is_killed(void)
{
	return fatal_signal_pending(current);
}

bool kapi_mm_charge_pinned(struct mm_struct *mm, u64 pages, u64 limit)
{
	s64 old = atomic64_read(&mm->pinned_vm);

	do {
		if (pages > limit || (u64)old > limit - pages)
			return false;
	} while (!atomic64_try_cmpxchg(&mm->pinned_vm, &old, old + pages));
	return true;
}

void kapi_mm_uncharge_pinned(struct mm_struct *mm, u64 pages)
{
	atomic64_sub(pages, &mm->pinned_vm);
}

static int memfd_seals(struct file *file)
{
	if (shmem_file(file))
		return SHMEM_I(file_inode(file))->seals;
#ifdef CONFIG_HUGETLBFS
	if (is_file_hugepages(file))
		return HUGETLBFS_I(file_inode(file))->seals;
#endif
	return -EINVAL;
}

long kapi_memfd_pin_range(struct file *file, loff_t start, loff_t end,
			  struct folio **folios, unsigned int max_folios,
			  bool sealed, struct kapi_run *runs, loff_t *done)
{
	struct inode *inode = file_inode(file);
	loff_t at = start;
	pgoff_t offset;
	long pinned;
	int seals;

	inode_lock_shared(inode);
	seals = memfd_seals(file);
	if (seals < 0)
		pinned = seals;
	else if (!sealed && seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		pinned = -EPERM;
	else
		pinned = memfd_pin_folios(file, start, end - 1, folios,
					  max_folios, &offset);
	inode_unlock_shared(inode);
	if (pinned < 0)
		return pinned;

	for (long i = 0; i < pinned; i++) {
		size_t skip = i ? 0 : offset;
		size_t length = min_t(u64, folio_size(folios[i]) - skip, end - at);

		runs[i].addr = PFN_PHYS(folio_pfn(folios[i])) + skip;
		runs[i].length = length;
		at += length;
		/* The folio has one pin, for its first page of the range. */
		if (length > PAGE_SIZE &&
		    folio_add_pins(folios[i], (length >> PAGE_SHIFT) - 1)) {
			unpin_folios(folios + i, pinned - i);
			kapi_unpin_runs(runs, i, false);
			return -ENOMEM;
		}
	}
	*done = at - start;
	return pinned;
}

bool kapi_mmu_range_blockable(const struct mmu_notifier_range *range)
{
	return mmu_notifier_range_blockable(range);
}

void kapi_mmu_interval_set_seq(struct mmu_interval_notifier *notifier,
			       unsigned long seq)
{
	mmu_interval_set_seq(notifier, seq);
}

bool kapi_mmu_interval_read_retry(struct mmu_interval_notifier *notifier,
				  unsigned long seq)
{
	return mmu_interval_read_retry(notifier, seq);
}

static bool is_secret(const struct vm_area_struct *vma)
{
	return vma->vm_file &&
	       file_inode(vma->vm_file)->i_sb->s_magic == SECRETMEM_MAGIC;
}

/*
 * What GUP refuses and HMM would give: the pages of memfd_secret(), which are in
 * no kernel mapping, and shadow stacks for writing, whose entries count as
 * writable. What is mapped after a lookup cannot become either without a
 * notification.
 */
static int check_areas(struct mm_struct *mm, unsigned long start,
		       unsigned long end, bool write)
{
	struct vm_area_struct *vma;
	struct vma_iterator vmi;
	int err;

	err = mmap_read_lock_killable(mm);
	if (err)
		return err;
	vma_iter_init(&vmi, mm, start);
	for_each_vma_range(vmi, vma, end) {
		if (is_secret(vma))
			err = -EFAULT;
		if (write && vma->vm_flags & VM_SHADOW_STACK)
			err = -EFAULT;
	}
	mmap_read_unlock(mm);
	return err;
}

int kapi_hmm_fault(struct mmu_interval_notifier *notifier, unsigned long start,
		   unsigned long end, unsigned long *pfns, bool write,
		   unsigned long timeout, unsigned long *seq)
{
	struct hmm_range range = {
		.notifier = notifier,
		.start = start,
		.end = end,
		.hmm_pfns = pfns,
		.default_flags = HMM_PFN_REQ_FAULT |
				 (write ? HMM_PFN_REQ_WRITE : 0),
	};
	int err;

	/* Ahead, so that nothing is faulted in for a write that must not be. */
	err = check_areas(notifier->mm, start, end, write);
	if (err)
		return err;
	err = hmm_range_fault_unlocked_timeout(&range, timeout);
	*seq = range.notifier_seq;
	if (!err)
		err = check_areas(notifier->mm, start, end, write);
	return err;
}

int kapi_hmm_look(struct mmu_interval_notifier *notifier, unsigned long start,
		  unsigned long end, unsigned long *pfns, unsigned long timeout,
		  unsigned long *seq)
{
	struct hmm_range range = {
		.notifier = notifier,
		.start = start,
		.end = end,
		.hmm_pfns = pfns,
	};
	int err;

	err = hmm_range_fault_unlocked_timeout(&range, timeout);
	*seq = range.notifier_seq;
	return err;
}

int kapi_current_area(unsigned long addr, struct kapi_area *area)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	int found;

	if (!mm)
		return 0;
	found = mmap_read_lock_killable(mm);
	if (found)
		return found;
	vma = vma_lookup(mm, addr);
	if (vma) {
		found = 1;
		area->start = vma->vm_start;
		area->end = vma->vm_end;
		area->flags = 0;
		if (vma->vm_flags & VM_READ)
			area->flags |= KAPI_AREA_READ;
		if (vma->vm_flags & VM_WRITE)
			area->flags |= KAPI_AREA_WRITE;
		if (vma->vm_flags & (VM_IO | VM_PFNMAP) || is_secret(vma))
			area->flags |= KAPI_AREA_SPECIAL;
		if (vma->vm_flags & VM_SHADOW_STACK)
			area->flags |= KAPI_AREA_SHADOW_STACK;
		if (vma_is_anonymous(vma))
			area->flags |= KAPI_AREA_ANONYMOUS;
		if (vma_is_anonymous(vma) && !(vma->vm_flags & VM_SHARED))
			area->flags |= KAPI_AREA_PRIVATE_ANONYMOUS;
		if (vma->vm_flags & VM_SEQ_READ)
			area->flags |= KAPI_AREA_SEQUENTIAL;
		if (vma->vm_flags & VM_RAND_READ)
			area->flags |= KAPI_AREA_RANDOM;
		if (is_vm_hugetlb_page(vma))
			area->flags |= KAPI_AREA_HUGETLB;
		if (userfaultfd_armed(vma))
			area->flags |= KAPI_AREA_USERFAULTFD;
		if (vma->vm_flags & VM_SHARED)
			area->flags |= KAPI_AREA_SHARED;
	}
	mmap_read_unlock(mm);
	return found;
}

/*
 * The end of what the page table entry for @addr maps, as far as that may be written
 * with @write. Entries may change meanwhile, so that this is but an estimate; tables
 * of an area stay as long as mmap_lock is held, except those that hugetlb shares.
 */
static unsigned long entry_end(struct vm_area_struct *vma, unsigned long addr,
			       bool write)
{
	unsigned long page_end = addr + PAGE_SIZE;
	pgd_t *pgdp, pgd;
	p4d_t *p4dp, p4d;
	pud_t *pudp, pud;
	pmd_t pmd;

	if (is_vm_hugetlb_page(vma))
		return ALIGN(page_end, huge_page_size(hstate_vma(vma)));
	/* Each entry is read once, as a huge one may go at any time. */
	pgdp = pgd_offset(vma->vm_mm, addr);
	pgd = pgdp_get(pgdp);
	if (!pgd_present(pgd))
		return page_end;
	p4dp = p4d_offset_lockless(pgdp, pgd, addr);
	p4d = p4dp_get(p4dp);
	if (!p4d_present(p4d))
		return page_end;
	pudp = pud_offset_lockless(p4dp, p4d, addr);
	pud = pudp_get(pudp);
	if (!pud_present(pud) || pud_leaf(pud))
		return page_end;
	pmd = pmdp_get_lockless(pmd_offset_lockless(pudp, pud, addr));
	if (!pmd_present(pmd) || !pmd_leaf(pmd) || (write && !pmd_write(pmd)))
		return page_end;
	return ALIGN(page_end, PMD_SIZE);
}

/*
 * Not get_user_pages(), which marks each page accessed, whatever for: where pages
 * are in two lists by age, what a device has touched once could not be reclaimed
 * for a while. Nor fixup_user_fault(), which begins anew after a signal.
 */
long kapi_current_fault_in(unsigned long start, unsigned long count, bool write,
			   enum kapi_fault_wait wait)
{
	bool interruptible = wait == KAPI_FAULT_WAIT_INTERRUPTIBLE;
	bool waits = wait != KAPI_FAULT_WAIT_NOT;
	unsigned int flags = FAULT_FLAG_ALLOW_RETRY | FAULT_FLAG_KILLABLE |
			     FAULT_FLAG_REMOTE |
			     (write ? FAULT_FLAG_WRITE : 0) |
			     (interruptible ? FAULT_FLAG_INTERRUPTIBLE : 0) |
			     (waits ? 0 : FAULT_FLAG_RETRY_NOWAIT);
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	unsigned int tried = 0;
	bool locked = false;
	vm_fault_t fault;
	long done = 0;
	int err = 0;

	if (!mm)
		return -EFAULT;
	while (done < count) {
		unsigned long addr = start + (done << PAGE_SHIFT);

		if (!locked) {
			err = mmap_read_lock_killable(mm);
			if (err)
				break;
			locked = true;
		}
		vma = vma_lookup(mm, addr);
		if (!vma || vma->vm_flags & (VM_IO | VM_PFNMAP) ||
		    !(vma->vm_flags & VM_READ) || is_secret(vma) ||
		    (write && (!(vma->vm_flags & VM_WRITE) ||
			       vma->vm_flags & VM_SHADOW_STACK))) {
			err = -EFAULT;
			break;
		}
		if (!waits && !vma_is_anonymous(vma)) {
			/* Some files are read from without a retry. */
			err = -EAGAIN;
			break;
		}
		fault = handle_mm_fault(vma, addr, flags | tried, NULL);
		if (!waits && fault & VM_FAULT_RETRY) {
			/* The lock is still held. */
			err = -EAGAIN;
			break;
		}
		if (fault & (VM_FAULT_RETRY | VM_FAULT_COMPLETED)) {
			locked = false;
			if (fault & VM_FAULT_COMPLETED)
				done++;
			tried = FAULT_FLAG_TRIED;
			if (fatal_signal_pending(current) ||
			    (interruptible && signal_pending(current))) {
				err = -EINTR;
				break;
			}
			continue;
		}
		if (fault & VM_FAULT_ERROR) {
			err = vm_fault_to_errno(fault, 0);
			break;
		}
		tried = 0;
		done = (entry_end(vma, addr, write) - start) >> PAGE_SHIFT;
	}
	if (locked)
		mmap_read_unlock(mm);
	return done ? min_t(long, done, count) : err;
}

unsigned long kapi_current_task_size(void)
{
	return TASK_SIZE;
}

int kapi_current_has_vma(unsigned long start, unsigned long end)
{
	struct mm_struct *mm = current->mm;
	int found;

	found = mmap_read_lock_killable(mm);
	if (found)
		return found;
	found = !!find_vma_intersection(mm, start, end);
	mmap_read_unlock(mm);
	return found;
}

long kapi_current_pin_readable(unsigned long start, unsigned long count,
			       bool enforced, struct page **pages)
{
	struct mm_struct *mm = current->mm;
	unsigned long end = start + (count << PAGE_SHIFT);
	struct vm_area_struct *vma;
	unsigned long next;
	long pinned;

	pinned = mmap_read_lock_killable(mm);
	if (pinned)
		return pinned;
	for (next = start; next < end; next = vma->vm_end) {
		vma = vma_lookup(mm, next);
		if (!vma)
			pinned = -EFAULT;
		/* A private mapping may be made writable: writes go to a copy. */
		else if (!enforced && !(vma->vm_flags & VM_MAYWRITE))
			pinned = -EPERM;
		if (pinned)
			break;
	}
	if (!pinned)
		pinned = pin_user_pages(start, count, FOLL_LONGTERM, pages);
	mmap_read_unlock(mm);
	return pinned;
}

int kapi_current_hole(unsigned long start, unsigned long end,
		      struct kapi_run *hole)
{
	struct mm_struct *mm = current->mm;
	struct vm_area_struct *vma;
	struct vma_iterator vmi;
	int err;

	err = mmap_read_lock_killable(mm);
	if (err)
		return err;
	vma_iter_init(&vmi, mm, start);
	for_each_vma_range(vmi, vma, end) {
		if (vma->vm_start > start) {
			/* Without the lock the area may become another's. */
			end = vma->vm_start;
			break;
		}
		start = vma->vm_end;
	}
	mmap_read_unlock(mm);
	if (start >= end)
		return 0;
	hole->addr = start;
	hole->length = end - start;
	return 1;
}

/* Memory is added, and taken out, in blocks of so many pages or of more. */
#ifdef CONFIG_SPARSEMEM
#define BLOCK_SHIFT PFN_SUBSECTION_SHIFT
#else
#define BLOCK_SHIFT 0
#endif

/*
 * The folio of the page at @phys, with a reference; %NULL if there is none that
 * a process can have mapped. @online is as in struct kapi_dirtied.
 */
static struct folio *get_mapped_folio(u64 phys, u64 *online)
{
	unsigned long pfn = PHYS_PFN(phys);
	u64 block = (pfn >> BLOCK_SHIFT) + 1;
	struct page *page = block == *online ? pfn_to_page(pfn) : pfn_to_online_page(pfn);
	struct dev_pagemap *pgmap = NULL;
	struct folio *folio = NULL;

	if (page) {
		*online = block;
	} else {
		/* Files can be in the memory of a device. */
		pgmap = get_dev_pagemap(pfn);
		if (!pgmap)
			return NULL;
		page = pfn_to_page(pfn);
	}
	folio = page_folio(page);
	if (!folio_try_get(folio)) {
		folio = NULL;
	} else if (page_folio(page) != folio ||
		   (page_has_type(&folio->page) && !folio_test_hugetlb(folio))) {
		/* It was freed, and is something else by now. */
		folio_put(folio);
		folio = NULL;
	}
	put_dev_pagemap(pgmap);
	return folio;
}

void kapi_page_mark_dirty(u64 phys, struct kapi_dirtied *dirtied)
{
	struct folio *folio = get_mapped_folio(phys, &dirtied->online);

	dirtied->folio.length = 0;
	if (WARN_ON_ONCE(!folio))
		return;
	folio_mark_dirty(folio);
	dirtied->folio.addr = PFN_PHYS(folio_pfn(folio));
	dirtied->folio.length = folio_size(folio);
	folio_put(folio);
}

bool kapi_page_get(u64 phys)
{
	u64 online = 0;

	return !WARN_ON_ONCE(!get_mapped_folio(phys, &online));
}

void kapi_page_put(u64 phys)
{
	folio_put(page_folio(pfn_to_page(PHYS_PFN(phys))));
}

u64 kapi_dma_map_phys(struct device *dev, phys_addr_t phys, size_t size,
		      bool write, bool *ok)
{
	dma_addr_t addr = dma_map_phys(dev, phys, size,
				       write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE,
				       DMA_ATTR_NO_WARN);

	*ok = !dma_mapping_error(dev, addr);
	return addr;
}

void kapi_dma_unmap_phys(struct device *dev, u64 addr, size_t size, bool write,
			 bool sync)
{
	dma_unmap_phys(dev, addr, size,
		       write ? DMA_BIDIRECTIONAL : DMA_TO_DEVICE,
		       sync ? 0 : DMA_ATTR_SKIP_CPU_SYNC);
}

size_t kapi_dma_bounce_pool(struct device *dev)
{
#ifdef CONFIG_SWIOTLB
	struct io_tlb_mem *pool = dev->dma_io_tlb_mem;

	if (pool)
		return (size_t)READ_ONCE(pool->nslabs) << IO_TLB_SHIFT;
#endif
	return 0;
}

void kapi_get_dma_buf(struct dma_buf *buf)
{
	get_dma_buf(buf);
}

struct sg_table *kapi_dma_map_io(struct device *dev, phys_addr_t phys, size_t len,
				 enum dma_data_direction dir)
{
	struct sg_table *sgt = kzalloc(sizeof(*sgt), GFP_KERNEL);
	dma_addr_t addr;
	int err;

	if (!sgt)
		return ERR_PTR(-ENOMEM);
	if (!len)
		return sgt;
	err = sg_alloc_table(sgt, 1, GFP_KERNEL);
	if (err)
		goto free;
	addr = dma_map_resource(dev, phys, len, dir, DMA_ATTR_SKIP_CPU_SYNC);
	err = dma_mapping_error(dev, addr);
	if (err)
		goto free_table;
	sg_set_page(sgt->sgl, NULL, len, 0);
	sg_dma_address(sgt->sgl) = addr;
	sg_dma_len(sgt->sgl) = len;
	return sgt;

free_table:
	sg_free_table(sgt);
free:
	kfree(sgt);
	return ERR_PTR(err);
}

void kapi_dma_unmap_io(struct device *dev, struct sg_table *sgt,
		       enum dma_data_direction dir)
{
	if (sgt->nents)
		dma_unmap_resource(dev, sg_dma_address(sgt->sgl),
				   sg_dma_len(sgt->sgl), dir,
				   DMA_ATTR_SKIP_CPU_SYNC);
	sg_free_table(sgt);
	kfree(sgt);
}

bool kapi_dma_needs_sync(struct device *dev)
{
	return dma_dev_need_sync(dev);
}

void kapi_dma_sync_for_device(struct device *dev, u64 addr, size_t size)
{
	dma_sync_single_for_device(dev, addr, size, DMA_TO_DEVICE);
}

void kapi_dma_sync_for_cpu(struct device *dev, u64 addr, size_t size)
{
	dma_sync_single_for_cpu(dev, addr, size, DMA_FROM_DEVICE);
}

bool kapi_dma_is_physical(struct device *dev)
{
	return dma_max_mapping_size(dev) == SIZE_MAX && !device_iommu_mapped(dev);
}
