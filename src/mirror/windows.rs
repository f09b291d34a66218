// SPDX-License-Identifier: GPL-2.0

//! The windows of a process's address space, and what the kernel does to its memory.
//!
//! One interval notifier covers all addresses. Its callbacks send INVALIDATE for what the device
//! reaches, one for each change, however many windows that is in, and wait for the acknowledgement.
//! Changes are kept account of from their beginning, which the interval notifier tells, to their
//! end, which an [`EndNotifier`] tells ([`Changes`]): a lookup waits for changes of its own
//! addresses, and is made stale by them only.
//!
//! Where that is not possible, the kernel's sequence number takes its place, by which a lookup
//! waits until nothing in the address space changes: for a change that must not block, since the
//! kernel tells no end of one that another notifier refuses; for the end of the address space,
//! which has no end; and for more changes at a time than there are places.

use super::{
    changes::{
        Changes,
        LookId, //
    },
    slices::{
        slice_end,
        SliceEnd, //
    },
    window::{
        Window,
        WINDOW, //
    },
    NotifierLock, Space,
};
use crate::{
    gpu::Gpu,
    kapi::{
        mm::{
            Change,
            ChangeId,
            EndHandler,
            EndNotifier,
            FinishNode,
            HmmPage,
            IntervalHandler,
            IntervalNotifier,
            Invalidation,
            Sequence,
            Start, //
        },
        sync::WaitQueue,
    },
    trace,
    transport::mirror::{
        Posted,
        Ticket, //
    }, //
};
use core::ops::Range;
use kernel::{
    mm::Mm,
    new_spinlock,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        SpinLock, //
    }, //
};

/// Changes that can be between their two passes at the same time. What is beyond ends in the first.
const NODES: usize = 4;

/// The windows by number.
struct Tree {
    windows: RBTree<usize, Arc<Window>>,
    /// No window is added any more.
    closed: bool,
}

/// An invalidation between its two passes.
struct Pending {
    /// The addresses that the device may reach.
    span: Range<usize>,
    /// The command, if it was sent.
    ticket: Option<Ticket>,
    /// Until when the device keeps the page, which it has alone, and no command is sent.
    until: Option<SliceEnd>,
}

/// What the notifiers' callbacks use.
#[pin_data]
struct Shared {
    gpu: Arc<Gpu>,
    /// The lock of the windows' tables.
    lock: Arc<NotifierLock>,
    space: Arc<Space>,
    /// The end of the addresses.
    end: usize,
    /// Taken by callbacks. No window is removed before they are over.
    #[pin]
    tree: SpinLock<Tree>,
    /// Protects only itself; taken by callbacks, and inside [`NotifierLock::commits`].
    #[pin]
    changes: SpinLock<Changes>,
    /// A change or a lookup has ended.
    #[pin]
    ended: WaitQueue,
    /// Never has more than it had at first. Protects only itself, taken by callbacks.
    #[pin]
    spare: SpinLock<KVec<FinishNode<Pending>>>,
}

/// The windows of an address space.
pub(crate) struct Windows {
    shared: Arc<Shared>,
    notifier: Pin<KBox<IntervalNotifier<Begins>>>,
    ends: Pin<KBox<EndNotifier<Ends>>>,
}

/// A lookup, from its beginning until its outcome is used or not.
pub(super) struct Look<'a> {
    windows: &'a Windows,
    id: LookId,
    sequence: Sequence,
}

impl Windows {
    /// Follows the current process's addresses below `end`; its address space is `mm`. The device
    /// maps them into `space`, at the same addresses, and the tables are under `lock`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EINTR`] on a signal.
    pub(crate) fn new(
        gpu: &Arc<Gpu>,
        lock: &Arc<NotifierLock>,
        space: &Arc<Space>,
        mm: &Mm,
        end: usize,
    ) -> Result<Self> {
        let mut spare = KVec::with_capacity(NODES, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..NODES {
            spare.push(FinishNode::new()?, GFP_KERNEL_ACCOUNT)?;
        }
        let tree = Tree {
            windows: RBTree::new(),
            closed: false,
        };
        let changes = Changes::new()?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                gpu: gpu.clone(),
                lock: lock.clone(),
                space: space.clone(),
                end,
                tree <- new_spinlock!(tree, "Windows::tree"),
                changes <- new_spinlock!(changes, "Windows::changes"),
                ended <- WaitQueue::new(),
                spare <- new_spinlock!(spare, "Windows::spare"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // First the one of the ends, so that none is missed of a change that is noted.
        let ends = EndNotifier::new(mm, Ends(shared.clone()));
        let ends = KBox::pin_init(ends, GFP_KERNEL_ACCOUNT)?;
        let notifier = IntervalNotifier::new(mm, 0, end, Begins(shared.clone()));
        let notifier = KBox::pin_init(notifier, GFP_KERNEL_ACCOUNT)?;
        Ok(Self {
            shared,
            notifier,
            ends,
        })
    }

    /// The window around `address`, if it is there.
    pub(crate) fn existing(&self, address: usize) -> Option<Arc<Window>> {
        let tree = self.shared.tree.lock();
        tree.windows.get(&(address / WINDOW)).cloned()
    }

    /// The window around `address`, which is one of those that are followed; makes it if it is not
    /// there.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`], [`EIO`] if no window is added any more.
    pub(crate) fn window(&self, address: usize) -> Result<Arc<Window>> {
        let shared = &*self.shared;
        if let Some(window) = self.existing(address) {
            return Ok(window);
        }
        let number = address / WINDOW;
        let start = number * WINDOW;
        let bytes = WINDOW.min(shared.end - start);
        let window = Window::new(&shared.gpu, &shared.lock, &shared.space, start, bytes)?;
        let node = RBTreeNode::new(number, window.clone(), GFP_KERNEL_ACCOUNT)?;
        let mut tree = shared.tree.lock();
        if tree.closed {
            drop(tree);
            return Err(EIO);
        }
        if let Some(other) = tree.windows.get(&number) {
            let other = other.clone();
            drop(tree);
            return Ok(other);
        }
        tree.windows.insert(node);
        Ok(window)
    }

    /// The window with the least number from `number` on, and that.
    pub(crate) fn next(&self, number: usize) -> Option<(usize, Arc<Window>)> {
        self.shared.next(number)
    }

    /// Adds no window any more.
    pub(crate) fn close(&self) {
        self.shared.tree.lock().closed = true;
    }

    /// The space has ended; on an error of `ended` the device is lost, and may reach the pages
    /// until it has been reset. The windows were closed, and the space, see [`Space::close`].
    pub(crate) fn space_ended(&self, ended: Result) {
        self.shared.each(0..self.shared.end, |window, _| {
            let range = window.range();
            match ended {
                Ok(()) => range.set_all_unmapped(),
                Err(_) => range.quarantine(0..range.pages),
            }
        });
    }

    /// Removes the notifiers, for which it waits until nothing in the address space is being
    /// changed: there is no bound for that as long as the process lives. After
    /// [`Windows::space_ended`].
    ///
    /// Must not be called with a lock held that a notifier callback takes.
    pub(crate) fn remove_notifiers(&self) {
        self.notifier.remove();
        self.ends.remove();
        // The kernel may have told of the beginning of a change, and not of its end.
        self.shared.changes.lock().close();
        self.shared.ended.wake_all();
    }

    /// Drops all windows, after [`Windows::remove_notifiers`].
    pub(crate) fn clear(&self) {
        let windows = core::mem::replace(&mut self.shared.tree.lock().windows, RBTree::new());
        drop(windows);
    }

    /// The device has been reset: marks all pages unmapped, and puts those in quarantine.
    pub(crate) fn device_reset(&self) {
        self.shared.each(0..self.shared.end, |window, _| {
            window.range().device_reset();
        });
    }

    /// Looks at the pages from `address` on, as many as `pages` has places, when none of them is
    /// being changed.
    ///
    /// Called by a thread of the process, without a lock that a callback takes. Any signal ends the
    /// wait for changes with `interruptible`.
    ///
    /// # Errors
    ///
    /// [`EBUSY`] if they kept changing for `timeout_ms` milliseconds, [`EINTR`] on a signal; and
    /// those of [`IntervalNotifier::look`].
    pub(super) fn look(
        &self,
        address: usize,
        pages: &mut [HmmPage],
        interruptible: bool,
        timeout_ms: u32,
    ) -> Result<Look<'_>> {
        let addresses = addresses_of(address, pages);
        let id = self
            .shared
            .begin_look(&addresses, interruptible, timeout_ms)?;
        self.begun(id, address, pages, timeout_ms)
    }

    /// The same unless any of the pages is being changed, which is not waited for.
    ///
    /// # Errors
    ///
    /// Those of [`IntervalNotifier::look`].
    pub(super) fn try_look(
        &self,
        address: usize,
        pages: &mut [HmmPage],
        timeout_ms: u32,
    ) -> Result<Option<Look<'_>>> {
        let addresses = addresses_of(address, pages);
        let id = self.shared.changes.lock().begin_look(&addresses);
        id.map(|id| self.begun(id, address, pages, timeout_ms))
            .transpose()
    }

    fn begun(
        &self,
        id: LookId,
        address: usize,
        pages: &mut [HmmPage],
        timeout_ms: u32,
    ) -> Result<Look<'_>> {
        match self.notifier.look(address, pages, timeout_ms) {
            Ok(sequence) => Ok(Look {
                windows: self,
                id,
                sequence,
            }),
            Err(e) => {
                self.shared.end_look(id);
                Err(e)
            }
        }
    }
}

fn addresses_of(address: usize, pages: &[HmmPage]) -> Range<usize> {
    address..address + (pages.len() << PAGE_SHIFT)
}

impl Look<'_> {
    /// Whether the pages may have changed since. With [`NotifierLock::commits`] held, those that
    /// have not stay where they are, mapped as they are, until the lock is free.
    pub(super) fn is_stale(&self) -> bool {
        let changes = self.windows.shared.changes.lock();
        changes.is_stale(self.id) || self.windows.notifier.is_stale(self.sequence)
    }
}

impl Drop for Look<'_> {
    fn drop(&mut self) {
        self.windows.shared.end_look(self.id);
    }
}

impl Shared {
    fn next(&self, number: usize) -> Option<(usize, Arc<Window>)> {
        let tree = self.tree.lock();
        let cursor = tree.windows.cursor_lower_bound(&number)?;
        let (number, window) = cursor.current();
        Some((*number, window.clone()))
    }

    /// Calls `with` for all windows that have some of `addresses`, and with the pages of the window
    /// which these are.
    fn each(&self, addresses: Range<usize>, mut with: impl FnMut(&Window, Range<usize>)) {
        let mut number = addresses.start / WINDOW;
        while let Some((at, window)) = self.next(number) {
            let start = at * WINDOW;
            if start >= addresses.end {
                break;
            }
            let first = addresses.start.max(start) - start;
            let end = (addresses.end - start).min(window.pages() << PAGE_SHIFT);
            with(&window, first >> PAGE_SHIFT..end.div_ceil(PAGE_SIZE));
            number = at + 1;
        }
    }

    fn begin_look(
        &self,
        addresses: &Range<usize>,
        interruptible: bool,
        timeout_ms: u32,
    ) -> Result<LookId> {
        {
            let mut changes = self.changes.lock();
            if let Some(id) = changes.begin_look(addresses) {
                return Ok(id);
            }
            changes.waiting += 1;
        }
        let mut begun = None;
        let is_free = || {
            begun = self.changes.lock().begin_look(addresses);
            begun.is_some()
        };
        let waited = if interruptible {
            self.ended.wait_interruptible_timeout(is_free, timeout_ms)
        } else {
            self.ended.wait_killable_timeout(is_free, timeout_ms)
        };
        self.changes.lock().waiting -= 1;
        match (begun, waited) {
            (Some(id), _) => Ok(id),
            (None, Err(e)) if e == EBUSY => Err(e),
            (None, _) => Err(EINTR),
        }
    }

    fn end_look(&self, id: LookId) {
        let mut changes = self.changes.lock();
        changes.end_look(id);
        let waiting = changes.waiting > 0;
        drop(changes);
        if waiting {
            self.ended.wake_all();
        }
    }

    /// Makes lookups of what changes stale, and lets none begin before the end of the change.
    fn begin_change(&self, change: &Invalidation<'_>, addresses: Range<usize>) {
        let mut changes = self.changes.lock();
        let is_told = change.may_block() && change.change() != Change::Release;
        if !is_told {
            changes.supersede(&addresses);
            change.supersede();
        } else if !changes.begin(change.id(), addresses) {
            change.supersede();
        }
    }

    /// Leaves the rest to the second pass, or does it if there is no node for that.
    fn leave_to_finish(&self, pending: Pending) -> Start<Pending> {
        let spare = match self.gpu.knobs.has_nodes() {
            true => self.spare.lock().pop(),
            false => None,
        };
        match spare {
            Some(mut node) => {
                node.set(pending);
                Start::Unfinished(node)
            }
            None => {
                self.gpu.counters.ended_in_first_pass.add(1);
                self.finish(pending);
                Start::Done
            }
        }
    }

    /// Waits until the device does not reach what was marked any more, and lets the kernel have it.
    fn finish(&self, pending: Pending) {
        let Pending {
            span,
            ticket,
            until,
        } = pending;
        if let Some(end) = until {
            end.wait();
        }
        let acknowledged = match ticket {
            Some(ticket) => self.space.wait_acknowledged(ticket),
            None => self.invalidate_and_wait(&span),
        };
        let device = self.gpu.transport.name();
        let (id, pages) = (self.space.id(), pages_of(&span));
        trace::invalidated(device, id, &pages, acknowledged.is_ok());
        self.each(span, |window, pages| match acknowledged {
            Ok(()) => window.range().set_unmapped(pages),
            Err(_) => window.range().quarantine(pages),
        });
    }

    fn invalidate_and_wait(&self, span: &Range<usize>) -> Result {
        let (first, last) = (span.start as u64, span.end as u64 - 1);
        self.space
            .wait_acknowledged(self.space.invalidate(first, last)?)
    }
}

fn pages_of(addresses: &Range<usize>) -> Range<usize> {
    addresses.start >> PAGE_SHIFT..addresses.end >> PAGE_SHIFT
}

/// The callbacks for the beginnings of changes.
struct Begins(Arc<Shared>);

impl IntervalHandler for Begins {
    type Pending = Pending;

    fn start(&self, change: &Invalidation<'_>) -> Start<Pending> {
        let shared = &*self.0;
        // The device may go on with a page that is being made its own.
        if change.is_by(shared.space.owner()) {
            return Start::Done;
        }
        let addresses = change.first..change.last + 1;
        let may_block = change.may_block();
        let lost = shared.gpu.transport.is_lost();
        // From here on to the end of the change nothing is mapped there that is not yet.
        shared.begin_change(change, addresses.clone());
        let mut refused = false;
        if !may_block && !lost {
            shared.each(addresses.clone(), |window, pages| {
                refused |= window.range().would_have_to_wait(pages);
            });
            if refused {
                return Start::Refused;
            }
        }
        let gone = matches!(change.change(), Change::Unmap | Change::Release);
        let mut span: Option<Range<usize>> = None;
        shared.each(addresses, |window, pages| {
            match window.range().mark(pages, gone, may_block, lost) {
                Ok(Some(found)) => {
                    let start = window.start() + (found.start << PAGE_SHIFT);
                    let end = window.start() + (found.end << PAGE_SHIFT);
                    let start = span.as_ref().map_or(start, |span| span.start);
                    span = Some(start..end);
                }
                Ok(None) => {}
                Err(_) => refused = true,
            }
        });
        if refused {
            return Start::Refused;
        }
        let Some(span) = span else {
            return Start::Done;
        };
        shared.gpu.counters.invalidated(change.change());
        let device = shared.gpu.transport.name();
        let name = change.change().name();
        trace::invalidate(device, shared.space.id(), &pages_of(&span), name);
        if lost {
            return Start::Done;
        }

        if let Some(end) = slice_end(&shared.lock, change) {
            return shared.leave_to_finish(Pending {
                span,
                ticket: None,
                until: Some(end),
            });
        }
        let mut pending = Pending {
            span,
            ticket: None,
            until: None,
        };
        if shared.gpu.knobs.has_invalidates() {
            let (first, last) = (pending.span.start as u64, pending.span.end as u64 - 1);
            match shared.space.post_invalidate(first, last) {
                Posted::Sent(ticket, notification) => {
                    drop(notification);
                    shared.gpu.counters.sent_in_first_pass.add(1);
                    pending.ticket = Some(ticket);
                }
                Posted::Full => {}
                Posted::Lost => {
                    shared.each(pending.span, |window, pages| {
                        window.range().quarantine(pages);
                    });
                    return Start::Done;
                }
            }
        }
        shared.leave_to_finish(pending)
    }

    fn finish(&self, mut node: FinishNode<Pending>) {
        if let Some(pending) = node.take() {
            self.0.finish(pending);
        }
        // It was taken from there, so that there is room.
        let _ = self.0.spare.lock().push_within_capacity(node);
    }
}

/// The callback for the ends of changes.
struct Ends(Arc<Shared>);

impl EndHandler for Ends {
    fn ended(&self, change: ChangeId) {
        let mut changes = self.0.changes.lock();
        let waiting = changes.end(change) && changes.waiting > 0;
        drop(changes);
        if waiting {
            self.0.ended.wake_all();
        }
    }
}
