// SPDX-License-Identifier: GPL-2.0
/*
 * Waits, locks, ids and work.
 *
 * See helpers.h.
 */
#include <linux/idr.h>
#include <linux/mutex.h>
#include <linux/sched/mm.h>
#include <linux/wait.h>
#include <linux/workqueue.h>

#include "../helpers.h"

void kapi_init_waitqueue_head(struct wait_queue_head *head)
{
	init_waitqueue_head(head);
}

void kapi_wake_up_all(struct wait_queue_head *head)
{
	wake_up_all(head);
}

long kapi_wait_event_timeout(struct wait_queue_head *head,
			     bool (*condition)(void *data), void *data,
			     unsigned long timeout)
{
	return wait_event_timeout(*head, condition(data), timeout);
}

long kapi_wait_event_killable_timeout(struct wait_queue_head *head,
				      bool (*condition)(void *data), void *data,
				      unsigned long timeout)
{
	return wait_event_killable_timeout(*head, condition(data), timeout);
}

long kapi_wait_event_interruptible_timeout(struct wait_queue_head *head,
					   bool (*condition)(void *data),
					   void *data, unsigned long timeout)
{
	return wait_event_interruptible_timeout(*head, condition(data), timeout);
}

int kapi_mutex_lock_killable(struct mutex *lock)
{
	return mutex_lock_killable(lock);
}

void kapi_fs_reclaim_acquire(void)
{
	fs_reclaim_acquire(GFP_KERNEL);
}

void kapi_fs_reclaim_release(void)
{
	fs_reclaim_release(GFP_KERNEL);
}

void kapi_ida_init(struct ida *ida)
{
	ida_init(ida);
}

bool kapi_ida_is_empty(const struct ida *ida)
{
	return ida_is_empty(ida);
}

struct workqueue_struct *kapi_alloc_reclaim_workqueue(const char *name)
{
	return alloc_workqueue("%s", WQ_MEM_RECLAIM | WQ_UNBOUND, 0, name);
}
