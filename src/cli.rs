//! The command line: arguments in, reports out. Nothing here decides anything about images.

mod args;
mod copy;
mod daemon;
mod declared;
mod describe;
mod diff;
mod du;
mod fstab;
mod index;
mod inside;
mod inspect;
mod log;
mod login;
mod manual;
mod mount;
mod mount_store;
mod mounts;
mod names;
mod output;
mod places;
mod profile;
mod progress;
mod pull;
mod registries;
mod render;
mod request;
mod run;
mod serve;
mod snapshotter;
mod store;
mod transfer;
mod vars;
mod words;

use std::{
    ffi::OsString,
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use clap::{CommandFactory, Parser, error::ErrorKind};
use tokio::runtime::Runtime;

use args::{Args, Command};
use imgfs::{backend, image::ReferenceError, ops};
use output::Output;

/// How a command ended, if not with an error. See `--help` for the numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    SomeFailed,
    NothingMatched,
}

/// An error that ends a command, with what the user can do about it.
pub(crate) struct Failure {
    message: String,
    hint: Option<String>,
    /// Of the process.
    status: u8,
}

/// Exit statuses, as the manual documents them.
const SOME_FAILED: u8 = 1;
const USAGE: u8 = 2;
const NOTHING_MATCHED: u8 = 3;

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, status: USAGE }
    }

    /// The same as the failure of an image, and not of what was asked for.
    pub(crate) fn of_image(self) -> Self {
        Self { status: SOME_FAILED, ..self }
    }

    /// The same where status 1 says something else than failure.
    pub(crate) fn trouble(self) -> Self {
        Self { status: USAGE, ..self }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }
}

impl From<ops::Ending> for Outcome {
    fn from(ending: ops::Ending) -> Self {
        match ending {
            ops::Ending::Done => Self::Done,
            ops::Ending::SomeFailed => Self::SomeFailed,
            ops::Ending::Nothing => Self::NothingMatched,
        }
    }
}

impl From<ops::Error> for Failure {
    fn from(error: ops::Error) -> Self {
        let status = if error.is_of_image() { SOME_FAILED } else { USAGE };
        Self { message: error.to_string(), hint: error.hint(), status }
    }
}

impl From<ReferenceError> for Failure {
    fn from(error: ReferenceError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<backend::Error> for Failure {
    fn from(error: backend::Error) -> Self {
        Self { hint: error.hint().map(str::to_owned), ..Self::new(error.to_string()) }
    }
}

/// Runs the command that the process was started with.
pub(crate) fn main() -> ExitCode {
    let args = match Args::try_parse_from(std::iter::once("imgfs".into()).chain(arguments())) {
        Ok(args) => args,
        Err(error) => {
            // Also `--help` and `--version` come this way. If even that cannot be printed, the
            // status has to do.
            let _ = error.print();
            return match error.kind() {
                ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
                _ => ExitCode::from(USAGE),
            };
        }
    };
    let output = Arc::new(Output::new(args.command.output()));
    // As of diff(1): 1 says that there are differences.
    let trouble = if matches!(args.command, Command::Diff(_)) { USAGE } else { SOME_FAILED };
    let result = args
        .log
        .install(args.command.log_level(), &output)
        .and_then(|()| carry_out(args.command, &output));
    if let Some(error) = output.trouble() {
        output.error(&format!("standard output: {error}"), None);
        return ExitCode::from(trouble);
    }
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::SomeFailed) => ExitCode::from(SOME_FAILED),
        Ok(Outcome::NothingMatched) => ExitCode::from(NOTHING_MATCHED),
        Err(failure) => {
            output.error(&failure.message, failure.hint.as_deref());
            ExitCode::from(failure.status)
        }
    }
}

fn carry_out(command: Command, output: &Arc<Output>) -> Result<Outcome, Failure> {
    match command {
        Command::Pull(args) => pull::run(&args, output),
        Command::Push(args) => copy::push(&args, output),
        Command::Copy(args) => copy::copy(&args, output),
        Command::Run(args) => run::run(&args, output),
        Command::Mount(args) => mount::run(&args, output),
        Command::Serve(args) => serve::run(&args, output),
        Command::Umount(args) => mounts::umount(&args, output),
        Command::Mounts(args) => mounts::list(&args, output),
        Command::Ls(args) => inspect::ls(&args, output),
        Command::Cat(args) => inside::cat(&args, output),
        Command::Inspect(args) => describe::inspect(&args, output),
        Command::Digest(args) => describe::digest(&args, output),
        Command::Diff(args) => diff::run(&args, output),
        Command::Du(args) => du::run(&args, output),
        Command::Index(args) => index::run(&args, output),
        Command::Profile(args) => profile::run(&args, output),
        Command::Verify(args) => inspect::verify(&args, output),
        Command::Prune(args) => inspect::prune(&args, output),
        Command::Rm(args) => names::rm(&args, output),
        Command::Tag(args) => names::tag(&args, output),
        Command::Login(args) => login::login(&args, output),
        Command::Logout(args) => login::logout(&args, output),
        Command::Store(args) => store::run(&args, output),
        Command::Snapshotter(args) => snapshotter::run(&args, output),
        Command::StoreHelper(args) => store::helper(&args, output),
        Command::Render(args) => render::run(&args),
        Command::Completions { shell } => manual::completions(shell, Args::command()),
        Command::Man { dir } => manual::pages(&dir, Args::command()),
    }
}

/// The arguments of the process, those under its other names brought into the form of commands.
pub(crate) fn arguments() -> Vec<OsString> {
    let mut all = std::env::args_os();
    let program = all.next().unwrap_or_default();
    let all: Vec<OsString> = all.collect();
    match Path::new(&program).file_name() {
        Some(name) if name == "mount.imgfs" => fstab::arguments(&all),
        Some(name) if name == store::HELPER => {
            std::iter::once("store-helper".into()).chain(all).collect()
        }
        _ => all,
    }
}

/// The runtime of a command, made when it is first needed. There is one only: connections that are
/// kept open belong to the runtime that they were made in.
static RUNTIME: OnceLock<Runtime> = OnceLock::new();

/// Runs async work to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = match RUNTIME.get() {
        Some(runtime) => runtime,
        None => {
            let made = runtime()?;
            RUNTIME.get_or_init(|| made)
        }
    };
    Ok(runtime.block_on(work))
}

/// What runs async work. For a command that has to end what is under way itself; others use
/// [`block_on`].
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    tokio::runtime::Builder::new_multi_thread()
        // More than a few only fight over the same sockets.
        .worker_threads(processors.clamp(1, 8))
        .max_blocking_threads(128)
        .enable_all()
        .build()
        .map_err(|e| Failure::new(format!("cannot start: {e}")))
}
