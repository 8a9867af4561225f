//! Carrying out a [`Request`] with what the command line says beside it.

use std::{path::Path, sync::Arc};

use imgfs::ops::{Ending, Medium, Observer, Request, Transfer, TransferOptions, TreeSpec};

use super::{
    Failure, args::RegistryArgs, block_on, output::Output, progress::Progress, registries,
    transfer::Teller, words::Verb,
};

/// What the command line says beside the request.
pub(crate) struct Setting<'a> {
    pub(crate) verb: Verb,
    /// The task that it is a part of.
    pub(crate) task: Option<&'a str>,
    pub(crate) registries: &'a RegistryArgs,
    pub(crate) options: TransferOptions,
    pub(crate) output: &'a Arc<Output>,
}

/// Does what `request` asks for, and reports how it went.
pub(crate) fn carry_out(request: &Request, setting: &Setting<'_>) -> Result<Ending, Failure> {
    let output = setting.output;
    if let Some(Medium::Archive { file, .. }) = request.to.medium()
        && file == Path::new("-")
    {
        output.leave_stdout();
    }
    let transfer = Transfer::prepare(request, setting.options)?;
    let config = registries::config(setting.registries, &transfer.registries(), output)?;
    let progress = Progress::new(output.clone(), setting.verb);
    let observer: Arc<dyn Observer> = progress.clone();
    let report = block_on(transfer.run(config, &observer));
    progress.finish();
    let teller = Teller { verb: setting.verb, task: setting.task, output };
    Ok(teller.tell(&report??))
}

/// An option that means something for some targets only.
pub(crate) struct TargetOption {
    name: &'static str,
    /// What it is about.
    about: &'static str,
    applies: fn(&TreeSpec) -> bool,
    hint: Option<&'static str>,
}

fn is_directory(target: &TreeSpec) -> bool {
    matches!(target, TreeSpec::Directory(_))
}

fn is_registry(target: &TreeSpec) -> bool {
    matches!(target, TreeSpec::Registry { .. })
}

pub(crate) const LAYOUT: TargetOption = TargetOption {
    name: "--layout",
    about: "directories of images",
    applies: is_directory,
    hint: None,
};

pub(crate) const SYNC: TargetOption =
    TargetOption { name: "--sync", about: "directories", applies: is_directory, hint: None };

pub(crate) const INDEX_LAYERS: TargetOption = TargetOption {
    name: "--index-layers",
    about: "directories",
    applies: is_directory,
    hint: Some("`imgfs index push` attaches indexes to an image in a registry"),
};

pub(crate) const CREATE_PROJECTS: TargetOption = TargetOption {
    name: "--create-projects",
    about: "registries",
    applies: is_registry,
    hint: None,
};

pub(crate) const RECHECK: TargetOption = TargetOption {
    name: "--recheck",
    about: "registries",
    applies: is_registry,
    hint: Some("`imgfs verify --repair` looks through a directory"),
};

pub(crate) const SINGLE_WRITER: TargetOption = TargetOption {
    name: "--single-writer",
    about: "object stores",
    applies: |target| matches!(target.medium(), Some(Medium::ObjectStore { .. })),
    hint: None,
};

/// Refuses options that are given and do nothing for `target`, which is the value of `side`.
pub(crate) fn check_target(
    side: &str,
    target: &TreeSpec,
    options: &[(bool, TargetOption)],
) -> Result<(), Failure> {
    let mut idle = options.iter().filter(|(is_given, of)| *is_given && !(of.applies)(target));
    let Some((_, TargetOption { name, about, hint, .. })) = idle.next() else { return Ok(()) };
    let what = if is_registry(target) { "a registry" } else { "none" };
    let failure = Failure::new(format!("{name} is about {about}, and {side} is {what}"));
    Err(match hint {
        Some(hint) if is_registry(target) => failure.hint(*hint),
        _ => failure,
    })
}
