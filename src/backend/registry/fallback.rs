//! The tag under which the referrers of a manifest are listed where a registry does not list them itself
//! (distribution specification, "Referrers Tag Schema").
//!
//! Whoever attaches something reads the list, adds to it and writes it, and so do others at the same time. A
//! registry that knows `If-Match` refuses to write over what somebody else has just written; with all others the
//! list is looked at again after a while, and what has gone is added once more.

use std::{
    collections::HashSet,
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use reqwest::header::HeaderValue;
use serde_json::Value;

use super::{manifests::fetch_versioned, session::Scope, sink::RegistrySink};
use crate::{
    backend::{Error, Kind, Result},
    image::{Digest, Manifest, MediaType, Reference, is_attached_to, referrers_index},
    util::locked,
};

/// How often a list is written before others are left to it.
const WRITES: usize = 6;

/// The least time after which a list is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The time that others may need between reading a list and writing it, as a multiple of our own.
const OTHERS_TIME: u32 = 2;

/// They are not waited for longer than this.
const MAX_OTHERS_TIME: Duration = Duration::from_secs(2);

impl RegistrySink {
    /// Adds `referrers` to the tag that lists them, and sees to it that they stay there. Whatever else has
    /// been added is kept.
    pub(super) async fn list_referrers(
        &self,
        tag: &Reference,
        referrers: Vec<Value>,
    ) -> Result<()> {
        // Those who have met will not meet again: each waits another time.
        let pauses = ExponentialBuilder::default()
            .with_min_delay(LOOK_AGAIN)
            .with_factor(1.5)
            .with_max_times(WRITES)
            .with_jitter();
        // A version with which the registry has refused a condition.
        let mut refused = None;
        for (round, pause) in pauses.build().enumerate() {
            let listing = self.listing.lock().await;
            let begun = Instant::now();
            let (mut all, version) = match self.read_list(tag).await? {
                List::Has(all, version) => (all, version),
                List::Hidden if round > 0 => return Ok(()),
                List::Hidden => (Vec::new(), None),
            };
            if !add_missing(&mut all, referrers.clone()) {
                return Ok(());
            }
            // Of what has not changed in between, the registry has not meant that.
            let version = version.filter(|version| refused.as_ref() != Some(version));
            match self.write_list(tag, all, version.as_ref()).await {
                Err(error) if version.is_some() && is_precondition(&error) => refused = version,
                written => written?,
            }
            drop(listing);
            let others = (begun.elapsed() * OTHERS_TIME).min(MAX_OTHERS_TIME);
            tokio::time::sleep(pause + others).await;
        }
        let List::Has(mut all, _) = self.read_list(tag).await? else { return Ok(()) };
        let before = all.len();
        if !add_missing(&mut all, referrers) {
            return Ok(());
        }
        let lost: Vec<&str> =
            all[before..].iter().filter_map(|lost| lost["digest"].as_str()).collect();
        let reason = format!(
            "what others write there takes {} out again; run the same command once more",
            lost.join(" and ")
        );
        let session = self.session(tag.repository()).await?;
        Err(session.wire.error(&format!("adding to the list {tag}"), Kind::Unfit(reason)))
    }

    async fn read_list(&self, tag: &Reference) -> Result<List> {
        let session = self.session(tag.repository()).await?;
        let name = tag.tag().unwrap_or_default();
        match fetch_versioned(&session, tag, Scope::Push(None)).await {
            Ok((manifest, _)) if is_attached_to(name, &manifest.digest()) => Ok(List::Hidden),
            Ok((manifest, version)) => Ok(List::Has(children_of(&manifest), version)),
            Err(error) if error.is_not_found() => Ok(List::Has(Vec::new(), None)),
            Err(error) => Err(error),
        }
    }

    async fn write_list(
        &self,
        tag: &Reference,
        all: Vec<Value>,
        version: Option<&HeaderValue>,
    ) -> Result<()> {
        let content = referrers_index(all.iter().map(Value::to_string));
        let name = tag.tag().unwrap_or_default();
        let kind = MediaType::OciIndex.as_str();
        self.put_named(tag.repository(), &content, kind, name, version).await?;
        locked(&self.names).insert(tag.clone(), Digest::sha256(&content));
        Ok(())
    }
}

/// A list of referrers, as its registry shows it.
enum List {
    /// What it has, and its version, if the registry tells that.
    Has(Vec<Value>, Option<HeaderValue>),
    /// The registry takes the tag for the digest, and answers with the subject. What the list has cannot be
    /// looked at.
    Hidden,
}

/// Whether it is the condition that a registry refuses, or does not know.
fn is_precondition(error: &Error) -> bool {
    matches!(error.kind(), Kind::Status { status: 409 | 412 | 428 | 501, .. })
}

/// The children of an index as they stand in it.
pub(super) fn children_of(index: &Manifest) -> Vec<Value> {
    match serde_json::from_slice::<Value>(index.bytes()) {
        Ok(mut document) => match document["manifests"].take() {
            Value::Array(children) => children,
            _ => Vec::new(),
        },
        Err(_) => Vec::new(),
    }
}

/// Adds those of `more` to a list of descriptors that are not in it. Tells whether there were any.
pub(super) fn add_missing(all: &mut Vec<Value>, more: Vec<Value>) -> bool {
    let digest_of = |descriptor: &Value| descriptor["digest"].as_str().map(str::to_owned);
    let before = all.len();
    let known: HashSet<String> = all.iter().filter_map(digest_of).collect();
    all.extend(more.into_iter().filter(|d| digest_of(d).is_some_and(|d| !known.contains(&d))));
    all.len() > before
}
