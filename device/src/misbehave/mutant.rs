// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Devices that break the contract on purpose, in ways that no one notices by their responses.
//!
//! Each is what a test of the driver, or [`crate::log::check`], must be able to tell from a device
//! that keeps it. The event log says what they really do.

use std::str::FromStr;
use std::time::Duration;

/// How long those wait that do something too late.
pub(crate) const WINDOW: Duration = Duration::from_millis(50);

/// A way to break the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A page is written after INVALIDATE was acknowledged.
    WriteAfterAck,
    /// INVALIDATE is acknowledged before it is done.
    EarlyAck,
    /// INVALIDATE leaves its last page mapped.
    SkipPage,
    /// A space goes on after SPACE_DESTROY.
    MapAfterDestroy,
    /// Everything can be written.
    IgnoreReadOnly,
    /// The response to a job comes before its last operation.
    RespondBeforeLastWrite,
    /// An event names a space that is gone.
    EventForDeadSpace,
    /// MAP leaves out its last page.
    DropMapTail,
    /// A space survives its resource.
    NoRevokeOnUnref,
    /// INVALIDATE waits for stalled accesses.
    StallDelaysAck,
    /// A stalled access goes on with what was mapped when its fault was resolved.
    StallKeepsTranslation,
    /// What the guest says is not there is read as zeroes, and can be written.
    BadAsZero,
    /// In the space of a context what is mapped for reading can be written.
    ReadGrantsWrite,
    /// RING_DONE comes before the last operation.
    DoneBeforeLastWrite,
    /// RING_DONE comes twice.
    DoneTwice,
    /// A FAULT names a space that is gone.
    FaultAfterDestroy,
    /// A job in fault mode is accepted when it is over.
    AcceptAtEnd,
    /// An atomic access that is not coherent is content with a page that can be written.
    AtomicWithoutExclusive,
    /// A page that was exclusive once is taken for exclusive when it is mapped again.
    ExclusiveAfterInvalidate,
    /// An access goes on from its start after a stall.
    ReplayStores,
    /// UNREF and DETACH wait for jobs in fault mode.
    UnrefWaits,
}

const MUTANTS: &[(Mutant, &str, &str)] = &[
    (
        Mutant::WriteAfterAck,
        "write-after-ack",
        "after the acknowledgement of an INVALIDATE the first writable page that it took is overwritten for a while with what was in it before",
    ),
    (
        Mutant::EarlyAck,
        "early-ack",
        "INVALIDATE is acknowledged 50 milliseconds before it is carried out",
    ),
    (
        Mutant::SkipPage,
        "skip-page",
        "INVALIDATE leaves the last page mapped that it should take",
    ),
    (
        Mutant::MapAfterDestroy,
        "map-after-destroy",
        "a space that was destroyed still takes MAP, and jobs use it",
    ),
    (
        Mutant::IgnoreReadOnly,
        "ignore-read-only",
        "what is mapped for reading can be written",
    ),
    (
        Mutant::RespondBeforeLastWrite,
        "respond-before-last-write",
        "the response to a job comes 50 milliseconds before its last operation begins",
    ),
    (
        Mutant::EventForDeadSpace,
        "event-for-dead-space",
        "after the acknowledgement of SPACE_DESTROY a SPACE_LOST names the space",
    ),
    (
        Mutant::DropMapTail,
        "drop-map-tail",
        "MAP maps all but its last page, and says that all is well",
    ),
    (
        Mutant::NoRevokeOnUnref,
        "no-revoke-on-unref",
        "UNREF and DETACH leave the space of the resource as it is",
    ),
    (
        Mutant::StallDelaysAck,
        "stall-delays-ack",
        "INVALIDATE is not acknowledged while an access in its space is stalled",
    ),
    (
        Mutant::StallKeepsTranslation,
        "stall-keeps-translation",
        "an access that was stalled goes on 50 milliseconds after its fault was resolved, with the page that was mapped when it was, also if that was invalidated since",
    ),
    (
        Mutant::BadAsZero,
        "bad-as-zero",
        "after BAD_ADDRESS and BAD_ACCESS the job goes on: it reads zeroes from the page, and what it writes there is lost",
    ),
    (
        Mutant::ReadGrantsWrite,
        "read-grants-write",
        "in the address space of a context, what is mapped for reading can be written",
    ),
    (
        Mutant::DoneBeforeLastWrite,
        "done-before-last-write",
        "RING_DONE of a job comes 50 milliseconds before its last operation begins",
    ),
    (Mutant::DoneTwice, "done-twice", "RING_DONE of a job comes twice"),
    (
        Mutant::FaultAfterDestroy,
        "fault-after-destroy",
        "after the acknowledgement of SPACE_DESTROY a FAULT names the space",
    ),
    (
        Mutant::AcceptAtEnd,
        "accept-at-end",
        "SUBMIT_3D of a context in fault mode has its response when the job is over",
    ),
    (
        Mutant::AtomicWithoutExclusive,
        "atomic-without-exclusive",
        "with --exclusive-atomics, an atomic access needs a page that can be written, and no exclusive one",
    ),
    (
        Mutant::ExclusiveAfterInvalidate,
        "exclusive-after-invalidate",
        "with --exclusive-atomics, an atomic access takes a page that was exclusive once for exclusive, also after INVALIDATE",
    ),
    (
        Mutant::ReplayStores,
        "replay-stores",
        "an access that stalled begins again with its first byte",
    ),
    (
        Mutant::UnrefWaits,
        "unref-waits",
        "UNREF and DETACH wait for the jobs of contexts in fault mode that name the resource",
    ),
];

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = MUTANTS.iter().find(|(_, name, _)| *name == text);
        let known = known.ok_or("unknown; --list-mutants prints the names")?;
        Ok(known.0)
    }
}

/// Names and explanations of all mutants, one a line.
#[must_use]
pub fn list() -> String {
    let line = |(_, name, help): &(Mutant, &str, &str)| format!("{name:<28}{help}\n");
    MUTANTS.iter().map(line).collect()
}

/// The names of all mutants.
pub fn names() -> impl Iterator<Item = &'static str> {
    MUTANTS.iter().map(|(_, name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_parse() {
        for (index, (mutant, name, _)) in MUTANTS.iter().enumerate() {
            assert_eq!(name.parse(), Ok(*mutant));
            let others = &MUTANTS[..index];
            assert!(others.iter().all(|(m, n, _)| m != mutant && n != name));
            assert!(list().contains(name));
        }
        assert!("kindness".parse::<Mutant>().is_err());
    }
}
