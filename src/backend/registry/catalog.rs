//! The list of a registry's repositories: `_catalog` (distribution specification of Docker; the OCI's has
//! none, so not every registry offers it, and few to everybody).

use std::collections::BTreeSet;

use reqwest::{Method, header::LINK};

use super::{
    MAX_TAGS_BODY, MAX_TAGS_PAGES, Registry, TAGS_PAGE, next_page,
    session::{Ask, Scope, header},
};
use crate::{
    backend::{Error, Kind, Result},
    image::Repository,
};

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
        let mut url = session.wire.url(inside, "");
        url.set_path("/v2/_catalog");
        url.query_pairs_mut().append_pair("n", &TAGS_PAGE.to_string());
        let mut found = BTreeSet::new();
        let mut bytes = 0;
        for _ in 0..MAX_TAGS_PAGES {
            if bytes > MAX_LIST_BYTES {
                break;
            }
            let ask =
                Ask { scope: Scope::Catalog, ..Ask::new(Method::GET, url.clone(), inside, doing) };
            let answer = session.send(&ask).await.map_err(|error| unlisted(&error))?;
            let link = header(answer.response.headers(), LINK.as_str());
            let body = session.wire.body(answer.response, MAX_TAGS_BODY, doing).await?;
            bytes += body.as_ref().map_or(0, Vec::len);
            let list = body.and_then(|body| serde_json::from_slice::<List>(&body).ok());
            let Some(list) = list else {
                let reason = "what it sends is no list of repositories".to_owned();
                return Err(session.wire.error(doing, Kind::Unlisted(reason)));
            };
            found.extend(list.repositories.unwrap_or_default());
            let Some(link) = link else {
                return Ok(sorted(inside.registry(), found));
            };
            let next = next_page(&link).and_then(|next| url.join(&next).ok());
            let next = next.filter(|next| next.path() == url.path() && *next != url);
            let Some(next) = next else {
                let reason = format!("the next page is said to be at {link}, where none can be");
                return Err(session.wire.error(doing, Kind::Config(reason)));
            };
            // Some know themselves by an internal name only.
            url.set_query(next.query());
        }
        let reason =
            format!("it has more than {MAX_TAGS_PAGES} pages or {MAX_LIST_BYTES} bytes of them");
        Err(session.wire.error(doing, Kind::Config(reason)))
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
