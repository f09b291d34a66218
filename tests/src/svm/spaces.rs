// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device with few spaces: each registration of mirrored memory is one, and each context with
//! shared virtual memory. A file cannot take so many that there are none for others.

use virtgpu_client::{Bytes, Device, Errno, RegisterOptions, Registration};

use super::support::{family, open, others_work};
use crate::ktap::{Family, Outcome, TestResult};
use crate::mirrored::support::{open as open_mirrored, Mirror, WHOLE};
use crate::support::place::Place;
use crate::support::{Env, PAGE};
use crate::{cases, check_eq, check_err};

pub(crate) const FAMILY: Family = Family {
    device: "--mirror-spaces 64",
    ..family(
        "svm_few_spaces",
        cases![a_file_has_a_quarter, many_files_have_one_each],
    )
};

/// Spaces of the device.
const SPACES: usize = 64;
/// Those that a file may have.
const QUARTER: usize = SPACES / 4;
/// As a pinned registration that the device enforces, which takes a space, too.
const READ_ONLY: RegisterOptions = RegisterOptions::pinned().read_only();

/// Registers the same page until there are no more spaces.
fn fill<'a>(device: &'a Device, place: &'a Place) -> TestResult<Vec<Registration<'a, &'a Place>>> {
    let mut registrations = Vec::new();
    loop {
        match device.register_range(place, 0, PAGE, WHOLE) {
            Ok(registration) => registrations.push(registration),
            Err(Errno::NOSPC) => return Ok(registrations),
            Err(error) => return Err(error.into()),
        }
        if registrations.len() > SPACES {
            return Err(Outcome::Fail("more spaces than the device has".into()));
        }
    }
}

/// One file is refused what another has, of each kind, and has it when it ends something.
fn a_file_has_a_quarter(env: &Env) -> TestResult {
    let greedy = open_mirrored(env)?;
    let place = Place::base(PAGE)?;
    place.fill(1);
    let mut registrations = fill(&greedy, &place)?;
    let has = registrations.len();
    check_err!(
        greedy.register_range(&place, 0, PAGE, READ_ONLY).map(drop),
        Errno::NOSPC,
        "a pinned registration for reading of the same file"
    );
    others_work(env, "a file that has all the spaces that it can have")?;
    let other = open_mirrored(env)?;
    let elsewhere = Place::base(PAGE)?;
    Mirror::new(&other, &elsewhere)?.coherent_all_over("mirrored memory of another file")?;
    drop(other.register_range(&elsewhere, 0, PAGE, READ_ONLY)?);
    check_eq!(has, QUARTER, "registrations of one file");
    // Neither what was refused nor what was closed counts.
    for round in 0..3 {
        registrations.pop();
        let again = fill(&greedy, &place)?;
        check_eq!(
            again.len(),
            1,
            "registrations after one was closed, {round}"
        );
        registrations.extend(again);
    }
    registrations.pop();
    drop(greedy.register_range(&place, 0, PAGE, READ_ONLY)?);
    Mirror::new(&greedy, &elsewhere)?.coherent_all_over("mirrored memory of the first file")?;
    Ok(())
}

/// What files leave that take all they can have is for those that have nothing.
fn many_files_have_one_each(env: &Env) -> TestResult {
    let place = Place::base(PAGE)?;
    place.fill(1);
    let devices = (0..8)
        .map(|_| open_mirrored(env))
        .collect::<TestResult<Vec<_>>>()?;
    let filled = devices
        .iter()
        .map(|device| fill(device, &place))
        .collect::<TestResult<Vec<_>>>()?;
    let counts: Vec<usize> = filled.iter().map(Vec::len).collect();
    check_eq!(counts, [16, 16, 16, 1, 1, 1, 1, 1], "what each file has");
    let contexts = (0..4).map(|_| open(env)).collect::<TestResult<Vec<_>>>()?;
    for svm in &contexts {
        svm.coherent("a context beside them", &place, 0)?;
    }
    drop(filled);
    check_eq!(
        fill(&devices[7], &place)?.len(),
        QUARTER,
        "when all is free"
    );
    Ok(())
}
