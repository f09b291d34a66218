// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The pin cases of the kernel's cow selftest: registered memory stays this process's memory,
//! across fork and protection changes, whatever pages it is in. Device and process must see each
//! other's writes, and a child's writes must be seen by neither.

use std::io::Read;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;

use rustix::fs::MemfdFlags;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags};
use virtgpu_client::{Bytes, Device, Mapping, Memfd, Memory, RegisterOptions, Registration};

use crate::ktap::{parts, Driver, Family, Kernel, Outcome, TestResult};
use crate::support::memory::{hugetlb, small_pages, Thp};
use crate::support::{child, job, procfs, swap, Env, HUGE, PAGE};
use crate::{cases, check, check_eq, skip};

pub(crate) const FAMILY: Family = Family {
    name: "cow",
    kernel: Kernel::Any,
    driver: Driver::Ours,
    device: "",
    leak_check: true,
    cases: cases![
        read_only_pin_of_shared_page,
        read_only_pin_of_previously_shared_page,
        read_only_pin_of_exclusive_page,
        fork_with_registration,
        registered_then_mapped_read_only,
        zero_page,
        huge_zero_page,
        private_memfd,
        private_tmpfile,
        private_hugetlb,
        collapse,
    ],
};

/// Memory to register: a range of something larger that is kept.
struct Range {
    addr: *mut u8,
    length: usize,
    _owner: Box<dyn Memory>,
}

// SAFETY: A part of the owner, which lives as long.
unsafe impl Memory for Range {
    fn as_ptr(&self) -> *mut u8 {
        self.addr
    }
    fn len(&self) -> usize {
        self.length
    }
}

impl Range {
    fn of(owner: impl Memory + 'static, offset: usize, length: usize) -> Self {
        Self {
            addr: owner.at(offset, length),
            length,
            _owner: Box::new(owner),
        }
    }
}

fn thp() -> TestResult<Thp> {
    let memory = Thp::new(HUGE)?;
    memory.fill(0x11);
    if memory.is_huge()? {
        return Ok(memory);
    }
    Err(Outcome::Skip("the kernel gave no huge page".into()))
}

fn advise(memory: &impl Memory, offset: usize, length: usize, advice: Advice) -> TestResult {
    // SAFETY: The range is in memory of the caller, who expects its content to go.
    unsafe { rustix::mm::madvise(memory.at(offset, length).cast(), length, advice)? };
    Ok(())
}

fn protect(memory: &impl Memory, offset: usize, length: usize, flags: MprotectFlags) -> TestResult {
    // SAFETY: The range is in memory of the caller, who accesses it accordingly.
    unsafe { rustix::mm::mprotect(memory.at(offset, length).cast(), length, flags)? };
    Ok(())
}

const RW: MprotectFlags = MprotectFlags::READ.union(MprotectFlags::WRITE);

fn base_pages() -> TestResult<Range> {
    let memory = small_pages(4 * PAGE)?;
    memory.fill(0x11);
    Ok(Range::of(memory, 0, 4 * PAGE))
}

fn swapped() -> TestResult<Range> {
    swap::enable()?;
    let memory = small_pages(4 * PAGE)?;
    memory.fill(0x11);
    swap::page_out(&memory)?;
    Ok(Range::of(memory, 0, 4 * PAGE))
}

fn huge() -> TestResult<Range> {
    Ok(Range::of(thp()?, 0, HUGE))
}

/// One huge page, mapped by page table entries.
fn pte_mapped(memory: &Thp) -> TestResult {
    protect(memory, 0, PAGE, MprotectFlags::READ)?;
    protect(memory, 0, PAGE, RW)
}

fn huge_by_ptes() -> TestResult<Range> {
    let memory = thp()?;
    pte_mapped(&memory)?;
    Ok(Range::of(memory, 0, HUGE))
}

/// The only page left of a huge page.
fn single_page_of_huge() -> TestResult<Range> {
    let memory = thp()?;
    pte_mapped(&memory)?;
    advise(&memory, PAGE, HUGE - PAGE, Advice::LinuxDontNeed)?;
    Ok(Range::of(memory, 0, PAGE))
}

/// Half of a huge page, after the other half has moved away.
fn partially_moved_huge() -> TestResult<Range> {
    let memory = thp()?;
    let target = Mapping::anonymous(HUGE / 2)?;
    // SAFETY: The upper half of our memory moves over our other mapping; both are ours, and no one
    // uses the upper half any more.
    let moved = unsafe {
        libc::mremap(
            memory.at(HUGE / 2, HUGE / 2).cast(),
            HUGE / 2,
            HUGE / 2,
            libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
            target.as_ptr(),
        )
    };
    if moved == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error().into());
    }
    // The moved half keeps the huge page from being split; it is never given back.
    let _ = target.into_raw();
    Ok(Range::of(memory, 0, HUGE / 2))
}

/// A huge page of which a child has shared only half.
fn partially_shared_huge() -> TestResult<Range> {
    let memory = thp()?;
    advise(&memory, HUGE / 2, HUGE / 2, Advice::LinuxDontFork)?;
    child::run(|| Ok(()))?;
    advise(&memory, HUGE / 2, HUGE / 2, Advice::LinuxDoFork)?;
    Ok(Range::of(memory, 0, HUGE))
}

fn hugetlb_page() -> TestResult<Range> {
    // Room for the copies that fork makes.
    if !procfs::reserve_hugepages(3)? {
        return Err(Outcome::Skip("no room for hugetlb pages".into()));
    }
    let memory = hugetlb(HUGE, MapFlags::PRIVATE)?;
    memory.fill(0x11);
    Ok(Range::of(memory, 0, HUGE))
}

type Kind = (&'static str, fn() -> TestResult<Range>);

const KINDS: [Kind; 8] = [
    ("base pages", base_pages),
    ("swapped out", swapped),
    ("huge page", huge),
    ("huge page by PTEs", huge_by_ptes),
    ("single page of a huge page", single_page_of_huge),
    ("partially moved huge page", partially_moved_huge),
    ("partially shared huge page", partially_shared_huge),
    ("hugetlb", hugetlb_page),
];

/// Runs `test` on memory of each kind.
fn on_each_kind(env: &Env, test: fn(&Device, &Range) -> TestResult) -> TestResult {
    parts(KINDS.iter().copied(), |make| {
        let device = env.compute()?;
        test(&device, &make()?)
    })
}

/// Device and process see each other's writes, at the first and the last page.
fn coherent<M>(
    device: &Device,
    memory: &Range,
    userptr: &Registration<'_, M>,
    writable: bool,
) -> TestResult {
    for offset in [0, memory.len() - PAGE] {
        let at = userptr.at(offset as u64);
        for value in [1, u64::MAX - 1] {
            memory.write_u64(offset, value);
            let seen = job::peek(device, at, userptr.handle())?;
            check_eq!(seen, value, "the process's write at {offset:#x}");
        }
        if writable {
            job::poke(device, at, 0x77, userptr.handle())?;
            check_eq!(
                memory.read_u64(offset),
                0x77,
                "the device's write at {offset:#x}"
            );
        }
    }
    Ok(())
}

/// Runs `body` while a child shares the memory; then the child looks at its copy and writes to it.
fn with_child(memory: &Range, body: impl FnOnce() -> TestResult) -> TestResult {
    let (ours, theirs) = UnixStream::pair()?;
    let copy = memory.read_u64(0);
    let child = child::spawn(|| {
        // The child's duplicate of the parent's side must not keep the stream open.
        // SAFETY: The child never uses `ours` again, and does not return to its owner.
        unsafe { libc::close(ours.as_raw_fd()) };
        let _ = (&theirs).read(&mut [0]);
        check_eq!(memory.read_u64(0), copy, "the child's copy");
        memory.fill(0xcc);
        Ok(())
    })?;
    let result = body();
    drop(ours);
    child.join()?;
    result
}

/// The child's last write must not have come through.
fn child_did_not_write<M>(
    device: &Device,
    memory: &Range,
    userptr: &Registration<'_, M>,
) -> TestResult {
    let last = memory.len() - 8;
    check!(
        memory.read_u64(last) != 0xcccc_cccc_cccc_cccc,
        "the process sees the child's write"
    );
    let seen = job::peek(device, userptr.at(last as u64), userptr.handle())?;
    check_eq!(
        seen,
        memory.read_u64(last),
        "the device's view of the last word"
    );
    Ok(())
}

/// Pages that a child shares are mapped read-only; a pin must unshare them from the child.
fn read_only_pin_of_shared_page(env: &Env) -> TestResult {
    on_each_kind(env, |device, memory| {
        let mut registered = None;
        with_child(memory, || {
            let options = RegisterOptions::pinned().read_only();
            let userptr = registered.insert(device.register(memory, options)?);
            coherent(device, memory, userptr, false)
        })?;
        let userptr = registered.expect("registered above");
        child_did_not_write(device, memory, &userptr)?;
        coherent(device, memory, &userptr, false)
    })
}

fn read_only_pin_of_previously_shared_page(env: &Env) -> TestResult {
    on_each_kind(env, |device, memory| {
        child::run(|| Ok(()))?;
        let userptr = device.register(memory, RegisterOptions::pinned().read_only())?;
        coherent(device, memory, &userptr, false)
    })
}

fn read_only_pin_of_exclusive_page(env: &Env) -> TestResult {
    on_each_kind(env, |device, memory| {
        protect(memory, 0, memory.len(), MprotectFlags::READ)?;
        let userptr = device.register(memory, RegisterOptions::pinned().read_only())?;
        protect(memory, 0, memory.len(), RW)?;
        coherent(device, memory, &userptr, false)
    })
}

/// The child gets copies, the parent keeps the pages that the device uses.
fn fork_with_registration(env: &Env) -> TestResult {
    on_each_kind(env, |device, memory| {
        let userptr = device.register(memory, RegisterOptions::pinned())?;
        with_child(memory, || coherent(device, memory, &userptr, true))?;
        child_did_not_write(device, memory, &userptr)?;
        coherent(device, memory, &userptr, true)
    })
}

fn registered_then_mapped_read_only(env: &Env) -> TestResult {
    on_each_kind(env, |device, memory| {
        let userptr = device.register(memory, RegisterOptions::pinned())?;
        protect(memory, 0, memory.len(), MprotectFlags::READ)?;
        protect(memory, 0, memory.len(), RW)?;
        coherent(device, memory, &userptr, true)?;
        // The same with a fork in between, as when a debugger or a collector protects memory.
        protect(memory, 0, memory.len(), MprotectFlags::READ)?;
        child::run(|| Ok(()))?;
        protect(memory, 0, memory.len(), RW)?;
        coherent(device, memory, &userptr, true)
    })
}

/// Reads every page, registers read-only, and looks whether the device sees later writes.
fn read_then_register(env: &Env, memory: &Range) -> TestResult {
    let device = env.compute()?;
    for page in (0..memory.len()).step_by(PAGE) {
        memory.read_u64(page);
    }
    let userptr = device.register(memory, RegisterOptions::pinned().read_only())?;
    coherent(&device, memory, &userptr, false)
}

fn zero_page(env: &Env) -> TestResult {
    let memory = Mapping::anonymous(8 * PAGE)?;
    read_then_register(env, &Range::of(memory, 0, 8 * PAGE))
}

fn huge_zero_page(env: &Env) -> TestResult {
    let memory = Mapping::anonymous(2 * HUGE)?;
    let offset = memory.as_ptr().align_offset(HUGE);
    advise(&memory, offset, HUGE, Advice::LinuxHugepage)?;
    read_then_register(env, &Range::of(memory, offset, HUGE))
}

fn private(env: &Env, fd: impl AsFd, length: usize) -> TestResult {
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let file = Mapping::file(&fd, 0, length, prot, MapFlags::SHARED)?;
    file.fill(0x22);
    let memory = Mapping::file(&fd, 0, length, prot, MapFlags::PRIVATE)?;
    read_then_register(env, &Range::of(memory, 0, length))?;
    check!(
        file.to_vec(0, length).iter().all(|&byte| byte == 0x22),
        "the file has changed"
    );
    Ok(())
}

fn private_memfd(env: &Env) -> TestResult {
    private(env, Memfd::new(4 * PAGE as u64)?, 4 * PAGE)
}

fn private_tmpfile(env: &Env) -> TestResult {
    let path = "/dev/shm/virtgpu-tests-cow";
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(4 * PAGE as u64)?;
    std::fs::remove_file(path)?;
    private(env, file, 4 * PAGE)
}

fn private_hugetlb(env: &Env) -> TestResult {
    if !procfs::reserve_hugepages(3)? {
        skip!("no room for hugetlb pages");
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB;
    private(env, Memfd::with_flags(HUGE as u64, flags)?, HUGE)
}

/// Small pages that the kernel is asked to make one huge page of: registered ones must stay.
fn collapse(env: &Env) -> TestResult {
    const MADV_COLLAPSE: i32 = 25;
    let device = env.compute()?;
    let owner = small_pages(2 * HUGE)?;
    let offset = owner.as_ptr().align_offset(HUGE);
    let memory = Range::of(owner, offset, HUGE);
    let userptr = device.register(&memory, RegisterOptions::pinned())?;
    let before = procfs::frames(memory.as_ptr() as usize, HUGE / PAGE)?;
    // MADV_NOHUGEPAGE of `small_pages` would refuse it for a reason of its own.
    advise(&memory, 0, HUGE, Advice::LinuxHugepage)?;
    // SAFETY: Changes no content.
    let result = unsafe { libc::madvise(memory.as_ptr().cast(), HUGE, MADV_COLLAPSE) };
    let after = procfs::frames(memory.as_ptr() as usize, HUGE / PAGE)?;
    check!(result != 0, "MADV_COLLAPSE of pinned pages has succeeded");
    check_eq!(before, after, "page frames");
    coherent(&device, &memory, &userptr, true)
}
