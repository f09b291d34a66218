// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! A device that misbehaves on purpose, on the control queue, and on the mirror queue where its
//! commands are named.
//!
//! Whether and how a request is mistreated depends on the seed, the requests before it and nothing
//! else, so that a run can be repeated.

mod mode;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use virtgpu_protocol::mirror;
use virtgpu_protocol::virtio_gpu::{command, CtxCreate, Header, FLAG_FENCE};
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::log::names;
use mode::Kind;
pub use mode::{list, Mode};

/// When and how to misbehave.
#[derive(Debug, Default)]
pub struct Adversary {
    /// All at once, or one of them each time.
    pub modes: Vec<Mode>,
    /// Which of them, and which commands, the seed says.
    pub random: bool,
    /// The commands to mistreat; empty for all.
    pub on: Vec<u32>,
    /// How the debug names of the contexts begin whose requests to mistreat; none for all requests.
    pub context: Option<String>,
    /// Those contexts and their resources.
    pub aimed: Mutex<Aimed>,
    /// How many requests that could be mistreated are not.
    pub from: u64,
    /// Every so many of the others; with `random`, on average.
    pub every: u64,
    /// How many are mistreated at most; 0 for no limit.
    pub count: u64,
    /// For the random numbers.
    pub seed: u64,
    /// Requests that could be mistreated so far.
    pub seen: AtomicU64,
    /// Requests that were mistreated at random so far.
    pub hit: AtomicU64,
}

/// What belongs to the contexts that [`Adversary::context`] names.
#[derive(Debug, Default)]
pub struct Aimed {
    contexts: BTreeSet<u32>,
    resources: BTreeSet<u32>,
}

impl Aimed {
    /// Whether the request `bytes` is of such a context, or names a resource that such a context
    /// created or attached. Takes note of what the request creates.
    fn is_hit(&mut self, prefix: &str, bytes: &[u8]) -> bool {
        let Ok((header, rest)) = Header::read_from_prefix(bytes) else {
            return false;
        };
        let (kind, ctx) = (header.kind.get(), header.ctx_id.get());
        if kind == command::CTX_CREATE {
            let named = CtxCreate::read_from_prefix(bytes).is_ok_and(|(request, _)| {
                let length = request.debug_name.len().min(request.nlen.get() as usize);
                request.debug_name[..length].starts_with(prefix.as_bytes())
            });
            match named {
                true => self.contexts.insert(ctx),
                false => self.contexts.remove(&ctx),
            };
        }
        let ours = self.contexts.contains(&ctx);
        let Some(id) = names::resource(kind, rest) else {
            return ours;
        };
        match kind {
            command::RESOURCE_CREATE_BLOB
            | command::RESOURCE_CREATE_2D
            | command::RESOURCE_CREATE_3D
                if !ours =>
            {
                self.resources.remove(&id);
            }
            _ if ours => {
                self.resources.insert(id);
            }
            _ => {}
        }
        ours || ctx == 0 && self.resources.contains(&id)
    }
}

/// How a request is mistreated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attack {
    modes: Vec<Mode>,
    random: u64,
}

/// What to do instead of responding properly.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Twisted {
    /// What is written.
    pub(crate) bytes: Vec<u8>,
    /// The used length, if it is not what was written.
    pub(crate) used: Option<u32>,
    /// The descriptors that come back.
    pub(crate) heads: Vec<u32>,
}

impl Adversary {
    /// What happens to the next request of the control queue, which is `command` and has these
    /// bytes.
    pub(crate) fn attack_request(&self, command: u32, bytes: &[u8]) -> Attack {
        if let Some(prefix) = &self.context {
            let mut aimed = self.aimed.lock().unwrap_or_else(PoisonError::into_inner);
            if !aimed.is_hit(prefix, bytes) {
                return Attack::default();
            }
        }
        self.attack(command)
    }

    /// What happens to the next command of the mirror queue, which is `command` and names a space
    /// of the context that `client` says, if it names one that exists.
    pub(crate) fn attack_command(
        &self,
        command: u32,
        client: impl FnOnce() -> Option<u32>,
    ) -> Attack {
        if self.context.is_some() {
            let ctx = client();
            let aimed = self.aimed.lock().unwrap_or_else(PoisonError::into_inner);
            if !ctx.is_some_and(|ctx| aimed.contexts.contains(&ctx)) {
                return Attack::default();
            }
        }
        self.attack(command)
    }

    /// What happens to the next request, which is `command`.
    fn attack(&self, command: u32) -> Attack {
        let applies = |mode: &&Mode| match mode.scope() {
            Some(scope) if self.on.is_empty() || mode.kind != Kind::Refuse => scope == command,
            // What has no name is of the control queue.
            _ if self.on.is_empty() => !names::is_mirror(command),
            _ => self.on.contains(&command),
        };
        let modes: Vec<Mode> = self.modes.iter().filter(applies).copied().collect();
        if modes.is_empty() {
            return Attack::default();
        }
        let step = self.seen.fetch_add(1, Ordering::Relaxed);
        let Some(late) = step.checked_sub(self.from) else {
            return Attack::default();
        };
        let every = self.every.max(1);
        let random = mix(self.seed ^ mix(step));
        if self.random {
            let one = modes[(mix(random) % modes.len() as u64) as usize];
            let spared = random % every != 0
                || (self.count != 0 && self.hit.fetch_add(1, Ordering::Relaxed) >= self.count);
            return match spared {
                true => Attack::default(),
                false => Attack {
                    modes: vec![one],
                    random,
                },
            };
        }
        if late % every != 0 || (self.count != 0 && late / every >= self.count) {
            return Attack::default();
        }
        Attack { modes, random }
    }

    /// Whether the frontend is to be told of changes.
    pub(crate) fn changes_config(&self) -> bool {
        let changes = [Kind::ConfigChange, Kind::DeviceLost];
        self.modes.iter().any(|m| changes.contains(&m.kind))
    }

    /// The number of capability sets to put into the configuration space.
    pub(crate) fn capsets(&self, real: u32) -> u32 {
        let mode = self.modes.iter().find(|m| m.kind == Kind::CapsetCount);
        mode.map_or(real, |m| m.number as u32)
    }
}

impl Attack {
    fn number(&self, kind: Kind) -> Option<u64> {
        let mode = self.modes.iter().find(|m| m.kind == kind);
        mode.map(|m| m.number)
    }

    /// The names of what is done, for the log.
    pub(crate) fn name(&self) -> Option<String> {
        let names: Vec<_> = self.modes.iter().map(|m| m.name()).collect();
        (!names.is_empty()).then(|| names.join("+"))
    }

    /// The exit status to end with.
    pub(crate) fn exit(&self) -> Option<i32> {
        self.number(Kind::Exit).map(|n| n as i32)
    }

    /// The error to respond with, without doing anything.
    pub(crate) fn refusal(&self) -> Option<u32> {
        self.number(Kind::Refuse).map(|n| n as u32)
    }

    /// The status of the mirror queue to respond with, without doing anything.
    pub(crate) fn refused_status(&self) -> Option<u32> {
        let status = |code| match code {
            // Of the control queue.
            0x100.. => mirror::status::NO_MEMORY,
            code => code,
        };
        self.refusal().map(status)
    }

    /// How often to say that the configuration space has changed.
    pub(crate) fn config_changes(&self) -> u64 {
        self.number(Kind::ConfigChange).unwrap_or(0).min(1 << 20)
    }

    /// Whether the device says that it is lost.
    pub(crate) fn loses_device(&self) -> bool {
        self.number(Kind::DeviceLost).is_some()
    }

    /// Whether the space of the command is lost.
    pub(crate) fn loses_space(&self) -> bool {
        self.number(Kind::SpaceLost).is_some()
    }

    /// How many events name the space of the command.
    pub(crate) fn stale_events(&self) -> u64 {
        self.number(Kind::StaleEvent).unwrap_or(0).min(1 << 20)
    }

    /// Random events, and their used lengths.
    pub(crate) fn garbage_events(&self) -> impl Iterator<Item = (mirror::Event, u32)> {
        let count = self.number(Kind::GarbageEvent).unwrap_or(0).min(1 << 20);
        let mut random = self.random;
        (0..count).map(move |_| {
            let mut next = || {
                random = mix(random);
                random
            };
            let mut event = mirror::Event::new_zeroed();
            event.as_mut_bytes().fill_with(|| next() as u8);
            // Half of them could be events, if one looks at the type only.
            if next() % 2 == 0 {
                event.kind = U32::new(next() as u32 % 5);
            }
            let used = match next() % 3 {
                0 => next() as u32,
                1 => next() as u32 % 32,
                _ => size_of::<mirror::Event>() as u32,
            };
            (event, used)
        })
    }

    /// Faults of a space that cannot be, by [`Kind::BadFault`], of at most so many at a time.
    pub(crate) fn bad_faults(&self, space: u32, most: u32) -> Vec<mirror::Event> {
        let Some(number) = self.number(Kind::BadFault) else {
            return Vec::new();
        };
        let fault = |index: u64| mirror::Event {
            kind: U32::new(mirror::event::FAULT),
            space_id: U32::new(space),
            access: U32::new(match number {
                2 => 0,
                3 => mirror::access::EXCLUSIVE,
                _ => mirror::access::READ,
            }),
            info: U32::new(if number == 7 { 1000 } else { 1 }),
            address: U64::new(match number {
                4 => 0x1001,
                5 => 1 << 62,
                _ => (index + 1) << 12,
            }),
            // None that a device counts to.
            id: U64::new(((self.random >> 1) | (1 << 63)) + if number == 1 { 0 } else { index }),
        };
        let count = match number {
            1 => 2,
            6 => u64::from(most) + 1,
            _ => 1,
        };
        (0..count).map(fault).collect()
    }

    /// The end of a job that there is not.
    pub(crate) fn bad_done(&self, space: u32) -> Option<mirror::Event> {
        self.number(Kind::BadDone).map(|_| mirror::Event {
            kind: U32::new(mirror::event::RING_DONE),
            space_id: U32::new(space),
            id: U64::new(self.random | (1 << 63)),
            ..Default::default()
        })
    }

    /// How often the end of a job is told.
    pub(crate) fn times_done(&self) -> u64 {
        match self.number(Kind::DoneNever) {
            Some(_) => 0,
            None => 1 + self.number(Kind::DoneAgain).unwrap_or(0).min(1 << 20),
        }
    }

    /// Whether the end of a job is told after that of the next one.
    pub(crate) fn swaps_done(&self) -> bool {
        self.number(Kind::DoneSwapped).is_some()
    }

    /// Whether the access faults again that the command is to end the stall of.
    pub(crate) fn refaults(&self) -> bool {
        self.number(Kind::Refault).is_some()
    }

    /// Whether the response comes too early.
    pub(crate) fn is_early(&self) -> bool {
        self.number(Kind::Early).is_some()
    }

    /// Whether there is no response.
    pub(crate) fn is_silent(&self) -> bool {
        self.number(Kind::Silence).is_some() || self.is_ignored()
    }

    /// Whether the command is not carried out either.
    pub(crate) fn is_ignored(&self) -> bool {
        self.number(Kind::Ignore).is_some()
    }

    /// Whether the jobs of the context are forgotten.
    pub(crate) fn abandons(&self) -> bool {
        self.number(Kind::Abandon).is_some()
    }

    /// Whether the job has no end.
    pub(crate) fn is_endless(&self) -> bool {
        self.number(Kind::Endless).is_some()
    }

    /// How late the response is; only the first call knows.
    pub(crate) fn take_delay(&mut self) -> Option<Duration> {
        let delay = self.number(Kind::Delay).map(Duration::from_millis);
        self.modes.retain(|m| m.kind != Kind::Delay);
        delay
    }

    /// How late the command is carried out; only the first call knows.
    pub(crate) fn take_lateness(&mut self) -> Option<Duration> {
        let late = self.number(Kind::Late).map(Duration::from_millis);
        self.modes.retain(|m| m.kind != Kind::Late);
        late
    }

    /// Waits as long as the command takes more.
    pub(crate) fn slow_down(&self) {
        if let Some(milliseconds) = self.number(Kind::Slow) {
            std::thread::sleep(Duration::from_millis(milliseconds.min(10_000)));
        }
    }

    /// The response `bytes` to a buffer of `capacity` bytes at `head`, mistreated.
    pub(crate) fn twist(&self, mut bytes: Vec<u8>, capacity: u64, head: u16) -> Twisted {
        let mut random = self.random;
        let mut next = || {
            random = mix(random);
            random
        };
        let mut used = None;
        let mut heads = vec![u32::from(head)];
        for mode in &self.modes {
            let number = mode.number;
            match mode.kind {
                Kind::Short => {
                    // A header, or a status.
                    let whole = bytes.len().clamp(1, 24) as u64;
                    let length = if number < whole {
                        number
                    } else {
                        next() % whole
                    };
                    bytes.truncate(length as usize);
                }
                Kind::Oversized => used = Some(capacity.saturating_add(number) as u32),
                Kind::GarbageType => {
                    let kind = if number == 0 { next() } else { number };
                    put(&mut bytes, 0, U32::new(kind as u32).as_bytes());
                }
                Kind::Garbage => bytes.fill_with(|| next() as u8),
                Kind::Duplicate => heads.extend((0..number.min(1024)).map(|_| u32::from(head))),
                Kind::UnknownHead => heads = vec![number as u32],
                Kind::WrongFence => {
                    let old = read_u64(&bytes, FENCE_ID);
                    put(
                        &mut bytes,
                        FENCE_ID,
                        U64::new(old.wrapping_add(number)).as_bytes(),
                    );
                }
                Kind::NoFence => {
                    let flags = read_u64(&bytes, 0) >> 32;
                    let flags = U32::new(flags as u32 & !FLAG_FENCE);
                    put(&mut bytes, FLAGS, flags.as_bytes());
                    put(&mut bytes, FENCE_ID, &[0; 8]);
                }
                Kind::CapsetSize => put(&mut bytes, BODY + 8, U32::new(number as u32).as_bytes()),
                Kind::CapsetDuplicate => put(&mut bytes, BODY, U32::new(number as u32).as_bytes()),
                Kind::MapInfo => put(&mut bytes, BODY, U32::new(number as u32).as_bytes()),
                // A status is no header.
                Kind::Body if bytes.len() >= BODY => {
                    let room = usize::try_from(capacity).unwrap_or(usize::MAX);
                    let length = number.min(1 << 20) as usize + BODY;
                    bytes.resize(length.min(room), 0);
                }
                Kind::Body
                | Kind::Silence
                | Kind::Ignore
                | Kind::Abandon
                | Kind::Endless
                | Kind::Delay
                | Kind::Late
                | Kind::Slow
                | Kind::Exit
                | Kind::Refuse
                | Kind::CapsetCount
                | Kind::ConfigChange
                | Kind::Early
                | Kind::DeviceLost
                | Kind::SpaceLost
                | Kind::StaleEvent
                | Kind::GarbageEvent
                | Kind::BadFault
                | Kind::BadDone
                | Kind::DoneNever
                | Kind::DoneAgain
                | Kind::DoneSwapped
                | Kind::Refault => {}
            }
        }
        Twisted { bytes, used, heads }
    }
}

/// Offset of `Header::flags`.
const FLAGS: usize = 4;
/// Offset of `Header::fence_id`.
const FENCE_ID: usize = 8;
/// Offset of what follows the header.
const BODY: usize = size_of::<Header>();

/// Overwrites a part of a response, if it is long enough.
fn put(bytes: &mut [u8], offset: usize, value: &[u8]) {
    if let Some(part) = bytes.get_mut(offset..offset + value.len()) {
        part.copy_from_slice(value);
    }
}

fn read_u64(bytes: &[u8], offset: usize) -> u64 {
    let part = bytes.get(offset..offset + 8);
    part.and_then(|p| p.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// A step of the SplitMix64 generator.
pub(crate) fn mix(value: u64) -> u64 {
    let mut value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::mode::KINDS;
    use super::*;
    use virtgpu_protocol::virtio_gpu::response;

    fn attack(modes: &[&str]) -> Attack {
        Attack {
            modes: modes.iter().map(|m| m.parse().unwrap()).collect(),
            random: 7,
        }
    }

    #[test]
    fn names_are_unique_and_parse() {
        for (index, known) in KINDS.iter().enumerate() {
            let mode: Mode = known.name.parse().unwrap();
            assert_eq!((mode.kind, mode.number), (known.kind, known.number));
            assert_eq!(mode.name(), known.name);
            assert!(KINDS[..index]
                .iter()
                .all(|k| k.name != known.name && k.kind != known.kind));
            assert!(list().contains(known.name));
        }
        assert_eq!("short:0x10".parse::<Mode>().unwrap().number, 16);
        for bad in ["", "nothing", "short:", "short:x", "short:-1"] {
            assert!(bad.parse::<Mode>().is_err(), "{bad}");
        }
    }

    #[test]
    fn steps() {
        let adversary = Adversary {
            modes: vec!["silence".parse().unwrap()],
            on: vec![command::SUBMIT_3D],
            from: 2,
            every: 3,
            count: 2,
            ..Default::default()
        };
        assert!(!adversary.attack(command::CTX_CREATE).is_silent());
        let hits: Vec<_> = (0..12)
            .filter(|_| adversary.attack(command::SUBMIT_3D).is_silent())
            .collect();
        assert_eq!(hits.len(), 2);
        assert_eq!(adversary.seen.load(Ordering::Relaxed), 12);
    }

    #[test]
    fn one_at_random() {
        let adversary = |seed| Adversary {
            modes: ["silence", "garbage"].map(|m| m.parse().unwrap()).to_vec(),
            random: true,
            from: 10,
            every: 4,
            count: 20,
            seed,
            ..Default::default()
        };
        let attacks = |seed| {
            let adversary = adversary(seed);
            let names = (0..200).map(|_| adversary.attack(command::SUBMIT_3D).name());
            names.collect::<Vec<_>>()
        };
        let names = attacks(1);
        assert!(names[..10].iter().all(Option::is_none));
        let hits: Vec<_> = names.iter().flatten().collect();
        assert_eq!(hits.len(), 20);
        for kind in ["silence", "garbage"] {
            assert!(hits.iter().any(|name| *name == kind));
        }
        assert_eq!(names, attacks(1));
        assert_ne!(names, attacks(2));
    }

    #[test]
    fn contexts_by_name() {
        let adversary = Adversary {
            modes: vec!["ignore".parse().unwrap()],
            context: Some("silent".into()),
            ..Default::default()
        };
        let hit = |bytes: &[u8]| adversary.attack_request(0, bytes).is_ignored();
        let header = |kind, ctx| Header::new(kind, ctx);
        let create = |ctx, name: &str, nlen| {
            let mut request = CtxCreate {
                hdr: header(command::CTX_CREATE, ctx),
                nlen: U32::new(nlen),
                ..CtxCreate::new_zeroed()
            };
            request.debug_name[..name.len()].copy_from_slice(name.as_bytes());
            hit(request.as_bytes())
        };
        let names =
            |kind, ctx, id: u32| hit(&[header(kind, ctx).as_bytes(), &id.to_le_bytes()].concat());
        assert!(!hit(header(command::SUBMIT_3D, 1).as_bytes()));
        assert!(create(1, "silent 1", 8) && !create(2, "not silent", 10));
        // The end of the name is where its length says.
        assert!(!create(3, "silent", 5) && create(4, "silent", u32::MAX));
        for (ctx, ours) in [(0, false), (1, true), (2, false), (3, false), (4, true)] {
            assert_eq!(hit(header(command::SUBMIT_3D, ctx).as_bytes()), ours);
        }
        assert!(names(command::RESOURCE_CREATE_BLOB, 1, 5));
        assert!(!names(command::RESOURCE_CREATE_BLOB, 0, 6));
        assert!(!names(command::RESOURCE_MAP_BLOB, 0, 6));
        assert!(names(command::CTX_ATTACH_RESOURCE, 4, 6));
        for id in [5, 6] {
            assert!(names(command::RESOURCE_ASSIGN_UUID, 0, id));
            assert!(!names(command::CTX_ATTACH_RESOURCE, 2, id));
        }
        // Ids are used again.
        assert!(!names(command::RESOURCE_CREATE_BLOB, 2, 5));
        assert!(!names(command::RESOURCE_MAP_BLOB, 0, 5));
        assert!(!create(1, "", 0) && !hit(header(command::SUBMIT_3D, 1).as_bytes()));
        assert!(!hit(&[]));
        // On the mirror queue, whose commands are aimed at by name, it is whose space one names.
        let adversary = Adversary {
            on: vec![0x400],
            ..adversary
        };
        for (ctx, ours) in [
            (None, false),
            (Some(1), false),
            (Some(2), false),
            (Some(4), true),
        ] {
            assert_eq!(adversary.attack_command(0x400, || ctx).is_ignored(), ours);
        }
    }

    #[test]
    fn refusal_has_a_scope() {
        let mut adversary = Adversary {
            modes: vec!["refuse".parse().unwrap()],
            ..Default::default()
        };
        let refused = |a: &Adversary, c| a.attack(c).refusal().is_some();
        assert!(refused(&adversary, command::RESOURCE_CREATE_BLOB));
        assert!(!refused(&adversary, command::CTX_CREATE));
        adversary.on = vec![command::CTX_CREATE];
        assert!(!refused(&adversary, command::RESOURCE_CREATE_BLOB));
        assert!(refused(&adversary, command::CTX_CREATE));
    }

    #[test]
    fn twists() {
        let mut header = Header::new(response::OK_NODATA, 1);
        header.flags = U32::new(FLAG_FENCE);
        header.fence_id = U64::new(5);
        let bytes = header.as_bytes().to_vec();
        let twist = |modes: &[&str]| attack(modes).twist(bytes.clone(), 24, 3);
        assert_eq!(twist(&["short:4"]).bytes.len(), 4);
        assert!(twist(&["short"]).bytes.len() < 24);
        assert_eq!(twist(&["oversized:8"]).used, Some(32));
        assert_eq!(twist(&["duplicate:2"]).heads, [3, 3, 3]);
        assert_eq!(twist(&["unknown-head:9"]).heads, [9]);
        assert_eq!(read_u64(&twist(&["wrong-fence:2"]).bytes, FENCE_ID), 7);
        assert_eq!(read_u64(&twist(&["no-fence"]).bytes, 0) >> 32, 0);
        assert_ne!(twist(&["garbage"]).bytes, bytes);
        assert_eq!(twist(&["garbage"]), twist(&["garbage"]));
        assert_eq!(twist(&["garbage-type:7"]).bytes[0], 7);
        assert_eq!(twist(&["body:8"]).bytes, bytes);
        assert_eq!(attack(&["body:8"]).twist(vec![1; 40], 64, 3).bytes, [1; 32]);
        let longer = attack(&["body:8"]).twist(bytes.clone(), 28, 3).bytes;
        assert_eq!(longer, [&bytes[..], &[0; 4]].concat());
        assert_eq!(attack(&["body"]).twist(vec![1; 4], 64, 3).bytes, [1; 4]);
        // Too short for what is to be changed.
        assert_eq!(twist(&["map-info"]).bytes, bytes);
    }

    #[test]
    fn delay_is_taken_once() {
        let mut attack = attack(&["delay:3", "late:4", "short:1"]);
        assert_eq!(attack.take_delay(), Some(Duration::from_millis(3)));
        assert_eq!(attack.take_delay(), None);
        assert_eq!(attack.take_lateness(), Some(Duration::from_millis(4)));
        assert_eq!(attack.take_lateness(), None);
        assert_eq!(attack.name().as_deref(), Some("short"));
    }
}
