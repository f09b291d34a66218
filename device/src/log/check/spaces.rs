// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! The rules of the mirror queue.
//!
//! Commands are carried out in order; what INVALIDATE names is not mapped when the device gives the
//! command back; what is mapped is what a MAP asked for, and no more; a job must fail if something
//! that it touches was not mapped at any time of the access. A driver has sent all MAPs of a space
//! when it destroys it.
//!
//! A mapping is in the log before it is made and its end after it is over: what a log does not
//! allow has not been possible either.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use virtgpu_protocol::mirror::{access, command, status};

use super::ranges::Ranges;
use crate::log::names;
use crate::log::Event;

/// A command that has not been given back.
struct Pending {
    cmd: u64,
    kind: u32,
    space: u32,
    malformed: bool,
    range: (u64, u64),
    /// What was done for it: a space was created, pages were mapped.
    created: bool,
    /// What was mapped there before, and how many bytes are now.
    mapped: Option<(Ranges, u64)>,
}

struct Space {
    /// 0 if it is that of a context.
    resource: u32,
    /// 0 if it is that of a resource.
    ctx: u32,
    bytes: u64,
    access: u32,
}

/// An access that has begun although something was not mapped.
pub(super) struct Lack {
    /// The operation.
    pub(super) at: u64,
    /// 0 if there was none.
    space: u32,
    resource: u32,
    rights: u32,
    missing: Ranges,
}

/// Whether a command that was mistreated like this was not carried out and not given back.
fn is_ignored(adversary: &str) -> bool {
    adversary.split('+').any(|mode| mode == "ignore")
}

/// What the log says of the extension.
#[derive(Default)]
pub(super) struct Spaces {
    /// What is wrong with the event at hand.
    pub(super) wrong: Vec<String>,
    /// The adversary is at work: responses come in any order.
    pub(super) adversary: bool,
    open: bool,
    next: u64,
    pending: VecDeque<Pending>,
    /// Commands from before the queue was stopped.
    stale: BTreeSet<u64>,
    spaces: BTreeMap<u32, Space>,
    /// Those whose SPACE_DESTROY has been acknowledged.
    dead: BTreeSet<u32>,
    /// What is mapped, also in spaces that should not have anything.
    mapped: BTreeMap<u32, Ranges>,
    /// What is rewritten all the time.
    hammered: BTreeMap<u32, Ranges>,
    /// Mirrored resources.
    resources: BTreeSet<u32>,
}

impl Spaces {
    fn expect(&mut self, good: bool, what: impl FnOnce() -> String) {
        if !good {
            self.wrong.push(what());
        }
    }

    /// The space of a resource.
    fn space_of(&self, resource: u32) -> Option<u32> {
        let mut spaces = self.spaces.iter();
        let found = spaces.find(|(_, space)| space.resource == resource);
        found.map(|(id, _)| *id)
    }

    /// The space that an access to a resource is looked up in: `Some(0)` if there is none, and
    /// there should be one.
    pub(super) fn of_resource(&self, resource: u32) -> Option<u32> {
        let mirrored = self.resources.contains(&resource);
        mirrored.then(|| self.space_of(resource).unwrap_or(0))
    }

    /// Bytes of a space.
    pub(super) fn size(&self, space: u32) -> Option<u64> {
        self.spaces.get(&space).map(|space| space.bytes)
    }

    /// Whether something is mapped at `at` of a space with all of `rights`.
    pub(super) fn allows(&self, space: u32, at: u64, rights: u32) -> bool {
        let mapped = self.mapped.get(&space);
        mapped.is_some_and(|m| m.lacking(at, at + 1, rights).is_empty())
    }

    /// A resource was created.
    pub(super) fn created(&mut self, resource: u32, kind: &str) {
        if kind == "mirrored" {
            self.resources.insert(resource);
        }
    }

    /// A resource is gone, or was taken from a context.
    pub(super) fn released(&mut self, resource: u32, gone: bool) {
        if let Some(space) = self.space_of(resource) {
            self.wrong
                .push(format!("space {space} outlives its resource {resource}"));
        }
        if gone {
            self.resources.remove(&resource);
        }
    }

    /// There must be no space, because of `what`.
    pub(super) fn none_left(&mut self, what: &str) {
        let spaces: Vec<u32> = self.spaces.keys().copied().collect();
        for space in spaces {
            self.wrong.push(format!("space {space} is left at {what}"));
        }
        let mapped: Vec<u32> = self
            .mapped
            .iter()
            .filter(|m| !m.1.is_empty())
            .map(|m| *m.0)
            .collect();
        for space in mapped {
            self.wrong
                .push(format!("pages of space {space} are mapped at {what}"));
        }
        self.spaces.clear();
        self.mapped.clear();
        self.hammered.clear();
    }

    /// The device was reset.
    pub(super) fn reset(&mut self) {
        self.none_left("a reset");
        self.resources.clear();
        self.dead.clear();
    }

    /// What is missing for an access to `length` bytes at `offset`, if that is of any interest.
    pub(super) fn access(
        &self,
        at: u64,
        (space, resource): (u32, u32),
        offset: u64,
        length: u64,
        write: bool,
    ) -> Option<Lack> {
        if length == 0 {
            return None;
        }
        let rights = if write { access::WRITE } else { access::READ };
        let empty = Ranges::default();
        let mapped = self.mapped.get(&space).unwrap_or(&empty);
        let mut missing = Ranges::default();
        for (start, end) in mapped.lacking(offset, offset.saturating_add(length), rights) {
            missing.insert(start, end, rights);
        }
        (!missing.is_empty()).then_some(Lack {
            at,
            space,
            resource,
            rights,
            missing,
        })
    }

    /// Takes note in `lacks` of what was mapped after the access had begun.
    pub(super) fn forgive<'a>(
        &self,
        event: &Event,
        lacks: impl Iterator<Item = &'a mut Vec<Lack>>,
    ) {
        let Event::Mapped { space, runs, .. } = event else {
            return;
        };
        let resource = self.spaces.get(space).map_or(0, |space| space.resource);
        for lacks in lacks {
            let same = |l: &&mut Lack| l.space == *space || resource != 0 && l.resource == resource;
            for lack in lacks.iter_mut().filter(same) {
                for (start, length, rights) in runs {
                    if rights & lack.rights != 0 {
                        lack.missing.remove(*start, start.saturating_add(*length));
                    }
                }
            }
            lacks.retain(|lack| !lack.missing.is_empty());
        }
    }

    /// Checks an event; others than those of the extension are none of its business.
    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::MirrorOpen { .. } => {
                let open = std::mem::replace(&mut self.open, true);
                self.expect(!open, || "the mirror queue is opened twice".into());
            }
            Event::MirrorClose => {
                let open = std::mem::replace(&mut self.open, false);
                self.expect(open, || "the mirror queue is not open".into());
                self.none_left("the end of the mirror queue");
                let pending = std::mem::take(&mut self.pending);
                self.stale.extend(pending.into_iter().map(|p| p.cmd));
            }
            Event::Command {
                cmd,
                kind,
                space,
                start,
                length,
                last,
                malformed,
                ..
            } => {
                let (open, next) = (self.open, self.next);
                self.expect(open, || "a command while the mirror queue is closed".into());
                self.expect(*cmd >= next, || format!("command {cmd} came before"));
                self.next = cmd + 1;
                let kind = names::command_number(kind).unwrap_or(0);
                let ends = |p: &Pending| (p.kind, p.space) == (command::SPACE_DESTROY, *space);
                let ended = self.dead.contains(space) || self.pending.iter().any(ends);
                self.expect(kind != command::MAP || !ended, || {
                    format!("the driver maps pages in space {space}, which it has destroyed")
                });
                let start = start.unwrap_or(0);
                let end = match (length, last) {
                    (Some(length), _) => start.saturating_add(*length),
                    (_, Some(last)) => last.saturating_add(1),
                    _ => 0,
                };
                self.pending.push_back(Pending {
                    cmd: *cmd,
                    kind,
                    space: *space,
                    malformed: *malformed,
                    range: (start, end),
                    created: false,
                    mapped: None,
                });
            }
            // It was never returned, nor carried out.
            Event::CommandDone {
                adversary: Some(adversary),
                ..
            } if is_ignored(adversary) => {}
            Event::CommandDone {
                cmd,
                status,
                adversary,
                ..
            } => {
                self.command_done(*cmd, *status, adversary.is_some());
            }
            Event::CommandDropped { cmd } => {
                let at = self.pending.iter().position(|p| p.cmd == *cmd);
                let known = at.and_then(|at| self.pending.remove(at)).is_some();
                let known = known || self.stale.remove(cmd);
                self.expect(known, || format!("command {cmd} is dropped, but not open"));
            }
            Event::Space {
                space,
                resource,
                ctx,
                bytes,
                access,
            } => {
                let known = ctx.is_some() || self.resources.contains(resource);
                self.expect(known, || format!("resource {resource} is not mirrored"));
                let other = self.spaces.values();
                let (of, owner) = (ctx.unwrap_or(0), *resource);
                let taken = other.filter(|s| (s.ctx, s.resource) == (of, owner)).count() > 0;
                self.expect(!taken, || {
                    format!("resource {resource} or context {of} has a space")
                });
                let new = Space {
                    resource: *resource,
                    ctx: of,
                    bytes: *bytes,
                    access: *access,
                };
                let old = self.spaces.insert(*space, new);
                self.expect(old.is_none() && *space != 0, || {
                    format!("space {space} exists or is 0")
                });
                self.dead.remove(space);
                let front = self.pending.back_mut();
                let front = front.filter(|p| p.kind == command::SPACE_CREATE && p.space == *space);
                let asked = front.map(|p| p.created = true).is_some();
                self.expect(asked, || format!("no one asked for space {space}"));
            }
            Event::SpaceGone { space, .. } => {
                let known = self.spaces.remove(space).is_some();
                self.expect(known, || format!("space {space} does not exist"));
                self.unused(*space, (0, u64::MAX), "is gone");
            }
            Event::Mapped {
                space,
                start,
                length,
                entries,
                asked,
                runs,
                ..
            } => {
                self.map(*space, (*start, *length), *entries > 0, asked, runs);
            }
            Event::Unmapped {
                space,
                start,
                length,
            } => {
                if let Some(mapped) = self.mapped.get_mut(space) {
                    mapped.remove(*start, start.saturating_add(*length));
                }
            }
            Event::Hammer {
                space,
                start,
                length,
                on,
            } => {
                let end = start.saturating_add(*length);
                let hammered = self.hammered.entry(*space).or_default();
                match on {
                    true => hammered.insert(*start, end, access::WRITE),
                    false => hammered.remove(*start, end),
                }
            }
            Event::EventSent {
                kind,
                space,
                adversary,
            } => {
                let dead = self.dead.contains(space);
                let good = *adversary || !dead;
                self.expect(good, || {
                    format!("event {kind} names space {space}, which is destroyed")
                });
            }
            _ => {}
        }
    }

    /// Nothing may be mapped or rewritten there.
    fn unused(&mut self, space: u32, (start, end): (u64, u64), what: &str) {
        let left = |ranges: Option<&Ranges>| {
            let left = ranges.map(|r| r.between(start, end));
            left.is_some_and(|l| !l.is_empty())
        };
        let mapped = left(self.mapped.get(&space));
        let hammered = left(self.hammered.get(&space));
        self.expect(!mapped, || {
            format!("space {space} {what}, but has pages mapped")
        });
        self.expect(!hammered, || {
            format!("space {space} {what}, but is rewritten")
        });
    }

    fn map(
        &mut self,
        id: u32,
        (start, length): (u64, u64),
        asked_for: bool,
        asked: &[(u64, u64, u32)],
        runs: &[(u64, u64, u32)],
    ) {
        let mut allowed = Ranges::default();
        for (start, length, rights) in asked {
            allowed.insert(*start, start.saturating_add(*length), *rights);
        }
        let space = self.spaces.get(&id).map(|s| (s.bytes, s.access));
        self.expect(space.is_some(), || {
            format!("pages are mapped in space {id}, which is gone")
        });
        let (size, most) = space.unwrap_or((u64::MAX, access::READ | access::WRITE));
        let range = (start, start.saturating_add(length));
        let mapped = self.mapped.entry(id).or_default();
        let mut before = Ranges::default();
        for (start, end, rights) in mapped.between(range.0, range.1) {
            before.insert(start, end, rights);
        }
        let mut wrong = Vec::new();
        let mut done = 0;
        for (start, length, rights) in runs {
            let end = start.saturating_add(*length);
            done += length;
            if *start < range.0 || end > range.1 || end > size {
                wrong.push(format!("space {id}: {start:#x}..{end:#x} is outside"));
            }
            if rights & !most != 0 || !allowed.lacking(*start, end, *rights).is_empty() {
                wrong.push(format!(
                    "space {id}: {start:#x}..{end:#x} has more rights than asked for"
                ));
            }
            mapped.insert(*start, end, *rights);
        }
        self.wrong.extend(wrong);
        if asked_for {
            let back = self.pending.back_mut();
            let back = back.filter(|p| (p.kind, p.space, p.range) == (command::MAP, id, range));
            let asked = back.map(|p| p.mapped = Some((before, done))).is_some();
            self.expect(asked, || {
                format!("no one asked for a mapping in space {id}")
            });
        }
    }

    fn command_done(&mut self, cmd: u64, code: Option<u32>, twisted: bool) {
        let open = self.open;
        self.expect(open, || {
            "a response while the mirror queue is closed".into()
        });
        let Some(at) = self.pending.iter().position(|p| p.cmd == cmd) else {
            return self
                .wrong
                .push(format!("command {cmd} is given back, but not open"));
        };
        let in_order = at == 0 || self.adversary;
        self.expect(in_order, || format!("command {cmd} overtook others"));
        let Some(pending) = self.pending.remove(at) else {
            return;
        };
        let id = pending.space;
        match pending.kind {
            command::INVALIDATE if !pending.malformed => {
                self.unused(id, pending.range, "is invalidated");
            }
            command::SPACE_DESTROY if !pending.malformed => {
                let alive = self.spaces.contains_key(&id);
                self.expect(!alive, || format!("space {id} outlives SPACE_DESTROY"));
                self.unused(id, (0, u64::MAX), "is destroyed");
                self.dead.insert(id);
            }
            // What was said is not what was meant.
            _ if twisted => {}
            command::SPACE_CREATE => {
                let good = (code == Some(status::OK)) == pending.created;
                self.expect(good, || {
                    format!(
                        "space {id}: status {code:?}, but is created: {}",
                        pending.created
                    )
                });
            }
            command::MAP => {
                let (start, end) = pending.range;
                let done = pending.mapped.as_ref().map_or(0, |(_, done)| *done);
                let all = pending.mapped.is_some() && done == end - start;
                if code == Some(status::OK) {
                    return self.expect(all, || format!("space {id}: {done:#x} bytes of {start:#x}..{end:#x} are mapped, and all is well"));
                }
                let Some((before, _)) = pending.mapped else {
                    return;
                };
                if code == Some(status::NO_SUCH_SPACE) {
                    let alive = self.spaces.contains_key(&id);
                    return self.expect(!alive, || {
                        format!("space {id} is there, and is said not to be")
                    });
                }
                let now = self.mapped.get(&id).map(|m| m.between(start, end));
                let same = now.unwrap_or_default() == before.between(start, end);
                self.expect(same, || {
                    format!("space {id}: a MAP that failed has an effect")
                });
            }
            _ => {}
        }
    }
}
