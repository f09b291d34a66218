// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! DRM events: what the driver tells a program without being asked.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use virtgpu_protocol::uapi;
use zerocopy::FromBytes;

use crate::{Device, Errno, Result};

/// What [`Device::events`] returns.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A job has ended on a ring of [`uapi::context_param::POLL_RINGS_MASK`].
    FenceSignaled,
    /// Registered memory is gone ([`crate::RegisterOptions::events`]).
    Userptr(uapi::UserptrEvent),
    /// The context is lost ([`crate::SpaceOptions::events`]).
    Svm(uapi::SvmEvent),
    /// An event that this library does not know.
    Other {
        /// `drm_event::type`.
        kind: u32,
    },
}

impl Device {
    /// Whether an event becomes readable in time; with a `timeout` of zero, whether one is.
    ///
    /// # Errors
    ///
    /// Those of poll(2).
    pub fn wait_for_event(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timespec = Timespec {
                tv_sec: left.as_secs() as i64,
                tv_nsec: i64::from(left.subsec_nanos()),
            };
            let mut fds = [PollFd::new(self, PollFlags::IN)];
            match rustix::event::poll(&mut fds, Some(&timespec)) {
                Ok(0) if left.is_zero() => return Ok(false),
                Ok(0) | Err(Errno::INTR) => continue,
                Ok(_) => return Ok(fds[0].revents().contains(PollFlags::IN)),
                Err(error) => return Err(error),
            }
        }
    }

    /// All events that are there, after waiting for the first one.
    ///
    /// # Errors
    ///
    /// ETIMEDOUT if none came in time, those of read(2), and EIO for an event that is cut off.
    pub fn events(&self, timeout: Duration) -> Result<Vec<Event>> {
        if !self.wait_for_event(timeout)? {
            return Err(Errno::TIMEDOUT);
        }
        let mut buffer = [0; 4096];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(self, &mut buffer))?;
        parse(&buffer[..length])
    }
}

/// Events back to back: each starts with its type and its length in bytes.
fn parse(mut bytes: &[u8]) -> Result<Vec<Event>> {
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let (kind, rest) = u32::read_from_prefix(bytes).map_err(|_| Errno::IO)?;
        let (length, _) = u32::read_from_prefix(rest).map_err(|_| Errno::IO)?;
        let length = length as usize;
        if length < 8 || length > bytes.len() {
            return Err(Errno::IO);
        }
        let (event, rest) = bytes.split_at(length);
        bytes = rest;
        events.push(known(kind, event).unwrap_or(Event::Other { kind }));
    }
    Ok(events)
}

/// The event of this kind, if it is known and complete.
fn known(kind: u32, event: &[u8]) -> Option<Event> {
    Some(match kind {
        uapi::EVENT_FENCE_SIGNALED => Event::FenceSignaled,
        uapi::EVENT_USERPTR => Event::Userptr(uapi::UserptrEvent::read_from_prefix(event).ok()?.0),
        uapi::EVENT_SVM => Event::Svm(uapi::SvmEvent::read_from_prefix(event).ok()?.0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::IntoBytes;

    #[test]
    fn back_to_back() {
        let gone = uapi::UserptrEvent {
            kind: uapi::EVENT_USERPTR,
            length: 40,
            bo_handle: 3,
            reason: uapi::event_reason::UNMAP,
            addr: 0x7000,
            size: 4096,
            cookie: 9,
        };
        let mut bytes = gone.as_bytes().to_vec();
        bytes.extend_from_slice([0x9000_0000_u32, 8].as_bytes());
        bytes.extend_from_slice([0x9000_0001_u32, 8].as_bytes());
        bytes.extend_from_slice(gone.as_bytes());
        let lost = uapi::SvmEvent {
            kind: uapi::EVENT_SVM,
            length: 40,
            reason: uapi::svm_reason::BAD_ACCESS,
            addr: 0x8000,
            ..Default::default()
        };
        bytes.extend_from_slice(lost.as_bytes());
        // One that is too short for its type.
        bytes.extend_from_slice([uapi::EVENT_SVM, 8].as_bytes());
        let events = parse(&bytes).unwrap();
        assert_eq!(events.len(), 6);
        assert!(matches!(events[0], Event::Userptr(e) if e.cookie == 9 && e.addr == 0x7000));
        assert!(matches!(events[1], Event::FenceSignaled));
        assert!(matches!(events[2], Event::Other { kind: 0x9000_0001 }));
        assert!(matches!(events[3], Event::Userptr(_)));
        assert!(matches!(events[4], Event::Svm(e) if e.addr == 0x8000 && e.reason == 2));
        assert!(matches!(events[5], Event::Other { kind } if kind == uapi::EVENT_SVM));
    }

    #[test]
    fn cut_off() {
        for words in [
            &[1_u32][..],
            &[1, 0],
            &[1, 7],
            &[1, 12],
            &[uapi::EVENT_USERPTR, 40],
        ] {
            assert!(matches!(parse(words.as_bytes()), Err(Errno::IO)));
        }
        assert!(parse(&[]).unwrap().is_empty());
    }
}
