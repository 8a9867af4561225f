//! Lists of tags and of referrers. A list that is wanted whole is whole, or it is an error.

use std::collections::HashSet;

use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    abilities::Referrers,
    failure,
    pages::Pages,
    session::{Ask, Elsewhere, Session, header},
};
use crate::{
    backend::{Error, Kind, Result, Tags},
    image::{
        Descriptor, Digest, MAX_MANIFEST_BYTES, Manifest, ManifestError, MediaType, Repository,
        View,
    },
};

/// Tags asked for in one request, which is the most that usual registries give.
const TAGS_PAGE: usize = 1000;

/// How much of a page of tags is read when they are only looked at, in bytes.
const MAX_PAGE: usize = 4 << 20;

/// How much of a page is read when all tags are wanted, in bytes: some registries have no pages.
const MAX_WHOLE_PAGE: usize = 32 << 20;

/// What all tags of a repository may have together, in bytes.
const MAX_TAG_BYTES: usize = 64 << 20;

/// Pages of tags that are read when all are wanted.
const MAX_TAG_PAGES: usize = 1000;

/// Pages of tags that are read to find out which there are. Repositories with more are another kind, in
/// which names are better looked up one by one.
const MAX_LOOKED_PAGES: usize = 10;

/// Pages of referrers that are read for one subject.
const MAX_REFERRER_PAGES: usize = 100;

/// Referrers of one subject. There is no image with that many.
const MAX_REFERRERS: usize = 10_000;

/// All tags of `repository`, as the registry lists them.
pub(super) async fn all_tags(session: &Session, repository: &Repository) -> Result<Vec<String>> {
    let doing = format!("listing the tags of {repository}");
    let fail = |reason: String| session.wire.error(&doing, Kind::Unfit(reason));
    let mut pages = Pages::new(tags_url(session, repository), MAX_TAG_PAGES);
    let mut tags = HashSet::new();
    let mut bytes = 0;
    loop {
        let page = tags_page(session, repository, pages.url(), MAX_WHOLE_PAGE, &doing).await?;
        let names = page.names.map_err(fail)?;
        let before = tags.len();
        for name in names {
            let length = name.len();
            if tags.insert(name) {
                bytes += length;
            }
        }
        if bytes > MAX_TAG_BYTES {
            return Err(fail(format!("they have more than {MAX_TAG_BYTES} bytes")));
        }
        let goes_on = pages.advance(&page.headers, &page.from, tags.len() > before);
        if !goes_on.map_err(fail)? {
            let mut tags: Vec<String> = tags.into_iter().collect();
            tags.sort_unstable();
            return Ok(tags);
        }
    }
}

/// The tags of `repository`, as far as a few requests get them.
pub(super) async fn tags(session: &Session, repository: &Repository) -> Result<Tags> {
    let doing = format!("listing the tags of {repository}");
    let mut pages = Pages::new(tags_url(session, repository), MAX_LOOKED_PAGES);
    let mut tags = Tags::default();
    loop {
        let page = match tags_page(session, repository, pages.url(), MAX_PAGE, &doing).await {
            // What is not listed is looked up by its name, which is how all are where there are no lists.
            Err(error) if !pages.is_first() || has_no_lists(&error) => return Ok(tags),
            Err(error) => return Err(error),
            Ok(page) => page,
        };
        let Ok(names) = page.names else { return Ok(tags) };
        let is_new = !names.is_empty();
        tags.names.extend(names);
        match pages.advance(&page.headers, &page.from, is_new) {
            Ok(true) => {}
            end => {
                tags.complete = end.is_ok();
                return Ok(tags);
            }
        }
    }
}

/// Whether a registry says that it does not list tags.
fn has_no_lists(error: &Error) -> bool {
    matches!(error.kind(), Kind::Status { status: 405 | 501, .. })
}

/// Where a list of tags begins.
fn tags_url(session: &Session, repository: &Repository) -> Url {
    let mut url = session.wire.url(repository, "tags/list");
    url.query_pairs_mut().append_pair("n", &TAGS_PAGE.to_string());
    url
}

/// A page of a list of tags.
struct TagsPage {
    /// An error says why it is none.
    names: std::result::Result<Vec<String>, String>,
    headers: HeaderMap,
    /// Where it came from.
    from: Url,
}

async fn tags_page(
    session: &Session,
    repository: &Repository,
    url: &Url,
    max: usize,
    doing: &str,
) -> Result<TagsPage> {
    let answer = match session.send(&Ask::new(Method::GET, url.clone(), repository, doing)).await {
        // Some do not give so many at a time, and say so instead of giving less.
        Err(error)
            if matches!(error.kind(), Kind::Status { status: 400 | 422, .. })
                && *url == tags_url(session, repository) =>
        {
            let url = session.wire.url(repository, "tags/list");
            session.send(&Ask::new(Method::GET, url, repository, doing)).await?
        }
        answer => answer?,
    };
    let (headers, from) = (answer.response.headers().clone(), answer.url.clone());
    let names = match session.wire.body(answer.response, max, doing).await? {
        Some(body) => tag_names(&body),
        None => Err(format!("a page of the list has more than {max} bytes")),
    };
    Ok(TagsPage { names, headers, from })
}

/// Reads a list of tags; `null` is an empty one.
fn tag_names(body: &[u8]) -> std::result::Result<Vec<String>, String> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        tags: Option<Vec<Option<String>>>,
        #[serde(default)]
        errors: Value,
    }
    // serde would take an array for an object's fields in their order.
    let is_object = body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
    match serde_json::from_slice::<List>(body) {
        Ok(List { tags: None, errors }) if !errors.is_null() => Err(failure::error_message(body)),
        Ok(list) if is_object => Ok(list.tags.unwrap_or_default().into_iter().flatten().collect()),
        _ => {
            let what = "what it sends is no list of tags";
            Err(failure::joined([what, &failure::error_message(body)]))
        }
    }
}

/// What asking for referrers has found.
pub(super) enum Found {
    /// The list, which may be empty.
    Listed(Vec<Descriptor>),
    /// The registry does not have the API.
    NoApi,
    /// It leads to another host, where there is no answer.
    Elsewhere,
    /// It does not say for this repository.
    Refused,
}

/// Asks the referrers API. A list that ends before its end is an error.
pub(super) async fn referrers(
    session: &Session,
    repository: &Repository,
    subject: Digest,
) -> Result<Found> {
    let doing = format!("listing the referrers of {subject} in {repository}");
    let fail = |reason: String| session.wire.error(&doing, Kind::Unfit(reason));
    let url = session.wire.url(repository, &format!("referrers/{subject}"));
    let mut pages = Pages::new(url, MAX_REFERRER_PAGES);
    let mut found: Vec<Descriptor> = Vec::new();
    loop {
        let elsewhere = Elsewhere::GiveUp;
        let ask = Ask::new(Method::GET, pages.url().clone(), repository, &doing);
        let answer = match session.send(&Ask { elsewhere, ..ask }).await {
            Ok(answer) => answer,
            Err(error) if pages.is_first() => return without_list(session, error),
            Err(error) => return Err(error),
        };
        let (headers, from) = (answer.response.headers().clone(), answer.url.clone());
        let content_type = header(&headers, CONTENT_TYPE.as_str()).unwrap_or_default();
        let body = session.wire.body(answer.response, MAX_MANIFEST_BYTES, &doing).await?;
        let body = body.ok_or_else(|| session.wire.error(&doing, ManifestError::TooLarge))?;
        let page = match Manifest::parse(body.into(), Some(&content_type)) {
            Ok(page) if matches!(page.view(), View::Index { .. }) => page,
            // A registry that answers everything with a page, or leads to one.
            _ if pages.is_first()
                && !MediaType::parse(&content_type).is_some_and(MediaType::is_index) =>
            {
                return Ok(Found::Refused);
            }
            Ok(_) => return Err(fail("what it sends is no index".to_owned())),
            Err(error) => return Err(session.wire.error(&doing, error)),
        };
        found.extend_from_slice(page.children());
        if found.len() > MAX_REFERRERS {
            return Err(fail(format!("it has more than {MAX_REFERRERS} of them")));
        }
        let goes_on = pages.advance(&headers, &from, !page.children().is_empty());
        if !goes_on.map_err(fail)? {
            return Ok(Found::Listed(found));
        }
    }
}

/// What to make of an error in place of a list of referrers.
fn without_list(session: &Session, error: Error) -> Result<Found> {
    let is_known = session.referrers_api.known() == Some(Referrers::Listed);
    match error.kind() {
        // The registry itself does not answer. What it leads to may be a page for people (GHCR).
        _ if error.is_elsewhere() && !is_known => {
            tracing::warn!("{error}; what is attached is only found by its tags");
            Ok(Found::Elsewhere)
        }
        _ if error.is_elsewhere() => Err(error),
        // The specification says 404; some say others to what they do not know.
        Kind::NotFound(_) | Kind::Status { status: 400 | 405 | 406 | 410 | 501, .. } => {
            Ok(Found::NoApi)
        }
        // Some check for another right on what they take for an unknown repository.
        Kind::Unauthorized(_) | Kind::Denied(_) => Ok(Found::Refused),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_tags() {
        for (body, expected) in [
            (r#"{"name":"a","tags":["x","y"]}"#, Some(&["x", "y"][..])),
            (r#" {"tags":["x",null]}"#, Some(&["x"])),
            (r#"{"name":"a","tags":null}"#, Some(&[])),
            (r#"{"name":"a"}"#, Some(&[])),
            (r#"{"tags":["x"],"errors":[]}"#, Some(&["x"])),
            (r#"{"errors":[{"message":"no"}]}"#, None),
            (r#"{"tags":"x"}"#, None),
            (r#"{"tags":{"x":1}}"#, None),
            ("[]", None),
            (r#"[["x"]]"#, None),
            ("null", None),
            ("", None),
            ("<html>", None),
        ] {
            let names = tag_names(body.as_bytes());
            match expected {
                Some(expected) => assert_eq!(names.unwrap(), expected, "{body}"),
                None => assert!(names.is_err(), "{body}"),
            }
        }
    }
}
