//! A file of tasks: plays, blocks and tasks, without their values.

use std::{sync::Arc, time::Duration};

use super::{
    condition::Condition,
    error::{Position, TaskError},
    node::Node,
    project::{Follow, Project},
    reader::{Inherited, Reader},
    steps::Step,
};
use crate::template::Dialect;

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
    /// The file that it is in, where a playbook is made of several.
    pub file: Option<Arc<str>>,
    /// The module of KubeKey that it is for, if that is not `image`: it is skipped then.
    pub skipped: Option<&'static str>,
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
    /// Variables that a skipped task would set.
    pub(super) sets: Vec<String>,
}

/// Variables of a play or a block, and the dialect of the templates in them.
#[derive(Clone, Debug)]
pub(super) struct Vars {
    pub(super) node: Arc<Node>,
    pub(super) dialect: Option<Dialect>,
    /// The file that they are in, where a playbook is made of several.
    pub(super) file: Option<Arc<str>>,
    /// Whether one that cannot be evaluated is an error only where it is used. A role has defaults
    /// for everything that its tasks could need.
    pub(super) lazy: bool,
}

impl Playbook {
    /// Reads a file: a list of tasks, a list of plays, one play or one task.
    ///
    /// Everything that is wrong with its form is told at once, templates that cannot be read
    /// included; see [`Playbook::check`] for its values. Templates of tasks that do not say their
    /// `template` are of this dialect.
    pub fn parse(text: &str, dialect: Option<Dialect>) -> Result<Self, Vec<TaskError>> {
        Self::read(text, Reader { dialect, ..Reader::default() })
    }

    /// The same with the files beside the playbook: `roles`, `include_tasks`, `vars_files` and
    /// `import_playbook` are followed, and tasks of KubeKey's other modules are skipped.
    pub fn parse_project(
        text: &str,
        dialect: Option<Dialect>,
        project: &Project<'_>,
    ) -> Result<Self, Vec<TaskError>> {
        let project = Some(Follow::new(project));
        Self::read(text, Reader { dialect, project, ..Reader::default() })
    }

    fn read(text: &str, mut reader: Reader<'_>) -> Result<Self, Vec<TaskError>> {
        let node = Node::parse(text).map_err(|error| vec![error])?;
        let inherited = Inherited { dialect: reader.dialect, ..Inherited::default() };
        reader.marked(|reader| reader.document_of_plays(&node, &inherited));
        match reader.findings.errors.is_empty() {
            true => Ok(Self { tasks: reader.tasks, warnings: reader.findings.warnings }),
            false => Err(reader.findings.errors),
        }
    }
}
