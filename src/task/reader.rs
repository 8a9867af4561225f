//! Reads plays, blocks and tasks: which keys there are, and what a task has from what it is in.

use std::{sync::Arc, time::Duration};

use super::{
    condition::{Condition, conditions},
    error::{Findings, Position, TaskError},
    modules,
    node::{Data, Key, Node},
    playbook::{Task, Vars},
    project::Follow,
    steps::{self, Step, did_you_mean},
    values::{boolean, dialect, number, register, vars, words},
};
use crate::template::{Dialect, Template};

/// What the hint of an error names.
const SKIP_OPTION: &str = "--skip-other-modules";

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

/// What tasks have from the play and the blocks that they are in.
#[derive(Clone, Default)]
pub(super) struct Inherited {
    pub(super) vars: Vec<Vars>,
    pub(super) when: Vec<Condition>,
    pub(super) tags: Vec<String>,
    pub(super) ignore_errors: bool,
    pub(super) dialect: Option<Dialect>,
}

/// A file, or several of them, being read.
#[derive(Default)]
pub(super) struct Reader<'p> {
    pub(super) tasks: Vec<Task>,
    pub(super) findings: Findings,
    pub(super) dialect: Option<Dialect>,
    /// The files beside the playbook, where those may be followed.
    pub(super) project: Option<Follow<'p>>,
}

impl Reader<'_> {
    /// A whole file of plays or tasks.
    pub(super) fn document_of_plays(&mut self, node: &Node, inherited: &Inherited) {
        match &node.data {
            Data::List(items) => {
                items.iter().for_each(|item| self.play_or_task(item, inherited));
            }
            Data::Map(_) => self.play_or_task(node, inherited),
            _ => self.findings.error(TaskError::at(
                node.at,
                format!("expected a list of tasks, not {}", node.what()),
            )),
        }
    }

    fn play_or_task(&mut self, node: &Node, inherited: &Inherited) {
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
            true => self.play(entries, inherited),
            false => self.task(node.at, entries, inherited),
        }
    }

    fn play(&mut self, entries: &[(Key, Node)], inherited: &Inherited) {
        let mut play = inherited.clone();
        let follows = self.project.is_some();
        for (key, node) in entries {
            let name = key.name.as_str();
            let refuse = |reason: String| Err(TaskError::at(key.at, reason).key(name));
            let result = match name {
                "name" => Ok(()),
                "vars" => vars(node).map(|vars| {
                    let (dialect, file) = (self.dialect, self.file());
                    let vars =
                        vars.map(|node| Vars { node: Arc::new(node), dialect, file, lazy: false });
                    play.vars.extend(vars);
                }),
                "tags" => words(node).map(|tags| play.tags.extend(tags)),
                "ignore_errors" => boolean(node).map(|ignore| play.ignore_errors = ignore),
                "pre_tasks" | "tasks" | "post_tasks" => Ok(()),
                "hosts" => {
                    self.hosts(node);
                    Ok(())
                }
                "gather_facts" => match boolean(node) {
                    Ok(true) if follows => {
                        let reason = "facts of hosts are not gathered; what needs them is an error";
                        self.findings.warn(TaskError::at(node.at, reason).key(name));
                        Ok(())
                    }
                    Ok(true) => refuse(format!(
                        "imgfs knows no facts of hosts; give variables, and {SKIP_OPTION} to go on \
                         without facts"
                    )),
                    other => other.map(|_| ()),
                },
                "vars_files" if follows => {
                    self.vars_files(node, &mut play);
                    Ok(())
                }
                "vars_files" => refuse("give them as --vars FILE".into()),
                "roles" | "import_playbook" if follows => Ok(()),
                "roles" | "import_playbook" => refuse(format!(
                    "imgfs reads one file; write the tasks into it, or run each file, or follow the \
                     files beside this one with {SKIP_OPTION}"
                )),
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
        for vars in play.vars[inherited.vars.len()..].iter().filter(|vars| !vars.lazy) {
            self.templates(&vars.node, vars.dialect);
        }
        for name in ["import_playbook", "pre_tasks", "roles", "tasks", "post_tasks"] {
            for (key, node) in entries.iter().filter(|(key, _)| key.name == name) {
                match name {
                    "import_playbook" if follows => self.import_playbook(node, &play),
                    "roles" if follows => self.roles(name, node, &play),
                    "import_playbook" | "roles" => {}
                    _ => self.list(key, node, &play),
                }
            }
        }
    }

    /// That the templates in variables of another file can be read.
    pub(super) fn check_vars(&mut self, vars: &Vars) {
        let before = self.findings.errors.len();
        self.templates(&vars.node, vars.dialect);
        for error in &mut self.findings.errors[before..] {
            *error = error.clone().in_file(vars.file.as_ref());
        }
    }

    /// That conditions can be read.
    pub(super) fn check_conditions(&mut self, conditions: &[Condition]) {
        for condition in conditions {
            let result = condition.template();
            self.findings.take(result.map_err(|e| e.key("when")));
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

    pub(super) fn list(&mut self, key: &Key, node: &Node, inherited: &Inherited) {
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
        let other = modules::other(entries);
        if let (Some((module, node)), true) = (other, self.project.is_some()) {
            return self.skipped_task(name, at, entries, inherited, module, node);
        }
        let mut task = Task {
            name,
            at,
            file: self.file(),
            skipped: None,
            sets: Vec::new(),
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
        let block = entries.iter().find(|(key, _)| match key.name.as_str() {
            "block" => true,
            "include_tasks" | "import_tasks" => self.project.is_some(),
            _ => false,
        });
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
                "include_tasks" | "import_tasks" if block.is_some() => Ok(()),
                _ if other.is_some_and(|(module, _)| module == name) => refuse(format!(
                    "imgfs has no module `{name}`; it carries out `image` only, and skips tasks of \
                     KubeKey's other modules with {SKIP_OPTION}"
                )),
                "name" | "block" | "template" => Ok(()),
                "loop" | "retries" | "delay" | "register" | "run_once" | "image" | "pull"
                | "push" | "copy"
                    if block.is_some() =>
                {
                    let key = block.map_or("block", |(key, _)| &key.name);
                    refuse(format!("this cannot stand beside `{key}`; it belongs to a task in it"))
                }
                "image" => {
                    task.steps.extend(steps::module(node, &mut self.findings));
                    Ok(())
                }
                "pull" | "push" | "copy" => match entries.iter().any(|(k, _)| k.name == "image") {
                    true => refuse("this belongs under `image`, which the task has, too".into()),
                    false => Ok(()),
                },
                "when" => conditions(node, task.dialect, task.file.as_ref())
                    .map(|when| task.when.extend(when)),
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
                    None if matches!(name, "include_tasks" | "import_tasks") => format!(
                        "imgfs reads one file; write the tasks into it, or follow the files beside \
                         this one with {SKIP_OPTION}"
                    ),
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
                    .chain(task.vars.map(|node| Vars {
                        node: Arc::new(node),
                        dialect: task.dialect,
                        file: task.file,
                        lazy: false,
                    }))
                    .collect(),
                when: task.when,
                tags: task.tags,
                ignore_errors: task.ignore_errors,
                dialect: task.dialect,
            };
            for vars in &inside.vars[inherited.vars.len()..] {
                self.templates(&vars.node, vars.dialect);
            }
            self.check_conditions(&inside.when[inherited.when.len()..]);
            return match key.name.as_str() {
                "block" => self.list(key, node, &inside),
                _ => self.include(key, node, &inside),
            };
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

    /// A task that is for another module of KubeKey. How it would be carried out does not matter,
    /// so its values are not looked at.
    fn skipped_task(
        &mut self,
        name: String,
        at: Position,
        entries: &[(Key, Node)],
        inherited: &Inherited,
        module: &'static str,
        argument: &Node,
    ) {
        let mut task = Task {
            name,
            at,
            file: self.file(),
            skipped: Some(module),
            sets: modules::variables(module, argument),
            tags: inherited.tags.clone(),
            retries: 0,
            delay: DELAY,
            ignore_errors: false,
            register: None,
            when: Vec::new(),
            items: None,
            outer_vars: Vec::new(),
            vars: None,
            dialect: inherited.dialect,
            steps: Vec::new(),
        };
        for (key, node) in entries {
            let result = match key.name.as_str() {
                "register" => register(node).map(|name| task.sets.push(name)),
                "tags" => words(node).map(|tags| task.tags.extend(tags)),
                key if key == module => Ok(()),
                "image" | "pull" | "push" | "copy" | "block" => {
                    Err(TaskError::at(key.at, format!("this cannot stand beside `{module}`")))
                }
                other if TASK_KEYS.contains(&other) || refused(other).is_some() => Ok(()),
                other => {
                    let hint = did_you_mean(other, TASK_KEYS.iter().copied());
                    Err(TaskError::at(key.at, format!("a task has no such key{hint}")))
                }
            };
            self.findings.take(result.map_err(|e| e.key(&key.name)));
        }
        self.tasks.push(task);
    }

    /// That all templates of a task can be read, also those that will not be rendered.
    fn check_templates(&mut self, task: &Task, inherited: &Inherited) {
        self.check_conditions(&task.when[inherited.when.len()..]);
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
