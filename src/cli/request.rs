//! Carrying out a [`Request`] with what the command line says beside it.

use std::{path::Path, sync::Arc};

use imgfs::ops::{Ending, Medium, Observer, Request, Transfer, TransferOptions};

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
