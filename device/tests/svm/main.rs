// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Contexts in fault mode, through a real vhost-user connection, with a driver that resolves faults
//! as a test says.

#[path = "../common/mod.rs"]
mod common;

mod accesses;
mod end;
mod exclusive;
mod misbehave;
mod modes;
mod stalls;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use common::*;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, Op};
use virtgpu_protocol::mirror::{access, event, job_result, resolution, status, Event};
use virtgpu_protocol::virtio_gpu::response;
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

/// What a process of the guest has of addresses.
const TASK_SIZE: u64 = (1 << 47) - PAGE;
/// Where its data are: at the end of a GiB.
const VA: u64 = 0x5555_4000_0000 - 2 * PAGE;
/// A resource that no job of a context in fault mode names, for counts.
const COUNTS: u32 = 900;

/// A driver with one context in fault mode, 1, whose space is 1, and one in fence mode, 2.
struct Driver {
    vm: Vm,
    buffers: Vec<u16>,
    faults: VecDeque<Event>,
    done: VecDeque<Event>,
}

impl Driver {
    fn new() -> Self {
        Self::with(options())
    }

    fn with(options: Options) -> Self {
        let mut driver = Self {
            vm: Vm::faulting(options),
            buffers: Vec::new(),
            faults: VecDeque::new(),
            done: VecDeque::new(),
        };
        driver.give_buffers(8);
        driver.vm.context(1);
        assert_eq!(
            driver.vm.status(&context_space(1, 1, TASK_SIZE)),
            status::OK
        );
        driver.vm.context(2);
        driver.vm.blob(2, COUNTS, &[(FREE - PAGE, 4096)]);
        driver
    }

    fn give_buffers(&mut self, count: usize) {
        for _ in 0..count {
            let head = self.vm.post_event_buffer(size_of::<Event>());
            self.buffers.push(head);
        }
    }

    /// Takes what is in the event queue.
    fn look(&mut self) {
        while let Some(head) = self.buffers.first().copied() {
            let Some((used, bytes)) = self.vm.poll_event(head) else {
                break;
            };
            self.buffers.remove(0);
            self.give_buffers(1);
            assert_eq!(used as usize, size_of::<Event>());
            let event = Event::read_from_bytes(&bytes).unwrap();
            match event.kind.get() {
                event::FAULT => self.faults.push_back(event),
                event::RING_DONE => self.done.push_back(event),
                other => panic!("event {other}"),
            }
        }
    }

    fn wait<T>(&mut self, mut f: impl FnMut(&mut Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            self.look();
            if let Some(found) = f(self) {
                return found;
            }
            assert!(start.elapsed() < PATIENCE, "no event");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The next fault.
    fn fault(&mut self) -> Event {
        self.wait(|driver| driver.faults.pop_front())
    }

    /// The next fault, which has to be this one; returns its id.
    fn expect_fault(&mut self, address: u64, access: u32) -> u64 {
        let fault = self.fault();
        let seen = (
            fault.space_id.get(),
            fault.address.get(),
            fault.access.get(),
        );
        assert_eq!(seen, (1, address, access), "{:#x}", fault.address.get());
        fault.id.get()
    }

    /// The next job that is over.
    fn ring_done(&mut self) -> Event {
        self.wait(|driver| driver.done.pop_front())
    }

    /// The result of the next job that is over, and its fence and address.
    fn result(&mut self) -> (u32, u64, u64) {
        let done = self.ring_done();
        assert_eq!(done.space_id.get(), 1);
        (done.access.get(), done.id.get(), done.address.get())
    }

    /// Waits for a while in which there must be no event.
    fn quiet(&mut self) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(30) {
            self.look();
            assert!(self.faults.is_empty() && self.done.is_empty());
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn resolve(&mut self, fault: u64, status: u32) {
        self.vm.done(&fault_resolve(1, fault, status));
    }

    /// Submits a job of context 1; returns its fence.
    fn submit(&mut self, ring: u8, ops: &[Op]) -> u64 {
        let fence = self.vm.fence;
        let request = self.vm.submit(1, Some(ring), ops);
        self.vm.ok(&request);
        fence
    }

    /// Maps pages of guest memory, the first at `place`, for reading or for both.
    fn map(&mut self, address: u64, place: u64, pages: u64, access: u32) {
        let entries = [(place, (pages * PAGE) as u32, access)];
        let map = mirror_map(1, address, &entries);
        assert_eq!(self.vm.status(&map), status::OK);
    }

    /// Resolves faults by mapping the page at the same distance from `FREE` as the address has from
    /// `VA`, until a job is over; returns its result and how many there were.
    fn serve(&mut self) -> (u32, usize) {
        let mut count = 0;
        loop {
            let next = self.wait(|driver| {
                let fault = driver.faults.pop_front();
                fault.map(Ok).or_else(|| driver.done.pop_front().map(Err))
            });
            let fault = match next {
                Ok(fault) => fault,
                Err(done) => return (done.access.get(), count),
            };
            count += 1;
            let page = fault.address.get() & !(PAGE - 1);
            let access = match fault.access.get() {
                access::READ => 1,
                access::WRITE => 3,
                _ => access::EXCLUSIVE,
            };
            self.map(page, FREE + page - VA, 1, access);
            self.resolve(fault.id.get(), resolution::OK);
        }
    }

    fn word(&self, at: u64) -> u64 {
        self.vm.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn set(&mut self, at: u64, value: u64) {
        self.vm.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn stat(&mut self) -> virtgpu_protocol::compute::Stat {
        self.vm.stat(2, COUNTS, FREE - PAGE)
    }
}

/// An operation whose places are addresses.
fn addressed(op: u32, dst: u64, src: [u64; 2], length: u64, imm: [u64; 2]) -> Op {
    operation(op, (0, dst), src.map(|address| (0, address)), length, imm)
}
