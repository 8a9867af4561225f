//! `.imgfs/pending.json`: what is pending, and what that waits for.
//!
//! ```json
//! {"pending": [{"name": "quay.io/team/app/manifests/v1", "state": "waiting", "bytes": 1234,
//!   "missing": {"manifests": [], "blobs": ["sha256:..."]}}]}
//! ```
//!
//! `state` is `writing` while somebody has the file open for writing, `waiting` for a manifest that waits for what it
//! names, `publishing` for one that lacks nothing any more (with an `error` if that has failed and is tried again), `empty` for a file in which nothing has been written,
//! `written` for one that has been judged by nobody yet, and `refused` for a name whose last content was refused, with
//! the reason as `error`. Names that begin with a dot are not listed.

use std::{collections::BTreeMap, sync::Mutex};

use bytes::Bytes;
use serde::Serialize;

use super::{Writable, pending::Stage, place::Place};
use crate::{namespace::ViewError, util::locked};

/// Refusals that are remembered at the same time; there may be more.
const MAX_REFUSED: usize = 1000;

/// Names whose last content was refused, and why: whoever has closed a file may not have looked at what close(2) said,
/// or may have been told nothing.
#[derive(Default)]
pub(super) struct Refusals(Mutex<BTreeMap<Box<str>, String>>);

impl Refusals {
    pub(super) fn note(&self, path: &str, error: &ViewError) {
        let mut refused = locked(&self.0);
        if refused.len() < MAX_REFUSED || refused.contains_key(path) {
            let error = error.to_string();
            let reason = error.strip_prefix(path).and_then(|rest| rest.strip_prefix(": "));
            refused.insert(path.into(), reason.unwrap_or(&error).to_owned());
        }
    }

    /// Something else has become of the name.
    pub(super) fn forget(&self, path: &str) {
        locked(&self.0).remove(path);
    }

    pub(super) fn len(&self) -> usize {
        locked(&self.0).len()
    }
}

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
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
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
        let refused = locked(&self.refused.0).clone();
        for (path, error) in refused {
            if self.table().named(&path).is_some() {
                continue;
            }
            let (name, error) = (path.into(), Some(error));
            pending.push(File { name, state: "refused", bytes: 0, missing: None, error });
        }
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
            let mut error = None;
            let (name, missing) = match &state.stage {
                _ if state.is_being_written() => ("writing", None),
                Stage::Waiting(waiting) if locked(&waiting.missing).is_empty() => {
                    error = waiting.failure();
                    ("publishing", None)
                }
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
            pending.push(File { name: path.to_string(), state: name, bytes, missing, error });
        }
        let text = serde_json::to_vec_pretty(&Status { pending, more });
        let mut text = text.unwrap_or_default();
        text.push(b'\n');
        text.into()
    }
}
