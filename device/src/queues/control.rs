// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The control queue: its requests, and the responses to them.
//!
//! A driver must not offer a chain again before the device has given it back. The ring keeps the
//! heads that are with the device, so that a broken ring, which has the same one again and again,
//! does not make the device keep requests without end.

use std::collections::HashSet;

use virtgpu_protocol::virtio_gpu::{response, Header, FLAG_FENCE, FLAG_INFO_RING_IDX};
use zerocopy::little_endian::{U32, U64};
use zerocopy::IntoBytes;

use super::ring::{self, GuestRing, Queue, Responding};
use crate::log::names;
use crate::log::{Event, EventLog, Name};

/// The control queue.
pub(crate) struct Control;

/// Its ring.
pub(crate) type ControlRing = GuestRing<Control>;

/// A request of it, and where the response goes.
pub(crate) type Ticket = ring::Ticket<Request>;

/// A request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Its number, for logs.
    pub(crate) req: u64,
    /// Its header.
    pub(crate) header: Header,
}

impl Request {
    /// Its type.
    pub(crate) fn command(&self) -> u32 {
        self.header.kind.get()
    }
}

/// A response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// A response type.
    pub(crate) kind: u32,
    /// What follows the header.
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// One that is only a header.
    pub(crate) fn plain(kind: u32) -> Self {
        Self {
            kind,
            body: Vec::new(),
        }
    }

    /// Success.
    pub(crate) fn ok() -> Self {
        Self::plain(response::OK_NODATA)
    }

    /// Its bytes, header included, for a request with header `to`.
    fn encode(&self, to: &Header) -> Vec<u8> {
        let mut header = Header::new(self.kind, 0);
        if to.flags.get() & FLAG_FENCE != 0 {
            header.flags = U32::new(to.flags.get() & (FLAG_FENCE | FLAG_INFO_RING_IDX));
            header.fence_id = U64::new(to.fence_id.get());
            header.ctx_id = to.ctx_id;
            header.ring_idx = to.ring_idx;
        }
        [header.as_bytes(), &self.body].concat()
    }
}

/// The fence of a request, if it has one.
pub(crate) fn fence(header: &Header) -> Option<u64> {
    (header.flags.get() & FLAG_FENCE != 0).then_some(header.fence_id.get())
}

impl Queue for Control {
    /// Heads that are with the device.
    type State = HashSet<u16>;

    fn opened(out: &mut HashSet<u16>, generation: u64, log: &EventLog) {
        out.clear();
        log.write(|| Event::Open { generation });
    }
}

impl Responding for Control {
    type Request = Request;
    type Response = Response;

    fn encode(request: &Request, response: &Response, capacity: u64) -> Vec<u8> {
        let bytes = response.encode(&request.header);
        if bytes.len() as u64 > capacity && !response.body.is_empty() {
            return Response::plain(response::ERR_INVALID_PARAMETER).encode(&request.header);
        }
        bytes
    }

    fn dropped(request: &Request) -> Event {
        Event::Dropped { req: request.req }
    }

    fn responded(
        request: &Request,
        response: &Response,
        used: u32,
        adversary: Option<Name>,
    ) -> Event {
        Event::Response {
            req: request.req,
            cmd: names::command(request.command()).into(),
            kind: names::response(response.kind).into(),
            fence: fence(&request.header),
            used,
            adversary,
        }
    }

    fn given_back(out: &mut HashSet<u16>, head: u16) {
        out.remove(&head);
    }
}

impl ControlRing {
    /// Takes a request from the queue that is open; false if the one at this head has not been
    /// given back. Such a ring is broken, and what it offers would be kept without end.
    pub(crate) fn take(&self, head: u16) -> bool {
        self.lock().state.insert(head)
    }
}
