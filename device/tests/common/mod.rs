// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A vhost-user frontend with a driver in it: the smallest virtual machine that the device takes for
//! one.

// Each test program uses a part of it, and of no other program.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{fence, AtomicU64, Ordering};
use std::sync::mpsc::{channel, Receiver};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserMMap, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandler,
};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtgpu_device::adversary::Adversary;
use virtgpu_device::capsets::Capset;
use virtgpu_device::check_log;
use virtgpu_device::device::{Device, Options};
use virtgpu_device::event_log::EventLog;
use virtgpu_device::serve::{serve, ServeError};
use virtgpu_protocol::compute::{op, Op, Operand, Stat, CAPSET_ID};
use virtgpu_protocol::virtio_gpu::{self as wire, blob_mem, command, response, Header};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of guest RAM.
pub const RAM: u64 = 64 << 20;
/// Bytes of the host-visible window.
pub const HOSTMEM: u64 = 4 << 20;
/// Guest RAM from here on is the tests' own.
pub const FREE: u64 = 16 << 20;

const QUEUE: u16 = 64;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
/// Request and answer of a slot.
const SLOTS: u64 = 0x10000;
const SLOT: u64 = 0x4000;
const ANSWER: u64 = 0x3000;
/// Indirect tables and long requests.
const LONG: u64 = 4 << 20;

/// The most a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Options of a device without extras.
pub fn options() -> Options {
    Options {
        hostmem: HOSTMEM,
        capsets: vec![Capset::compute()],
        blob_alignment: 0,
        access_platform: false,
        adversary: Adversary::default(),
    }
}

/// The frontend's answers to requests of the device.
#[derive(Default)]
struct Requests {
    window: Mutex<Option<File>>,
    config_changes: AtomicU64,
}

impl VhostUserFrontendReqHandler for Requests {
    fn handle_config_change(&self) -> HandlerResult<u64> {
        self.config_changes.fetch_add(1, Ordering::Relaxed);
        Ok(0)
    }

    fn shmem_map(&self, request: &VhostUserMMap, fd: &dyn AsRawFd) -> HandlerResult<u64> {
        assert_eq!({ request.len }, HOSTMEM);
        // SAFETY: The descriptor is open; the duplicate is ours.
        let file = unsafe { File::from_raw_fd(libc::dup(fd.as_raw_fd())) };
        *self.window.lock().unwrap() = Some(file);
        Ok(0)
    }
}

/// Where the device runs.
enum Host {
    Thread(JoinHandle<Result<(), ServeError>>),
    Process(Child),
}

/// A virtual machine.
pub struct Vm {
    pub memory: GuestMemoryMmap<()>,
    frontend: Frontend,
    requests: Arc<Requests>,
    kick: EventFd,
    call: EventFd,
    device: Option<Host>,
    avail: u16,
    used: u16,
    /// Free slots; a slot has two descriptors, request and answer.
    free: Vec<u16>,
    /// Bytes of the used length of each answer.
    answers: HashMap<u16, u32>,
    folder: PathBuf,
    /// Next fence id.
    pub fence: u64,
}

fn temp_dir() -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("virtgpu-test-{}-{count}", std::process::id()));
    std::fs::create_dir(&path).unwrap();
    path
}

fn memfd(size: u64) -> File {
    // SAFETY: The name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), 0)) };
    file.set_len(size).unwrap();
    file
}

impl Vm {
    /// One with a started device.
    pub fn new(options: Options) -> Self {
        let folder = temp_dir();
        let log = Arc::new(EventLog::new(Some(&folder.join("log"))).unwrap());
        let device = Device::new(options, log).unwrap();
        let socket = folder.join("socket");
        let (sender, ready): (_, Receiver<()>) = channel();
        let path = socket.clone();
        let device = std::thread::spawn(move || serve(&device, &path, || sender.send(()).unwrap()));
        ready.recv().unwrap();
        Self::with_device(Host::Thread(device), folder)
    }

    /// One with the device in a process of its own, started with these options.
    pub fn with_process(program: &str, args: &[&str]) -> Self {
        let folder = temp_dir();
        let mut device = Command::new(program)
            .arg("--socket")
            .arg(folder.join("socket"))
            .arg("--event-log")
            .arg(folder.join("log"))
            .args(["--hostmem", &HOSTMEM.to_string()])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(device.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self::with_device(Host::Process(device), folder)
    }

    fn with_device(device: Host, folder: PathBuf) -> Self {
        let frontend = Frontend::connect(folder.join("socket"), 4).unwrap();
        let file = memfd(RAM);
        let range = (
            GuestAddress(0),
            RAM as usize,
            Some(FileOffset::new(file, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut vm = Self {
            memory,
            frontend,
            requests: Arc::default(),
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            device: Some(device),
            avail: 0,
            used: 0,
            free: Vec::new(),
            answers: HashMap::new(),
            folder,
            fence: 1,
        };
        vm.connect();
        vm.start();
        vm
    }

    /// What a frontend says once.
    fn connect(&mut self) {
        let frontend = &mut self.frontend;
        frontend.set_owner().unwrap();
        frontend.get_features().unwrap();
        let features = frontend.get_protocol_features().unwrap();
        assert!(features.contains(VhostUserProtocolFeatures::SHMEM));
        frontend.set_protocol_features(features).unwrap();
        let config = frontend.get_shmem_config().unwrap();
        assert_eq!((config.nregions, config.memory_sizes[1]), (1, HOSTMEM));
        let mut handler = FrontendReqHandler::new(self.requests.clone()).unwrap();
        handler.set_reply_ack_flag(true);
        let fd = handler.get_tx_raw_fd();
        frontend.set_backend_request_fd(&fd).unwrap();
        std::thread::spawn(move || while handler.handle_request().is_ok() {});
    }

    /// What a frontend says when a driver comes.
    pub fn start(&mut self) {
        let frontend = &mut self.frontend;
        let features = frontend.get_features().unwrap();
        let ours = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | (1 << 32) | (1 << 28);
        frontend.set_features((features & 0x3f) | ours).unwrap();
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        self.avail = 0;
        self.used = 0;
        self.free = (0..QUEUE / 2).rev().map(|slot| slot * 2).collect();
        self.answers.clear();
        self.memory
            .write_slice(&[0; 0x1000], GuestAddress(AVAIL))
            .unwrap();
        self.memory
            .write_slice(&[0; 0x1000], GuestAddress(USED))
            .unwrap();
        let base = region.userspace_addr;
        frontend.set_vring_num(0, QUEUE).unwrap();
        let config = VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: base + DESC,
            used_ring_addr: base + USED,
            avail_ring_addr: base + AVAIL,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &config).unwrap();
        frontend.set_vring_base(0, 0).unwrap();
        frontend.set_vring_call(0, &self.call).unwrap();
        frontend.set_vring_kick(0, &self.kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
    }

    /// What a frontend says when a driver goes.
    pub fn stop(&mut self) {
        self.frontend.set_vring_enable(0, false).unwrap();
        self.frontend.get_vring_base(0).unwrap();
    }

    /// A part of the configuration space.
    pub fn config(&mut self, offset: u32, length: usize) -> Vec<u8> {
        let flags = VhostUserConfigFlags::WRITABLE;
        let zero = vec![0; length];
        let length = length as u32;
        let (_, bytes) = self
            .frontend
            .get_config(offset, length, flags, &zero)
            .unwrap();
        bytes
    }

    /// The window, as the guest sees it.
    pub fn window(&self) -> File {
        let window = self.requests.window.lock().unwrap();
        window.as_ref().unwrap().try_clone().unwrap()
    }

    /// How often the device said that the configuration space has changed.
    pub fn config_changes(&self) -> u64 {
        self.requests.config_changes.load(Ordering::Relaxed)
    }

    /// The exit status of the device's process, which ends by itself.
    pub fn exit_status(&mut self) -> Option<i32> {
        match self.device.take() {
            Some(Host::Process(mut device)) => device.wait().unwrap().code(),
            _ => None,
        }
    }

    fn descriptor(&self, index: u16, addr: u64, length: usize, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&(length as u32).to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        let at = DESC + 16 * u64::from(index);
        self.memory.write_slice(&bytes, GuestAddress(at)).unwrap();
    }

    /// Makes the chain at `head` available.
    pub fn make_available(&mut self, head: u16) {
        let at = AVAIL + 4 + 2 * u64::from(self.avail % QUEUE);
        self.memory
            .write_obj(head.to_le(), GuestAddress(at))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        fence(Ordering::SeqCst);
        let index = self.avail.to_le();
        self.memory
            .store(index, GuestAddress(AVAIL + 2), Ordering::Release)
            .unwrap();
        self.kick.write(1).unwrap();
    }

    fn slot(&mut self) -> u16 {
        let start = Instant::now();
        loop {
            if let Some(head) = self.free.pop() {
                return head;
            }
            assert!(start.elapsed() < PATIENCE, "no free slot");
            self.collect();
            // Answers that nobody asks for any more.
            let done: Vec<u16> = self.answers.keys().copied().collect();
            for head in done {
                self.answers.remove(&head);
                self.free.push(head);
            }
        }
    }

    /// Posts a request; returns its head.
    pub fn post(&mut self, request: &[u8]) -> u16 {
        let head = self.slot();
        let at = SLOTS + SLOT * u64::from(head / 2);
        let answer = at + ANSWER;
        if request.len() as u64 <= ANSWER {
            self.memory.write_slice(request, GuestAddress(at)).unwrap();
            self.descriptor(head, at, request.len(), 1, head + 1);
            self.descriptor(head + 1, answer, 0x1000, 2, 0);
        } else {
            self.post_long(head, answer, request);
        }
        self.make_available(head);
        head
    }

    /// A chain of pages, through an indirect table, one at a time.
    fn post_long(&self, head: u16, answer: u64, request: &[u8]) {
        let data = LONG + (1 << 20);
        assert!(data + request.len() as u64 <= FREE);
        self.memory
            .write_slice(request, GuestAddress(data))
            .unwrap();
        let mut table = Vec::new();
        let mut entry = |addr: u64, length: usize, flags: u16, next: u16| {
            table.extend(addr.to_le_bytes());
            table.extend((length as u32).to_le_bytes());
            table.extend(flags.to_le_bytes());
            table.extend(next.to_le_bytes());
        };
        for (index, part) in request.chunks(4096).enumerate() {
            let addr = data + 4096 * index as u64;
            entry(addr, part.len(), 1, index as u16 + 1);
        }
        entry(answer, 0x1000, 2, 0);
        self.memory.write_slice(&table, GuestAddress(LONG)).unwrap();
        self.descriptor(head, LONG, table.len(), 4, 0);
    }

    /// Takes what is in the used ring.
    fn collect(&mut self) {
        let index: u16 = self
            .memory
            .load(GuestAddress(USED + 2), Ordering::Acquire)
            .unwrap();
        let index = u16::from_le(index);
        while self.used != index {
            let at = USED + 4 + 8 * u64::from(self.used % QUEUE);
            let head: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
            self.used = self.used.wrapping_add(1);
            self.answers
                .insert(u32::from_le(head) as u16, u32::from_le(length));
        }
    }

    /// The answer to the request at `head`, if there is one by now.
    pub fn poll(&mut self, head: u16) -> Option<Vec<u8>> {
        self.collect();
        let length = self.answers.remove(&head)?;
        let at = SLOTS + SLOT * u64::from(head / 2) + ANSWER;
        let mut bytes = vec![0; (length as usize).min(0x1000)];
        self.memory
            .read_slice(&mut bytes, GuestAddress(at))
            .unwrap();
        self.free.push(head);
        Some(bytes)
    }

    /// The answer to the request at `head`.
    pub fn wait(&mut self, head: u16) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(bytes) = self.poll(head) {
                return bytes;
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Whether no answer to `head` comes for a while.
    pub fn is_quiet(&mut self, head: u16) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            self.collect();
            if self.answers.contains_key(&head) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// The whole answer to a request.
    pub fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        let head = self.post(request);
        self.wait(head)
    }

    /// The type of the answer to a request.
    pub fn kind(&mut self, request: &[u8]) -> u32 {
        kind(&self.ask(request))
    }

    /// Expects success.
    pub fn ok(&mut self, request: &[u8]) {
        assert_eq!(self.kind(request), response::OK_NODATA);
    }

    /// Creates a compute context.
    pub fn context(&mut self, ctx: u32) {
        self.ok(&ctx_create(ctx, CAPSET_ID));
    }

    /// Creates a guest blob of these pieces and attaches it.
    pub fn blob(&mut self, ctx: u32, id: u32, pieces: &[(u64, u32)]) {
        let size = pieces.iter().map(|(_, l)| u64::from(*l)).sum();
        self.ok(&create_blob(ctx, id, blob_mem::GUEST, size, pieces));
        self.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, id));
    }

    /// Runs a job; returns the type of its answer.
    pub fn run(&mut self, ctx: u32, ops: &[Op]) -> u32 {
        let request = self.submit(ctx, None, ops);
        self.kind(&request)
    }

    /// A fenced job.
    pub fn submit(&mut self, ctx: u32, ring: Option<u8>, ops: &[Op]) -> Vec<u8> {
        let fence = self.fence;
        self.fence += 1;
        submit(ctx, ring, Some(fence), ops)
    }

    /// The device's own counts, through resource `id`, which is attached.
    pub fn stat(&mut self, ctx: u32, id: u32, place: u64) -> Stat {
        let mut stat = operation(
            op::STAT,
            (id, 0),
            [(0, 0); 2],
            size_of::<Stat>() as u64,
            [0; 2],
        );
        stat.flags = U32::ZERO;
        assert_eq!(self.run(ctx, &[stat]), response::OK_NODATA);
        let mut bytes = [0; size_of::<Stat>()];
        self.memory
            .read_slice(&mut bytes, GuestAddress(place))
            .unwrap();
        Stat::read_from_bytes(&bytes).unwrap()
    }

    /// Hangs up, and expects a log without violations unless `hostile`.
    pub fn end(mut self, hostile: bool) {
        self.stop();
        self.finish(hostile);
    }

    /// Hangs up without a word.
    pub fn finish(self, hostile: bool) {
        let violations = self.violations();
        assert!(hostile || violations.is_empty(), "{violations:?}");
    }

    /// Hangs up; returns the violations in the log.
    pub fn violations(mut self) -> Vec<(u64, String)> {
        // SAFETY: The socket stays open until `frontend` is dropped.
        unsafe { libc::shutdown(self.frontend.as_raw_fd(), libc::SHUT_RDWR) };
        match self.device.take().unwrap() {
            Host::Thread(device) => device.join().unwrap().unwrap(),
            Host::Process(mut device) => assert_eq!(device.wait().unwrap().code(), Some(0)),
        }
        let log = File::open(self.folder.join("log")).unwrap();
        let report = check_log::check(BufReader::new(log)).unwrap();
        assert!(report.complete);
        report.violations
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// The type of an answer.
pub fn kind(answer: &[u8]) -> u32 {
    header(answer).kind.get()
}

/// The header of an answer.
pub fn header(answer: &[u8]) -> Header {
    *prefix(answer)
}

/// The structure at the start of an answer.
pub fn prefix<T: FromBytes + KnownLayout + Immutable + zerocopy::Unaligned>(answer: &[u8]) -> &T {
    T::ref_from_prefix(answer).unwrap().0
}

/// A request that is only a header.
pub fn plain(command: u32, ctx: u32) -> Vec<u8> {
    Header::new(command, ctx).as_bytes().to_vec()
}

pub fn ctx_create(ctx: u32, capset: u32) -> Vec<u8> {
    let request = wire::CtxCreate {
        hdr: Header::new(command::CTX_CREATE, ctx),
        nlen: U32::ZERO,
        context_init: U32::new(capset),
        debug_name: [0; wire::DEBUG_NAME_LEN],
    };
    request.as_bytes().to_vec()
}

pub fn resource_command(command: u32, ctx: u32, id: u32) -> Vec<u8> {
    let request = wire::ResourceCommand {
        hdr: Header::new(command, ctx),
        resource_id: U32::new(id),
        padding: U32::ZERO,
    };
    request.as_bytes().to_vec()
}

pub fn map_blob(id: u32, offset: u64) -> Vec<u8> {
    let request = wire::ResourceMapBlob {
        hdr: Header::new(command::RESOURCE_MAP_BLOB, 0),
        resource_id: U32::new(id),
        padding: U32::ZERO,
        offset: U64::new(offset),
    };
    request.as_bytes().to_vec()
}

pub fn create_blob(ctx: u32, id: u32, mem: u32, size: u64, pieces: &[(u64, u32)]) -> Vec<u8> {
    let request = wire::ResourceCreateBlob {
        hdr: Header::new(command::RESOURCE_CREATE_BLOB, ctx),
        resource_id: U32::new(id),
        blob_mem: U32::new(mem),
        blob_flags: U32::new(u32::from(mem == blob_mem::HOST3D)),
        nr_entries: U32::new(pieces.len() as u32),
        blob_id: U64::ZERO,
        size: U64::new(size),
    };
    let mut bytes = request.as_bytes().to_vec();
    for (addr, length) in pieces {
        let entry = wire::MemEntry {
            addr: U64::new(*addr),
            length: U32::new(*length),
            padding: U32::ZERO,
        };
        bytes.extend(entry.as_bytes());
    }
    bytes
}

/// An operation on places (resource, offset).
pub fn operation(op: u32, dst: (u32, u64), src: [(u32, u64); 2], length: u64, imm: [u64; 2]) -> Op {
    Op {
        op: U32::new(op),
        flags: U32::ZERO,
        dst: Operand::resource(dst.0, dst.1),
        src: src.map(|(id, offset)| Operand::resource(id, offset)),
        length: U64::new(length),
        imm: imm.map(U64::new),
    }
}

/// Waits.
pub fn delay(microseconds: u64) -> Op {
    operation(op::DELAY_US, (0, 0), [(0, 0); 2], 0, [microseconds, 0])
}

/// Fills with a value.
pub fn fill(id: u32, offset: u64, length: u64, value: u64) -> Op {
    operation(op::FILL, (id, offset), [(0, 0); 2], length, [value, 0])
}

/// Waits for a value.
pub fn spin(id: u32, offset: u64, value: u64, limit: u64) -> Op {
    operation(
        op::SPIN_UNTIL,
        (0, 0),
        [(id, offset), (0, 0)],
        0,
        [value, limit],
    )
}

pub fn submit(ctx: u32, ring: Option<u8>, fence: Option<u64>, ops: &[Op]) -> Vec<u8> {
    let mut hdr = Header::new(command::SUBMIT_3D, ctx);
    let mut flags = 0;
    if let Some(fence) = fence {
        flags |= wire::FLAG_FENCE;
        hdr.fence_id = U64::new(fence);
    }
    if let Some(ring) = ring {
        flags |= wire::FLAG_INFO_RING_IDX;
        hdr.ring_idx = ring;
    }
    hdr.flags = U32::new(flags);
    let request = wire::Submit3d {
        hdr,
        size: U32::new(size_of_val(ops) as u32),
        padding: U32::ZERO,
    };
    [request.as_bytes(), ops.as_bytes()].concat()
}
