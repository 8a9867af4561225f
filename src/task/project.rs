//! What stands beside a playbook, as KubeKey lays projects out: roles, files of tasks and of
//! variables, other playbooks.
//!
//! ```text
//! PROJECT/playbooks/x.yaml             a playbook; it may also stand in PROJECT itself
//! PROJECT/roles/NAME/tasks/main.yaml   and tasks/OTHER.yaml for include_tasks
//!                    defaults/main.yaml, or the files in defaults/main/
//!                    vars/main.yaml
//!                    meta/main.yaml    dependencies
//! ```
//!
//! Names are resolved within the project's directory and never lead out of it. How many files are
//! read, how large all of them are, and how deep they include each other is bounded.

use std::{
    io,
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{
    condition::conditions,
    error::{Position, TaskError},
    node::{Data, Key, MAX_FILE_BYTES, Node},
    playbook::Vars,
    reader::{Inherited, Reader},
    steps::did_you_mean,
    values::{boolean, vars, words},
};
use crate::template::Template;

/// The most files that one playbook may be made of, each counted as often as it is included.
const MAX_FILES: usize = 1000;

/// How deep files may include each other.
const MAX_INCLUDES: usize = 30;

/// The files of a project. Paths are relative to its directory and have no `..`.
pub trait Files {
    /// The text of a file. That there is none is [`io::ErrorKind::NotFound`].
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The names of the files in a directory.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// A path as messages show it.
    fn shown(&self, path: &Path) -> String {
        path.display().to_string()
    }
}

/// A playbook and the files that it may refer to. Tasks of other modules than `image` are skipped.
pub struct Project<'p> {
    /// The files.
    pub files: &'p dyn Files,
    /// The playbook, in the project's directory or in its `playbooks`.
    pub playbook: PathBuf,
}

/// How far the files of a project have been followed.
pub(super) struct Follow<'p> {
    files: &'p dyn Files,
    /// The file that is being read, and before it those that include it.
    stack: Vec<PathBuf>,
    /// The directory of the playbook that is being read.
    playbook_dir: PathBuf,
    /// The directory of the role that is being read.
    role: Option<PathBuf>,
    files_read: usize,
    bytes_read: usize,
}

impl<'p> Follow<'p> {
    pub(super) fn new(project: &Project<'p>) -> Self {
        Self {
            files: project.files,
            stack: vec![project.playbook.clone()],
            playbook_dir: parent(&project.playbook),
            role: None,
            files_read: 0,
            bytes_read: 0,
        }
    }

    /// The file that is being read, as it is shown.
    pub(super) fn shown(&self) -> Option<Arc<str>> {
        self.stack.last().map(|path| self.files.shown(path).into())
    }

    /// The first of these files that is there.
    fn first(&mut self, candidates: &[PathBuf]) -> Result<Option<(PathBuf, String)>, String> {
        for path in candidates {
            match self.files.read(path) {
                Ok(text) => {
                    self.files_read += 1;
                    self.bytes_read = self.bytes_read.saturating_add(text.len());
                    if self.files_read > MAX_FILES {
                        return Err(format!("the playbook is made of more than {MAX_FILES} files"));
                    }
                    if self.bytes_read > MAX_FILE_BYTES {
                        let mib = MAX_FILE_BYTES >> 20;
                        return Err(format!("the files have more than {mib} MiB together"));
                    }
                    return Ok(Some((path.clone(), text)));
                }
                Err(e) if is_absent(&e) => {}
                Err(e) => return Err(format!("{}: {e}", self.files.shown(path))),
            }
        }
        Ok(None)
    }

    fn looked_for(&self, candidates: &[PathBuf]) -> String {
        let shown: Vec<_> = candidates.iter().map(|path| self.files.shown(path)).collect();
        shown.join(", ")
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn parent(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

/// `name` seen from `base`, or `None` where that is not within the project.
fn within(base: &Path, name: &str) -> Option<PathBuf> {
    let mut path = base.to_owned();
    for component in Path::new(name).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::CurDir => {}
            Component::ParentDir if path.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

/// Both spellings of a YAML file's extension.
fn yaml(dir: &Path, name: &str) -> Vec<PathBuf> {
    vec![dir.join(format!("{name}.yaml")), dir.join(format!("{name}.yml"))]
}

/// The keys of a role in a list of roles.
const ROLE_KEYS: &[&str] = &["role", "name", "vars", "tags", "when", "ignore_errors"];

impl Reader<'_> {
    /// Goes into a file: what is found in there is said to be in it.
    fn in_file(&mut self, path: PathBuf, inner: impl FnOnce(&mut Self)) -> Result<(), String> {
        let Some(follow) = &mut self.project else { return Ok(()) };
        if follow.stack.contains(&path) {
            return Err(format!("{} includes itself", follow.files.shown(&path)));
        }
        if follow.stack.len() > MAX_INCLUDES {
            return Err(format!("files include each other more than {MAX_INCLUDES} deep"));
        }
        follow.stack.push(path);
        self.marked(inner);
        if let Some(follow) = &mut self.project {
            follow.stack.pop();
        }
        Ok(())
    }

    /// Says of what `inner` finds that it is in the file that is being read.
    pub(super) fn marked(&mut self, inner: impl FnOnce(&mut Self)) {
        let before = (self.findings.errors.len(), self.findings.warnings.len());
        let file = self.file();
        inner(self);
        let (errors, warnings) = (&mut self.findings.errors, &mut self.findings.warnings);
        for found in errors[before.0..].iter_mut().chain(&mut warnings[before.1..]) {
            *found = found.clone().in_file(file.as_ref());
        }
    }

    /// The file that is being read, if there may be several.
    pub(super) fn file(&self) -> Option<Arc<str>> {
        self.project.as_ref().and_then(Follow::shown)
    }

    /// The first of these files that is there, and its content.
    fn document(&mut self, candidates: &[PathBuf]) -> Result<Option<(PathBuf, Node)>, TaskError> {
        let Some(follow) = &mut self.project else { return Ok(None) };
        let Some((path, text)) = follow.first(candidates).map_err(TaskError::file)? else {
            return Ok(None);
        };
        let shown: Arc<str> = follow.files.shown(&path).into();
        let node = Node::parse(&text).map_err(|error| error.in_file(Some(&shown)))?;
        Ok(Some((path, node)))
    }

    /// Variables in a file, which may be one of several.
    fn variables(&mut self, candidates: &[PathBuf]) -> Result<Option<Vars>, TaskError> {
        let Some((path, node)) = self.document(candidates)? else { return Ok(None) };
        let file = self.project.as_ref().map(|follow| Arc::from(follow.files.shown(&path)));
        let vars = vars(&node).map_err(|error| error.in_file(file.as_ref()))?;
        let dialect = self.dialect;
        Ok(vars.map(|node| Vars { node: Arc::new(node), dialect, file, lazy: true }))
    }

    /// `vars_files` of a play.
    pub(super) fn vars_files(&mut self, node: &Node, play: &mut Inherited) {
        let names = match &node.data {
            Data::List(items) => items.iter().collect(),
            Data::Null => Vec::new(),
            _ => vec![node],
        };
        for node in names {
            let found = self.path(node).and_then(|name| {
                let base = self.project.as_ref().map(|follow| follow.playbook_dir.clone());
                let path =
                    within(&base.unwrap_or_default(), &name).ok_or_else(|| outside(node, &name))?;
                let shown = self.project.as_ref().map(|f| f.files.shown(&path));
                let reason = format!("there is no {}", shown.unwrap_or_default());
                self.variables(&[path])?.ok_or_else(|| TaskError::at(node.at, reason))
            });
            if let Some(vars) = self.findings.take(found.map_err(|e| e.key("vars_files"))) {
                play.vars.push(vars);
            }
        }
    }

    /// A path that is written in the file.
    fn path(&self, node: &Node) -> Result<String, TaskError> {
        match node.text().map(str::trim).filter(|text| !text.is_empty()) {
            Some(text) if Template::is_template(text) => Err(TaskError::at(
                node.at,
                "which file it is depends on a variable; imgfs reads all files before it evaluates any",
            )),
            Some(text) => Ok(text.to_owned()),
            None => Err(TaskError::at(node.at, format!("expected a path, not {}", node.what()))),
        }
    }

    /// `import_playbook`
    pub(super) fn import_playbook(&mut self, node: &Node, inherited: &Inherited) {
        let result = self.path(node).and_then(|name| {
            let Some(follow) = &self.project else { return Ok(()) };
            let dir = &follow.playbook_dir;
            let bases = [dir.clone(), dir.join("playbooks"), PathBuf::from("playbooks")];
            let candidates: Option<Vec<_>> = bases.iter().map(|base| within(base, &name)).collect();
            let candidates = candidates.ok_or_else(|| outside(node, &name))?;
            let looked_for = follow.looked_for(&candidates);
            let Some((path, content)) = self.document(&candidates)? else {
                return Err(TaskError::at(node.at, format!("there is none of {looked_for}")));
            };
            let outer = self
                .project
                .as_mut()
                .map(|follow| std::mem::replace(&mut follow.playbook_dir, parent(&path)));
            let entered =
                self.in_file(path, |reader| reader.document_of_plays(&content, inherited));
            if let (Some(follow), Some(outer)) = (&mut self.project, outer) {
                follow.playbook_dir = outer;
            }
            entered.map_err(|reason| TaskError::at(node.at, reason))
        });
        self.findings.take(result.map_err(|e| e.key("import_playbook")));
    }

    /// `include_tasks` and `import_tasks`: the tasks of a file in place of one task.
    pub(super) fn include(&mut self, key: &Key, node: &Node, inherited: &Inherited) {
        let file = match &node.data {
            Data::Map(entries) => {
                entries.iter().find(|(key, _)| key.name == "file").map(|(_, n)| n)
            }
            _ => Some(node),
        };
        let result =
            file.ok_or_else(|| TaskError::at(node.at, "`file` is missing")).and_then(|file| {
                let name = self.path(file)?;
                let Some(follow) = &self.project else { return Ok(()) };
                let here = parent(follow.stack.last().map_or(Path::new(""), PathBuf::as_path));
                let mut bases = vec![here];
                for dir in follow.role.iter().chain([&follow.playbook_dir]) {
                    bases.extend([dir.join("tasks"), dir.clone()]);
                }
                let mut candidates: Vec<PathBuf> = Vec::new();
                for base in bases {
                    if let Some(path) = within(&base, &name)
                        && !candidates.contains(&path)
                    {
                        candidates.push(path);
                    }
                }
                if candidates.is_empty() {
                    return Err(outside(file, &name));
                }
                let looked_for = follow.looked_for(&candidates);
                let Some((path, content)) = self.document(&candidates)? else {
                    return Err(TaskError::at(file.at, format!("there is none of {looked_for}")));
                };
                self.in_file(path, |reader| reader.list(key, &content, inherited))
                    .map_err(|reason| TaskError::at(file.at, reason))
            });
        self.findings.take(result.map_err(|e| e.key(&key.name)));
    }

    /// `roles` of a play, or `dependencies` of a role.
    pub(super) fn roles(&mut self, key: &str, node: &Node, play: &Inherited) {
        let items = match &node.data {
            Data::Null => return,
            Data::List(items) => items,
            _ => {
                let reason = format!("expected a list of roles, not {}", node.what());
                return self.findings.error(TaskError::at(node.at, reason).key(key));
            }
        };
        for item in items {
            let before = self.findings.errors.len();
            match &item.data {
                Data::Map(entries) => self.role_entry(item.at, entries, play),
                _ => match self.path(item) {
                    Ok(name) => self.role(item.at, &name, play.clone(), None),
                    Err(error) => self.findings.error(error),
                },
            }
            for error in &mut self.findings.errors[before..] {
                *error = error.clone().key(key);
            }
        }
    }

    fn role_entry(&mut self, at: Position, entries: &[(Key, Node)], play: &Inherited) {
        let mut inherited = play.clone();
        let (mut own_vars, mut name) = (None, None);
        for (key, node) in entries {
            let result = match key.name.as_str() {
                "role" | "name" => self.path(node).map(|text| name = Some(text)),
                "vars" => vars(node).map(|vars| {
                    let (dialect, file) = (self.dialect, self.file());
                    own_vars =
                        vars.map(|node| Vars { node: Arc::new(node), dialect, file, lazy: true });
                }),
                "tags" => words(node).map(|tags| inherited.tags.extend(tags)),
                "when" => conditions(node, self.dialect, self.file().as_ref())
                    .map(|when| inherited.when.extend(when)),
                "ignore_errors" => boolean(node).map(|ignore| inherited.ignore_errors = ignore),
                other => Err(TaskError::at(
                    key.at,
                    format!(
                        "a role has no such key{}",
                        did_you_mean(other, ROLE_KEYS.iter().copied())
                    ),
                )),
            };
            self.findings.take(result.map_err(|e| e.key(&key.name)));
        }
        self.check_conditions(&inherited.when[play.when.len()..]);
        match name {
            Some(name) => self.role(at, &name, inherited, own_vars),
            None => self.findings.error(TaskError::at(at, "the role has no name (`role`)")),
        }
    }

    /// The tasks of a role after those of the roles that it depends on.
    fn role(&mut self, at: Position, name: &str, inherited: Inherited, own_vars: Option<Vars>) {
        let result = self.try_role(name, inherited, own_vars);
        self.findings.take(result.map_err(|error| error.at_if_none(at)));
    }

    fn try_role(
        &mut self,
        name: &str,
        mut inherited: Inherited,
        own_vars: Option<Vars>,
    ) -> Result<(), TaskError> {
        let Some(follow) = &self.project else { return Ok(()) };
        let is_plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if !Path::new(name).components().all(is_plain) {
            let shown: String = name.chars().take(100).collect();
            return Err(TaskError::file(format!("`{shown}` is no name of a role")));
        }
        let dir = &follow.playbook_dir;
        let mut dirs = Vec::new();
        for base in [parent(dir), dir.clone(), PathBuf::new()] {
            let dir = base.join("roles").join(name);
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        for dir in &dirs {
            let defaults = self.defaults(dir)?;
            let vars = self.variables(&yaml(&dir.join("vars"), "main"))?;
            let meta = self.document(&yaml(&dir.join("meta"), "main"))?;
            let tasks = self.document(&yaml(&dir.join("tasks"), "main"))?;
            if defaults.is_empty() && vars.is_none() && meta.is_none() && tasks.is_none() {
                continue;
            }
            // What is said outside is stronger than the role's defaults, and weaker than its `vars`.
            for vars in defaults.iter().chain(&vars).chain(&own_vars) {
                self.check_vars(vars);
            }
            inherited.vars.splice(0..0, defaults);
            inherited.vars.extend(vars.into_iter().chain(own_vars));
            let outer = self.project.as_mut().map(|follow| follow.role.replace(dir.clone()));
            let mut result = Ok(());
            if let Some((path, node)) = meta {
                let dependencies = match &node.data {
                    Data::Map(entries) => {
                        entries.iter().find(|(key, _)| key.name == "dependencies").map(|(_, n)| n)
                    }
                    _ => None,
                };
                if let Some(node) = dependencies {
                    result = self.in_file(path, |reader| {
                        reader.roles("dependencies", node, &inherited);
                    });
                }
            }
            if let (Some((path, node)), Ok(())) = (tasks, &result) {
                let key = Key { at: node.at, name: "tasks".to_owned() };
                result = self.in_file(path, |reader| reader.list(&key, &node, &inherited));
            }
            if let (Some(follow), Some(outer)) = (&mut self.project, outer) {
                follow.role = outer;
            }
            return result.map_err(TaskError::file);
        }
        let looked_for = self.project.as_ref().map(|f| f.looked_for(&dirs)).unwrap_or_default();
        Err(TaskError::file(format!("there is no role `{name}`: looked for {looked_for}")))
    }

    /// `defaults/main.yaml`, or the files in `defaults/main` by their names.
    fn defaults(&mut self, role: &Path) -> Result<Vec<Vars>, TaskError> {
        let dir = role.join("defaults");
        if let Some(vars) = self.variables(&yaml(&dir, "main"))? {
            return Ok(vec![vars]);
        }
        let Some(follow) = &self.project else { return Ok(Vec::new()) };
        let dir = dir.join("main");
        let mut names = match follow.files.list(&dir) {
            Ok(names) => names,
            Err(e) if is_absent(&e) => return Ok(Vec::new()),
            Err(e) => return Err(TaskError::file(format!("{}: {e}", follow.files.shown(&dir)))),
        };
        names.retain(|name| name.ends_with(".yaml") || name.ends_with(".yml"));
        names.sort();
        let mut found = Vec::new();
        for name in names {
            found.extend(self.variables(&[dir.join(name)])?);
        }
        Ok(found)
    }
}

fn outside(node: &Node, name: &str) -> TaskError {
    let shown: String = name.chars().take(100).collect();
    TaskError::at(node.at, format!("`{shown}` leads out of the project's directory"))
}
