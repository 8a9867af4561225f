//! Taking manifests.

use super::answer::Answer;
use super::fault::Fault;
use super::holdings::Checks;
use super::intake::{Intake, Stop};
use super::uploads::is_repository;
use super::{Inner, State};
use crate::support::content::digest;
use crate::support::http::Request;
use serde_json::{Value, json};
use std::sync::Arc;

/// The least that OCI demands of a registry, and what many take at most.
const MAX_MANIFEST: usize = 4 << 20;

pub(super) fn put(
    inner: &Inner,
    request: &Request,
    (repository, reference): (&str, &str),
    fault: Option<&Fault>,
    intake: &mut Intake<'_, '_>,
) -> Result<Answer, Stop> {
    let bytes = intake.hold(MAX_MANIFEST)?;
    let mut state = inner.state();
    let (media_type, manifest) = match check(&state, request, repository, reference, &bytes) {
        Ok(checked) => checked,
        Err(refusal) => return Ok(refusal),
    };
    let actual = digest(&bytes);
    let there = state.manifests.get(repository).and_then(|all| all.get(reference));
    let version = there.map(|(_, bytes)| format!("\"{}\"", digest(bytes)));
    if state.versions
        && let Some(wanted) = request.header("if-match")
        && version.as_deref() != Some(wanted)
    {
        return Ok(Answer::error(412, "UNKNOWN", "it has changed in the meantime"));
    }
    if !matches!(fault, Some(Fault::Lie)) {
        for part in state.missing(repository, &manifest) {
            if !(part.is_manifest && state.checks == Checks::Blobs) {
                let what = if part.is_manifest { "manifest" } else { "blob" };
                let violation =
                    format!("{repository} {reference} was accepted without {what} {}", part.digest);
                state.violations.push(violation);
            }
        }
        let entry = (media_type, Arc::from(bytes));
        let all = state.manifests.entry(repository.to_owned()).or_default();
        all.insert(actual.clone(), entry.clone());
        all.insert(reference.to_owned(), entry);
    }
    let mut answer = Answer::empty(201)
        .with("Location", format!("/v2/{repository}/manifests/{actual}"))
        .with("Docker-Content-Digest", actual);
    if let Some(subject) = manifest["subject"]["digest"].as_str()
        && state.referrers_api
    {
        answer = answer.with("OCI-Subject", subject);
    }
    Ok(answer)
}

/// Media type and value of a manifest that may be stored.
fn check(
    state: &State,
    request: &Request,
    repository: &str,
    reference: &str,
    bytes: &[u8],
) -> Result<(String, Value), Answer> {
    let invalid = |message: &str| Answer::error(400, "MANIFEST_INVALID", message);
    if !is_repository(repository) {
        return Err(Answer::error(400, "NAME_INVALID", "invalid repository name"));
    }
    if reference.contains(':') {
        if digest(bytes) != reference {
            let message = "provided digest did not match uploaded content";
            return Err(Answer::error(400, "DIGEST_INVALID", message));
        }
    } else if !is_tag(reference) {
        return Err(Answer::error(400, "TAG_INVALID", "invalid tag"));
    }
    let manifest: Value =
        serde_json::from_slice(bytes).map_err(|error| invalid(&error.to_string()))?;
    let media_type = request.header("content-type").unwrap_or_default();
    if media_type.is_empty() {
        return Err(invalid("a manifest needs a Content-Type"));
    }
    if manifest["mediaType"].as_str().is_some_and(|own| own != media_type) {
        return Err(invalid("mediaType and Content-Type differ"));
    }
    let mut missing = state.missing(repository, &manifest);
    missing.retain(|part| match state.checks {
        Checks::All => true,
        Checks::Blobs => !part.is_manifest,
        Checks::Nothing => false,
    });
    if !missing.is_empty() {
        let errors: Vec<Value> = missing
            .iter()
            .map(|part| {
                json!({
                    "code": "MANIFEST_BLOB_UNKNOWN",
                    "message": "blob unknown to registry",
                    "detail": {"digest": part.digest},
                })
            })
            .collect();
        return Err(Answer::json_with(400, &json!({"errors": errors})));
    }
    Ok((media_type.to_owned(), manifest))
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|byte| word(byte) || b".-".contains(&byte))
}
