// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Accesses to memory that may be unmapped at any moment, also in the middle of one.
//!
//! No one is asked before an access, and no lock is held during it: whoever unmaps memory
//! replaces the mapping, and need not wait. What then is left of the access is an exception of the
//! CPU, which the kernel delivers as SIGSEGV or SIGBUS. All loads and stores of this kind are in
//! one stretch of assembly. They use no stack, so that the signal handler can end them anywhere by
//! having the thread continue at a return of an error. An exception at any other instruction is a
//! bug, and ends the process as it would without the handler.

pub(crate) use arch::{install, AVAILABLE};

/// An access outside a resource, or to memory that cannot be accessed in this way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("access outside the resource")]
pub struct Fault;

/// Reads `dst.len()` bytes at `src`, words of eight bytes as one where they are aligned. When it
/// fails, a part may have been read.
///
/// # Safety
///
/// These addresses must be reserved by a mapping for accesses through this module, whatever is
/// mapped there and whoever changes it meanwhile.
pub(crate) unsafe fn read(src: *const u8, dst: &mut [u8]) -> Result<(), Fault> {
    let head = src.align_offset(size_of::<u64>()).min(dst.len());
    // SAFETY: The caller's promise; `dst` is our own.
    unsafe { copy(dst.as_mut_ptr(), src, dst.len(), head) }
}

/// Writes `src` to `dst`, words of eight bytes as one where they are aligned. When it fails, a part
/// may have been written.
///
/// # Safety
///
/// As for [`read`].
pub(crate) unsafe fn write(dst: *mut u8, src: &[u8]) -> Result<(), Fault> {
    let head = dst.align_offset(size_of::<u64>()).min(src.len());
    // SAFETY: The caller's promise; `src` is our own.
    unsafe { copy(dst, src.as_ptr(), src.len(), head) }
}

/// Where an access that goes word by word has ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Bytes that are done, and that need not be done again.
    pub(crate) done: usize,
    /// The file behind the mapping has no such byte (any more): it is no use to try again.
    pub(crate) gone: bool,
}

/// Reads as [`read`] does, a word at a time, and says how far it got.
///
/// # Safety
///
/// As for [`read`].
pub(crate) unsafe fn read_steps(src: *const u8, dst: &mut [u8]) -> Result<(), Cut> {
    let head = src.align_offset(size_of::<u64>()).min(dst.len());
    // SAFETY: The caller's promise; `dst` is our own.
    unsafe { copy_steps(dst.as_mut_ptr(), src, dst.len(), head) }
}

/// Writes as [`write`] does, a word at a time, and says how far it got: what is done is never
/// written again by a caller that goes on from there.
///
/// # Safety
///
/// As for [`read`].
pub(crate) unsafe fn write_steps(dst: *mut u8, src: &[u8]) -> Result<(), Cut> {
    let head = dst.align_offset(size_of::<u64>()).min(src.len());
    // SAFETY: The caller's promise; `src` is our own.
    unsafe { copy_steps(dst, src.as_ptr(), src.len(), head) }
}

/// [`fetch_add`], which says whether it is of any use to try again.
///
/// # Safety
///
/// As for [`fetch_add`].
pub(crate) unsafe fn add_step(at: *mut u64, value: u64) -> Result<u64, Cut> {
    // SAFETY: The caller's promise.
    unsafe { arch::add_step(at, value) }
}

/// [`copy`], a word at a time.
///
/// # Safety
///
/// As for [`copy`].
unsafe fn copy_steps(dst: *mut u8, src: *const u8, length: usize, head: usize) -> Result<(), Cut> {
    let words = (length - head) / size_of::<u64>();
    let tail = head + words * size_of::<u64>();
    let behind = |done: usize| {
        move |cut: Cut| Cut {
            done: done + cut.done,
            ..cut
        }
    };
    // SAFETY: The caller's promise; the parts follow each other and end at `length`.
    unsafe {
        arch::step_bytes(dst, src, head)?;
        let (to, from) = (dst.wrapping_add(head), src.wrapping_add(head));
        arch::step_words(to, from, words).map_err(behind(head))?;
        let (to, from) = (dst.wrapping_add(tail), src.wrapping_add(tail));
        arch::step_bytes(to, from, length - tail).map_err(behind(tail))
    }
}

/// Adds `value` to the little-endian u64 at `at`, atomically and wrapping; returns what was there.
///
/// # Safety
///
/// As for [`read`]; `at` must be a multiple of 8.
pub(crate) unsafe fn fetch_add(at: *mut u64, value: u64) -> Result<u64, Fault> {
    // SAFETY: The caller's promise.
    unsafe { arch::fetch_add(at, value) }
}

/// Copies `length` bytes, of which the first `head` come before a word.
///
/// # Safety
///
/// One of `dst` and `src` is as for [`read`], the other is memory of our own.
unsafe fn copy(dst: *mut u8, src: *const u8, length: usize, head: usize) -> Result<(), Fault> {
    let words = (length - head) / size_of::<u64>();
    let tail = head + words * size_of::<u64>();
    // SAFETY: The caller's promise; the parts follow each other and end at `length`.
    unsafe {
        if head > 0 {
            arch::copy_bytes(dst, src, head)?;
        }
        arch::copy_words(dst.wrapping_add(head), src.wrapping_add(head), words)?;
        if tail < length {
            arch::copy_bytes(
                dst.wrapping_add(tail),
                src.wrapping_add(tail),
                length - tail,
            )?;
        }
    }
    Ok(())
}

#[cfg(target_arch = "x86_64")]
mod arch {
    use std::io;
    use std::mem::MaybeUninit;
    use std::sync::{Mutex, OnceLock, PoisonError};

    use super::{Cut, Fault};

    /// Whether there are such accesses for this CPU.
    pub(crate) const AVAILABLE: bool = true;

    /// Status of an access after which the handler has continued: it may be possible later.
    const FAULTED: u64 = 1;
    /// The same, where the file behind the mapping has no such byte.
    const GONE: u64 = 2;

    /// How an access word by word has ended: in the two registers that a function returns.
    #[repr(C)]
    struct Steps {
        status: u64,
        /// Steps that are not done.
        left: usize,
    }

    std::arch::global_asm!(
        ".pushsection .text.virtgpu_guarded, \"ax\", @progbits",
        ".p2align 4",
        ".hidden virtgpu_guarded_start",
        ".globl virtgpu_guarded_start",
        "virtgpu_guarded_start:",
        // (dst, src, words): status
        ".hidden virtgpu_guarded_copy_words",
        ".globl virtgpu_guarded_copy_words",
        ".type virtgpu_guarded_copy_words, @function",
        "virtgpu_guarded_copy_words:",
        "mov rcx, rdx",
        "shr rcx, 2",
        "je 3f",
        "2:",
        "mov rax, qword ptr [rsi]",
        "mov r8, qword ptr [rsi + 8]",
        "mov r9, qword ptr [rsi + 16]",
        "mov r10, qword ptr [rsi + 24]",
        "mov qword ptr [rdi], rax",
        "mov qword ptr [rdi + 8], r8",
        "mov qword ptr [rdi + 16], r9",
        "mov qword ptr [rdi + 24], r10",
        "add rsi, 32",
        "add rdi, 32",
        "dec rcx",
        "jne 2b",
        "3:",
        "and edx, 3",
        "je 5f",
        "4:",
        "mov rax, qword ptr [rsi]",
        "mov qword ptr [rdi], rax",
        "add rsi, 8",
        "add rdi, 8",
        "dec edx",
        "jne 4b",
        "5:",
        "xor eax, eax",
        "ret",
        // (dst, src, bytes, not 0): status
        ".p2align 4",
        ".hidden virtgpu_guarded_copy_bytes",
        ".globl virtgpu_guarded_copy_bytes",
        ".type virtgpu_guarded_copy_bytes, @function",
        "virtgpu_guarded_copy_bytes:",
        "6:",
        "movzx eax, byte ptr [rsi]",
        "mov byte ptr [rdi], al",
        "inc rsi",
        "inc rdi",
        "dec rdx",
        "jne 6b",
        "xor eax, eax",
        "ret",
        // (at, value, old): status
        ".p2align 4",
        ".hidden virtgpu_guarded_fetch_add",
        ".globl virtgpu_guarded_fetch_add",
        ".type virtgpu_guarded_fetch_add, @function",
        "virtgpu_guarded_fetch_add:",
        "lock xadd qword ptr [rdi], rsi",
        "mov qword ptr [rdx], rsi",
        "xor eax, eax",
        "ret",
        // (dst, src, words): status, words left
        ".p2align 4",
        ".hidden virtgpu_guarded_step_words",
        ".globl virtgpu_guarded_step_words",
        ".type virtgpu_guarded_step_words, @function",
        "virtgpu_guarded_step_words:",
        "test rdx, rdx",
        "je 8f",
        "7:",
        "mov rax, qword ptr [rsi]",
        "mov qword ptr [rdi], rax",
        "add rsi, 8",
        "add rdi, 8",
        "dec rdx",
        "jne 7b",
        "8:",
        "xor eax, eax",
        "ret",
        // (dst, src, bytes): status, bytes left
        ".p2align 4",
        ".hidden virtgpu_guarded_step_bytes",
        ".globl virtgpu_guarded_step_bytes",
        ".type virtgpu_guarded_step_bytes, @function",
        "virtgpu_guarded_step_bytes:",
        "test rdx, rdx",
        "je 8f",
        "7:",
        "movzx eax, byte ptr [rsi]",
        "mov byte ptr [rdi], al",
        "inc rsi",
        "inc rdi",
        "dec rdx",
        "jne 7b",
        "8:",
        "xor eax, eax",
        "ret",
        // Where the handler continues, with the status in rax; rdx says what is left of steps.
        ".hidden virtgpu_guarded_failed",
        ".globl virtgpu_guarded_failed",
        "virtgpu_guarded_failed:",
        "ret",
        ".popsection",
    );

    unsafe extern "C" {
        static virtgpu_guarded_start: u8;
        static virtgpu_guarded_failed: u8;
        fn virtgpu_guarded_copy_words(dst: *mut u8, src: *const u8, words: usize) -> u32;
        fn virtgpu_guarded_copy_bytes(dst: *mut u8, src: *const u8, bytes: usize) -> u32;
        fn virtgpu_guarded_fetch_add(at: *mut u64, value: u64, old: *mut u64) -> u32;
        fn virtgpu_guarded_step_words(dst: *mut u8, src: *const u8, words: usize) -> Steps;
        fn virtgpu_guarded_step_bytes(dst: *mut u8, src: *const u8, bytes: usize) -> Steps;
    }

    fn result(status: u32) -> Result<(), Fault> {
        match status {
            0 => Ok(()),
            _ => Err(Fault),
        }
    }

    /// What became of `count` steps of `size` bytes.
    fn steps(steps: &Steps, count: usize, size: usize) -> Result<(), Cut> {
        match steps.status {
            0 => Ok(()),
            status => Err(Cut {
                done: (count - steps.left) * size,
                gone: status == GONE,
            }),
        }
    }

    /// # Safety
    ///
    /// As for [`super::copy`].
    pub(super) unsafe fn step_words(dst: *mut u8, src: *const u8, words: usize) -> Result<(), Cut> {
        // SAFETY: The caller's promise; the handler is there before any such memory.
        let done = unsafe { virtgpu_guarded_step_words(dst, src, words) };
        steps(&done, words, size_of::<u64>())
    }

    /// # Safety
    ///
    /// As for [`super::copy`].
    pub(super) unsafe fn step_bytes(dst: *mut u8, src: *const u8, bytes: usize) -> Result<(), Cut> {
        // SAFETY: The caller's promise; the handler is there before any such memory.
        let done = unsafe { virtgpu_guarded_step_bytes(dst, src, bytes) };
        steps(&done, bytes, 1)
    }

    /// # Safety
    ///
    /// As for [`super::fetch_add`].
    pub(super) unsafe fn add_step(at: *mut u64, value: u64) -> Result<u64, Cut> {
        let mut old = 0;
        // SAFETY: The caller's promise; the handler is there before any such memory.
        match unsafe { virtgpu_guarded_fetch_add(at, value, &mut old) } {
            0 => Ok(old),
            status => Err(Cut {
                done: 0,
                gone: u64::from(status) == GONE,
            }),
        }
    }

    /// # Safety
    ///
    /// As for [`super::copy`].
    pub(super) unsafe fn copy_words(
        dst: *mut u8,
        src: *const u8,
        words: usize,
    ) -> Result<(), Fault> {
        // SAFETY: The caller's promise; the handler is there before any such memory.
        result(unsafe { virtgpu_guarded_copy_words(dst, src, words) })
    }

    /// # Safety
    ///
    /// As for [`super::copy`]; `bytes` is not 0.
    pub(super) unsafe fn copy_bytes(
        dst: *mut u8,
        src: *const u8,
        bytes: usize,
    ) -> Result<(), Fault> {
        // SAFETY: The caller's promise; the handler is there before any such memory.
        result(unsafe { virtgpu_guarded_copy_bytes(dst, src, bytes) })
    }

    /// # Safety
    ///
    /// As for [`super::fetch_add`].
    pub(super) unsafe fn fetch_add(at: *mut u64, value: u64) -> Result<u64, Fault> {
        let mut old = 0;
        // SAFETY: The caller's promise; the handler is there before any such memory.
        result(unsafe { virtgpu_guarded_fetch_add(at, value, &mut old) })?;
        Ok(old)
    }

    /// The signals, and what happened on them before.
    static PREVIOUS: OnceLock<[(libc::c_int, libc::sigaction); 2]> = OnceLock::new();

    /// Ends the access that the signal interrupted, or lets happen what would happen without us.
    ///
    /// It takes no lock and allocates nothing: it reads a cell that is full by then, and calls
    /// sigaction(2) and raise(3), which may be called here.
    extern "C" fn on_fault(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: The kernel passes both, for the time of the call.
        let (code, registers) = unsafe {
            let context = context.cast::<libc::ucontext_t>();
            ((*info).si_code, &mut (*context).uc_mcontext.gregs)
        };
        let start = &raw const virtgpu_guarded_start as libc::greg_t;
        let failed = &raw const virtgpu_guarded_failed as libc::greg_t;
        let at = registers[libc::REG_RIP as usize];
        // Of the kernel's own doing, that is no kill(2).
        let fault = code > 0;
        if fault && (start..failed).contains(&at) {
            let status = if signal == libc::SIGBUS {
                GONE
            } else {
                FAULTED
            };
            registers[libc::REG_RAX as usize] = status as libc::greg_t;
            registers[libc::REG_RIP as usize] = failed;
            return;
        }
        let previous = PREVIOUS
            .get()
            .and_then(|all| all.iter().find(|p| p.0 == signal));
        let Some((_, previous)) = previous else {
            return;
        };
        // SAFETY: It was in force before. An instruction that faulted does so again then.
        unsafe {
            libc::sigaction(signal, previous, std::ptr::null_mut());
            if !fault {
                libc::raise(signal);
            }
        }
    }

    /// Installs the signal handler, once for the process.
    ///
    /// # Errors
    ///
    /// Those of sigaction(2).
    pub(crate) fn install() -> io::Result<()> {
        static INSTALLING: Mutex<()> = Mutex::new(());
        let _guard = INSTALLING.lock().unwrap_or_else(PoisonError::into_inner);
        if PREVIOUS.get().is_some() {
            return Ok(());
        }
        let previous = |signal| {
            let mut action = MaybeUninit::zeroed();
            // SAFETY: It only fills in `action`, of which all zeroes are a valid value.
            match unsafe { libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr()) } {
                // SAFETY: As above.
                0 => Ok((signal, unsafe { action.assume_init() })),
                _ => Err(io::Error::last_os_error()),
            }
        };
        // Before the handlers, which read it.
        let all = PREVIOUS.get_or_init({
            let all = [previous(libc::SIGSEGV)?, previous(libc::SIGBUS)?];
            move || all
        });
        for (signal, _) in all {
            // SAFETY: All zeroes are a valid value.
            let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_sigaction = on_fault as usize;
            // A stack overflow has no room for the handler on the stack.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            // SAFETY: `on_fault` does only what a handler may, and knows what was before.
            if unsafe { libc::sigaction(*signal, &action, std::ptr::null_mut()) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

/// No accesses: there are none of the kind for this CPU, so all of them fail.
#[cfg(not(target_arch = "x86_64"))]
mod arch {
    use super::{Cut, Fault};

    /// Whether there are such accesses for this CPU.
    pub(crate) const AVAILABLE: bool = false;

    const NONE: Cut = Cut {
        done: 0,
        gone: true,
    };

    pub(super) unsafe fn step_words(_: *mut u8, _: *const u8, _: usize) -> Result<(), Cut> {
        Err(NONE)
    }

    pub(super) unsafe fn step_bytes(_: *mut u8, _: *const u8, _: usize) -> Result<(), Cut> {
        Err(NONE)
    }

    pub(super) unsafe fn add_step(_: *mut u64, _: u64) -> Result<u64, Cut> {
        Err(NONE)
    }

    pub(super) unsafe fn copy_words(_: *mut u8, _: *const u8, _: usize) -> Result<(), Fault> {
        Err(Fault)
    }

    pub(super) unsafe fn copy_bytes(_: *mut u8, _: *const u8, _: usize) -> Result<(), Fault> {
        Err(Fault)
    }

    pub(super) unsafe fn fetch_add(_: *mut u64, _: u64) -> Result<u64, Fault> {
        Err(Fault)
    }

    /// Does nothing.
    pub(crate) fn install() -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// A page without rights.
    fn forbidden() -> *mut u8 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = std::ptr::null_mut();
        // SAFETY: It creates a mapping where none is.
        let page = unsafe { libc::mmap(none, 4096, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(page, libc::MAP_FAILED);
        page.cast()
    }

    #[test]
    fn faults_are_errors() {
        install().unwrap();
        install().unwrap();
        let page = forbidden();
        for length in [1, 8, 31, 4096] {
            let mut buffer = vec![0; length];
            // SAFETY: The page is reserved, and used by no one else.
            unsafe {
                assert_eq!(read(page, &mut buffer), Err(Fault));
                assert_eq!(write(page, &buffer), Err(Fault));
                assert_eq!(fetch_add(page.cast(), 1), Err(Fault));
            }
        }
    }

    /// Two pages, of which the second has no rights.
    fn half() -> *mut u8 {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let rights = libc::PROT_READ | libc::PROT_WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: It creates a mapping where none is, and takes the rights from a part of it.
        unsafe {
            let pages = libc::mmap(none, 8192, rights, flags, -1, 0);
            assert_ne!(pages, libc::MAP_FAILED);
            let second = pages.cast::<u8>().add(4096).cast();
            assert_eq!(libc::mprotect(second, 4096, libc::PROT_NONE), 0);
            pages.cast()
        }
    }

    #[test]
    fn steps_end_where_the_fault_is() {
        install().unwrap();
        let pages = half();
        for start in 4064..4096 {
            let room = 4096 - start;
            for length in [1, 7, 8, 9, 16, 31, 64] {
                let source: Vec<u8> = (1..=length as u8).collect();
                let mut buffer = vec![0; length];
                // SAFETY: The pages are reserved, and used by no one else.
                let (written, read) = unsafe {
                    let at = pages.add(start);
                    (write_steps(at, &source), read_steps(at, &mut buffer))
                };
                let done = length.min(room);
                let want = match length <= room {
                    true => Ok(()),
                    false => Err(Cut { done, gone: false }),
                };
                assert_eq!((written, read), (want, want), "{length} at {start}");
                assert_eq!(buffer[..done], source[..done]);
                assert!(buffer[done..].iter().all(|byte| *byte == 0));
            }
        }
        // SAFETY: As above.
        unsafe {
            let counter = pages.add(4088).cast::<u64>();
            write_steps(counter.cast(), &7u64.to_le_bytes()).unwrap();
            assert_eq!(add_step(counter, 3), Ok(7));
            let cut = Cut {
                done: 0,
                gone: false,
            };
            assert_eq!(add_step(counter.add(1), 1), Err(cut));
        }
    }

    /// Any other access to such a page ends the process by the signal.
    #[test]
    fn other_faults_are_fatal() {
        install().unwrap();
        let page = forbidden();
        // SAFETY: The child does nothing but die.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: It is not; that is the point.
            unsafe {
                page.read_volatile();
                libc::_exit(0);
            }
        }
        assert!(child > 0);
        let mut status = 0;
        // SAFETY: It fills in `status`.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert!(libc::WIFSIGNALED(status));
        assert_eq!(libc::WTERMSIG(status), libc::SIGSEGV);
    }
}
