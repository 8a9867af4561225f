//! Reads of one file, by `fio`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::daemon::PROCESSOR;
use crate::Result;

/// What is read of a file.
#[derive(Clone, Copy)]
pub(crate) enum Pattern<'a> {
    /// All of it, in blocks of this size.
    Sequential(&'a str),
    /// So many bytes in blocks of 4 KiB, always the same ones and none of them twice, on one processor
    /// ([`super::Daemon::pin`]).
    Random(u64),
}

/// Reads a file; the time is what `fio` says that the reads took.
pub(crate) fn fio(path: &Path, pattern: Pattern<'_>) -> Result<Duration> {
    // A colon in a name means two files to fio.
    let link = std::env::temp_dir().join(format!("imgfs-bench-{}.fio", std::process::id()));
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(path, &link)?;
    let mut command = Command::new(match pattern {
        Pattern::Sequential(_) => "fio",
        Pattern::Random(_) => "taskset",
    });
    if matches!(pattern, Pattern::Random(_)) {
        command.args(["--cpu-list", PROCESSOR, "fio"]);
    }
    command
        .args(["--name=read", "--readonly", "--ioengine=psync", "--invalidate=0"])
        .args(["--output-format=json", &format!("--filename={}", link.display())]);
    match pattern {
        Pattern::Sequential(block) => {
            command.args(["--rw=read".to_owned(), format!("--bs={block}")]);
        }
        Pattern::Random(bytes) => {
            command.args(["--rw=randread", "--bs=4k", "--randrepeat=1"]);
            command.arg(format!("--io_size={bytes}"));
        }
    }
    let output =
        command.output().map_err(|e| format!("fio: {e} (Debian's package is called fio)"))?;
    fs::remove_file(&link)?;
    if !output.status.success() {
        return Err(format!("fio: {}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let said = String::from_utf8_lossy(&output.stdout);
    // Warnings may stand before it.
    let json = said.get(said.find('{').unwrap_or(0)..).unwrap_or_default();
    let found: serde_json::Value = serde_json::from_str(json)?;
    let read = &found["jobs"][0]["read"];
    let rate = read["bw_bytes"].as_f64().filter(|rate| *rate > 0.0).ok_or("fio gives no rate")?;
    let bytes = read["io_bytes"].as_f64().ok_or("fio gives no bytes")?;
    Ok(Duration::from_secs_f64(bytes / rate))
}
