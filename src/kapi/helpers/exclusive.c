// SPDX-License-Identifier: GPL-2.0
/*
 * Pages that a device uses alone.
 *
 * See helpers.h.
 */
#include <linux/mm.h>
#include <linux/mmap_lock.h>
#include <linux/pagemap.h>
#include <linux/rmap.h>
#include <linux/sched.h>

#include "../helpers.h"

int kapi_current_make_exclusive(unsigned long addr, void *owner,
				struct folio **folio, u64 *phys)
{
#ifdef CONFIG_DEVICE_PRIVATE
	struct mm_struct *mm = current->mm;
	struct page *page;
	int err;

	if (!mm)
		return -EFAULT;
	err = mmap_read_lock_killable(mm);
	if (err)
		return err;
	page = make_device_exclusive(mm, addr, owner, folio);
	mmap_read_unlock(mm);
	if (IS_ERR(page))
		return PTR_ERR(page);
	*phys = page_to_phys(page);
	return 0;
#else
	return -EOPNOTSUPP;
#endif
}

void kapi_folio_unlock_put(struct folio *folio)
{
	folio_unlock(folio);
	folio_put(folio);
}
