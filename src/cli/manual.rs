//! Completions and manual pages, made of the same definitions as the command line itself.

use std::{fs, io, path::Path};

use super::{Failure, Outcome};

pub(crate) fn completions(
    shell: clap_complete::Shell,
    mut command: clap::Command,
) -> Result<Outcome, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "imgfs", &mut script);
    match io::Write::write_all(&mut io::stdout().lock(), &script) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(e.to_string())),
        _ => Ok(Outcome::Done),
    }
}

pub(crate) fn pages(dir: &Path, command: clap::Command) -> Result<Outcome, Failure> {
    let failed = |e: io::Error| Failure::new(format!("{}: {e}", dir.display()));
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(command, dir).map_err(failed)?;
    Ok(Outcome::Done)
}
