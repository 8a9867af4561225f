//! The list of a registry's repositories: `_catalog` (distribution specification of Docker; the OCI's has
//! none, so not every registry offers it, and few to everybody).

use std::collections::BTreeSet;

use reqwest::{Method, Url};

use super::{
    Registry,
    pages::Pages,
    session::{Ask, Scope},
};
use crate::{
    backend::{Error, Kind, Result},
    image::Repository,
};

/// Repositories asked for in one request.
const PAGE: usize = 1000;

/// Pages that are read.
const MAX_PAGES: usize = 1000;

/// How much of a page is read, in bytes.
const MAX_PAGE_BYTES: usize = 32 << 20;

/// How much of a list is read in all, in bytes: the names of a million repositories.
const MAX_LIST_BYTES: usize = 64 << 20;

/// The repositories of a registry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Repositories {
    /// Those that a reference can name, by name.
    pub named: Vec<Repository>,
    /// What else the registry lists: names that break the rules of the specification.
    pub unnameable: Vec<String>,
}

/// What a registry sends.
#[derive(serde::Deserialize)]
struct List {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

impl Registry {
    /// All repositories of a registry as far as it says, by name. `inside` is any repository in it, and
    /// says with which settings and credentials it is asked.
    ///
    /// [`Kind::Unlisted`] if it has no such list, or does not give it to these credentials.
    pub async fn repositories(&self, inside: &Repository) -> Result<Repositories> {
        let session = self.session(inside).await?;
        let doing = "listing the repositories";
        let fail = |reason: String| session.wire.error(doing, Kind::Unlisted(reason));
        let mut url = session.wire.url(inside, "");
        url.set_path("/v2/_catalog");
        let without_number = url.clone();
        url.query_pairs_mut().append_pair("n", &PAGE.to_string());
        let mut pages = Pages::new(url, MAX_PAGES);
        let mut found = BTreeSet::new();
        let mut bytes = 0;
        loop {
            let ask = |url: &Url| Ask {
                scope: Scope::Catalog,
                ..Ask::new(Method::GET, url.clone(), inside, doing)
            };
            let answer = match session.send(&ask(pages.url())).await {
                // Some do not give so many at a time, and say so instead of giving less.
                Err(error)
                    if pages.is_first()
                        && matches!(error.kind(), Kind::Status { status: 400 | 422, .. }) =>
                {
                    session.send(&ask(&without_number)).await
                }
                answer => answer,
            };
            let answer = answer.map_err(|error| unlisted(&error))?;
            let (headers, from) = (answer.response.headers().clone(), answer.url.clone());
            let body = session.wire.body(answer.response, MAX_PAGE_BYTES, doing).await?;
            bytes += body.as_ref().map_or(0, Vec::len);
            let list = body.and_then(|body| serde_json::from_slice::<List>(&body).ok());
            let list =
                list.ok_or_else(|| fail("what it sends is no list of repositories".into()))?;
            if bytes > MAX_LIST_BYTES {
                return Err(fail(format!("it has more than {MAX_LIST_BYTES} bytes of them")));
            }
            let before = found.len();
            found.extend(list.repositories.unwrap_or_default());
            let goes_on = pages.advance(&headers, &from, found.len() > before);
            if !goes_on.map_err(fail)? {
                return Ok(sorted(inside.registry(), found));
            }
        }
    }
}

/// Tells those that have the name of a repository from the others.
fn sorted(registry: &str, paths: BTreeSet<String>) -> Repositories {
    let mut all = Repositories::default();
    for path in paths {
        match Repository::new(registry, &path) {
            Ok(repository) => all.named.push(repository),
            Err(_) => all.unnameable.push(path),
        }
    }
    all
}

/// The error of a registry that does not list its repositories.
fn unlisted(error: &Error) -> Error {
    let refusal = match error.kind() {
        Kind::NotFound(message) => ("it offers no such list", message),
        Kind::Status { status: 400 | 405 | 501, message, .. } => {
            ("it offers no such list", message)
        }
        Kind::Unauthorized(message) | Kind::Denied(message) => {
            ("it does not show the list to these credentials", message)
        }
        _ => return error.clone(),
    };
    let (reason, message) = refusal;
    let said = if message.is_empty() { String::new() } else { format!(": {message}") };
    error.with_kind(Kind::Unlisted(format!("{reason} (_catalog){said}")))
}
