//! Child processes that do not outlive the tests.

use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

type Job = (Command, Sender<std::io::Result<Child>>);

/// Starts `program` so that the kernel kills it when this test process dies, however that happens.
///
/// `setpriv` (util-linux) asks for the signal and then becomes the program, so the process id is the program's.
/// The kernel sends that signal when the *thread* that started the child ends, and the harness runs each test
/// in a thread of its own; therefore one thread that never ends starts them all.
pub(crate) fn spawn_tied(
    program: &str,
    prepare: impl FnOnce(&mut Command),
) -> std::io::Result<Child> {
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, jobs) = channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(sender)
    });
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", program]);
    prepare(&mut command);
    let (answer, result) = channel();
    spawner
        .lock()
        .expect("the spawner's lock is never poisoned")
        .send((command, answer))
        .expect("the spawner thread never ends");
    result.recv().expect("the spawner thread answers")
}

/// Whether an executable of this name is on PATH or in a directory where Debian puts daemons.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/bin".into(), "/usr/sbin".into(), "/usr/local/bin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A program that a test has been found able to use ([`super::need`]).
pub(crate) fn program(name: &str) -> std::path::PathBuf {
    find_program(name).unwrap_or_else(|| panic!("`{name}` is missing"))
}

/// A program that the tests need: its path, or a panic that names the Debian package.
pub(crate) fn require_program(name: &str, package: &str) -> std::path::PathBuf {
    find_program(name).unwrap_or_else(|| {
        panic!(
            "`{name}` is missing: install Debian's package `{package}` (apt-get install {package})"
        )
    })
}
