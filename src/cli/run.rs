//! `imgfs run`

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use imgfs::{
    backend::ConfinedDir,
    ops::{Request, TransferOptions, TreeSpec},
    task::{
        Files, MAX_FILE_BYTES, Playbook, Project, RunEvent, Runner, Selection, Settings, Task,
        TaskError, TaskOutcome, TaskStatus,
    },
    util::directory_of,
};
use serde_json::json;

use super::{
    Failure, Outcome,
    args::RunArgs,
    output::{Output, count},
    pull::{extent, layout, sync},
    request::{self, Setting},
    words::Verb,
};

pub(crate) fn run(args: &RunArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let name = match args.file.as_path() {
        path if path == Path::new("-") => "standard input".to_owned(),
        path => path.display().to_string(),
    };
    let refuse = |mut errors: Vec<TaskError>| {
        let last = errors.pop();
        for error in errors {
            output.error(&placed(&name, &error), None);
        }
        Failure::new(last.map_or_else(|| name.clone(), |error| placed(&name, &error)))
    };
    let dialect = args.template.map(Into::into);
    let text = read(args, &name)?;
    let playbook = if args.skip_other_modules {
        let beside = Beside::open(&args.file, &name)?;
        let project = Project { files: &beside, playbook: beside.playbook.clone() };
        Playbook::parse_project(&text, dialect, &project)
    } else {
        Playbook::parse(&text, dialect)
    };
    let playbook = playbook.map_err(refuse)?;
    let settings = Settings {
        images_dir: args.tree.place()?,
        base: args.file.parent().unwrap_or(Path::new("")).to_owned(),
        options: extent(&args.extent),
        vars: args.vars.load()?,
    };
    let selection = Selection { tags: args.tags.clone(), skip_tags: args.skip_tags.clone() };
    let warnings = playbook.check(&settings, &selection).map_err(refuse)?;
    for warning in playbook.warnings.iter().chain(&warnings) {
        output.warning(&placed(&name, warning));
    }

    let report = playbook.run(&settings, &selection, &mut Teller { args, output });
    let tasks = playbook.tasks.iter().zip(&report).map(|(task, status)| {
        json!({
            "task": task.name,
            "file": task.file.as_deref(),
            "line": task.at.line,
            "status": status.name(),
            "reason": status.reason(),
        })
    });
    let number = |wanted: &str| report.iter().filter(|status| status.name() == wanted).count();
    let counts = ["success", "skip", "ignored", "failed", "not run", "not selected"]
        .into_iter()
        .map(|name| (number(name), name))
        .filter(|(number, _)| *number > 0)
        .map(|(number, name)| format!("{number} {name}"));
    let counts = counts.collect::<Vec<_>>().join(", ");
    let all = count(report.len(), "task");
    output.line(&if counts.is_empty() { all } else { format!("{all}: {counts}") });
    output.event(&json!({"event": "report", "command": "run", "tasks": tasks.collect::<Vec<_>>()}));
    Ok(if number("failed") > 0 {
        Outcome::SomeFailed
    } else if number("success") + number("ignored") == 0 {
        output.warning(match (report.is_empty(), number("skip")) {
            (true, _) => "there are no tasks: nothing to do",
            (false, 0) => "no task has the tags that were asked for: nothing to do",
            (false, _) => "all tasks were skipped: nothing to do",
        });
        Outcome::NothingMatched
    } else {
        Outcome::Done
    })
}

/// An error with the file that it is in.
fn placed(name: &str, error: &TaskError) -> String {
    match error.file_name() {
        Some(_) => error.to_string(),
        None => format!("{name}: {error}"),
    }
}

/// The files beside a playbook, none of which is reached through a symbolic link.
struct Beside {
    project: ConfinedDir,
    /// The playbook within the project, and how it was named.
    playbook: PathBuf,
    name: String,
}

impl Beside {
    /// The project of a playbook is the directory that it is in, or the one above if that is called
    /// `playbooks`.
    fn open(file: &Path, name: &str) -> Result<Self, Failure> {
        let failed = |e: io::Error| Failure::new(format!("the directory of {name}: {e}"));
        let dir = fs::canonicalize(directory_of(file)).map_err(failed)?;
        let file = PathBuf::from(file.file_name().unwrap_or(OsStr::new("playbook.yaml")));
        let (project, playbook) = match (dir.parent(), dir.file_name()) {
            (Some(above), Some(last)) if last == "playbooks" => (above, Path::new(last).join(file)),
            _ => (dir.as_path(), file),
        };
        let project = ConfinedDir::open(project).map_err(failed)?;
        Ok(Self { project, playbook, name: name.to_owned() })
    }
}

impl Files for Beside {
    fn read(&self, path: &Path) -> io::Result<String> {
        let (file, _) = self.project.open_file(&self.project.path().join(path))?;
        read_tasks(file)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let dir = self.project.open_dir(&self.project.path().join(path))?;
        let names = dir.entries()?.into_iter().map(|entry| entry.name.into_string());
        names
            .map(|name| {
                name.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "a name is no UTF-8"))
            })
            .collect()
    }

    fn shown(&self, path: &Path) -> String {
        match path == self.playbook {
            true => self.name.clone(),
            false => self.project.path().join(path).display().to_string(),
        }
    }
}

/// The text that `args` means.
fn read(args: &RunArgs, name: &str) -> Result<String, Failure> {
    let failed = |e: io::Error| Failure::new(format!("{name}: {e}"));
    let text = if args.file == Path::new("-") {
        if args.registries.password_stdin {
            return Err(Failure::new("tasks `-` and --password-stdin both want standard input"));
        }
        read_tasks(io::stdin())
    } else {
        File::open(&args.file).and_then(read_tasks)
    };
    text.map_err(failed)
}

/// The text of a file of tasks, as far as it is of use.
pub(super) fn read_tasks(file: impl Read) -> io::Result<String> {
    let mut text = String::new();
    file.take(MAX_FILE_BYTES as u64 + 1).read_to_string(&mut text)?;
    Ok(text)
}

/// Carries tasks out, and shows how that goes.
struct Teller<'a> {
    args: &'a RunArgs,
    output: &'a Arc<Output>,
}

impl Runner for Teller<'_> {
    fn carry_out(&mut self, task: &Task, request: &Request) -> TaskOutcome {
        match carry_out(request, task, self.args, self.output) {
            Ok(outcome) => outcome,
            Err(failure) => {
                if let Some(hint) = &failure.hint {
                    self.output.error(&failure.message, Some(hint));
                }
                TaskOutcome::Failed(failure.message)
            }
        }
    }

    fn tell(&mut self, task: &Task, event: RunEvent<'_>) {
        let output = self.output;
        let mut json = json!({"event": "task", "task": task.name, "file": task.file.as_deref(), "line": task.at.line});
        match event {
            RunEvent::Started => {
                output.line(&format!("TASK [{}]", task.name));
                json["status"] = "started".into();
            }
            RunEvent::Item(item) => {
                output.line(&format!("item: {item}"));
                json["item"] = item.into();
                json["status"] = "started".into();
            }
            RunEvent::ItemEnded(item, outcome) => {
                output.line(&described(outcome.name(), outcome.reason()));
                json["item"] = item.into();
                json["status"] = outcome.name().into();
                json["reason"] = outcome.reason().into();
            }
            RunEvent::Repeated { retry, reason } => {
                let (of, seconds) = (task.retries, task.delay.as_secs());
                output.warning(&format!(
                    "task `{}` failed, retry {retry} of {of} in {seconds} s: {reason}",
                    task.name
                ));
                json["status"] = "retry".into();
                json["retry"] = retry.into();
                json["reason"] = reason.into();
            }
            RunEvent::Ended(status) => {
                match status {
                    TaskStatus::NotSelected => return,
                    TaskStatus::NotRun => {
                        output.line(&format!("TASK [{}]\nnot run", task.name));
                    }
                    TaskStatus::Ignored(reason) => {
                        output.warning(&format!("task `{}` failed: {reason}", task.name));
                        output.line("ignored");
                    }
                    TaskStatus::Ended(TaskOutcome::Failed(reason)) => {
                        output.error(&format!("task `{}` failed: {reason}", task.name), None);
                        output.line("failed");
                    }
                    TaskStatus::Ended(_) => {
                        output.line(&described(status.name(), status.reason()));
                    }
                }
                json["status"] = status.name().into();
                json["reason"] = status.reason().into();
            }
        }
        output.event(&json);
    }

    fn wait(&mut self, delay: Duration) {
        if !self.args.dry_run {
            std::thread::sleep(delay);
        }
    }
}

fn described(status: &str, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{status}: {reason}"),
        None => status.to_owned(),
    }
}

/// Carries out one transfer of a task; with `--dry-run`, tells what it would be.
fn carry_out(
    request: &Request,
    task: &Task,
    args: &RunArgs,
    output: &Arc<Output>,
) -> Result<TaskOutcome, Failure> {
    if let TreeSpec::Directory(path) = &request.from
        && args.dry_run
        && !path.exists()
    {
        let reason =
            format!("{} does not exist yet, so what is in it is not known", path.display());
        return Ok(TaskOutcome::Skip(reason));
    }
    let setting = Setting {
        verb: match (&request.from, &request.to) {
            (TreeSpec::Registry { .. }, TreeSpec::Directory(_)) => Verb::Pull,
            (TreeSpec::Directory(_), TreeSpec::Registry { .. }) => Verb::Push,
            _ => Verb::Copy,
        },
        task: Some(&task.name),
        registries: &args.registries,
        options: TransferOptions {
            layout: layout(args.layout),
            sync: sync(args.sync.sync),
            create_projects: args.create_projects,
            dry_run: args.dry_run,
            ..TransferOptions::default()
        },
        output,
    };
    Ok(request::carry_out(request, &setting)?.into())
}
