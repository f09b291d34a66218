// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A vhost-user frontend with a driver in it: the smallest virtual machine that the device takes
//! for one.

// Each test program uses a part of it, and of no other program.
#![allow(dead_code, unreachable_pub, missing_docs)]

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
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
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use virtgpu_device::backend::serve::{serve, ServeError};
use virtgpu_device::device::Device;
use virtgpu_device::log::{check, EventLog};
use virtgpu_device::mirror::Limits;
use virtgpu_device::misbehave::adversary::Adversary;
use virtgpu_device::options::capset::Capset;
use virtgpu_device::options::Options;
use virtgpu_protocol::compute::{op, Op, Stat, CAPSET_ID};
use virtgpu_protocol::mirror;
use virtgpu_protocol::virtio_gpu::{blob_mem, command, response};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use zerocopy::little_endian::U32;
use zerocopy::FromBytes;

mod messages;
mod ring;

pub use messages::*;
use ring::{Layout, Ring, RESPONSE};

/// The mirror extension's feature.
const MIRROR_BIT: u64 = 1 << mirror::feature::MIRROR;
/// That of faults.
const FAULT_BIT: u64 = 1 << mirror::feature::PAGE_FAULT;
/// A page, of the guest and of the host.
pub const PAGE: u64 = 4096;
/// Bytes of guest RAM.
pub const RAM: u64 = 64 << 20;
/// Bytes of the host-visible window.
pub const HOSTMEM: u64 = 4 << 20;
/// Guest RAM from here on is the tests' own.
pub const FREE: u64 = 16 << 20;

const CONTROL: Layout = Layout {
    index: 0,
    descriptors: 0x1000,
    avail: 0x2000,
    used: 0x3000,
    slots: 0x10000,
    slot: 0x4000,
};
const MIRROR: Layout = Layout {
    index: 2,
    descriptors: 0x4000,
    avail: 0x5000,
    used: 0x6000,
    slots: 0x10_0000,
    slot: 0x14000,
};
const EVENTS: Layout = Layout {
    index: 3,
    descriptors: 0x7000,
    avail: 0x8000,
    used: 0x9000,
    slots: 0x9_0000,
    slot: 0x1000,
};
/// Indirect tables and long requests.
const LONG: u64 = 4 << 20;

/// The most a test waits for anything.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Options of a device without extras.
pub fn options() -> Options {
    Options {
        virgl: true,
        virgl_renderer: false,
        hostmem: HOSTMEM,
        capsets: vec![Capset::compute()],
        blob_alignment: 0,
        access_platform: false,
        indirect: true,
        queue_size: virtgpu_device::queues::QUEUE_SIZE,
        mirror: Some(Limits::default()),
        exclusive_atomics: false,
        hammer: false,
        mutants: Vec::new(),
        adversary: Adversary::default(),
    }
}

/// The frontend's replies to requests of the device.
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
    pub control: Ring,
    /// The queues of the extension, if the driver wants it.
    pub mirror: Option<(Ring, Ring)>,
    /// The driver resolves faults.
    pub faulting: bool,
    device: Option<Host>,
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

fn memfd(size: u64, flags: libc::c_uint) -> File {
    // SAFETY: The name is a C string; the descriptor is new.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"ram".as_ptr(), flags)) };
    file.set_len(size).unwrap();
    file
}

impl Vm {
    /// One with a started device.
    pub fn new(options: Options) -> Self {
        Self::with_options(options, false)
    }

    /// One whose driver accepts the mirror extension.
    pub fn mirrored(options: Options) -> Self {
        Self::with_options(options, true)
    }

    /// One whose driver resolves faults, too.
    pub fn faulting(options: Options) -> Self {
        let mut vm = Self::with_options(options, true);
        vm.stop();
        vm.faulting = true;
        vm.start();
        vm
    }

    /// The same with guest RAM in huge pages, if there are some; else `None`.
    pub fn huge(options: Options) -> Option<Self> {
        let info = std::fs::read_to_string("/proc/meminfo").unwrap();
        let field = |name: &str| -> u64 {
            let mut fields = info.lines().filter_map(|line| line.strip_prefix(name));
            let field = fields.next().and_then(|f| f.split_whitespace().next());
            field.and_then(|f| f.parse().ok()).unwrap_or(0)
        };
        // What the rings and the tests touch.
        let enough = field("HugePages_Free:") - field("HugePages_Rsvd:") >= 4;
        (enough && field("Hugepagesize:") == 2048)
            .then(|| Self::with_ram(options, true, memfd(RAM, libc::MFD_HUGETLB)))
    }

    fn with_options(options: Options, mirrored: bool) -> Self {
        Self::with_ram(options, mirrored, memfd(RAM, 0))
    }

    fn with_ram(options: Options, mirrored: bool, ram: File) -> Self {
        let folder = temp_dir();
        let log = Arc::new(EventLog::new(Some(&folder.join("log"))).unwrap());
        let device = Device::new(options, log).unwrap();
        let socket = folder.join("socket");
        let (sender, ready): (_, Receiver<()>) = channel();
        let path = socket.clone();
        let device = std::thread::spawn(move || serve(&device, &path, || sender.send(()).unwrap()));
        ready.recv().unwrap();
        Self::with_device(Host::Thread(device), folder, mirrored, ram)
    }

    /// One with the device in a process of its own, started with these options.
    pub fn with_process(program: &str, args: &[&str], mirrored: bool) -> Self {
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
        Self::with_device(Host::Process(device), folder, mirrored, memfd(RAM, 0))
    }

    fn with_device(device: Host, folder: PathBuf, mirrored: bool, file: File) -> Self {
        let frontend = Frontend::connect(folder.join("socket"), 4).unwrap();
        let range = (
            GuestAddress(0),
            RAM as usize,
            Some(FileOffset::new(file, 0)),
        );
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let ring = |layout| Ring::new(&memory, layout);
        let mut vm = Self {
            control: ring(CONTROL),
            mirror: mirrored.then(|| (ring(MIRROR), ring(EVENTS))),
            faulting: false,
            memory,
            frontend,
            requests: Arc::default(),
            device: Some(device),
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
        let ring = (1 << 32) | (1 << 29) | (1 << 28);
        let mut ours = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | ring;
        if self.mirror.is_some() {
            assert_ne!(features & MIRROR_BIT, 0);
            ours |= MIRROR_BIT;
        }
        if self.faulting {
            assert_ne!(features & FAULT_BIT, 0);
            ours |= FAULT_BIT;
        }
        frontend.set_features((features & 0x3f) | ours).unwrap();
        let region = self.memory.iter().next().unwrap();
        let region = VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        frontend.set_mem_table(&[region]).unwrap();
        self.control.start(frontend);
        if let Some((mirror, events)) = &mut self.mirror {
            mirror.start(frontend);
            events.start(frontend);
        }
    }

    /// What a frontend says when a driver goes.
    pub fn stop(&mut self) {
        self.stop_control();
        self.stop_mirror();
    }

    /// The same of the control queue only.
    pub fn stop_control(&mut self) {
        self.control.stop(&mut self.frontend);
    }

    /// The same of the queues of the extension only.
    pub fn stop_mirror(&mut self) {
        if let Some((mirror, events)) = &mut self.mirror {
            mirror.stop(&mut self.frontend);
            events.stop(&mut self.frontend);
        }
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

    /// The device's process.
    pub fn pid(&self) -> u32 {
        match &self.device {
            Some(Host::Process(device)) => device.id(),
            _ => std::process::id(),
        }
    }

    /// What `/proc` has for the device's process at `name`, in bytes.
    pub fn status_of_process(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.unwrap().split_whitespace().next().unwrap();
        number.parse::<u64>().unwrap() << 10
    }

    /// The exit status of the device's process, which ends by itself.
    pub fn exit_status(&mut self) -> Option<i32> {
        match self.device.take() {
            Some(Host::Process(mut device)) => device.wait().unwrap().code(),
            _ => None,
        }
    }

    /// Makes the chain at `head` available.
    pub fn make_available(&mut self, head: u16) {
        self.control.make_available(head);
    }

    /// Posts a request; returns its head.
    pub fn post(&mut self, request: &[u8]) -> u16 {
        if request.len() as u64 <= CONTROL.slot - RESPONSE {
            return self.control.post(request, RESPONSE as usize);
        }
        let head = self.control.slot();
        self.post_long(head, self.control.response_place(head), request);
        self.control.make_available(head);
        head
    }

    /// A chain of pages, through an indirect table, one at a time.
    fn post_long(&self, head: u16, response: u64, request: &[u8]) {
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
        entry(response, 0x1000, 2, 0);
        self.memory.write_slice(&table, GuestAddress(LONG)).unwrap();
        self.control.descriptor(head, LONG, table.len(), 4, 0);
    }

    /// The response to the request at `head`, if there is one by now.
    pub fn poll(&mut self, head: u16) -> Option<Vec<u8>> {
        self.control.poll(head).map(|(_, bytes)| bytes)
    }

    /// The response to the request at `head`.
    pub fn wait(&mut self, head: u16) -> Vec<u8> {
        let start = Instant::now();
        loop {
            if let Some(bytes) = self.poll(head) {
                return bytes;
            }
            assert!(start.elapsed() < PATIENCE, "no response");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Whether no response to `head` comes for a while.
    pub fn is_quiet(&mut self, head: u16) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            if self.control.is_back(head) {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Posts a command on the mirror queue, with `room` bytes for a status; returns its head.
    pub fn post_command(&mut self, command: &[u8], room: usize) -> u16 {
        self.mirror.as_mut().unwrap().0.post(command, room)
    }

    /// The used length of a command on the mirror queue, and what was written.
    pub fn wait_command(&mut self, head: u16) -> (u32, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(response) = self.mirror.as_mut().unwrap().0.poll(head) {
                return response;
            }
            assert!(start.elapsed() < PATIENCE, "no response");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Carries out a command of the mirror queue; returns its status.
    pub fn status(&mut self, command: &[u8]) -> u32 {
        let head = self.post_command(command, 4);
        let (used, bytes) = self.wait_command(head);
        assert_eq!(used, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    /// Carries out a command of the mirror queue that has no status.
    pub fn done(&mut self, command: &[u8]) {
        let head = self.post_command(command, 0);
        assert_eq!(self.wait_command(head).0, 0);
    }

    /// A mirrored resource of `size` bytes, attached to `ctx`, with a space of the same number.
    pub fn space(&mut self, ctx: u32, id: u32, size: u64) {
        self.ok(&create_blob(ctx, id, blob_mem::GUEST, size, &[]));
        self.ok(&resource_command(command::CTX_ATTACH_RESOURCE, ctx, id));
        assert_eq!(self.status(&space_create(id, id, size, 3)), 0);
    }

    /// Maps guest memory in a space, for writing too.
    pub fn map(&mut self, space: u32, start: u64, pieces: &[(u64, u32)]) -> u32 {
        let pieces: Vec<_> = pieces.iter().map(|(a, l)| (*a, *l, 3)).collect();
        self.status(&mirror_map(space, start, &pieces))
    }

    /// Gives the device a buffer for an event.
    pub fn post_event_buffer(&mut self, room: usize) -> u16 {
        self.mirror.as_mut().unwrap().1.post_buffer(room)
    }

    /// The same, if it is back by now.
    pub fn poll_event(&mut self, head: u16) -> Option<(u32, Vec<u8>)> {
        self.mirror.as_mut().unwrap().1.poll(head)
    }

    /// The used length of, and the bytes in, a buffer for an event.
    pub fn wait_event(&mut self, head: u16) -> (u32, Vec<u8>) {
        let start = Instant::now();
        loop {
            if let Some(response) = self.mirror.as_mut().unwrap().1.poll(head) {
                return response;
            }
            assert!(start.elapsed() < PATIENCE, "no event");
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// The whole response to a request.
    pub fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        let head = self.post(request);
        self.wait(head)
    }

    /// The type of the response to a request.
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

    /// Runs a job; returns the type of its response.
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
        self.stat_of(0, ctx, id, place)
    }

    /// The same, and those of the space of resource `asked`.
    pub fn stat_of(&mut self, asked: u32, ctx: u32, id: u32, place: u64) -> Stat {
        let mut stat = operation(
            op::STAT,
            (id, 0),
            [(asked, 0), (0, 0)],
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

    /// Hangs up; returns the violations in the log.
    pub fn end_with_violations(mut self) -> Vec<(u64, String)> {
        self.stop();
        self.violations()
    }

    /// Hangs up without a word.
    pub fn finish(self, hostile: bool) {
        let mut violations = self.violations();
        // The driver is the test, which may do what a driver may not.
        violations.retain(|(_, what)| !what.starts_with("the driver "));
        assert!(hostile || violations.is_empty(), "{violations:?}");
    }

    /// The same without a word.
    pub fn violations(mut self) -> Vec<(u64, String)> {
        // SAFETY: The socket stays open until `frontend` is dropped.
        unsafe { libc::shutdown(self.frontend.as_raw_fd(), libc::SHUT_RDWR) };
        match self.device.take().unwrap() {
            Host::Thread(device) => device.join().unwrap().unwrap(),
            Host::Process(mut device) => assert_eq!(device.wait().unwrap().code(), Some(0)),
        }
        let log = File::open(self.folder.join("log")).unwrap();
        let report = check::check(BufReader::new(log)).unwrap();
        assert!(report.complete);
        report.violations
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
