//! Carrying out tasks one after another, as KubeKey does.

use std::time::Duration;

use super::{
    Playbook, Selection, Settings, Task,
    error::Findings,
    prepare::{Absent, Prepared},
};
use crate::{
    ops::{Ending, Images, Request},
    template::Value,
};

/// How a transfer, a task, or one item of its loop has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskOutcome {
    /// Everything that was wanted is at the target.
    Success,
    /// There was nothing to do, and why.
    Skip(String),
    /// Why something is not at the target.
    Failed(String),
}

impl From<Ending> for TaskOutcome {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::Done => Self::Success,
            Ending::Nothing => Self::Skip("nothing matched".into()),
            Ending::SomeFailed => Self::Failed("not all images could be transferred".into()),
        }
    }
}

/// What became of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskStatus {
    /// It has ended like this.
    Ended(TaskOutcome),
    /// It has failed, and the run went on because of its `ignore_errors`.
    Ignored(String),
    /// A task before it has failed.
    NotRun,
    /// It has none of the tags that were asked for, or one of those that were to be left out.
    NotSelected,
}

impl TaskStatus {
    /// One word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ended(outcome) => outcome.name(),
            Self::Ignored(_) => "ignored",
            Self::NotRun => "not run",
            Self::NotSelected => "not selected",
        }
    }

    /// What there is to say about it.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Ended(outcome) => outcome.reason(),
            Self::Ignored(reason) => Some(reason),
            Self::NotRun | Self::NotSelected => None,
        }
    }
}

impl TaskOutcome {
    /// KubeKey's word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Skip(_) => "skip",
            Self::Failed(_) => "failed",
        }
    }

    /// What there is to say about it.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Success => None,
            Self::Skip(reason) | Self::Failed(reason) => Some(reason),
        }
    }

    /// How the whole has ended whose parts have ended as `self` and `other`.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Failed(reason), _) | (_, Self::Failed(reason)) => Self::Failed(reason),
            (Self::Success, _) | (_, Self::Success) => Self::Success,
            (first, Self::Skip(_)) => first,
        }
    }

    /// What `register` keeps: KubeKey's `stdout` and `stderr`, and `status`.
    fn value(&self) -> Value {
        let text = |text: &str| Value::from(serde_json::Value::from(text));
        [("status", self.name()), ("stdout", self.name()), ("stderr", self.reason().unwrap_or(""))]
            .into_iter()
            .map(|(key, value)| (key.to_owned(), text(value)))
            .collect()
    }
}

/// Does what tasks ask for, and tells of it.
pub trait Runner {
    /// Carries out one transfer.
    fn carry_out(&mut self, task: &Task, request: &Request) -> TaskOutcome;
    /// Is told what happens.
    fn tell(&mut self, task: &Task, event: RunEvent<'_>);
    /// Waits before a task is repeated.
    fn wait(&mut self, delay: Duration);
}

/// Something that happens while tasks are carried out.
#[derive(Clone, Copy, Debug)]
pub enum RunEvent<'a> {
    /// The task starts.
    Started,
    /// It goes on with this item of its loop.
    Item(&'a str),
    /// It is repeated.
    Repeated {
        /// Which repetition this is, from 1.
        retry: u32,
        /// Why it is.
        reason: &'a str,
    },
    /// This item of its loop has ended.
    ItemEnded(&'a str, &'a TaskOutcome),
    /// It has ended, or will not be carried out.
    Ended(&'a TaskStatus),
}

/// What became of the tasks of a file, each in its place.
pub type RunReport = Vec<TaskStatus>;

impl Playbook {
    /// Carries out the tasks in their order, up to the first that fails and does not say
    /// `ignore_errors`. [`Playbook::check`] comes first.
    pub fn run(
        &self,
        settings: &Settings,
        selection: &Selection,
        runner: &mut dyn Runner,
    ) -> RunReport {
        let mut report = RunReport::new();
        let mut registered = Value::map();
        let mut stopped = false;
        let mut absent = Absent::default();
        for task in &self.tasks {
            let status = if !selection.takes(task) {
                TaskStatus::NotSelected
            } else if stopped {
                TaskStatus::NotRun
            } else {
                runner.tell(task, RunEvent::Started);
                let (outcome, items) = match task.skipped {
                    Some(module) => {
                        absent.skip(task, settings);
                        let reason = format!("imgfs has no module `{module}`");
                        (TaskOutcome::Skip(reason), Vec::new())
                    }
                    None => task.run(settings, &registered, &absent, runner),
                };
                if let Some(name) = &task.register {
                    absent.set(name);
                    let mut value = outcome.value();
                    if task.items.is_some() {
                        let results = items.iter().map(TaskOutcome::value).collect();
                        value.merge([("results".to_owned(), results)].into_iter().collect());
                    }
                    registered.merge([(name.clone(), value)].into_iter().collect());
                }
                match outcome {
                    TaskOutcome::Failed(reason) if task.ignore_errors => {
                        TaskStatus::Ignored(reason)
                    }
                    outcome => {
                        stopped = matches!(outcome, TaskOutcome::Failed(_));
                        TaskStatus::Ended(outcome)
                    }
                }
            };
            runner.tell(task, RunEvent::Ended(&status));
            report.push(status);
        }
        report
    }
}

impl Task {
    /// How it has ended, and how each item of its loop has.
    fn run(
        &self,
        settings: &Settings,
        registered: &Value,
        absent: &Absent,
        runner: &mut dyn Runner,
    ) -> (TaskOutcome, Vec<TaskOutcome>) {
        let mut findings = Findings::default();
        let prepared = self.prepare(settings, registered, absent, &mut findings);
        let iterations = match prepared {
            Some(Prepared::Ready(iterations)) => iterations,
            Some(Prepared::Skip(reason)) => return (TaskOutcome::Skip(reason), Vec::new()),
            Some(Prepared::Later) | None => {
                let reasons: Vec<_> = findings.errors.iter().map(ToString::to_string).collect();
                return (TaskOutcome::Failed(reasons.join("\n")), Vec::new());
            }
        };
        let mut items = Vec::with_capacity(iterations.len());
        for iteration in &iterations {
            if let Some(item) = &iteration.item {
                runner.tell(self, RunEvent::Item(item));
            }
            let outcome = match &iteration.requests {
                Ok(requests) => self.carry_out(requests, runner),
                Err(reason) => TaskOutcome::Skip(reason.clone()),
            };
            if let Some(item) = &iteration.item {
                runner.tell(self, RunEvent::ItemEnded(item, &outcome));
            }
            items.push(outcome);
        }
        let whole = items.iter().cloned().reduce(TaskOutcome::and);
        (whole.unwrap_or_else(|| TaskOutcome::Skip("there is nothing to do".to_owned())), items)
    }

    /// Carries out the transfers one after another, up to the first that fails; and repeats that
    /// one as often as the task says.
    fn carry_out(&self, requests: &[Request], runner: &mut dyn Runner) -> TaskOutcome {
        let mut whole: Option<TaskOutcome> = None;
        for request in requests {
            let mut retry = 0;
            let outcome = loop {
                let outcome = match &request.images {
                    Images::Listed(images) if images.is_empty() => {
                        TaskOutcome::Skip("the list of images is empty".to_owned())
                    }
                    _ => runner.carry_out(self, request),
                };
                match &outcome {
                    TaskOutcome::Failed(reason) if retry < self.retries => {
                        retry += 1;
                        runner.tell(self, RunEvent::Repeated { retry, reason });
                        runner.wait(self.delay);
                    }
                    _ => break outcome,
                }
            };
            let failed = matches!(outcome, TaskOutcome::Failed(_));
            whole = Some(match whole {
                Some(before) => before.and(outcome),
                None => outcome,
            });
            if failed {
                break;
            }
        }
        whole.unwrap_or_else(|| TaskOutcome::Skip("there is nothing to do".to_owned()))
    }
}
