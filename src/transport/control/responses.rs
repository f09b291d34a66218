// SPDX-License-Identifier: GPL-2.0

//! Responses: the interrupt validates them, signals fences and wakes waiters; a worker completes
//! the commands.
//!
//! The device may change a response at any time, also after it was read, and may claim any length:
//! what it says is copied once, and decided on once. A response that makes no sense costs its
//! command, one that a device cannot give by mistake costs the device. What must not be done in an
//! interrupt, freeing memory above all, is left to the worker, in the order of the responses.

use super::{
    command::{
        Command,
        Expect,
        Response,
        INVALID, //
    },
    Control,
    ControlQueue,
    Inner,
    State, //
};
use crate::{
    kapi::{
        ida::Id,
        virtio::Message, //
    },
    protocol::virtio_gpu::{
        response,
        Header,
        FLAG_FENCE,
        FLAG_INFO_RING_IDX, //
    },
    trace,
    transport::status::{
        ABORTED,
        PENDING, //
    },
};
use core::ptr;
use kernel::{
    list::{
        List,
        ListArc, //
    },
    prelude::*,
    sync::{
        atomic::ordering::{
            Acquire,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};
use zerocopy::IntoBytes;

/// What validation finds of a response, and so what becomes of its command.
enum Validated {
    /// This is its `Shared::status`.
    Is(u32),
    /// It was refused in this way, but what it undoes was not responded to yet, and may still be
    /// done.
    TooEarly(u32),
    /// It was refused, and nothing says whether what it undoes was done: only a reset tells that
    /// the device is done with what the command holds.
    InDoubt,
    /// Nothing that the device says can be trusted any more.
    Broken,
}

impl ControlQueue {
    /// How a command ended; only for one that has.
    pub(super) fn response(command: &Command) -> Response {
        match command.shared.status.load(Acquire) {
            PENDING | ABORTED => Response::Aborted,
            INVALID => Response::Invalid,
            kind if kind < response::ERR_UNSPEC => Response::Ok(kind),
            kind => Response::Error(kind),
        }
    }

    /// How a command ended, if it has.
    pub(crate) fn ended(command: &Command) -> Option<Response> {
        (command.shared.status.load(Acquire) != PENDING).then(|| Self::response(command))
    }

    /// Changes which responses the device may give to a command that was not sent yet.
    pub(crate) fn set_expect(command: &mut ListArc<Command>, expect: Expect) {
        Message::owned(command).expect = expect;
    }

    /// Takes used commands from the ring.
    ///
    /// Returns them, and whether the device can be trusted further.
    fn collect(&self, inner: &mut Inner) -> (List<Command>, bool) {
        let mut responded = List::new();
        let mut sane = true;
        if inner.state != State::Running {
            return (responded, true);
        }
        loop {
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            queue.disable_callback();
            while let Some((mut command, len)) =
                inner.queue.as_mut().and_then(|queue| queue.take_used())
            {
                self.return_slots(inner, &mut command);
                inner.quiet_since = self.transport.now();
                inner.asked_at = None;
                match Self::validate(&mut command, len) {
                    Validated::Is(status) => {
                        let header = Message::owned(&mut command).header;
                        self.note_end(inner, &mut command);
                        command.shared.status.store(status, Release);
                        // A host may refuse at once, whatever came before.
                        if header.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX) == FLAG_FENCE
                            && matches!(Self::response(&command), Response::Ok(_))
                        {
                            let order = command.shared.order.load(Relaxed);
                            inner.common_responded = inner.common_responded.max(order);
                        }
                        inner.responded_fence = inner.responded_fence.max(header.fence_id.get());
                        trace::response(self.transport.name(), &header, status);
                        // Before its fence is signalled, see `settle`.
                        inner.responded += 1;
                        if command.shared.undone_early.load(Relaxed) {
                            Self::look_at_early(inner, &command, &mut responded);
                        }
                        responded.push_back(command);
                    }
                    Validated::TooEarly(kind) => {
                        self.note_end(inner, &mut command);
                        let owned = Message::owned(&mut command);
                        owned.refused = Some(kind);
                        if let Expect::SuccessUnlessFailed(other) = &owned.expect {
                            other.shared.undone_early.store(true, Relaxed);
                        }
                        let id = owned.id.clone();
                        inner.early.push_back(command);
                        Self::keep_order(inner, id.as_ref());
                    }
                    Validated::InDoubt => {
                        self.note_end(inner, &mut command);
                        inner.held.push_back(command);
                    }
                    Validated::Broken => {
                        // It stays among those in flight, for its fence.
                        sane = false;
                        inner.held.push_back(command);
                    }
                }
            }
            let Some(queue) = inner.queue.as_mut() else {
                break;
            };
            if queue.is_broken() {
                sane = false;
                break;
            }
            if queue.enable_callback() {
                break;
            }
        }
        (responded, sane)
    }

    /// What `len` bytes say in response to `command`.
    ///
    /// What cannot be a response is an error of that command alone, unless memory is released by
    /// its response.
    fn validate(command: &mut ListArc<Command>, len: u32) -> Validated {
        let asked = Message::owned(command).header;
        let len = len as usize;
        if len > command.writable_len() {
            return Validated::Broken;
        }
        let mut header = Header::default();
        let whole = len >= size_of::<Header>();
        if whole {
            command.read_response(header.as_mut_bytes());
        }
        let kind = header.kind.get();
        let valid = whole
            && is_response_to(&asked, &header)
            && (kind >= response::ERR_UNSPEC
                || (kind == Message::owned(command).success && len == command.writable_len()));
        let failed = !valid || kind >= response::ERR_UNSPEC;
        match &Message::owned(command).expect {
            Expect::Anything if !valid => Validated::Is(INVALID),
            Expect::Anything => Validated::Is(kind),
            _ if !valid => Validated::Broken,
            _ if !failed => Validated::Is(kind),
            Expect::Success => Validated::Broken,
            Expect::SuccessUnlessFailed(other) => match Self::ended(other) {
                Some(Response::Error(_)) => Validated::Is(kind),
                // That was done or not; now the device says that it was not.
                Some(Response::Invalid) if kind == response::ERR_INVALID_RESOURCE_ID => {
                    Validated::Is(kind)
                }
                None => Validated::TooEarly(kind),
                Some(Response::Invalid) => Validated::InDoubt,
                // It has contradicted itself before, but about this resource only.
                Some(Response::Ok(_)) if Message::owned(command).refused.is_some() => {
                    Validated::InDoubt
                }
                Some(Response::Ok(_) | Response::Aborted) => Validated::Broken,
            },
        }
    }

    /// Whether a command undoes something of the resource `id`, so that its place among the others
    /// that do matters: the host takes a resource out of the window before it forgets it.
    fn undoes_of(command: &mut ListArc<Command>, id: &Arc<Id>) -> bool {
        let owned = Message::owned(command);
        let same = owned
            .id
            .as_ref()
            .is_some_and(|other| Arc::ptr_eq(other, id));
        same && !matches!(owned.expect, Expect::Anything)
    }

    /// A command that undoes something of the resource `id` was refused too early. Others that were
    /// to follow it, and were not sent yet, follow it still.
    fn keep_order(inner: &mut Inner, id: Option<&Arc<Id>>) {
        let Some(id) = id else {
            return;
        };
        let mut backlog = core::mem::replace(&mut inner.backlog, List::new());
        while let Some(mut command) = backlog.pop_front() {
            if Self::undoes_of(&mut command, id) {
                inner.early.push_back(command);
            } else {
                inner.backlog.push_back(command);
            }
        }
    }

    /// Whether a command that was not sent has to follow one that was refused too early.
    pub(super) fn follows_early(inner: &mut Inner, command: &mut ListArc<Command>) -> bool {
        if inner.early.is_empty() {
            return false;
        }
        let Some(id) = Message::owned(command).id.clone() else {
            return false;
        };
        let mut follows = false;
        let mut early = core::mem::replace(&mut inner.early, List::new());
        while let Some(mut other) = early.pop_front() {
            follows |= Self::undoes_of(&mut other, &id);
            inner.early.push_back(other);
        }
        follows && Self::undoes_of(command, &id)
    }

    /// Deals with the commands that undo things of the resource that `responded` is about, and were
    /// refused too early: it has a response now.
    ///
    /// If it has failed, so may what undoes it, which is over then. Otherwise that is sent again,
    /// before all that was not sent yet, in the order in which it was sent first.
    fn look_at_early(inner: &mut Inner, responded: &Command, done: &mut List<Command>) {
        let mut early = core::mem::replace(&mut inner.early, List::new());
        let undoes = |command: &mut ListArc<Command>| match &Message::owned(command).expect {
            Expect::SuccessUnlessFailed(other) => Some(other.clone()),
            _ => None,
        };
        // Commands about the same resource hold the same id.
        let mut id = None;
        let mut kept = List::new();
        while let Some(mut command) = early.pop_front() {
            let is_it = undoes(&mut command).is_some_and(|other| ptr::eq(&*other, responded));
            if is_it {
                id = Message::owned(&mut command).id.clone();
            }
            kept.push_back(command);
        }
        let mut waits = false;
        let mut again = List::new();
        while let Some(mut command) = kept.pop_front() {
            let same = id
                .as_ref()
                .is_some_and(|id| Self::undoes_of(&mut command, id));
            if !same {
                inner.early.push_back(command);
                continue;
            }
            // One that does not depend on another only follows those that do.
            let other = undoes(&mut command);
            let undone = other.as_deref().map(Self::ended);
            match undone {
                Some(Some(Response::Error(_))) => {
                    // One that was not sent would be refused in this way.
                    let refused = Message::owned(&mut command).refused;
                    let kind = refused.unwrap_or(response::ERR_INVALID_RESOURCE_ID);
                    command.shared.status.store(kind, Release);
                    inner.responded += 1;
                    done.push_back(command);
                }
                Some(None) => {
                    // One that was not sent has not been refused, which would have said so.
                    if let Some(other) = &other {
                        other.shared.undone_early.store(true, Relaxed);
                    }
                    waits = true;
                    inner.early.push_back(command);
                }
                _ if waits => inner.early.push_back(command),
                _ => again.push_back(command),
            }
        }
        again.push_all_back(&mut inner.backlog);
        inner.backlog = again;
    }

    /// Keeps count when a command has come back, and abandons the jobs of a context that the host
    /// has destroyed.
    fn note_end(&self, inner: &mut Inner, command: &mut ListArc<Command>) {
        let index = Message::owned(command).index;
        if inner.in_flight[index].take().is_some() {
            // There is room for all places.
            let _ = inner.places.push_within_capacity(index);
        }
        if command.shared.job.is_none() {
            inner.commands -= 1;
        }
        if command.shared.abandoned.load(Relaxed) {
            inner.abandoned -= command.shared.slots.load(Relaxed);
        }
        if let Some(context) = command.shared.destroys {
            self.abandon_jobs(inner, context);
        }
    }
}

/// Whether `got` is a well-formed response to a request with header `asked`.
fn is_response_to(asked: &Header, got: &Header) -> bool {
    let kind = got.kind.get();
    let known = (response::OK_NODATA..=response::OK_MAP_INFO).contains(&kind)
        || (response::ERR_UNSPEC..=response::ERR_INVALID_PARAMETER).contains(&kind);
    let fenced = asked.flags.get() & FLAG_FENCE != 0;
    known
        && (!fenced
            || (got.flags.get() & FLAG_FENCE != 0 && got.fence_id.get() == asked.fence_id.get()))
}

impl ControlQueue {
    /// The device has used buffers of the control queue: takes the responses, signals fences and
    /// wakes who waits. Called in the interrupt, where fences are being signalled.
    pub(in crate::transport) fn used(&self) {
        let mut inner = self.inner.lock();
        let (mut responded, sane) = self.collect(&mut inner);
        let mut notification = None;
        if sane {
            notification = self.go_on(&mut inner);
        } else if inner.state == State::Running {
            dev_err!(self.transport.vdev, "device lost: it broke the protocol\n");
            self.transport.lose_locked(&mut inner);
        }
        drop(inner);
        drop(notification);

        // Not under the lock: whoever waits for a fence may be called from here.
        let mut done = List::new();
        while let Some(mut command) = responded.pop_front() {
            if let Some(job) = &command.shared.job {
                if job.lost_on_error
                    && Self::response(&command) == Response::Error(response::ERR_UNSPEC)
                {
                    job.of.set_lost();
                }
            }
            if let Some(destroyed) = command.shared.destroys {
                self.cancel_jobs_where(|job| job.context == destroyed);
            }
            if let Some(sync_for_cpu) = &Message::owned(&mut command).sync_for_cpu {
                sync_for_cpu.sync_for_cpu();
            }
            command.shared.signal(match Self::response(&command) {
                Response::Ok(_) => Ok(()),
                _ => Err(EIO),
            });
            command.shared.wait.wake_all();
            done.push_back(command);
        }
        if !done.is_empty() {
            self.done.lock().push_all_back(&mut done);
            self.transport.complete_later();
        }
    }
}

impl Control {
    /// Completes commands that the device has responded to. Called by the worker only.
    pub(in crate::transport) fn complete_responded(&self) {
        loop {
            let command = self.done.lock().pop_front();
            let Some(mut command) = command else {
                break;
            };
            Self::complete(&mut command);
            drop(command);
            // This is the only writer.
            let completed = self.completed.load(Relaxed) + 1;
            self.completed.store(completed, Release);
            self.completion_wait.wake_all();
        }
    }

    pub(super) fn complete(command: &mut ListArc<Command>) {
        let response = ControlQueue::response(command);
        if let Some(completion) = Message::owned(command).completion.take() {
            completion.complete(&response);
        }
        let owned = Message::owned(command);
        drop(owned.sync_for_cpu.take());
        drop(owned.id.take());
    }
}

#[kunit_tests(virtgpu_userptr_control)]
mod tests {
    use super::*;

    fn header(kind: u32, flags: u32, fence: u64) -> Header {
        let mut header = Header::new(kind, 1);
        header.flags = flags.into();
        header.fence_id = fence.into();
        header
    }

    #[test]
    fn plain_responses() {
        let asked = header(0x0102, 0, 0);
        assert!(is_response_to(&asked, &header(response::OK_NODATA, 0, 0)));
        assert!(is_response_to(&asked, &header(response::ERR_UNSPEC, 0, 0)));
        // A fence that was not asked for changes nothing.
        assert!(is_response_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 9)
        ));
    }

    #[test]
    fn garbage() {
        let asked = header(0x0102, 0, 0);
        for kind in [0, 0x0102, 0x10ff, 0x1107, 0x11ff, 0x1206, u32::MAX] {
            assert!(!is_response_to(&asked, &header(kind, 0, 0)));
        }
    }

    #[test]
    fn fences() {
        let asked = header(0x0207, FLAG_FENCE, 7);
        assert!(is_response_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 7)
        ));
        assert!(!is_response_to(&asked, &header(response::OK_NODATA, 0, 7)));
        assert!(!is_response_to(
            &asked,
            &header(response::OK_NODATA, FLAG_FENCE, 8)
        ));
    }

    #[test]
    fn errors_of_responses() {
        assert_eq!(
            Response::Ok(response::OK_NODATA).to_result(),
            Ok(response::OK_NODATA)
        );
        assert_eq!(
            Response::Error(response::ERR_OUT_OF_MEMORY).to_result(),
            Err(ENOMEM)
        );
        assert_eq!(
            Response::Error(response::ERR_INVALID_PARAMETER).to_result(),
            Err(EINVAL)
        );
        assert_eq!(Response::Error(response::ERR_UNSPEC).to_result(), Err(EIO));
        assert_eq!(Response::Aborted.to_result(), Err(ENODEV));
    }
}
