//! KubeKey's tasks: YAML with an `image` module into requests for transfers.
//!
//! 1. [`Playbook::parse`] reads the file: lists of tasks, plays, blocks, in every form and spelling
//!    that the module ever had. Everything that it does not know is an error with its place, for a
//!    misspelt `src_pattern` would push everything.
//! 2. [`Playbook::check`] evaluates every value that does not depend on the result of a task.
//! 3. [`Playbook::run`] carries the tasks out, through a [`Runner`] that is given requests ([`crate::ops`]).
//!
//! Values are rendered first and decoded after, as in KubeKey; only the names of images stay
//! templates ([`Request::source`](crate::ops::Request::source), [`Request::dest`](crate::ops::Request::dest)), which are rendered for each image. What
//! KubeKey swallows is an error here. Nothing in this module does I/O: the files beside a playbook
//! ([`Playbook::parse_project`]) are read by who gives them ([`Files`]).

mod condition;
mod convert;
mod error;
mod evaluate;
mod modules;
mod node;
mod playbook;
mod prepare;
mod project;
mod reader;
mod run;
mod side;
mod steps;
mod values;

use std::path::PathBuf;

pub use error::{Position, TaskError};
pub use node::MAX_FILE_BYTES;
pub use playbook::{Playbook, Task};
pub use project::{Files, Project};
pub use run::{RunEvent, RunReport, Runner, TaskOutcome, TaskStatus};

use crate::{ops::TreeSpec, template::Value, transfer};

/// What holds for all tasks of a run.
#[derive(Clone, Default)]
pub struct Settings {
    /// The directory of tasks that do not name one, or another place.
    pub images_dir: TreeSpec,
    /// Where relative names of certificate files start.
    pub base: PathBuf,
    /// What tasks do not say: what to do with indexes and attachments.
    pub options: transfer::Options,
    /// Variables from outside of the file; they are stronger than those in it.
    pub vars: Value,
}

/// Which tasks are wanted, by their tags, as in Ansible.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Only tasks with one of these, and those with the tag `always`; none means all tasks but
    /// those with the tag `never`. `all`, `tagged` and `untagged` mean what they say.
    pub tags: Vec<String>,
    /// Not the tasks with one of these, whatever the others say.
    pub skip_tags: Vec<String>,
}

impl Selection {
    fn takes(&self, task: &Task) -> bool {
        let has = |tag: &str| task.tags.iter().any(|own| own == tag);
        let is_plain = !task.tags.iter().any(|tag| tag != "always");
        let named = |wanted: &[String]| {
            wanted.iter().any(|tag| match tag.as_str() {
                "tagged" => !is_plain,
                "untagged" => is_plain,
                tag => has(tag),
            })
        };
        let all = self.tags.is_empty() || self.tags.iter().any(|tag| tag == "all");
        let wanted = has("always") || (all && !has("never")) || named(&self.tags);
        wanted
            && !named(&self.skip_tags)
            && !self.skip_tags.iter().any(|tag| tag == "all" && !has("always"))
    }
}

#[cfg(test)]
mod tests;
