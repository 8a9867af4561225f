//! Files of tasks: reading, evaluating and a run in which every transfer fails.
#![no_main]

use std::time::Duration;

use imgfs::{
    ops::{Request, TreeSpec, bare_name},
    task::{Playbook, RunEvent, Runner, Selection, Settings, Task, TaskOutcome},
};

struct Failing;

impl Runner for Failing {
    fn carry_out(&mut self, _: &Task, request: &Request) -> TaskOutcome {
        if let TreeSpec::Registry { .. } = request.from {
            assert_eq!(request.from.to_string().parse::<TreeSpec>().as_ref(), Ok(&request.from));
        }
        TaskOutcome::Failed(format!("{request:?}"))
    }

    fn tell(&mut self, _: &Task, _: RunEvent<'_>) {}

    fn wait(&mut self, _: Duration) {}
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = (text.parse::<TreeSpec>(), bare_name(text));
    let Ok(playbook) = Playbook::parse(text, None) else { return };
    let settings = Settings { images_dir: TreeSpec::Directory("images".into()), ..Settings::default() };
    if playbook.check(&settings, &Selection::default()).is_ok() {
        let report = playbook.run(&settings, &Selection::default(), &mut Failing);
        assert_eq!(report.len(), playbook.tasks.len());
    }
});
