// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Checks an event log against the rules that a well-behaved device and driver keep.
//!
//! The file here follows requests, jobs, contexts and resources; `spaces` follows the mirror queue,
//! with `ranges` of what is mapped; `faults` follows contexts in fault mode. Each line is looked at
//! once, in order, together with what the lines before it have left. The check does not end at the
//! first violation.

mod faults;
mod ranges;
mod spaces;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead};

use crate::log::{Event, Line};
use faults::Faults;
use spaces::{Lack, Spaces};

/// What a check found.
#[derive(Debug, Default)]
pub struct Report {
    /// Line number, from 1, and what is wrong there.
    pub violations: Vec<(u64, String)>,
    /// Lines.
    pub lines: u64,
    /// Requests.
    pub requests: u64,
    /// Jobs.
    pub jobs: u64,
    /// Requests and commands that the adversary mistreats.
    pub mistreated: u64,
    /// Whether the log has an end: the process was not killed.
    pub complete: bool,
}

/// Checks the log that `input` holds.
///
/// # Errors
///
/// If it cannot be read.
pub fn check(input: impl BufRead) -> io::Result<Report> {
    let mut checker = Checker::default();
    for line in input.lines() {
        let line = line?;
        checker.report.lines += 1;
        match serde_json::from_str::<Line>(&line) {
            Ok(line) => checker.line(line),
            Err(error) => checker.wrong(format!("no event: {error}")),
        }
    }
    Ok(checker.report)
}

/// A request without its response.
struct Open {
    cmd: String,
    fence: Option<u64>,
    timeline: Timeline,
    takes: Option<Takes>,
    /// What it ends access to is gone.
    done: bool,
    /// The adversary responds to it before these jobs are over.
    early: Option<BTreeSet<u64>>,
}

/// What a request ends the access of jobs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Resource(u32),
    Attachment(u32, u32),
    Context(u32),
    Backing(u32),
}

impl Takes {
    fn of(cmd: &str, ctx: u32, resource: Option<u32>) -> Option<Self> {
        match (cmd, resource) {
            ("RESOURCE_UNREF", Some(resource)) => Some(Self::Resource(resource)),
            ("CTX_DETACH_RESOURCE", Some(resource)) => Some(Self::Attachment(ctx, resource)),
            ("CTX_DESTROY", _) => Some(Self::Context(ctx)),
            ("RESOURCE_DETACH_BACKING", Some(resource)) => Some(Self::Backing(resource)),
            _ => None,
        }
    }

    /// Whether `job` could touch it.
    fn is_of(self, job: &Job) -> bool {
        match self {
            Self::Resource(id) | Self::Backing(id) => job.keeps(id),
            Self::Attachment(ctx, id) => job.ctx == ctx && job.keeps(id),
            Self::Context(ctx) => job.ctx == ctx,
        }
    }
}

/// Whether `mode` is one of those in `adversary`.
fn has_mode(adversary: Option<&str>, mode: &str) -> bool {
    adversary.is_some_and(|modes| modes.split('+').any(|name| name == mode))
}

/// A ring of a context, or the timeline that all share.
type Timeline = Option<(u32, u8)>;

struct Job {
    /// The request whose response is due when it is over.
    req: u64,
    ctx: u32,
    resources: BTreeSet<u32>,
    /// It touched what it may not.
    must_fail: bool,
    /// No one waits for it.
    abandoned: bool,
    /// What was missing when its current operation began.
    lacks: Vec<Lack>,
    /// The address space of its context, if that is in fault mode.
    space: Option<u32>,
}

impl Job {
    /// Whether a resource that it names stays until it is over.
    fn keeps(&self, resource: u32) -> bool {
        self.space.is_none() && self.resources.contains(&resource)
    }
}

#[derive(Default)]
struct Checker {
    report: Report,
    next_seq: u64,
    ended: bool,
    open: bool,
    adversary: bool,
    requests: BTreeMap<u64, Open>,
    /// Requests from before a reset.
    stale: BTreeSet<u64>,
    next_req: u64,
    /// Fenced jobs in the order in which their responses must come.
    fences: BTreeMap<Timeline, VecDeque<u64>>,
    /// Sizes.
    resources: BTreeMap<u32, u64>,
    /// Places in the window.
    shown: BTreeMap<u32, u64>,
    /// How often each resource is attached: more than once while an earlier detach waits for jobs.
    contexts: BTreeMap<u32, BTreeMap<u32, u32>>,
    jobs: BTreeMap<u64, Job>,
    next_job: u64,
    spaces: Spaces,
    faults: Faults,
    /// When the line was written, in microseconds.
    now: u64,
}

impl Checker {
    fn wrong(&mut self, what: impl Into<String>) {
        self.report
            .violations
            .push((self.report.lines, what.into()));
    }

    fn expect(&mut self, good: bool, what: impl FnOnce() -> String) {
        if !good {
            self.wrong(what());
        }
    }

    fn line(&mut self, line: Line) {
        let (seq, want) = (line.seq, self.next_seq);
        self.expect(seq == want, || format!("seq is {seq}, not {want}"));
        self.next_seq = seq + 1;
        let ended = self.ended;
        self.expect(!ended, || "after the end".into());
        self.now = line.t;
        self.event(line.event);
    }

    fn event(&mut self, event: Event) {
        self.fault_event(&event);
        self.spaces.event(&event);
        let lacks = self.jobs.values_mut().map(|job| &mut job.lacks);
        self.spaces.forgive(&event, lacks);
        self.control_event(event);
        for what in std::mem::take(&mut self.spaces.wrong) {
            self.wrong(what);
        }
    }

    fn control_event(&mut self, event: Event) {
        match event {
            Event::Start { options } => {
                self.adversary = options.contains("--adversary");
                self.spaces.adversary = self.adversary;
            }
            Event::Open { .. } => {
                let open = std::mem::replace(&mut self.open, true);
                self.expect(!open, || "opened twice".into());
            }
            Event::Request {
                req,
                cmd,
                ctx,
                ring,
                fence,
                resource,
                adversary,
                ..
            } => {
                self.report.mistreated += u64::from(adversary.is_some());
                let (open, next) = (self.open, self.next_req);
                self.expect(open, || "a request while the queue is closed".into());
                self.expect(req >= next, || format!("request {req} came before"));
                self.next_req = req + 1;
                self.report.requests += 1;
                let timeline = ring.map(|ring| (ctx, ring));
                if fence.is_some() && cmd == "SUBMIT_3D" {
                    self.fences.entry(timeline).or_default().push_back(req);
                }
                let cmd = cmd.into_owned();
                let takes = Takes::of(&cmd, ctx, resource);
                self.requests.insert(
                    req,
                    Open {
                        cmd,
                        fence,
                        timeline,
                        takes,
                        // No event says when this is.
                        done: matches!(takes, Some(Takes::Backing(_))),
                        early: None,
                    },
                );
            }
            Event::Response {
                req,
                cmd,
                kind,
                fence,
                adversary,
                ..
            } => {
                let good = kind == "OK_NODATA";
                self.response(req, &cmd, good, fence, adversary.as_deref());
            }
            Event::Early { req, jobs } => self.early(req, jobs),
            Event::Dropped { req } => {
                let known = self.requests.remove(&req).is_some() || self.stale.remove(&req);
                self.expect(known, || format!("request {req} is dropped, but not open"));
                self.fences
                    .values_mut()
                    .for_each(|f| f.retain(|r| *r != req));
            }
            Event::Create {
                resource,
                bytes,
                kind,
                ..
            } => {
                self.spaces.created(resource, &kind);
                let old = self.resources.insert(resource, bytes);
                let good = old.is_none() && resource != 0;
                self.expect(good, || format!("resource {resource} exists or is 0"));
            }
            Event::Unref { resource } => {
                let known = self.resources.remove(&resource).is_some();
                self.expect(known, || format!("resource {resource} does not exist"));
                self.shown.remove(&resource);
                self.taken(Takes::Resource(resource));
                self.spaces.released(resource, true);
                for attached in self.contexts.values_mut() {
                    attached.remove(&resource);
                }
                self.no_job("gone", |_, job| job.keeps(resource));
            }
            Event::CtxCreate { ctx, .. } => {
                let old = self.contexts.insert(ctx, BTreeMap::new());
                let good = old.is_none() && ctx != 0;
                self.expect(good, || format!("context {ctx} exists or is 0"));
            }
            Event::CtxDestroy { ctx } => {
                let known = self.contexts.remove(&ctx).is_some();
                self.expect(known, || format!("context {ctx} does not exist"));
                self.taken(Takes::Context(ctx));
                self.no_job("of a context that is gone", |_, job| {
                    job.ctx == ctx && !job.abandoned
                });
            }
            Event::Attach { ctx, resource } => {
                let alive = self.resources.contains_key(&resource);
                let context = self.contexts.get_mut(&ctx);
                let good = alive && context.is_some();
                if let Some(attached) = context {
                    *attached.entry(resource).or_default() += 1;
                }
                self.expect(good, || format!("cannot attach {resource} to {ctx}"));
            }
            Event::Detach { ctx, resource } => {
                self.taken(Takes::Attachment(ctx, resource));
                self.spaces.released(resource, false);
                let context = self.contexts.get_mut(&ctx);
                let count = context.and_then(|attached| attached.get_mut(&resource));
                let left = count.and_then(|count| {
                    *count = count.checked_sub(1)?;
                    Some(*count)
                });
                self.expect(left.is_some(), || {
                    format!("cannot detach {resource} from {ctx}")
                });
                if left == Some(0) {
                    self.no_job("detached", |_, job| {
                        job.ctx == ctx && job.keeps(resource) && !job.abandoned
                    });
                }
            }
            Event::Map { resource, offset } => self.map(resource, offset),
            Event::Unmap { resource } => {
                let known = self.shown.remove(&resource).is_some();
                self.expect(known, || format!("resource {resource} is not mapped"));
            }
            Event::Job {
                job,
                req,
                ctx,
                resources,
                space,
                ..
            } => {
                let attached = self.contexts.get(&ctx).cloned().unwrap_or_default();
                for resource in &resources {
                    // Without a context there is nothing to attach to.
                    let (good, lacks) = if ctx == 0 {
                        (self.resources.contains_key(resource), "does not exist")
                    } else {
                        (
                            attached.get(resource).is_some_and(|count| *count > 0),
                            "is not attached",
                        )
                    };
                    self.expect(good, || format!("resource {resource} {lacks}"));
                }
                let next = self.next_job;
                self.expect(job >= next, || format!("job {job} came before"));
                self.next_job = job + 1;
                self.report.jobs += 1;
                let job_state = Job {
                    req,
                    ctx,
                    resources: resources.into_iter().collect(),
                    must_fail: false,
                    abandoned: false,
                    lacks: Vec::new(),
                    space,
                };
                self.jobs.insert(job, job_state);
            }
            Event::Access {
                job,
                resource,
                offset,
                length,
                write,
                at,
                whole,
                ..
            } => {
                self.access(job, resource, offset, length);
                let own = self.jobs.get(&job).and_then(|job| job.space);
                let space = match (resource, own) {
                    (0, Some(space)) => Some(space),
                    _ => self.spaces.of_resource(resource),
                };
                let lack = space.and_then(|space| {
                    let of = (space, resource);
                    self.spaces.access(at, of, offset, length, write)
                });
                self.lack(job, at, lack.filter(|_| whole));
            }
            Event::Abandoned { job } => {
                let (adversary, known) = (self.adversary, self.jobs.get_mut(&job));
                let good = adversary && known.is_some();
                if let Some(state) = known {
                    state.abandoned = true;
                }
                self.expect(good, || format!("job {job} is abandoned"));
            }
            Event::JobEnd { job, result } => match self.jobs.remove(&job) {
                None => self.wrong(format!("job {job} ends, but does not exist")),
                Some(state) => {
                    let good = state.lacks.is_empty() && !state.must_fail || result != "ok";
                    self.expect(good, || format!("job {job} touched what it may not"));
                }
            },
            Event::Reset {
                resources,
                contexts,
            } => {
                self.counts(resources, contexts);
                self.open = false;
                self.stale
                    .extend(std::mem::take(&mut self.requests).into_keys());
                self.fences.clear();
                self.spaces.reset();
                self.resources.clear();
                self.shown.clear();
                self.contexts.clear();
                self.jobs.clear();
            }
            Event::Command { adversary, .. } => {
                self.report.mistreated += u64::from(adversary.is_some());
            }
            Event::Features { .. }
            | Event::MirrorOpen { .. }
            | Event::MirrorClose
            | Event::CommandDone { .. }
            | Event::CommandDropped { .. }
            | Event::Space { .. }
            | Event::SpaceGone { .. }
            | Event::Mapped { .. }
            | Event::Unmapped { .. }
            | Event::Hammer { .. }
            | Event::Fault { .. }
            | Event::Resolved { .. }
            | Event::RingDone { .. }
            | Event::Alone { .. }
            | Event::EventSent { .. } => {}
            Event::End {
                resources,
                contexts,
                ..
            } => {
                self.counts(resources, contexts);
                self.ended = true;
                self.report.complete = true;
            }
        }
    }

    /// The adversary responds to `req` too early on purpose. That excuses the response and nothing
    /// else: what the request ends access to stays until no job can touch it.
    fn early(&mut self, req: u64, jobs: Vec<u64>) {
        let on_purpose = self.adversary;
        self.expect(on_purpose, || {
            format!("request {req} has its response early")
        });
        let Some(request) = self.requests.get_mut(&req) else {
            return self.wrong(format!(
                "request {req} has its response early, but is not open"
            ));
        };
        let takes = request.takes;
        let mut others = Vec::new();
        for id in &jobs {
            let job = self.jobs.get(id);
            if !job.is_some_and(|job| takes.map_or(job.req == req, |takes| takes.is_of(job))) {
                others.push(*id);
            }
        }
        request.early = Some(jobs.into_iter().collect());
        for job in others {
            self.wrong(format!("request {req} does not wait for job {job}"));
        }
    }

    /// The response to a request that ends this may come.
    fn taken(&mut self, what: Takes) {
        let mut requests = self.requests.values_mut();
        if let Some(request) = requests.find(|r| r.takes == Some(what) && !r.done) {
            request.done = true;
        }
    }

    fn response(
        &mut self,
        req: u64,
        cmd: &str,
        good: bool,
        fence: Option<u64>,
        adversary: Option<&str>,
    ) {
        let open = self.open;
        self.expect(open, || "a response while the queue is closed".into());
        let Some(request) = self.requests.remove(&req) else {
            return self.wrong(format!("request {req} has a response, but is not open"));
        };
        let early = request.early.as_ref();
        let on_purpose = early.is_none() || has_mode(adversary, "early");
        self.expect(on_purpose, || {
            format!("request {req} has its response early, but not on purpose")
        });
        if fence.is_some() {
            self.no_job("responded to", |id, job| {
                job.req == req
                    && job.space.is_none()
                    && !early.is_some_and(|jobs| jobs.contains(&id))
            });
        }
        // What is ignored has no response either.
        let done = request.takes.is_none() || request.done || has_mode(adversary, "ignore");
        self.expect(!good || done || early.is_some(), || {
            format!("request {req} has its response, but what it ends is there")
        });
        if adversary.is_some() {
            self.fences
                .values_mut()
                .for_each(|f| f.retain(|r| *r != req));
            return;
        }
        self.expect(cmd == request.cmd, || {
            format!("request {req} was another command")
        });
        self.expect(fence == request.fence, || {
            format!("request {req} had another fence")
        });
        let fences = self.fences.entry(request.timeline).or_default();
        if let Some(at) = fences.iter().position(|r| *r == req) {
            fences.remove(at);
            let good = at == 0 || self.adversary;
            self.expect(good, || {
                format!("request {req} overtook others on its timeline")
            });
        }
    }

    fn map(&mut self, resource: u32, offset: u64) {
        let Some(size) = self.resources.get(&resource).copied() else {
            return self.wrong(format!("resource {resource} does not exist"));
        };
        let overlap = self.shown.iter().find(|(other, start)| {
            let length = self.resources.get(other).copied().unwrap_or(0);
            **start < offset + size && offset < **start + length
        });
        let overlap = overlap.map(|(other, _)| *other);
        if let Some(other) = overlap {
            self.wrong(format!("resource {resource} is mapped over {other}"));
        }
        self.shown.insert(resource, offset);
    }

    fn access(&mut self, job: u64, resource: u32, offset: u64, length: u64) {
        let end = offset.checked_add(length);
        let Some(state) = self.jobs.get_mut(&job) else {
            return self.wrong(format!("job {job} touches memory, but does not exist"));
        };
        let own = state.space.filter(|_| resource == 0);
        let (size, named) = match own {
            Some(space) => (self.spaces.size(space), true),
            None => (
                self.resources.get(&resource).copied(),
                state.resources.contains(&resource),
            ),
        };
        let inside = size.is_some_and(|size| end.is_some_and(|end| end <= size));
        state.must_fail |= !inside || !named;
    }

    /// A job begins operation `at`, and `lack` is missing for an access.
    fn lack(&mut self, id: u64, at: u64, lack: Option<Lack>) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        let earlier = job.lacks.iter().any(|lack| lack.at != at);
        job.lacks.retain(|lack| lack.at == at);
        job.lacks.extend(lack);
        self.expect(!earlier, || {
            format!("job {id} goes on after it touched what is not mapped")
        });
    }

    /// No job may be left for which `touches` holds.
    fn no_job(&mut self, what: &str, touches: impl Fn(u64, &Job) -> bool) {
        let left: Vec<u64> = self
            .jobs
            .iter()
            .filter(|(id, job)| touches(**id, job))
            .map(|(id, _)| *id)
            .collect();
        for job in left {
            self.wrong(format!("job {job} can touch what is {what}"));
        }
    }

    fn counts(&mut self, resources: u64, contexts: u64) {
        let have = (self.resources.len() as u64, self.contexts.len() as u64);
        self.expect(have == (resources, contexts), || {
            format!("the device has {resources} resources and {contexts} contexts, not {have:?}")
        });
    }
}
