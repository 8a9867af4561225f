//! `.imgfs/pending.json`: what is pending, and what that waits for.
//!
//! ```json
//! {"pending": [{"name": "quay.io/team/app/manifests/v1", "state": "waiting", "bytes": 1234,
//!   "missing": {"manifests": [], "blobs": ["sha256:..."]}}]}
//! ```
//!
//! `state` is `writing` while somebody has the file open for writing, `waiting` for a manifest that waits for what it
//! names, `empty` for a file in which nothing has been written, and `written` for one that has been judged by nobody
//! yet. Names that begin with a dot are not listed.

use bytes::Bytes;
use serde::Serialize;

use super::{Writable, pending::Stage, place::Place};
use crate::util::locked;

/// Pending files that are told; there may be more.
const MAX_TOLD: usize = 10_000;

#[derive(Serialize)]
struct Status {
    pending: Vec<File>,
    /// How many more there are.
    #[serde(skip_serializing_if = "is_zero")]
    more: usize,
}

#[derive(Serialize)]
struct File {
    name: String,
    state: &'static str,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<Lacking>,
}

#[derive(Serialize)]
struct Lacking {
    manifests: Vec<String>,
    blobs: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives references")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl Writable {
    /// What is pending, as JSON.
    pub(super) fn status(&self) -> Bytes {
        let mut pending = Vec::new();
        let mut more = 0;
        for file in self.table().all() {
            let bytes = file.size();
            let state = file.state();
            let Some(path) = &state.path else { continue };
            if matches!(state.place, Place::Dot | Place::Foreign | Place::Records) {
                continue;
            }
            if pending.len() >= MAX_TOLD {
                more += 1;
                continue;
            }
            let (name, missing) = match &state.stage {
                _ if state.is_being_written() => ("writing", None),
                Stage::Waiting(waiting) => ("waiting", Some(waiting)),
                _ if !state.is_written => ("empty", None),
                _ => ("written", None),
            };
            let missing = missing.map(|waiting| {
                let missing = locked(&waiting.missing);
                let of = |is_manifest| {
                    let found = missing.iter().filter(move |m| m.is_manifest == is_manifest);
                    found.map(|missing| missing.digest.to_string()).collect()
                };
                Lacking { manifests: of(true), blobs: of(false) }
            });
            pending.push(File { name: path.to_string(), state: name, bytes, missing });
        }
        let text = serde_json::to_vec_pretty(&Status { pending, more });
        let mut text = text.unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}
