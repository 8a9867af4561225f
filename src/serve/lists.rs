//! Lists: tags, repositories, and what refers to a manifest.

use std::collections::BTreeSet;

use hyper::{StatusCode, header::LINK};
use serde_json::{Value, json};

use super::{
    access::Action,
    names::Named,
    reply::{Problem, Reply, Result, full, header, json_reply, set},
    service::Call,
};
use crate::image::{Digest, MAX_MANIFEST_BYTES, MediaType, referrers_index};

/// Names that are listed at most in one answer; the others follow.
const MAX_PAGE: usize = 10_000;

/// `GET` of the tags of a repository, in the order of their bytes.
pub(super) async fn tags(call: &Call, named: &Named) -> Result<Reply> {
    let shared = &call.shared;
    let repository = shared.to_read(&call.user, named).await?;
    shared.check(&call.user, Action::Pull, &repository)?;
    let page = Page::of(call)?;
    let mut tags = shared.tree.tags(&repository).await.map_err(|e| Problem::local(&e))?;
    let mut is_known = !tags.is_empty() || shared.exists(&repository).await?;
    if let Some(through) = shared.through(&repository) {
        match through.tags(&repository).await {
            Ok(more) => {
                is_known = true;
                tags.extend(more);
            }
            // Ours are better than none.
            Err(problem) if is_known => tracing::info!("{problem:?}"),
            Err(problem) => return Err(problem),
        }
    }
    if !is_known {
        return Err(Problem::name_unknown(&named.asked));
    }
    let (tags, next) = page.cut(&tags);
    let mut reply = json_reply(StatusCode::OK, &json!({ "name": named.asked, "tags": tags }));
    if let Some(next) = next {
        link(call, &mut reply, &format!("/v2/{}/tags/list", named.asked), &next);
    }
    Ok(reply)
}

/// `GET` of the repositories: those that the user may pull from.
pub(super) async fn catalog(call: &Call) -> Result<Reply> {
    let shared = &call.shared;
    if shared.access.keeps_out(&call.user) {
        return Err(shared.access.unauthorized("log in first"));
    }
    let page = Page::of(call)?;
    let mut all = shared.tree.repositories().await.map_err(|e| Problem::local(&e))?;
    if let Some(through) = &shared.through {
        all.extend(through.repositories());
    }
    let allowed =
        all.iter().filter(|repository| shared.allows(&call.user, Action::Pull, repository));
    let names: BTreeSet<String> = match call.query.namespace() {
        None => allowed.map(|repository| shared.names.shown(repository)).collect(),
        Some(namespace) => {
            let registry = call.named("any/any")?.repository.registry().to_owned();
            tracing::debug!(namespace, "listing a registry");
            let own = allowed.filter(|repository| repository.registry() == registry);
            own.map(|repository| repository.path().to_owned()).collect()
        }
    };
    let (repositories, next) = page.cut(&names);
    let mut reply = json_reply(StatusCode::OK, &json!({ "repositories": repositories }));
    if let Some(next) = next {
        link(call, &mut reply, "/v2/_catalog", &next);
    }
    Ok(reply)
}

/// `GET` of what refers to a manifest: always an index, if only an empty one.
pub(super) async fn referrers(call: &Call, named: &Named, subject: Digest) -> Result<Reply> {
    let shared = &call.shared;
    let repository = shared.to_read(&call.user, named).await?;
    shared.check(&call.user, Action::Pull, &repository)?;
    let page = Page::of(call)?;
    let last = page.last.as_deref().map(str::parse::<Digest>).transpose();
    let last = last.map_err(|e| Problem::bad_request("DIGEST_INVALID", e))?;
    let found = shared.tree.referrers(&repository, &subject).await;
    let mut found = found.map_err(|e| Problem::local(&e))?;
    if let Some(through) = shared.through(&repository) {
        for (digest, descriptor) in through.referrers(&repository, subject).await {
            found.entry(digest).or_insert(descriptor);
        }
    }
    // No type has a space in it: that is a `+` which has not been encoded, as in the specification's example.
    let filters: BTreeSet<String> = call
        .query
        .all("artifactType")
        .filter(|text| !text.is_empty())
        .map(|text| text.replace(' ', "+"))
        .collect();
    let is_wanted = |descriptor: &Value| {
        let kind = descriptor["artifactType"].as_str().unwrap_or_default();
        filters.is_empty() || filters.contains(kind)
    };
    let rest = found.iter().filter(|(digest, _)| last.is_none_or(|last| **digest > last));
    let wanted = rest.filter(|(_, descriptor)| is_wanted(descriptor));
    let (manifests, next) = cut_referrers(wanted, page.length);
    let body = referrers_index(manifests);
    let mut reply = full(StatusCode::OK, MediaType::OciIndex.as_str(), body);
    if !filters.is_empty() {
        set(&mut reply, header::OCI_FILTERS, "artifactType");
    }
    if let Some(next) = next {
        let mut query = format!("last={}&n={}", encode(&next.to_string()), page.length);
        for filter in &filters {
            query += &format!("&artifactType={}", encode(filter));
        }
        link(call, &mut reply, &format!("/v2/{}/referrers/{subject}", named.asked), &query);
    }
    Ok(reply)
}

/// As many descriptors as there may be on one page, as JSON, and the last of them if others follow. A page is read as a
/// manifest, and so may not be larger than one.
fn cut_referrers<'a>(
    all: impl Iterator<Item = (&'a Digest, &'a Value)>,
    length: usize,
) -> (Vec<String>, Option<Digest>) {
    // What is around the descriptors.
    let mut room = MAX_MANIFEST_BYTES - referrers_index::<&str>([]).len();
    let (mut page, mut last) = (Vec::new(), None);
    for (digest, descriptor) in all {
        let mut text = descriptor.to_string();
        if page.is_empty() && text.len() > room {
            // It is listed all the same; its manifest has the rest.
            let mut bare = descriptor.clone();
            if let Some(bare) = bare.as_object_mut() {
                bare.remove("annotations");
            }
            text = bare.to_string();
        }
        // With the comma.
        if page.len() == length || (text.len() + 1 > room && !page.is_empty()) {
            return (page, last);
        }
        room = room.saturating_sub(text.len() + 1);
        page.push(text);
        last = Some(*digest);
    }
    (page, None)
}

/// Which part of a list is asked for.
struct Page {
    last: Option<String>,
    length: usize,
}

impl Page {
    fn of(call: &Call) -> Result<Self> {
        let length = match call.query.get("n").filter(|n| !n.is_empty()) {
            None => MAX_PAGE,
            Some(text) => {
                let is_number = text.bytes().all(|b| b.is_ascii_digit());
                let number = is_number.then(|| text.parse().unwrap_or(MAX_PAGE));
                number.map(|number: usize| number.min(MAX_PAGE)).ok_or_else(|| {
                    let message = format!("`n={text}` is no number");
                    Problem::bad_request("UNSUPPORTED", message)
                })?
            }
        };
        let last = call.query.get("last").filter(|last| !last.is_empty());
        Ok(Self { last: last.map(str::to_owned), length })
    }

    /// The names of this page, and how the next one is asked for, if there is one.
    fn cut<'a>(&self, all: &'a BTreeSet<String>) -> (Vec<&'a str>, Option<String>) {
        let mut rest = all.iter().filter(|name| self.last.as_ref().is_none_or(|last| *name > last));
        let page: Vec<&str> = rest.by_ref().take(self.length).map(String::as_str).collect();
        let more = rest.next().is_some();
        let next = page.last().filter(|_| more);
        let next = next.map(|last| format!("last={}&n={}", encode(last), self.length));
        (page, next)
    }
}

/// A name in a query.
fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

fn link(call: &Call, reply: &mut Reply, path: &str, next: &str) {
    let namespace = call.query.namespace();
    let namespace = namespace.map(|ns| format!("&ns={}", encode(ns))).unwrap_or_default();
    set(reply, LINK, format_args!("<{path}?{next}{namespace}>; rel=\"next\""));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::image::Manifest;

    #[test]
    fn a_page_of_referrers_can_be_read_as_a_manifest() {
        let referrer = |number: u8, length: usize| {
            let digest = Digest::sha256(&[number]);
            let json = json!({
                "mediaType": "x", "digest": digest.to_string(), "size": 1,
                "annotations": {"a": "x".repeat(length)},
            });
            (digest, json)
        };
        let all: BTreeMap<Digest, Value> = [
            referrer(1, MAX_MANIFEST_BYTES / 2 - 300),
            referrer(2, MAX_MANIFEST_BYTES / 2 - 300),
            referrer(3, MAX_MANIFEST_BYTES / 2),
            // This one does not fit anywhere.
            referrer(4, MAX_MANIFEST_BYTES),
        ]
        .into();
        let (mut seen, mut bare, mut last) = (Vec::new(), 0, None);
        loop {
            let rest = all.iter().filter(|(digest, _)| last.is_none_or(|last| **digest > last));
            let (page, next) = cut_referrers(rest, MAX_PAGE);
            let body = referrers_index(&page);
            let parsed = Manifest::parse(body, None).unwrap();
            seen.extend(parsed.children().iter().map(|child| child.digest));
            bare += parsed.children().iter().filter(|child| child.annotations.is_empty()).count();
            last = next;
            if last.is_none() {
                break;
            }
        }
        assert_eq!(seen, all.keys().copied().collect::<Vec<_>>());
        assert_eq!(bare, 1, "what is too large for a page is listed without its annotations");
        assert_eq!(cut_referrers(all.iter(), 0), (Vec::new(), None));
    }
}
