// SPDX-License-Identifier: GPL-2.0
/*
 * Threads of a process.
 *
 * See helpers.h.
 */

#include <linux/atomic.h>
#include <linux/err.h>
#include <linux/sched.h>
#include <linux/sched/vhost_task.h>
#include <linux/wait_bit.h>

#include "../helpers.h"

/* Tasks that were created and not stopped. */
static atomic_t vhost_tasks;

struct vhost_task *kapi_vhost_task_create(bool (*work)(void *data),
					  void (*killed)(void *data), void *data,
					  const char *name)
{
#if IS_ENABLED(CONFIG_VHOST_TASK)
	struct vhost_task *task = vhost_task_create(work, killed, data, name);

	if (!IS_ERR(task))
		atomic_inc(&vhost_tasks);
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
#endif
	if (atomic_dec_and_test(&vhost_tasks))
		wake_up_var(&vhost_tasks);
}

void kapi_vhost_tasks_wait_stopped(void)
{
	wait_var_event(&vhost_tasks, !atomic_read(&vhost_tasks));
}

void kapi_set_notify_signal(struct task_struct *task)
{
	set_tsk_thread_flag(task, TIF_NOTIFY_SIGNAL);
}

void kapi_set_current_running(void)
{
	__set_current_state(TASK_RUNNING);
}
