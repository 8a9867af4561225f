//! What is carried out, in which order, and what comes of it.

use std::time::Duration;

use serde_json::json;

use super::{settings, show};
use crate::{
    ops::Request,
    task::{Playbook, RunEvent, Runner, Selection, Task, TaskOutcome},
};

/// Ends transfers as a table says, by the first image or the target, and writes down what happens.
#[derive(Default)]
struct Script {
    outcomes: Vec<(&'static str, Vec<TaskOutcome>)>,
    log: Vec<String>,
}

impl Runner for Script {
    fn carry_out(&mut self, _: &Task, request: &Request) -> TaskOutcome {
        let shown = show(request);
        let outcomes = self.outcomes.iter_mut().find(|(part, _)| shown.contains(part));
        let outcome = outcomes
            .filter(|(_, outcomes)| !outcomes.is_empty())
            .map(|(_, outcomes)| outcomes.remove(0));
        let outcome = outcome.unwrap_or(TaskOutcome::Success);
        self.log.push(format!("  {shown}: {}", outcome.name()));
        outcome
    }

    fn tell(&mut self, task: &Task, event: RunEvent<'_>) {
        self.log.push(match event {
            RunEvent::Started => format!("TASK [{}]", task.name),
            RunEvent::Item(item) => format!(" item {item}"),
            RunEvent::ItemEnded(item, outcome) => format!(" item {item}: {}", outcome.name()),
            RunEvent::Repeated { retry, reason } => format!("  again {retry}: {reason}"),
            RunEvent::Ended(status) => match status.reason() {
                Some(reason) => format!("{}: {}: {reason}", task.name, status.name()),
                None => format!("{}: {}", task.name, status.name()),
            },
        });
    }

    fn wait(&mut self, delay: Duration) {
        self.log.push(format!("  wait {}", delay.as_secs()));
    }
}

fn failed(reason: &str) -> TaskOutcome {
    TaskOutcome::Failed(reason.into())
}

#[track_caller]
fn runs(text: &str, outcomes: Vec<(&'static str, Vec<TaskOutcome>)>, log: &[&str]) {
    let playbook = Playbook::parse(text, None).unwrap();
    let settings = settings(json!({}));
    let selection = Selection::default();
    playbook.check(&settings, &selection).unwrap();
    let mut script = Script { outcomes, ..Script::default() };
    let report = playbook.run(&settings, &selection, &mut script);
    assert_eq!(report.len(), playbook.tasks.len());
    assert_eq!(script.log, log);
}

#[test]
fn a_failed_task_ends_the_run() {
    let text = "
- {name: a, pull: [a]}
- {name: b, pull: [b], ignore_errors: true}
- {name: c, pull: [c], retries: 2, delay: 7}
- {name: d, pull: [d]}
- {name: e, pull: [e]}
";
    runs(
        text,
        vec![
            ("[b]", vec![failed("no b")]),
            ("[c]", vec![failed("no c"), TaskOutcome::Success]),
            ("[d]", vec![failed("no d")]),
        ],
        &[
            "TASK [a]",
            "  registry:// -> default-dir [a]: success",
            "a: success",
            "TASK [b]",
            "  registry:// -> default-dir [b]: failed",
            "b: ignored: no b",
            "TASK [c]",
            "  registry:// -> default-dir [c]: failed",
            "  again 1: no c",
            "  wait 7",
            "  registry:// -> default-dir [c]: success",
            "c: success",
            "TASK [d]",
            "  registry:// -> default-dir [d]: failed",
            "d: failed: no d",
            "e: not run",
        ],
    );
}

#[test]
fn skips_have_their_reason() {
    let text = "
- {name: a, pull: {manifests: []}}
- {name: b, pull: [b], when: .nothing}
- {name: c, pull: [c], loop: []}
- {name: d, push: {dest: 'oci://d.io'}}
- name: e
  image: {push: {dest: 'oci://e.io'}, pull: {manifests: []}}
";
    let nothing = || vec![TaskOutcome::Skip("no image matches".into())];
    runs(
        text,
        vec![("d.io", nothing())],
        &[
            "TASK [a]",
            "a: skip: the list of images is empty",
            "TASK [b]",
            "b: skip: `.nothing` (line 3) is not true",
            "TASK [c]",
            "c: skip: the loop has no items",
            "TASK [d]",
            "  default-dir -> registry://d.io all: skip",
            "d: skip: no image matches",
            "TASK [e]",
            "  default-dir -> registry://e.io all: success",
            "e: success",
        ],
    );
}

#[test]
fn results_are_registered() {
    let text = "
- {name: a, pull: [a], register: first, ignore_errors: true}
- {name: b, pull: [b], when: .first.status | eq \"failed\", register: second}
- {name: c, pull: [c], when: '{{ eq .first.stdout \"success\" }}'}
- {name: d, pull: ['{{ .first.stderr }}'], loop: [1, 2], register: third}
- {name: e, pull: ['{{ .x }}'], vars: {y: z, x: '{{ (index .third.results 1).status }}-{{ .y }}'}}
- {name: f, pull: ['{{ .second.stderr }}X']}
";
    runs(
        text,
        vec![("[a]", vec![failed("no-a")])],
        &[
            "TASK [a]",
            "  registry:// -> default-dir [a]: failed",
            "a: ignored: no-a",
            "TASK [b]",
            "  registry:// -> default-dir [b]: success",
            "b: success",
            "TASK [c]",
            "c: skip: `{{ eq .first.stdout \"success\" }}` (line 4) is not true",
            "TASK [d]",
            " item 1",
            "  registry:// -> default-dir [no-a]: success",
            " item 1: success",
            " item 2",
            "  registry:// -> default-dir [no-a]: success",
            " item 2: success",
            "d: success",
            "TASK [e]",
            "  registry:// -> default-dir [success-z]: success",
            "e: success",
            "TASK [f]",
            "f: failed: line 7, column 20: task `f`: pull: `X` is not an image reference: a repository is written in lower case",
        ],
    );
}

#[test]
fn tags_select() {
    let text = "
- {name: a, pull: [a], tags: x}
- {name: b, pull: [b], tags: [y, z]}
- {name: c, pull: [c]}
- {name: d, pull: [d], tags: always}
- {name: e, pull: [e], tags: [never, w]}
- {block: [{name: f, pull: [f], tags: u}], tags: 'x, v'}
";
    let playbook = Playbook::parse(text, None).unwrap();
    for (tags, skip_tags, expected) in [
        (&[][..], &[][..], "abcdf"),
        (&["x"], &[], "adf"),
        (&["z", "u"], &[], "bdf"),
        (&["w"], &[], "de"),
        (&["all"], &[], "abcdf"),
        (&["tagged"], &[], "abdef"),
        (&["untagged"], &[], "cd"),
        (&[], &["x"], "bcd"),
        (&["x"], &["v"], "ad"),
        (&[], &["always"], "abcf"),
        (&[], &["untagged"], "abf"),
        (&["nothing"], &["always"], ""),
    ] {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let selection = Selection { tags: words(tags), skip_tags: words(skip_tags) };
        let taken = playbook.tasks.iter().filter(|task| selection.takes(task));
        let names: String = taken.map(|task| task.name.as_str()).collect();
        assert_eq!(names, expected, "{tags:?} {skip_tags:?}");
    }
}

#[test]
fn a_loop_goes_on_after_a_failure() {
    runs(
        "- {name: a, pull: ['{{ .item }}'], loop: [x, y]}\n",
        vec![("[x]", vec![failed("no x")])],
        &[
            "TASK [a]",
            " item x",
            "  registry:// -> default-dir [x]: failed",
            " item x: failed",
            " item y",
            "  registry:// -> default-dir [y]: success",
            " item y: success",
            "a: failed: no x",
        ],
    );
}
