// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Faults that the program resolves itself.

use virtgpu_client::{Bytes, Memfd};

use super::SIZE;
use crate::ktap::TestResult;
use crate::support::place::{Pages, Place, RW};
use crate::support::uffd::{feature, Fault, Uffd, MINOR, MISSING, WP};
use crate::support::{Env, Random, PAGE};
use crate::svm::support::open;
use crate::{check, check_eq};

/// A fault of the device is a fault of the process: MISSING, MINOR, write protection, and MOVE.
pub(super) fn uffd_all_modes(env: &Env) -> TestResult {
    let svm = open(env)?;
    let data = Random(11).bytes(SIZE);

    let place = Place::base(SIZE)?;
    let uffd = Uffd::missing(&place)?;
    let fill = |uffd: &Uffd, fault: Fault| {
        let at = (fault.address - place.address(0)) as usize;
        uffd.copy(fault.address, &data[at..at + PAGE])
    };
    let count = uffd.resolving(fill, || svm.sees("MISSING", &place, &data))?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults");
    let count = uffd.resolving(fill, || {
        place.advise(3 * PAGE, PAGE, libc::MADV_DONTNEED)?;
        svm.sees("MISSING again", &place, &data)
    })?;
    check_eq!(count, 1, "faults for one page");
    drop(uffd);
    svm.coherent_all_over("without it", &place)?;

    let memfd = Memfd::new(SIZE as u64)?;
    memfd.map()?.write(0, &data);
    let place = Place::reserve(Pages::Base, SIZE)?;
    place.map_file(0, SIZE, &memfd, 0, [RW, libc::MAP_SHARED])?;
    let uffd = Uffd::open(feature::MINOR_SHMEM)?;
    uffd.register(place.address(0), SIZE, MINOR)?;
    let proceed = |uffd: &Uffd, fault: Fault| uffd.proceed(fault.address, PAGE);
    let count = uffd.resolving(proceed, || svm.sees("MINOR", &place, &data))?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults");
    drop(uffd);

    let place = Place::base(SIZE)?;
    place.write(0, &data);
    svm.fill(&place, 1)?;
    place.write(0, &data);
    let uffd = Uffd::open(feature::PAGEFAULT_FLAG_WP)?;
    uffd.register(place.address(0), SIZE, WP)?;
    uffd.protect(place.address(0), SIZE, true)?;
    let allow = |uffd: &Uffd, fault: Fault| {
        check!(
            fault.protected,
            "a fault on what is not protected: {fault:?}"
        );
        let at = (fault.address - place.address(0)) as usize;
        check!(
            place.to_vec(at, PAGE) == data[at..at + PAGE],
            "the page before it may be written"
        );
        uffd.protect(fault.address, PAGE, false)
    };
    let count = uffd.resolving(allow, || {
        svm.sees("write-protected", &place, &data)?;
        svm.fill(&place, 2)
    })?;
    check_eq!(count, (SIZE / PAGE) as u64, "faults of writes");
    check_eq!(place.read_u64(SIZE - 8), 2, "our view");
    drop(uffd);

    let (from, to) = (Place::base(SIZE)?, Place::base(SIZE)?);
    from.write(0, &data);
    svm.agrees("the source", &from)?;
    let uffd = Uffd::open(feature::MOVE)?;
    uffd.register(to.address(0), SIZE, MISSING)?;
    uffd.take(to.address(0), from.address(0), SIZE)?;
    svm.sees("moved", &to, &data)?;
    svm.sees("the source, moved away", &from, &[0; SIZE])?;
    svm.coherent_all_over("the target", &to)
}
