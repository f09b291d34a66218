// SPDX-License-Identifier: GPL-2.0

//! Threads of the kernel that are threads of the current process.
//!
//! What such a thread does is done in the process's name: it has its address space, its time and
//! memory count as the process's, it ends when the process ends or calls exec, and it can be
//! stopped and frozen as the others can. A worker of a workqueue has none of this.
//!
//! # The end
//!
//! A thread ends when its [`UserWorker`] is dropped, or with the process, whichever comes first.
//! exec(2), the end of the process and a core dump wait for it, so that [`UserWork::run`] must not
//! wait for long without looking whether the thread was killed.
//!
//! C header: [`include/linux/sched/vhost_task.h`](srctree/include/linux/sched/vhost_task.h)

use crate::kapi::bindings;
use core::ptr::{
    self,
    NonNull, //
};
use kernel::{
    error::from_err_ptr,
    prelude::*,
    str::CStrExt,
    sync::{
        atomic::{
            ordering::{
                Acquire,
                Relaxed,
                Release, //
            },
            Atomic, //
        },
        Arc, //
    }, //
};

/// Whether the kernel has such threads.
pub(crate) const HAS_USER_WORKERS: bool = cfg!(CONFIG_VHOST_TASK);

/// What a thread does.
pub(crate) trait UserWork: Send + Sync + 'static {
    /// Whether there is something to do. If not, the thread sleeps until it is woken. Must not
    /// sleep.
    fn is_due(&self) -> bool;

    /// Does one thing, in the context of the process; may sleep. Called by the thread as long as
    /// there is something to do. Between two calls the thread can be stopped, frozen and traced.
    fn run(&self);

    /// The process is being killed, calls exec or dumps core, and the thread ends. Called by the
    /// thread, unless its [`UserWorker`] is being dropped; not by all threads of a process if those
    /// of others are.
    ///
    /// May sleep, but no wait ends because the process is killed. Must not drop a worker, nor wait
    /// for one who does.
    fn killed(&self);
}

/// What a thread uses.
struct Context<W> {
    work: W,
    /// The thread; null before it has begun.
    task: Atomic<*mut bindings::task_struct>,
}

/// A thread of a process, which sleeps as long as there is nothing to do.
///
/// Dropping it has the thread end, and waits for that. It must not be dropped by the thread itself,
/// nor by one that the thread may wait for.
///
/// The module cannot be unloaded as long as there is one. Who drops the last one needs another
/// reason why the module stays until he has returned: an open file, or that the module's end waits
/// for him, as it does for the work of a [`ModuleWorkqueue`](crate::kapi::sync::ModuleWorkqueue).
///
/// # Invariants
///
/// `raw` is a task that was created for `context`, was started, and was not stopped. The task in
/// `context` is null or that of `raw`, which keeps it until it is stopped.
pub(crate) struct UserWorker<W: UserWork> {
    raw: NonNull<bindings::vhost_task>,
    /// What the thread uses until it has been stopped.
    context: Arc<Context<W>>,
}

// SAFETY: A task may be woken and stopped by any thread.
unsafe impl<W: UserWork> Send for UserWorker<W> {}

// SAFETY: Waking may be done by any number of threads.
unsafe impl<W: UserWork> Sync for UserWorker<W> {}

impl<W: UserWork> UserWorker<W> {
    /// Adds a thread to the current process, which is called `name`, cut to 15 bytes.
    ///
    /// # Errors
    ///
    /// - [`EOPNOTSUPP`] if the kernel has no such threads;
    /// - [`EAGAIN`] if there are too many threads already;
    /// - [`EINVAL`] if the children of the process are in another PID namespace;
    /// - [`ENOMEM`];
    /// - [`ERESTARTNOINTR`] if a signal is pending: the system call begins anew.
    pub(crate) fn new(work: W, name: &CStr) -> Result<Self> {
        let context = Arc::new(
            Context {
                work,
                task: Atomic::new(ptr::null_mut()),
            },
            GFP_KERNEL,
        )?;
        let data = Arc::as_ptr(&context).cast_mut().cast();
        // SAFETY: `data` is a `Context<W>`, which lives until the task is stopped; the name is
        // copied.
        let raw = from_err_ptr(unsafe {
            bindings::kapi_vhost_task_create(
                Some(Self::work_callback),
                Some(Self::killed_callback),
                data,
                name.as_char_ptr(),
            )
        })?;
        let raw = NonNull::new(raw).ok_or(ENOMEM)?;
        // SAFETY: The task was just created.
        unsafe { bindings::kapi_vhost_task_start(raw.as_ptr()) };
        // INVARIANT: It was created for `context` and started.
        Ok(Self { raw, context })
    }

    /// Has the thread look whether there is something to do. May be called in any context.
    ///
    /// A thread that is not asleep for want of something to do must not be woken, since the kernel
    /// may have it do again what it waits for.
    pub(crate) fn wake(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::kapi_vhost_task_wake(self.raw.as_ptr()) }
    }

    /// Ends an interruptible wait of the thread, once: if it does not wait, that of the next time.
    pub(crate) fn interrupt(&self) {
        let Some(task) = NonNull::new(self.context.task.load(Acquire)) else {
            // It has not begun.
            return;
        };
        // SAFETY: By the type invariant the task is kept.
        unsafe { bindings::kapi_set_notify_signal(task.as_ptr()) };
        self.wake();
    }

    extern "C" fn work_callback(data: *mut c_void) -> bool {
        // SAFETY: `data` is a context, see `new`, that is kept until this thread has ended.
        let Context { work, task } = unsafe { &*data.cast::<Context<W>>() };
        if task.load(Relaxed).is_null() {
            // INVARIANT: This is the task that was created.
            task.store(kernel::current!().as_ptr(), Release);
        }
        // The task sleeps as soon as this returns false, unless it has been woken since before the
        // call.
        if !work.is_due() {
            return false;
        }
        // SAFETY: It runs.
        unsafe { bindings::kapi_set_current_running() };
        work.run();
        true
    }

    extern "C" fn killed_callback(data: *mut c_void) {
        // SAFETY: As in `work_callback`.
        unsafe { (*data.cast::<Context<W>>()).work.killed() }
    }
}

impl<W: UserWork> Drop for UserWorker<W> {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the task was not stopped, and it is not used after this.
        unsafe { bindings::kapi_vhost_task_stop(self.raw.as_ptr()) }
    }
}
