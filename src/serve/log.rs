//! The log of requests: a JSON object a line.
//!
//! ```text
//! {"time":"2026-01-02T03:04:05Z","peer":"192.0.2.1","user":"alice","method":"GET","path":"/v2/app/manifests/v1",
//!  "status":200,"bytes":1234,"seconds":0.001}
//! ```
//!
//! Queries and headers are left out: they may be credentials.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use serde_json::json;

use crate::util::locked;

/// Where requests are logged.
pub(super) struct AccessLog(Mutex<File>);

/// What is logged of a request.
pub(super) struct Line<'a> {
    pub(super) peer: String,
    pub(super) user: &'a str,
    pub(super) method: &'a str,
    pub(super) path: &'a str,
    pub(super) status: u16,
    pub(super) bytes: u64,
    pub(super) time: Duration,
}

impl AccessLog {
    /// Adds to the file at `path`; `-` is standard output.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let path = if path == Path::new("-") { Path::new("/dev/stdout") } else { path };
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        Ok(Self(Mutex::new(file)))
    }

    pub(super) fn write(&self, line: &Line<'_>) {
        let time = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
        let text = json!({
            "time": time,
            "peer": line.peer,
            "user": line.user,
            "method": line.method,
            "path": line.path,
            "status": line.status,
            "bytes": line.bytes,
            "seconds": (line.time.as_secs_f64() * 1e6).round() / 1e6,
        });
        // A full disk must not keep anybody from being answered.
        let _ = locked(&self.0).write_all(format!("{text}\n").as_bytes());
    }
}
