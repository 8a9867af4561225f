//! A task into requests: conditions, loops and variables.

use std::collections::BTreeSet;

use super::{
    Playbook, Selection, Settings,
    convert::Converter,
    error::{Findings, TaskError},
    evaluate::{Broken, Scope, Trouble},
    playbook::Task,
};
use crate::{ops::Request, template::Value};

/// The most items that a loop may have; each is a transfer of its own.
const MAX_ITEMS: usize = 10_000;

/// What a task has to do, as far as that is known.
#[derive(Debug)]
pub(super) enum Prepared {
    /// Nothing, and why.
    Skip(String),
    /// This, for each item of its loop, or once.
    Ready(Vec<Iteration>),
    /// It depends on the result of a task that has not run yet.
    Later,
}

/// What a task has to do for one item.
#[derive(Debug)]
pub(super) struct Iteration {
    /// The item as it is shown.
    pub(super) item: Option<String>,
    /// The transfers, or why there are none.
    pub(super) requests: Result<Vec<Request>, String>,
}

/// Variables that have no value at the moment.
#[derive(Debug, Default)]
pub(super) struct Absent {
    /// Those that tasks still to come will set.
    pub(super) unknown: BTreeSet<String>,
    /// Those that skipped tasks would have set.
    pub(super) lost: Broken,
}

impl Absent {
    /// Goes past a task that is skipped: nothing can be made of what it would set.
    pub(super) fn skip(&mut self, task: &Task, settings: &Settings) {
        for name in task.sets.iter().filter(|name| settings.vars.get(name).is_none()) {
            let module = task.skipped.unwrap_or_default();
            let reason = format!(
                "`{name}` is set by the task `{}`, which is skipped as one for the module \
                 `{module}`; give it with --set {name}=VALUE or --vars FILE",
                task.name
            );
            self.lost.insert(vec![name.clone()], TaskError::file(reason));
        }
    }

    /// Goes past a task that sets this variable.
    pub(super) fn set(&mut self, name: &str) {
        self.lost.retain(|path, _| path.first().is_none_or(|first| first != name));
    }
}

/// Whether a task is to be carried out.
enum Verdict {
    Met,
    /// Not, and why.
    NotMet(String),
    NotKnownYet,
}

impl Playbook {
    /// Evaluates every value of the file that does not depend on the result of a task, so that a
    /// mistake in the last task is found before the first transfer. Gives what the user should know
    /// all the same.
    ///
    /// Arguments of a task whose condition is not met are not evaluated.
    pub fn check(
        &self,
        settings: &Settings,
        selection: &Selection,
    ) -> Result<Vec<TaskError>, Vec<TaskError>> {
        let mut findings = Findings::default();
        let mut absent = Absent::default();
        for task in self.tasks.iter().filter(|task| selection.takes(task)) {
            if task.skipped.is_some() {
                absent.skip(task, settings);
                continue;
            }
            task.prepare(settings, &Value::map(), &absent, &mut findings);
            if let Some(name) = &task.register {
                absent.set(name);
                absent.unknown.insert(name.clone());
            }
        }
        match findings.errors.is_empty() {
            true => Ok(findings.warnings),
            false => Err(findings.errors),
        }
    }
}

impl Task {
    /// What it has to do with the variables of the moment: `registered` are the results of earlier
    /// tasks. `None` where something is wrong.
    pub(super) fn prepare(
        &self,
        settings: &Settings,
        registered: &Value,
        absent: &Absent,
        findings: &mut Findings,
    ) -> Option<Prepared> {
        let before = (findings.errors.len(), findings.warnings.len());
        let prepared = self.evaluate(settings, registered, absent, findings);
        let (errors, warnings) = (&mut findings.errors, &mut findings.warnings);
        for found in errors[before.0..].iter_mut().chain(&mut warnings[before.1..]) {
            *found = found.clone().in_file(self.file.as_ref()).task(&self.name);
        }
        prepared.filter(|_| findings.errors.len() == before.0)
    }

    fn evaluate(
        &self,
        settings: &Settings,
        registered: &Value,
        absent: &Absent,
        findings: &mut Findings,
    ) -> Option<Prepared> {
        // What the command line and earlier tasks say is stronger than the file.
        let mut stronger = settings.vars.clone();
        stronger.merge(registered.clone());
        let mut scope = Scope {
            vars: stronger.clone(),
            unknown: absent.unknown.clone(),
            broken: absent.lost.clone(),
            dialect: self.dialect,
        };
        for vars in &self.outer_vars {
            scope.dialect = vars.dialect;
            if vars.lazy {
                scope.define_lazily(vars, &stronger);
                continue;
            }
            let defined = scope.define(&vars.node, &stronger);
            findings.take(defined.map_err(|error| error.in_file(vars.file.as_ref())))?;
        }
        scope.dialect = self.dialect;
        let mut first = scope.clone();
        if self.items.is_some() {
            first.unknown.insert("item".to_owned());
        }
        if let Some(vars) = &self.vars {
            findings.take(first.define(vars, &stronger))?;
        }
        // Conditions that depend on the item are decided for each.
        let mut later = false;
        match self.condition(&first, findings)? {
            Verdict::Met => {}
            Verdict::NotMet(reason) => return Some(Prepared::Skip(reason)),
            Verdict::NotKnownYet => later = self.items.is_none(),
        }
        let Some(node) = &self.items else {
            let requests = self.requests(&first, settings, findings, &mut later);
            let iteration = Iteration { item: None, requests: Ok(requests) };
            return Some(if later { Prepared::Later } else { Prepared::Ready(vec![iteration]) });
        };
        let items = match first.items(node) {
            Ok(items) if items.is_empty() => {
                return Some(Prepared::Skip("the loop has no items".to_owned()));
            }
            Ok(items) if items.len() > MAX_ITEMS => {
                let reason = format!("gives more than {MAX_ITEMS} items");
                findings.error(TaskError::at(node.at, reason).key("loop"));
                return None;
            }
            Ok(items) => items,
            Err(Trouble::Wrong(error)) => {
                findings.error(error.key("loop"));
                return None;
            }
            Err(Trouble::NotYet) => {
                // What does not depend on the item can be wrong already.
                self.requests(&first, settings, findings, &mut later);
                return Some(Prepared::Later);
            }
        };
        let mut iterations = Vec::with_capacity(items.len());
        for item in items {
            let shown = match &item {
                Value::String(text) => text.to_string(),
                other => serde_json::Value::from(other).to_string(),
            };
            let mut scope = scope.clone();
            scope.set("item", item);
            let mut stronger = stronger.clone();
            stronger.merge(
                [("item".to_owned(), scope.vars.get("item").cloned().unwrap_or_default())]
                    .into_iter()
                    .collect(),
            );
            if let Some(vars) = &self.vars {
                findings.take(scope.define(vars, &stronger))?;
            }
            let requests = match self.condition(&scope, findings)? {
                Verdict::NotMet(reason) => Err(reason),
                Verdict::NotKnownYet => {
                    later = true;
                    Ok(self.requests(&scope, settings, findings, &mut later))
                }
                Verdict::Met => Ok(self.requests(&scope, settings, findings, &mut later)),
            };
            iterations.push(Iteration { item: Some(shown), requests });
        }
        Some(if later { Prepared::Later } else { Prepared::Ready(iterations) })
    }

    /// Whether all conditions hold; `None` where one of them is wrong.
    fn condition(&self, scope: &Scope, findings: &mut Findings) -> Option<Verdict> {
        let mut verdict = Verdict::Met;
        for condition in &self.when {
            match condition.holds(scope) {
                Ok(true) => {}
                Ok(false) => {
                    let (text, line) = (&condition.text, condition.at.line);
                    return Some(Verdict::NotMet(format!("`{text}` (line {line}) is not true")));
                }
                Err(Trouble::NotYet) => verdict = Verdict::NotKnownYet,
                Err(Trouble::Wrong(error)) => {
                    findings.error(error.key("when"));
                    return None;
                }
            }
        }
        Some(verdict)
    }

    fn requests(
        &self,
        scope: &Scope,
        settings: &Settings,
        findings: &mut Findings,
        later: &mut bool,
    ) -> Vec<Request> {
        let mut requests = Vec::new();
        for step in &self.steps {
            let mut converter = Converter { scope, settings, findings, later: false };
            let request = converter.request(step);
            *later |= converter.later;
            requests.extend(request);
        }
        requests
    }
}
