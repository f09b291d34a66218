// SPDX-License-Identifier: MIT OR GPL-2.0-only

//! Logs with and without violations.

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
const CREATE: &str =
    r#"create "resource":1,"kind":"guest","bytes":4096,"entries":1,"segments":1,"low":0,"high":0"#;
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

fn response(req: u64, fence: u64) -> String {
    format!(
        r#"response "req":{req},"cmd":"SUBMIT_3D","kind":"OK_NODATA","fence":{fence},"used":24"#
    )
}

#[test]
fn a_good_life() {
    let end = r#"end "resources":0,"contexts":1,"commands":1"#;
    let (submit, response) = (submit(0, 1), response(0, 1));
    let events = [
        OPEN, CREATE, CONTEXT, ATTACH, &submit, JOB, ACCESS, JOB_END, &response, UNREF, end,
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
fn response_before_the_job_is_over() {
    let (submit, response) = (submit(0, 1), response(0, 1));
    let events = [
        OPEN, CREATE, CONTEXT, ATTACH, &submit, JOB, &response, JOB_END,
    ];
    assert_eq!(violations(&events), [7]);
}

#[test]
fn responses_that_are_early_on_purpose() {
    const START: &str = r#"start "options":"--adversary early""#;
    const EARLY: &str = r#"early "req":0,"jobs":[1]"#;
    let twisted = |response: &str, mode: &str| {
        response.replace("\"used\":", &format!("\"adversary\":\"{mode}\",\"used\":"))
    };
    let (submit, right) = (submit(0, 1), response(0, 1));
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
    // It excuses nothing else: what ends meanwhile, and what is touched later.
    let unref = r#"request "req":1,"cmd":"RESOURCE_UNREF","ctx":0,"resource":1,"bytes":32"#;
    let unreffed = response(1, 0)
        .replace("SUBMIT_3D", "RESOURCE_UNREF")
        .replace("\"fence\":0,", "");
    let gone = [EARLY, &early, unref, UNREF, &unreffed, JOB_END];
    assert_eq!(run(&gone), [11]);
    assert_eq!(
        run(&[EARLY, &early, unref, JOB_END, UNREF, &unreffed]),
        [0u64; 0]
    );
    // What ends access is early, too: not before it is said, and the resource stays.
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
fn responses() {
    let (first, second) = (submit(0, 1), submit(1, 2));
    let before = [OPEN, &first, &second];
    let (one, two) = (response(0, 1), response(1, 2));
    assert_eq!(
        violations(&[&before[..], &[&one, &two]].concat()),
        [0u64; 0]
    );
    assert_eq!(violations(&[&before[..], &[&two, &one]].concat()), [4]);
    assert_eq!(violations(&[&before[..], &[&one, &one]].concat()), [5]);
    assert_eq!(violations(&[&before[..], &[&response(0, 2)]].concat()), [4]);
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

fn command_done(cmd: u64, status: &str) -> String {
    format!(r#"command_done "cmd":{cmd},"status":{status},"used":0"#)
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
    lines.push(command_done(0, "0"));
    lines.push(command(1, "MAP", map));
    lines.push(mapped("[[0,8192,1]]"));
    lines.push(command_done(1, "0"));
    lines
}

fn after(lines: &[String], more: &[&str]) -> Vec<u64> {
    let all: Vec<&str> = lines.iter().map(String::as_str).collect();
    violations(&[&all[..], more].concat())
}

#[test]
fn spaces() {
    let invalidate = command(2, "INVALIDATE", r#""start":0,"last":4095,"#);
    let (done, next) = (command_done(2, "null"), command_done(3, "null"));
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
    // Given back without having been taken, and destroyed by no one.
    assert_eq!(without(0), [11]);
    // In another order.
    let swapped = [all[0], all[3], all[1], all[4], all[5], all[6], all[2]];
    assert_eq!(after(&lines, &swapped), [15]);
    // A MAP after the end, of which the device says that there is no such space, and one beside it.
    let late = command(4, "MAP", r#""start":0,"length":8192,"#);
    let refused = command_done(4, "2");
    let late = [&late[..], &refused];
    assert_eq!(after(&lines, &[&all[..], &late].concat()), [18]);
    assert_eq!(
        after(&lines, &[&all[..4], &late[..1], &all[4..]].concat())[..1],
        [14]
    );
    // Which is no longer so when there is another space.
    let again = [
        &command(4, "SPACE_CREATE", "")[..],
        &SPACE.replace("\"resource\":1", "\"resource\":2"),
        &command_done(4, "0"),
    ];
    let other = MIRRORED.replace("\"resource\":1", "\"resource\":2");
    let map = command(5, "MAP", r#""start":0,"length":8192,"#);
    let more = [&[&other[..]][..], &again, &[&map]].concat();
    assert_eq!(after(&lines, &[&all[..], &more].concat()), [0u64; 0]);
    // An event after the end, and one before.
    let told = r#"event_sent "kind":1,"space":1"#;
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
        lines[8] = command_done(1, status);
        after(&lines, &[])
    };
    assert_eq!(with("[[0,4096,1],[4096,4096,1]]", "0"), [0u64; 0]);
    assert_eq!(with("[[0,4096,1]]", "0"), [9]);
    assert_eq!(with("[[0,8192,3]]", "0"), [8]);
    assert_eq!(with("[[0,8192,1]]", "3"), [9]);
    assert_eq!(with("[[4096,8192,1]]", "0"), [8, 8]);
    let lines = with_pages();
    // No one asked, in a space that is gone.
    assert_eq!(after(&lines[..5], &[&lines[7]]), [6]);
    assert_eq!(after(&lines[..2], &[&lines[7]]), [3, 3]);
    let hammer = r#"hammer "space":1,"start":0,"length":4096,"on":true"#;
    let invalidate = command(2, "INVALIDATE", r#""start":0,"last":8191,"#);
    let done = command_done(2, "null");
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
    // Gone before, and while it runs.
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

const TASK: &str = r#"space "space":1,"resource":0,"ctx":1,"bytes":65536,"access":7"#;
const FAULT: &str = r#"fault "job":1,"space":1,"fault":1,"access":2,"page":4096,"ring":0"#;
const RESOLVED: &str = r#"resolved "space":1,"fault":1,"status":0"#;
const DONE: &str = r#"ring_done "job":1,"space":1,"ring":0,"result":0"#;
const ACCEPTED_JOB: &str =
    r#"job "job":1,"req":0,"ctx":1,"ring":0,"ops":1,"resources":[],"space":1"#;

/// Up to a job of a context in fault mode that is accepted: 10 lines.
fn in_fault_mode() -> Vec<String> {
    let create = command(0, "SPACE_CREATE", "");
    let lines = [OPEN, CONTEXT, MIRROR, &create, TASK, &command_done(0, "0")];
    let mut lines = lines.map(String::from).to_vec();
    lines.extend([submit(0, 1), ACCEPTED_JOB.into(), response(0, 1)]);
    let access = ACCESS.replace(
        "\"resource\":1,\"offset\":0",
        "\"resource\":0,\"offset\":4096",
    );
    lines.push(access + ",\"whole\":true");
    lines
}

#[test]
fn faults() {
    let lines = in_fault_mode();
    let map = command(1, "MAP", r#""start":4096,"length":4096,"#);
    let page = r#"mapped "space":1,"start":4096,"length":4096,"entries":1,"pages":1,"asked":[[4096,4096,3]],"runs":[[4096,4096,3]]"#;
    let mapped = command_done(1, "0");
    let all = [FAULT, &map, page, &mapped, RESOLVED, JOB_END, DONE];
    assert_eq!(after(&lines, &all), [0u64; 0]);
    let run = |change: &dyn Fn(&mut Vec<String>)| {
        let mut some = all.map(String::from).to_vec();
        change(&mut some);
        let some: Vec<&str> = some.iter().map(String::as_str).collect();
        after(&lines, &some)
    };
    // Twice, or the same again, or a weaker one; a stronger one is another.
    assert_eq!(run(&|all| all.insert(1, FAULT.into())), [12, 12]);
    let other = |access: u32| {
        let id = FAULT.replace("\"fault\":1", "\"fault\":2");
        id.replace("\"access\":2", &format!("\"access\":{access}"))
    };
    assert_eq!(run(&|all| all.insert(1, other(1))), [12]);
    assert_eq!(run(&|all| all.insert(1, other(4))), [0u64; 0]);
    assert_eq!(run(&|all| all.insert(1, other(3))), [12]);
    // In the middle of a page, of no one, elsewhere.
    let page_of = |page: &str| FAULT.replace("\"page\":4096", page);
    assert_eq!(run(&|all| all[0] = page_of("\"page\":4097")), [11]);
    assert_eq!(run(&|all| all[0] = page_of("\"page\":65536")), [11]);
    let unknown = FAULT.replace("\"job\":1", "\"job\":2");
    assert_eq!(run(&|all| all[0] = unknown.clone()), [11]);
    // Resolved twice; not resolved, which a job that ends well has not waited for.
    assert_eq!(run(&|all| all.insert(5, RESOLVED.into())), [16]);
    // A driver resolves what an adversary has said there is.
    let told = |adversary| format!(r#"event_sent "kind":1,"space":1,"adversary":{adversary}"#);
    let invented = |adversary| run(&|all| _ = all.splice(5..5, [told(adversary), RESOLVED.into()]));
    assert_eq!((invented(true), invented(false)), (vec![], vec![17]));
    // It cannot be resolved, and yet the job goes on.
    let bad = RESOLVED.replace("\"status\":0", "\"status\":1");
    assert_eq!(run(&|all| all[4] = bad.clone()), [16]);
    let failed = JOB_END.replace("ok", "no access");
    let faulted = DONE.replace("\"result\":0", "\"result\":2");
    assert_eq!(
        run(&|all| {
            all[4] = bad.clone();
            all[5] = failed.clone();
            all[6] = faulted.clone();
        }),
        [0u64; 0]
    );
    // Nothing was mapped.
    assert_eq!(run(&|all| _ = all.drain(1..4)), [13]);
    // Told before the end, twice, wrongly, after the end of the space.
    assert_eq!(run(&|all| all.swap(5, 6)), [16]);
    assert_eq!(run(&|all| all.push(DONE.into())), [18]);
    assert_eq!(run(&|all| all[6] = faulted.clone()), [17]);
    let gone = r#"unmapped "space":1,"start":4096,"length":4096"#;
    assert_eq!(
        run(&|all| _ = all.splice(6..6, [gone, GONE].map(String::from))),
        [19, 19]
    );
    // Not coherent, and not alone.
    let alone = r#"alone "job":1,"space":1,"address":4104"#;
    assert_eq!(run(&|all| all.insert(5, alone.into())), [16]);
    assert_eq!(
        run(&|all| {
            all[2] = page.replace("4096,4096,3", "4096,4096,7");
            all.insert(5, alone.into());
        }),
        [0u64; 0]
    );
}

#[test]
fn jobs_in_fault_mode() {
    let lines = in_fault_mode();
    let second = ACCEPTED_JOB.replace("\"job\":1,\"req\":0", "\"job\":2,\"req\":1");
    let end = JOB_END.replace("\"job\":1", "\"job\":2");
    let done = DONE.replace("\"job\":1", "\"job\":2");
    let (request, accepted) = (submit(1, 2), response(1, 2));
    let failed = JOB_END.replace("ok", "cancelled");
    let cancelled = DONE.replace("\"result\":0", "\"result\":3");
    let order = [
        &*request, &second, &accepted, &failed, &cancelled, &end, &done,
    ];
    assert_eq!(after(&lines, &order), [0u64; 0]);
    // The second before the first on a ring.
    let wrong = [
        &*request, &second, &accepted, &failed, &end, &done, &cancelled,
    ];
    assert_eq!(after(&lines, &wrong), [16]);
    // Over before it is accepted.
    let late = [
        &*request, &second, &failed, &cancelled, &end, &done, &accepted,
    ];
    assert_eq!(after(&lines, &late), [16]);
    // An INVALIDATE takes its time while a fault is not resolved.
    let slow = |events: &[&str], seconds: u64| {
        let mut text = String::new();
        let lines = lines
            .iter()
            .map(String::as_str)
            .chain(events.iter().copied());
        for (seq, event) in lines.enumerate() {
            let (name, rest) = event.split_once(' ').unwrap();
            let t = if name == "command_done" {
                seconds * 1_000_000
            } else {
                0
            };
            let line = format!("{{\"seq\":{seq},\"t\":{t},\"event\":\"{name}\",{rest}}}\n");
            text.push_str(&line);
        }
        let report = check(text.as_bytes()).unwrap();
        report.violations.len()
    };
    let invalidate = command(1, "INVALIDATE", r#""start":0,"last":4095,"#);
    let command_done = command_done(1, "null");
    assert_eq!(slow(&[FAULT, &invalidate, &command_done], 1), 0);
    assert_eq!(slow(&[FAULT, &invalidate, &command_done], 6), 1);
    assert_eq!(slow(&[&invalidate, &command_done], 6), 0);
    assert_eq!(slow(&[FAULT, RESOLVED, &invalidate, &command_done], 6), 0);
}

#[test]
fn what_a_job_in_fault_mode_borrows() {
    let mut lines: Vec<String> = in_fault_mode();
    lines.pop();
    lines.insert(1, CREATE.into());
    lines.insert(3, ATTACH.into());
    lines[9] = lines[9].replace("\"resources\":[]", "\"resources\":[1]");
    // No one waits for it; but it must not succeed with what is gone.
    assert_eq!(after(&lines, &[ACCESS, UNREF, JOB_END, DONE]), [0u64; 0]);
    assert_eq!(after(&lines, &[UNREF, ACCESS, JOB_END, DONE]), [14]);
    let destroy = r#"ctx_destroy "ctx":1"#;
    assert_eq!(after(&lines, &[destroy]), [12]);
}
