//! What users call transfers and what becomes of images, in lines and in JSON.

use imgfs::transfer::{Route, Status};

/// What users call a transfer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Pull,
    Push,
    Copy,
    Tag,
}

impl Verb {
    pub(crate) fn command(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Copy => "copy",
            Self::Tag => "tag",
        }
    }

    /// What has happened to an image.
    pub(crate) fn done(self) -> &'static str {
        match self {
            Self::Pull => "pulled",
            Self::Push => "pushed",
            Self::Copy => "copied",
            Self::Tag => "tagged",
        }
    }

    /// What happens to bytes: `... to fetch`, `... fetched`.
    pub(crate) fn moving(self) -> (&'static str, &'static str) {
        match self {
            Self::Pull => ("fetch", "fetched"),
            Self::Push => ("send", "sent"),
            Self::Copy | Self::Tag => ("copy", "copied"),
        }
    }
}

/// What the last event of a transfer is called: the report, unless it is one of many tasks.
pub(crate) fn report_event(task: Option<&str>) -> &'static str {
    if task.is_some() { "transfer" } else { "report" }
}

/// `from`, or `from -> to` where the name changes.
pub(crate) fn shown(route: &Route) -> String {
    if route.from == route.to {
        route.from.to_string()
    } else {
        format!("{} -> {}", route.from, route.to)
    }
}

/// A status as JSON has it.
pub(crate) fn status_name(verb: Verb, status: &Status) -> &'static str {
    match status {
        Status::Planned => "planned",
        Status::Copied => verb.done(),
        Status::Unchanged => "unchanged",
        Status::Skipped => "skipped",
        Status::Failed(_) => "failed",
    }
}
