//! A file of tasks: plays, blocks and tasks, without their values.

use std::{sync::Arc, time::Duration};

use super::{
    error::{Findings, Position, TaskError},
    evaluate::{Evaluated, Scope},
    node::{Data, Key, Kind, Node},
    steps::{self, Step, did_you_mean},
};
use crate::{
    backend::registry::flag,
    template::{Dialect, Missing, Template},
};

/// The tasks of a file, in their order.
#[derive(Clone, Debug)]
pub struct Playbook {
    /// All of them, those of plays and blocks one after another.
    pub tasks: Vec<Task>,
    /// What the user should know of the file all the same.
    pub warnings: Vec<TaskError>,
}

/// One task.
#[derive(Clone, Debug)]
pub struct Task {
    /// Its name, or where it stands.
    pub name: String,
    /// Where it stands.
    pub at: Position,
    /// Its tags, with those of the blocks and the play that it is in.
    pub tags: Vec<String>,
    /// How often it is repeated after it has failed.
    pub retries: u32,
    /// How long to wait before it is repeated.
    pub delay: Duration,
    /// Whether the run goes on after it has failed.
    pub ignore_errors: bool,
    /// The variable that gets its result.
    pub register: Option<String>,
    pub(super) when: Vec<Condition>,
    pub(super) items: Option<Node>,
    /// Variables of the play and of the blocks around it, the outermost first.
    pub(super) outer_vars: Vec<Vars>,
    pub(super) vars: Option<Node>,
    pub(super) dialect: Option<Dialect>,
    pub(super) steps: Vec<Step>,
}

/// Variables of a play or a block, and the dialect of the templates in them.
#[derive(Clone, Debug)]
pub(super) struct Vars {
    pub(super) node: Arc<Node>,
    pub(super) dialect: Option<Dialect>,
}

/// An expression that must give `true` for the task to be carried out.
#[derive(Clone, Debug)]
pub(super) struct Condition {
    pub(super) at: Position,
    /// As it is written.
    pub(super) text: String,
    constant: Option<bool>,
    dialect: Option<Dialect>,
}

/// How long to wait before a task is repeated, if it does not say so itself: Ansible's default.
const DELAY: Duration = Duration::from_secs(5);

/// More than anybody waits for.
const MAX_DELAY_SECONDS: u32 = 24 * 3600;

const PLAY_KEYS: &[&str] = &[
    "name",
    "hosts",
    "vars",
    "tags",
    "gather_facts",
    "ignore_errors",
    "pre_tasks",
    "tasks",
    "post_tasks",
];

const TASK_KEYS: &[&str] = &[
    "name",
    "image",
    "pull",
    "push",
    "copy",
    "when",
    "loop",
    "retries",
    "delay",
    "ignore_errors",
    "register",
    "tags",
    "vars",
    "template",
    "run_once",
    "block",
];

impl Playbook {
    /// Reads a file: a list of tasks, a list of plays, one play or one task.
    ///
    /// Everything that is wrong with its form is told at once, templates that cannot be read
    /// included; see [`Playbook::check`] for its values. Templates of tasks that do not say their
    /// `template` are of this dialect.
    pub fn parse(text: &str, dialect: Option<Dialect>) -> Result<Self, Vec<TaskError>> {
        let node = Node::parse(text).map_err(|error| vec![error])?;
        let mut reader = Reader { dialect, ..Reader::default() };
        match &node.data {
            Data::List(items) => items.iter().for_each(|item| reader.play_or_task(item)),
            Data::Map(_) => reader.play_or_task(&node),
            _ => reader.findings.error(TaskError::at(
                node.at,
                format!("expected a list of tasks, not {}", node.what()),
            )),
        }
        match reader.findings.errors.is_empty() {
            true => Ok(Self { tasks: reader.tasks, warnings: reader.findings.warnings }),
            false => Err(reader.findings.errors),
        }
    }
}

/// What tasks have from the play and the blocks that they are in.
#[derive(Clone, Default)]
struct Inherited {
    vars: Vec<Vars>,
    when: Vec<Condition>,
    tags: Vec<String>,
    ignore_errors: bool,
    dialect: Option<Dialect>,
}

#[derive(Default)]
struct Reader {
    tasks: Vec<Task>,
    findings: Findings,
    dialect: Option<Dialect>,
}

impl Reader {
    fn play_or_task(&mut self, node: &Node) {
        let Data::Map(entries) = &node.data else {
            let reason = format!("expected a task, not {}", node.what());
            return self.findings.error(TaskError::at(node.at, reason));
        };
        let is_play = |name: &str| {
            matches!(
                name,
                "hosts" | "tasks" | "pre_tasks" | "post_tasks" | "roles" | "import_playbook"
            )
        };
        match entries.iter().any(|(key, _)| is_play(&key.name)) {
            true => self.play(entries),
            false => {
                let inherited = Inherited { dialect: self.dialect, ..Inherited::default() };
                self.task(node.at, entries, &inherited);
            }
        }
    }

    fn play(&mut self, entries: &[(Key, Node)]) {
        let mut play = Inherited { dialect: self.dialect, ..Inherited::default() };
        for (key, node) in entries {
            let name = key.name.as_str();
            let refuse = |reason: String| Err(TaskError::at(key.at, reason).key(name));
            let result = match name {
                "name" => Ok(()),
                "vars" => vars(node).map(|vars| {
                    let dialect = self.dialect;
                    play.vars.extend(vars.map(|node| Vars { node: Arc::new(node), dialect }));
                }),
                "tags" => words(node).map(|tags| play.tags = tags),
                "ignore_errors" => boolean(node).map(|ignore| play.ignore_errors = ignore),
                "pre_tasks" | "tasks" | "post_tasks" => Ok(()),
                "hosts" => {
                    self.hosts(node);
                    Ok(())
                }
                "gather_facts" => match boolean(node) {
                    Ok(true) => refuse("imgfs knows no facts of hosts; give variables".into()),
                    other => other.map(|_| ()),
                },
                "vars_files" => refuse("give them as --vars FILE".into()),
                "roles" | "import_playbook" => {
                    refuse("imgfs reads one file; write the tasks into it, or run each file".into())
                }
                _ => refuse(match refused(name) {
                    Some(reason) => reason.to_owned(),
                    None => format!(
                        "a play has no such key{}",
                        did_you_mean(name, PLAY_KEYS.iter().copied())
                    ),
                }),
            };
            if let Err(error) = result {
                self.findings.error(error.key(name));
            }
        }
        for vars in &play.vars {
            self.templates(&vars.node, vars.dialect);
        }
        for name in ["pre_tasks", "tasks", "post_tasks"] {
            for (key, node) in entries.iter().filter(|(key, _)| key.name == name) {
                self.list(key, node, &play);
            }
        }
    }

    /// Everything is carried out here and once; who wrote other hosts should know.
    fn hosts(&mut self, node: &Node) {
        let mut here = true;
        node.texts(&mut |_, text| here &= matches!(text, "localhost" | "127.0.0.1"));
        if !here {
            let reason = "tasks are carried out on this machine, once";
            self.findings.warn(TaskError::at(node.at, reason).key("hosts"));
        }
    }

    fn list(&mut self, key: &Key, node: &Node, inherited: &Inherited) {
        match &node.data {
            Data::Null => {}
            Data::List(items) => {
                for item in items {
                    match &item.data {
                        Data::Map(entries) => self.task(item.at, entries, inherited),
                        _ => {
                            let reason = format!("expected a task, not {}", item.what());
                            self.findings.error(TaskError::at(item.at, reason).key(&key.name));
                        }
                    }
                }
            }
            _ => {
                let reason = format!("expected a list of tasks, not {}", node.what());
                self.findings.error(TaskError::at(node.at, reason).key(&key.name));
            }
        }
    }

    fn task(&mut self, at: Position, entries: &[(Key, Node)], inherited: &Inherited) {
        let name = entries.iter().find(|(key, _)| key.name == "name");
        let name = name.and_then(|(_, node)| node.text()).map(str::trim).filter(|n| !n.is_empty());
        let name = name.map_or_else(|| format!("line {}", at.line), str::to_owned);
        let before = (self.findings.errors.len(), self.findings.warnings.len());
        self.named_task(name.clone(), at, entries, inherited);
        let (errors, warnings) = (&mut self.findings.errors, &mut self.findings.warnings);
        for found in errors[before.0..].iter_mut().chain(&mut warnings[before.1..]) {
            *found = found.clone().task(&name);
        }
    }

    fn named_task(
        &mut self,
        name: String,
        at: Position,
        entries: &[(Key, Node)],
        inherited: &Inherited,
    ) {
        let mut task = Task {
            name,
            at,
            tags: inherited.tags.clone(),
            retries: 0,
            delay: DELAY,
            ignore_errors: inherited.ignore_errors,
            register: None,
            when: inherited.when.clone(),
            items: None,
            outer_vars: inherited.vars.clone(),
            vars: None,
            dialect: inherited.dialect,
            steps: Vec::new(),
        };
        let block = entries.iter().find(|(key, _)| key.name == "block");
        // The order of keys means nothing: this one is for all of them.
        if let Some((key, node)) = entries.iter().find(|(key, _)| key.name == "template") {
            match dialect(node) {
                Ok(dialect) => task.dialect = Some(dialect),
                Err(error) => self.findings.error(error.key(&key.name)),
            }
        }
        for (key, node) in entries {
            let name = key.name.as_str();
            let refuse = |reason: String| Err(TaskError::at(key.at, reason));
            let result = match name {
                "name" | "block" | "template" => Ok(()),
                "loop" | "retries" | "delay" | "register" | "run_once" | "image" | "pull"
                | "push" | "copy"
                    if block.is_some() =>
                {
                    refuse("this cannot stand beside `block`; it belongs to a task in it".into())
                }
                "image" => {
                    task.steps.extend(steps::module(node, &mut self.findings));
                    Ok(())
                }
                "pull" | "push" | "copy" => match entries.iter().any(|(k, _)| k.name == "image") {
                    true => refuse("this belongs under `image`, which the task has, too".into()),
                    false => Ok(()),
                },
                "when" => conditions(node).map(|when| {
                    let dialect = task.dialect;
                    task.when.extend(when.into_iter().map(|c| Condition { dialect, ..c }));
                }),
                "loop" => {
                    task.items = Some(node.clone()).filter(|node| !node.is_null());
                    Ok(())
                }
                "retries" => number(node, 1000).map(|retries| task.retries = retries),
                "delay" => number(node, MAX_DELAY_SECONDS)
                    .map(|seconds| task.delay = Duration::from_secs(seconds.into())),
                "ignore_errors" => boolean(node).map(|ignore| task.ignore_errors = ignore),
                // Every task is carried out once.
                "run_once" => boolean(node).map(|_| ()),
                "register" => register(node).map(|name| task.register = Some(name)),
                "tags" => words(node).map(|tags| task.tags.extend(tags)),
                "vars" => vars(node).map(|vars| task.vars = vars),
                _ => refuse(match refused(name) {
                    Some(reason) => format!("refused: {reason}"),
                    None => match did_you_mean(name, TASK_KEYS.iter().copied()) {
                        hint if hint.is_empty() => {
                            format!("imgfs has no module `{name}`; it carries out `image` only")
                        }
                        hint => format!("a task has no such key{hint}"),
                    },
                }),
            };
            if let Err(error) = result {
                self.findings.error(error.key(name));
            }
        }
        if !entries.iter().any(|(key, _)| key.name == "image") && block.is_none() {
            let entries = entries.iter().map(|(key, node)| (key, node));
            task.steps.extend(steps::in_order(entries, &mut self.findings));
        }
        if let Some((key, node)) = block {
            let inside = Inherited {
                vars: task
                    .outer_vars
                    .into_iter()
                    .chain(
                        task.vars.map(|node| Vars { node: Arc::new(node), dialect: task.dialect }),
                    )
                    .collect(),
                when: task.when,
                tags: task.tags,
                ignore_errors: task.ignore_errors,
                dialect: task.dialect,
            };
            for vars in &inside.vars[inherited.vars.len()..] {
                self.templates(&vars.node, vars.dialect);
            }
            for condition in &inside.when[inherited.when.len()..] {
                let result = condition.template();
                self.findings.take(result.map_err(|e| e.key("when")));
            }
            return self.list(key, node, &inside);
        }
        let is = |known: fn(&str) -> bool| entries.iter().any(|(key, _)| known(&key.name));
        if !is(|key| key == "image" || steps::form(key).is_some()) {
            // A module that imgfs does not have has been told.
            if !is(|key| !TASK_KEYS.contains(&key)) {
                let reason = "the task has no `image`, which is what imgfs carries out";
                self.findings.error(TaskError::at(at, reason));
            }
            return;
        }
        self.check_templates(&task, inherited);
        self.tasks.push(task);
    }

    /// That all templates of a task can be read, also those that will not be rendered.
    fn check_templates(&mut self, task: &Task, inherited: &Inherited) {
        for condition in &task.when[inherited.when.len()..] {
            let result = condition.template();
            self.findings.take(result.map_err(|e| e.key("when")));
        }
        for node in task.vars.iter().chain(&task.items) {
            self.templates(node, task.dialect);
        }
        for argument in task.steps.iter().flat_map(Step::nodes) {
            let before = self.findings.errors.len();
            self.templates(&argument.node, task.dialect);
            for error in &mut self.findings.errors[before..] {
                *error = error.clone().key(&argument.name);
            }
        }
    }

    fn templates(&mut self, node: &Node, dialect: Option<Dialect>) {
        let findings = &mut self.findings;
        node.texts(&mut |node, text| {
            if Template::is_template(text)
                && let Err(error) = Template::parse(text, dialect)
            {
                findings.error(TaskError::at(node.at, format!("template {error}")));
            }
        });
    }
}

impl Condition {
    /// The expression as a template: what has no braces gets them.
    fn template(&self) -> Result<Template, TaskError> {
        let text = match Template::is_template(&self.text) {
            true => self.text.clone(),
            false => format!("{{{{ {} }}}}", self.text),
        };
        Template::parse(&text, self.dialect)
            .map_err(|error| TaskError::at(self.at, format!("template {error}")))
    }

    /// Whether it gives `true`; nothing, and what has no value, is `false`.
    pub(super) fn holds(&self, scope: &Scope) -> Evaluated<bool> {
        if let Some(constant) = self.constant {
            return Ok(constant);
        }
        let template = self.template()?;
        if !scope.is_known(&self.text) {
            return Err(super::evaluate::Trouble::NotYet);
        }
        let rendered = template.render(&scope.vars, Missing::NoValue);
        let rendered =
            rendered.map_err(|error| TaskError::at(self.at, format!("template {error}")))?;
        match rendered.trim().to_ascii_lowercase().as_str() {
            "true" => Ok(true),
            "false" | "" | "<no value>" => Ok(false),
            // What it gives is not shown: it may be anything.
            _ => {
                let reason = format!("`{}` gives neither true nor false", self.text);
                Err(TaskError::at(self.at, reason).into())
            }
        }
    }
}

/// Why a key of Ansible's or KubeKey's tasks is refused, for those that have a meaning there.
fn refused(key: &str) -> Option<&'static str> {
    Some(match key {
        "become" | "become_user" | "become_method" | "become_flags" | "become_exe" => {
            "imgfs works as the user who starts it; start it as the one that is wanted"
        }
        "delegate_to"
        | "delegate_facts"
        | "local_action"
        | "connection"
        | "remote_user"
        | "port"
        | "serial"
        | "strategy"
        | "throttle"
        | "order"
        | "max_fail_percentage" => "every task is carried out on this machine, once; leave it out",
        "environment" => "set the environment of imgfs itself",
        "notify" | "listen" | "handlers" | "force_handlers" => "there are no handlers",
        "until" | "failed_when" | "changed_when" => {
            "a task has failed when its transfer has; `retries` repeats it"
        }
        "loop_control" => "the item of a loop is `.item`",
        "rescue" | "always" => "of a block, only `block` is carried out; use `ignore_errors`",
        "no_log" => "secrets are never printed; leave it out",
        "register_type" => "the result is a mapping with status, stdout and stderr",
        "any_errors_fatal" | "async" | "poll" | "timeout" | "check_mode" | "diff"
        | "module_defaults" | "args" | "collections" | "debugger" | "vars_prompt" | "fact_path"
        | "gather_subset" | "gather_timeout" => "imgfs has no such thing",
        _ if key.starts_with("with_") => "write `loop`",
        _ => return None,
    })
}

fn vars(node: &Node) -> Result<Option<Node>, TaskError> {
    match &node.data {
        Data::Map(_) => Ok(Some(node.clone())),
        Data::Null => Ok(None),
        _ => Err(TaskError::at(node.at, format!("expected a mapping, not {}", node.what()))),
    }
}

/// A list of words, or a text with commas between them.
fn words(node: &Node) -> Result<Vec<String>, TaskError> {
    let split = |text: &str| -> Vec<String> {
        text.split(',').map(str::trim).filter(|w| !w.is_empty()).map(str::to_owned).collect()
    };
    let word = |node: &Node| {
        let text = node.text().filter(|text| !Template::is_template(text));
        text.map(split).ok_or_else(|| TaskError::at(node.at, "expected a word"))
    };
    match &node.data {
        Data::Null => Ok(Vec::new()),
        Data::List(items) => Ok(items.iter().map(word).collect::<Result<Vec<_>, _>>()?.concat()),
        _ => word(node),
    }
}

fn boolean(node: &Node) -> Result<bool, TaskError> {
    let value = node.text().and_then(|text| flag(text).ok()).flatten();
    value.ok_or_else(|| TaskError::at(node.at, "expected true or false"))
}

fn number(node: &Node, most: u32) -> Result<u32, TaskError> {
    let number = node.text().and_then(|text| text.trim().parse().ok()).filter(|n| *n <= most);
    number.ok_or_else(|| TaskError::at(node.at, format!("expected a number from 0 to {most}")))
}

fn register(node: &Node) -> Result<String, TaskError> {
    let is_name = |text: &&str| {
        text.chars().all(|c| c.is_alphanumeric() || c == '_')
            && text.chars().next().is_some_and(|c| !c.is_numeric())
            && !matches!(*text, "item" | "module")
    };
    let name = node.text().filter(is_name);
    name.map(str::to_owned).ok_or_else(|| {
        let reason = "expected the name of a variable: letters, digits and `_`, not item or module";
        TaskError::at(node.at, reason)
    })
}

fn dialect(node: &Node) -> Result<Dialect, TaskError> {
    match node.text() {
        Some("go") => Ok(Dialect::Go),
        Some("tera") => Ok(Dialect::Tera),
        _ => Err(TaskError::at(node.at, "expected go or tera")),
    }
}

fn conditions(node: &Node) -> Result<Vec<Condition>, TaskError> {
    match &node.data {
        Data::Null => Ok(Vec::new()),
        Data::List(items) => items.iter().map(condition).collect(),
        _ => Ok(vec![condition(node)?]),
    }
}

fn condition(node: &Node) -> Result<Condition, TaskError> {
    let (at, dialect) = (node.at, None);
    match &node.data {
        Data::Scalar { kind: Kind::Bool(value), text } => {
            Ok(Condition { at, text: text.clone(), constant: Some(*value), dialect })
        }
        Data::Scalar { text, .. } if !text.trim().is_empty() => {
            Ok(Condition { at, text: text.trim().to_owned(), constant: None, dialect })
        }
        _ => Err(TaskError::at(at, format!("expected an expression, not {}", node.what()))),
    }
}
