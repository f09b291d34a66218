// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Checks an event log against the rules that a well-behaved device and driver keep.

mod ranges;
mod spaces;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::{self, BufRead};

use crate::event_log::{Event, Line};
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

/// A request that has not been answered.
struct Open {
    cmd: String,
    fence: Option<u64>,
    timeline: Timeline,
    takes: Option<Takes>,
    /// What it takes away is gone.
    done: bool,
    /// The adversary answers it before these jobs are over.
    early: Option<BTreeSet<u64>>,
}

/// What a request takes away from jobs.
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
            Self::Resource(id) | Self::Backing(id) => job.resources.contains(&id),
            Self::Attachment(ctx, id) => job.ctx == ctx && job.resources.contains(&id),
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
    /// The request that is answered when it is over.
    req: u64,
    ctx: u32,
    resources: BTreeSet<u32>,
    /// It touched what it may not.
    must_fail: bool,
    /// Nobody waits for it.
    abandoned: bool,
    /// What was missing when its current operation began.
    lacks: Vec<Lack>,
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
    /// Fenced jobs in the order in which they must be answered.
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
        self.event(line.event);
    }

    fn event(&mut self, event: Event) {
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
                self.no_job("gone", |_, job| job.resources.contains(&resource));
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
                        job.ctx == ctx && job.resources.contains(&resource) && !job.abandoned
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
                let lack = self.spaces.access(at, resource, offset, length, write);
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
            | Event::Reply { .. }
            | Event::CommandDropped { .. }
            | Event::Space { .. }
            | Event::SpaceGone { .. }
            | Event::Mapped { .. }
            | Event::Unmapped { .. }
            | Event::Hammer { .. }
            | Event::Told { .. } => {}
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

    /// The adversary answers `req` too early on purpose. That excuses the answer and nothing else: what
    /// the request takes away stays until no job can touch it.
    fn early(&mut self, req: u64, jobs: Vec<u64>) {
        let on_purpose = self.adversary;
        self.expect(on_purpose, || format!("request {req} is answered early"));
        let Some(request) = self.requests.get_mut(&req) else {
            return self.wrong(format!("request {req} is answered early, but not open"));
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

    /// A request that takes this away may be answered.
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
        self.expect(open, || "an answer while the queue is closed".into());
        let Some(request) = self.requests.remove(&req) else {
            return self.wrong(format!("request {req} is answered, but not open"));
        };
        let early = request.early.as_ref();
        let on_purpose = early.is_none() || has_mode(adversary, "early");
        self.expect(on_purpose, || {
            format!("request {req} is answered early, but not on purpose")
        });
        if fence.is_some() {
            self.no_job("answered", |id, job| {
                job.req == req && !early.is_some_and(|jobs| jobs.contains(&id))
            });
        }
        // What is ignored is not answered either.
        let done = request.takes.is_none() || request.done || has_mode(adversary, "ignore");
        self.expect(!good || done || early.is_some(), || {
            format!("request {req} is answered, but what it takes away is there")
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
        let size = self.resources.get(&resource).copied();
        let inside = size.is_some_and(|size| end.is_some_and(|end| end <= size));
        match self.jobs.get_mut(&job) {
            None => self.wrong(format!("job {job} touches memory, but does not exist")),
            Some(job) => job.must_fail |= !inside || !job.resources.contains(&resource),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Violations in a log of these events, without `seq` and `t`.
    fn violations(events: &[&str]) -> Vec<u64> {
        let lines = events.iter().enumerate().map(|(seq, event)| {
            let (name, rest) = event.split_once(' ').unwrap_or((event, ""));
            let comma = if rest.is_empty() { "" } else { "," };
            format!("{{\"seq\":{seq},\"t\":0,\"event\":\"{name}\"{comma}{rest}}}\n")
        });
        let text: String = lines.collect();
        let report = check(text.as_bytes()).unwrap();
        report.violations.iter().map(|(line, _)| *line).collect()
    }

    const OPEN: &str = r#"open "generation":1"#;
    const CREATE: &str = r#"create "resource":1,"kind":"guest","bytes":4096,"entries":1,"segments":1,"low":0,"high":0"#;
    const CONTEXT: &str = r#"ctx_create "ctx":1,"capset":29,"name":"""#;
    const ATTACH: &str = r#"attach "ctx":1,"resource":1"#;
    const JOB: &str = r#"job "job":1,"req":0,"ctx":1,"ring":null,"ops":1,"resources":[1]"#;
    const ACCESS: &str =
        r#"access "job":1,"op":"FILL","resource":1,"offset":0,"length":8,"write":true"#;
    const JOB_END: &str = r#"job_end "job":1,"result":"ok""#;
    const UNREF: &str = r#"unref "resource":1"#;

    fn submit(req: u64, fence: u64) -> String {
        format!(r#"request "req":{req},"cmd":"SUBMIT_3D","ctx":1,"fence":{fence},"bytes":1"#)
    }

    fn answer(req: u64, fence: u64) -> String {
        format!(
            r#"response "req":{req},"cmd":"SUBMIT_3D","kind":"OK_NODATA","fence":{fence},"used":24"#
        )
    }

    #[test]
    fn a_good_life() {
        let end = r#"end "resources":0,"contexts":1,"commands":1"#;
        let (submit, answer) = (submit(0, 1), answer(0, 1));
        let events = [
            OPEN, CREATE, CONTEXT, ATTACH, &submit, JOB, ACCESS, JOB_END, &answer, UNREF, end,
        ];
        assert_eq!(violations(&events), [0u64; 0]);
    }

    #[test]
    fn access_after_unref() {
        let before = [OPEN, CREATE, CONTEXT, ATTACH, JOB];
        assert_eq!(violations(&[&before[..], &[UNREF]].concat()), [6]);
        assert_eq!(
            violations(&[&before[..], &[JOB_END, UNREF, ACCESS]].concat()),
            [8]
        );
        let destroy = r#"ctx_destroy "ctx":1"#;
        assert_eq!(violations(&[&before[..], &[destroy]].concat()), [6]);
        let detach = r#"detach "ctx":1,"resource":1"#;
        assert_eq!(violations(&[&before[..], &[detach]].concat()), [6]);
        let reset = r#"reset "resources":1,"contexts":1"#;
        assert_eq!(violations(&[&before[..], &[reset, ACCESS]].concat()), [7]);
    }

    #[test]
    fn access_outside() {
        let outside = ACCESS.replace("\"offset\":0", "\"offset\":4090");
        let before = [OPEN, CREATE, CONTEXT, ATTACH, JOB, &outside];
        assert_eq!(violations(&[&before[..], &[JOB_END]].concat()), [7]);
        let failed = JOB_END.replace("ok", "fault");
        assert_eq!(violations(&[&before[..], &[&failed]].concat()), [0u64; 0]);
    }

    #[test]
    fn answer_before_the_job_is_over() {
        let (submit, answer) = (submit(0, 1), answer(0, 1));
        let events = [
            OPEN, CREATE, CONTEXT, ATTACH, &submit, JOB, &answer, JOB_END,
        ];
        assert_eq!(violations(&events), [7]);
    }

    #[test]
    fn answers_that_are_early_on_purpose() {
        const START: &str = r#"start "options":"--adversary early""#;
        const EARLY: &str = r#"early "req":0,"jobs":[1]"#;
        let twisted = |answer: &str, mode: &str| {
            answer.replace("\"used\":", &format!("\"adversary\":\"{mode}\",\"used\":"))
        };
        let (submit, right) = (submit(0, 1), answer(0, 1));
        let early = twisted(&right, "early");
        let before = [START, OPEN, CREATE, CONTEXT, ATTACH, &submit, JOB];
        let run = |more: &[&str]| violations(&[&before[..], more].concat());
        assert_eq!(run(&[EARLY, &early, ACCESS, JOB_END]), [0u64; 0]);
        // Only if it is said, of this job, and done by this mode.
        assert_eq!(run(&[&early, JOB_END]), [8]);
        assert_eq!(run(&[&twisted(&right, "delay"), JOB_END]), [8]);
        assert_eq!(run(&[EARLY, &right, JOB_END]), [9]);
        assert_eq!(run(&[EARLY, &twisted(&right, "delay"), JOB_END]), [9]);
        let other = EARLY.replace("[1]", "[2]");
        assert_eq!(run(&[&other, &early, JOB_END]), [8, 9]);
        assert_eq!(run(&[JOB_END, EARLY, &early]), [9]);
        assert_eq!(run(&[JOB_END, &right, EARLY]), [10]);
        let honest = r#"start "options":"""#;
        let mut honestly = before;
        honestly[0] = honest;
        let all = [&honestly[..], &[EARLY, &early, JOB_END]].concat();
        assert_eq!(violations(&all), [8]);
        // It excuses nothing else: what is taken away meanwhile, and what is touched later.
        let unref = r#"request "req":1,"cmd":"RESOURCE_UNREF","ctx":0,"resource":1,"bytes":32"#;
        let unreffed = answer(1, 0)
            .replace("SUBMIT_3D", "RESOURCE_UNREF")
            .replace("\"fence\":0,", "");
        let gone = [EARLY, &early, unref, UNREF, &unreffed, JOB_END];
        assert_eq!(run(&gone), [11]);
        assert_eq!(
            run(&[EARLY, &early, unref, JOB_END, UNREF, &unreffed]),
            [0u64; 0]
        );
        // What takes away is early, too: not before it is said, and the resource stays.
        let second = r#"early "req":1,"jobs":[1]"#;
        let too_soon = twisted(&unreffed, "early");
        let start = [EARLY, &early, unref];
        let more = |more: &[&str]| run(&[&start[..], more].concat());
        assert_eq!(more(&[second, &too_soon, JOB_END, UNREF]), [0u64; 0]);
        assert_eq!(more(&[&too_soon, JOB_END, UNREF]), [11]);
        assert_eq!(more(&[&unreffed, JOB_END, UNREF]), [11]);
        assert_eq!(more(&[second, &too_soon, UNREF, JOB_END]), [13]);
        assert_eq!(more(&[&twisted(&unreffed, "ignore"), JOB_END]), [0u64; 0]);
    }

    #[test]
    fn answers() {
        let (first, second) = (submit(0, 1), submit(1, 2));
        let before = [OPEN, &first, &second];
        let (one, two) = (answer(0, 1), answer(1, 2));
        assert_eq!(
            violations(&[&before[..], &[&one, &two]].concat()),
            [0u64; 0]
        );
        assert_eq!(violations(&[&before[..], &[&two, &one]].concat()), [4]);
        assert_eq!(violations(&[&before[..], &[&one, &one]].concat()), [5]);
        assert_eq!(violations(&[&before[..], &[&answer(0, 2)]].concat()), [4]);
        let reset = r#"reset "resources":0,"contexts":0"#;
        assert_eq!(violations(&[&before[..], &[reset, &one]].concat()), [5, 5]);
    }

    #[test]
    fn ids() {
        assert_eq!(violations(&[OPEN, CREATE, CREATE]), [3]);
        assert_eq!(violations(&[OPEN, CREATE, UNREF, UNREF]), [4]);
        assert_eq!(violations(&[OPEN, CONTEXT, CONTEXT]), [3]);
        assert_eq!(violations(&[OPEN, CONTEXT, ATTACH]), [3]);
        assert_eq!(
            violations(&[
                OPEN,
                CREATE,
                r#"end "resources":0,"contexts":0,"commands":0"#
            ]),
            [3]
        );
        assert_eq!(violations(&["nonsense"]), [1]);
    }

    const MIRROR: &str = r#"mirror_open "generation":1"#;
    const MIRRORED: &str = r#"create "resource":1,"kind":"mirrored","bytes":16384,"entries":0,"segments":0,"low":0,"high":0"#;
    const SPACE: &str = r#"space "space":1,"resource":1,"bytes":16384,"access":3"#;
    const GONE: &str = r#"space_gone "space":1,"why":"destroyed""#;
    const UNMAPPED: &str = r#"unmapped "space":1,"start":0,"length":8192"#;

    fn command(cmd: u64, kind: &str, rest: &str) -> String {
        format!(r#"command "cmd":{cmd},"kind":"{kind}","space":1,{rest}"bytes":0"#)
    }

    fn reply(cmd: u64, status: &str) -> String {
        format!(r#"reply "cmd":{cmd},"status":{status},"used":0"#)
    }

    fn mapped(runs: &str) -> String {
        let what = r#""space":1,"start":0,"length":8192,"entries":1,"pages":2"#;
        format!(r#"mapped {what},"asked":[[0,8192,1]],"runs":{runs}"#)
    }

    /// Up to a space in which two pages are mapped: 9 lines.
    fn with_pages() -> Vec<String> {
        let map = r#""start":0,"length":8192,"#;
        let lines = [OPEN, MIRROR, MIRRORED].map(String::from);
        let mut lines = Vec::from(lines);
        lines.push(command(0, "SPACE_CREATE", ""));
        lines.push(SPACE.into());
        lines.push(reply(0, "0"));
        lines.push(command(1, "MAP", map));
        lines.push(mapped("[[0,8192,1]]"));
        lines.push(reply(1, "0"));
        lines
    }

    fn after(lines: &[String], more: &[&str]) -> Vec<u64> {
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        violations(&[&all[..], more].concat())
    }

    #[test]
    fn spaces() {
        let invalidate = command(2, "INVALIDATE", r#""start":0,"last":4095,"#);
        let (done, next) = (reply(2, "null"), reply(3, "null"));
        let destroy = command(3, "SPACE_DESTROY", "");
        let all: [&str; 8] = [
            &invalidate,
            r#"unmapped "space":1,"start":0,"length":4096"#,
            &done,
            &destroy,
            UNMAPPED,
            GONE,
            &next,
            UNREF,
        ];
        let lines = with_pages();
        assert_eq!(after(&lines, &all), [0u64; 0]);
        let without = |index: usize| {
            let mut some = all.to_vec();
            some.remove(index);
            after(&lines, &some)
        };
        // Acknowledged, but still mapped.
        assert_eq!(without(1), [11]);
        // Not done, and not said to be; but then, others overtake it.
        let ignored = done.replace("\"used\":", "\"adversary\":\"body+ignore\",\"used\":");
        let mut some = all.to_vec();
        some[2] = &ignored;
        some.remove(1);
        assert_eq!(after(&lines, &some), [15]);
        // Gone with something in it; and then it is destroyed.
        assert_eq!(without(4), [14, 15]);
        // Not gone: it outlives both, its command and its resource.
        assert_eq!(without(5), [15, 16]);
        // Given back without having been taken, and destroyed by nobody.
        assert_eq!(without(0), [11]);
        // In another order.
        let swapped = [all[0], all[3], all[1], all[4], all[5], all[6], all[2]];
        assert_eq!(after(&lines, &swapped), [15]);
        // An event after the end, and one before.
        let told = r#"told "kind":2,"space":1"#;
        assert_eq!(after(&lines, &[told]), [0u64; 0]);
        assert_eq!(after(&lines, &[&all[..], &[told]].concat()), [18]);
        // Left over.
        let reset = r#"reset "resources":1,"contexts":0"#;
        assert_eq!(after(&lines, &[reset]), [10, 10]);
        assert_eq!(after(&lines, &["mirror_close"]), [10, 10]);
        // A process that ends takes its mappings along.
        let end = r#"end "resources":1,"contexts":0,"commands":1"#;
        assert_eq!(after(&lines, &[end]), [0u64; 0]);
        let detach = r#"detach "ctx":1,"resource":1"#;
        assert_eq!(after(&lines, &[CONTEXT, ATTACH, detach]), [12]);
    }

    #[test]
    fn mappings() {
        let with = |runs: &str, status: &str| {
            let mut lines = with_pages();
            lines[7] = mapped(runs);
            lines[8] = reply(1, status);
            after(&lines, &[])
        };
        assert_eq!(with("[[0,4096,1],[4096,4096,1]]", "0"), [0u64; 0]);
        assert_eq!(with("[[0,4096,1]]", "0"), [9]);
        assert_eq!(with("[[0,8192,3]]", "0"), [8]);
        assert_eq!(with("[[0,8192,1]]", "3"), [9]);
        assert_eq!(with("[[4096,8192,1]]", "0"), [8, 8]);
        let lines = with_pages();
        // Nobody asked, in a space that is gone.
        assert_eq!(after(&lines[..5], &[&lines[7]]), [6]);
        assert_eq!(after(&lines[..2], &[&lines[7]]), [3, 3]);
        let hammer = r#"hammer "space":1,"start":0,"length":4096,"on":true"#;
        let invalidate = command(2, "INVALIDATE", r#""start":0,"last":8191,"#);
        let done = reply(2, "null");
        let more = [hammer, &invalidate, UNMAPPED, &done];
        assert_eq!(after(&lines, &more), [13]);
    }

    #[test]
    fn accesses_to_spaces() {
        let access = |at: u64, offset: u64, write: bool| {
            ACCESS
                .replace("\"offset\":0", &format!("\"offset\":{offset}"))
                .replace(
                    "\"write\":true",
                    &format!("\"write\":{write},\"at\":{at},\"whole\":true"),
                )
        };
        let run = |more: &[&str]| after(&with_pages(), &[&[CONTEXT, ATTACH, JOB], more].concat());
        let (read, write) = (access(0, 0, false), access(0, 0, true));
        let hole = access(0, 8188, false);
        let failed = JOB_END.replace("ok", "fault");
        assert_eq!(run(&[&read, JOB_END]), [0u64; 0]);
        assert_eq!(run(&[&write, JOB_END]), [14]);
        assert_eq!(run(&[&write, &failed]), [0u64; 0]);
        assert_eq!(run(&[&hole, JOB_END]), [14]);
        assert_eq!(run(&[&hole, &failed]), [0u64; 0]);
        // Taken away before, and while it runs.
        assert_eq!(run(&[UNMAPPED, &read, JOB_END]), [15]);
        assert_eq!(run(&[&read, UNMAPPED, JOB_END]), [0u64; 0]);
        // Mapped while it runs.
        let map = command(2, "MAP", r#""start":0,"length":8192,"#);
        let again = mapped("[[0,8192,1]]");
        let more = [UNMAPPED, &read, &map, &again, JOB_END];
        assert_eq!(run(&more), [0u64; 0]);
        // It goes on.
        let next = access(1, 0, false);
        assert_eq!(run(&[&hole, &next, &failed]), [14]);
    }

    #[test]
    fn maps() {
        let map =
            |resource: u32, offset: u64| format!(r#"map "resource":{resource},"offset":{offset}"#);
        let other = CREATE.replace("\"resource\":1", "\"resource\":2");
        let before = [OPEN, CREATE, &other];
        let (a, b, c) = (map(1, 0), map(2, 4096), map(2, 4095));
        assert_eq!(violations(&[&before[..], &[&a, &b]].concat()), [0u64; 0]);
        assert_eq!(violations(&[&before[..], &[&a, &c]].concat()), [5]);
    }
}
