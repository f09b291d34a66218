// SPDX-License-Identifier: GPL-2.0
/*
 * Threads of a process.
 *
 * See helpers.h.
 */

#include <linux/err.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/vhost_task.h>

#include "../helpers.h"

struct vhost_task *kapi_vhost_task_create(bool (*work)(void *data),
					  void (*killed)(void *data), void *data,
					  const char *name)
{
#if IS_ENABLED(CONFIG_VHOST_TASK)
	struct vhost_task *task = vhost_task_create(work, killed, data, name);

	/* Its code is the module's. The caller has a reference, too. */
	if (!IS_ERR(task))
		__module_get(THIS_MODULE);
	return task;
#else
	return ERR_PTR(-EOPNOTSUPP);
#endif
}

void kapi_vhost_task_start(struct vhost_task *task)
{
#if IS_ENABLED(CONFIG_VHOST_TASK)
	vhost_task_start(task);
#endif
}

void kapi_vhost_task_wake(struct vhost_task *task)
{
#if IS_ENABLED(CONFIG_VHOST_TASK)
	vhost_task_wake(task);
#endif
}

void kapi_vhost_task_stop(struct vhost_task *task)
{
#if IS_ENABLED(CONFIG_VHOST_TASK)
	vhost_task_stop(task);
	module_put(THIS_MODULE);
#endif
}

void kapi_set_notify_signal(struct task_struct *task)
{
	set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL);
}

void kapi_set_current_running(void)
{
	__set_current_state(TASK_RUNNING);
}
