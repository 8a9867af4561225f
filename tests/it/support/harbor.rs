//! Harbor, as far as a client that pushes sees it: a registry whose repositories live in projects, and the API
//! to create these.
//!
//! ```ignore
//! let harbor = Harbor::start();
//! harbor.add_project("library");
//! // ... push to team/app ...
//! assert_eq!(harbor.projects()["team"], Visibility::Private);
//! harbor.assert_complete(); // it is a `Hostile`: everything of that one can be asked and scripted
//! ```
//!
//! What is imitated was read from Harbor's sources (`server/middleware/v2auth`, `core/service/token`,
//! `server/v2.0/handler/project.go`):
//!
//! - Requests for a repository whose project does not exist are answered 401, with the code `UNAUTHORIZED`,
//!   the message `project x not found: project x not found`, and a `WWW-Authenticate` that is empty. Only HEAD
//!   without `Authorization` gets a challenge all the same.
//! - Whoever asks for a token for such a repository gets one, with 200. It is good for nothing, and stays so when
//!   the project has been created: a client must ask for a new one.
//! - The API takes passwords, no tokens, and needs no CSRF header as long as there is no cookie.

use super::hostile::{Access, Answer, Bearer, Front, Hostile, PASSWORD, USER, basic};
use super::http::Request;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Who may pull from a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Visibility {
    Public,
    Private,
}

#[derive(Default)]
struct Projects {
    all: BTreeMap<String, Visibility>,
    /// The user is none who may create projects.
    only_admins_create: bool,
    /// 403 instead of 404, as for users without rights in Harbor and for all in its earlier versions.
    hides_missing: bool,
}

/// A Harbor that knows the user `bed` with the password `secret`.
pub(crate) struct Harbor {
    hostile: Hostile,
    api: Arc<Mutex<Projects>>,
}

impl Deref for Harbor {
    type Target = Hostile;

    fn deref(&self) -> &Hostile {
        &self.hostile
    }
}

impl Harbor {
    /// Without projects. Tokens come from `/service/token`; a password alone will do, too.
    pub(crate) fn start() -> Self {
        let api = Arc::new(Mutex::default());
        let hostile = Hostile::with_front(Gate { api: api.clone() });
        hostile.set_access(Access::Bearer(Bearer {
            realm: Some(format!("{}/service/token", hostile.url())),
            service: "harbor-registry".to_owned(),
            basic_too: true,
            ..Bearer::new()
        }));
        Self { hostile, api }
    }

    pub(crate) fn add_project(&self, name: &str) {
        lock(&self.api).all.insert(name.to_owned(), Visibility::Private);
    }

    pub(crate) fn projects(&self) -> BTreeMap<String, Visibility> {
        lock(&self.api).all.clone()
    }

    /// From now on creating a project is answered 403.
    pub(crate) fn only_admins_create(&self) {
        lock(&self.api).only_admins_create = true;
    }

    /// From now on asking for a project that does not exist is answered 403.
    pub(crate) fn hide_missing(&self) {
        lock(&self.api).hides_missing = true;
    }

    /// POSTs to the list of projects so far.
    pub(crate) fn creations_asked(&self) -> usize {
        self.count("POST", PROJECTS)
    }
}

const PROJECTS: &str = "/api/v2.0/projects";

fn lock(api: &Mutex<Projects>) -> MutexGuard<'_, Projects> {
    api.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Gate {
    api: Arc<Mutex<Projects>>,
}

impl Front for Gate {
    fn answer(&self, request: &Request) -> Option<Answer> {
        if let Some(rest) = request.path.strip_prefix("/v2/") {
            return self.refuse(request, rest);
        }
        let rest = request.path.strip_prefix("/api/")?;
        Some(match (request.method.as_str(), rest) {
            ("GET", "v2.0/ping") => Answer::new(200, "text/plain", b"Pong".to_vec()),
            ("GET", "v2.0/systeminfo") => Answer::json(&json!({
                "auth_mode": "db_auth",
                "harbor_version": "v2.11.0-imitation",
                "registry_url": request.header("host"),
                "external_url": format!("http://{}", request.header("host").unwrap_or_default()),
                "self_registration": false,
                "has_ca_root": false,
            })),
            _ => match rest.strip_prefix("v2.0/projects") {
                Some(name) => self.projects(request, name.trim_start_matches('/')),
                None => error(404, "NOT_FOUND", "no such path"),
            },
        })
    }

    fn grants(&self, repository: &str) -> bool {
        lock(&self.api).all.contains_key(project_of(repository))
    }
}

impl Gate {
    /// What Harbor says before the registry behind it is asked.
    fn refuse(&self, request: &Request, rest: &str) -> Option<Answer> {
        let repository = ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
            .iter()
            .find_map(|part| rest.rsplit_once(part))
            .map(|(repository, _)| repository)?;
        if !repository.contains('/') {
            return Some(error(400, "BAD_REQUEST", &format!("invalid repo name: {repository}")));
        }
        if request.method == "HEAD" && request.header("authorization").is_none() {
            return None;
        }
        let source = request.query("from").filter(|_| request.method == "POST");
        let missing = [Some(repository), source]
            .into_iter()
            .flatten()
            .map(project_of)
            .find(|project| !lock(&self.api).all.contains_key(*project))?;
        let message = format!("project {missing} not found: project {missing} not found");
        Some(error(401, "UNAUTHORIZED", &message).with("WWW-Authenticate", ""))
    }

    fn projects(&self, request: &Request, name: &str) -> Answer {
        let knows_password = request.header("authorization") == Some(&basic(USER, PASSWORD));
        if !knows_password {
            return error(401, "UNAUTHORIZED", "unauthorized");
        }
        let mut api = lock(&self.api);
        let missing = |name: &str| match api.hides_missing {
            true => error(403, "FORBIDDEN", "forbidden"),
            false => error(404, "NOT_FOUND", &format!("project {name} not found")),
        };
        match (request.method.as_str(), name) {
            ("HEAD", "") => match request.query("project_name") {
                None => error(422, "UNPROCESSABLE_ENTITY", "project_name in query is required"),
                Some(name) if api.all.contains_key(name) => Answer::empty(200),
                Some(name) => missing(name),
            },
            ("GET", "") => {
                // `name` finds whatever contains it.
                let wanted = request.query("name").unwrap_or_default();
                let found = api.all.iter().filter(|(name, _)| name.contains(wanted));
                Answer::json(&found.map(|(name, visible)| show(name, *visible)).collect())
            }
            ("GET", name) => match api.all.get(name) {
                Some(visible) => Answer::json(&show(name, *visible)),
                None => missing(name),
            },
            ("POST", "") => create(&mut api, &request.body),
            _ => error(405, "METHOD_NOT_ALLOWED", "method not allowed"),
        }
    }
}

fn create(api: &mut Projects, body: &[u8]) -> Answer {
    if api.only_admins_create {
        return error(403, "FORBIDDEN", "Only system admin can create project");
    }
    let asked: Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(name) = asked["project_name"].as_str() else {
        return error(422, "UNPROCESSABLE_ENTITY", "project_name in body is required");
    };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if name.is_empty() || !name.bytes().all(|byte| plain(byte) || b"._-".contains(&byte)) {
        let message = "project name is not in lower case or contains illegal characters";
        return error(400, "BAD_REQUEST", message);
    }
    let visible = match asked["metadata"]["public"].as_str() {
        Some("true") => Visibility::Public,
        None | Some("" | "false") => Visibility::Private,
        Some(other) => {
            let message =
                format!("metadata.public should only be 'true' or 'false', but got: '{other}'");
            return error(400, "BAD_REQUEST", &message);
        }
    };
    if api.all.contains_key(name) {
        return error(409, "CONFLICT", &format!("The project named {name} already exists"));
    }
    api.all.insert(name.to_owned(), visible);
    Answer::empty(201).with("Location", format!("{PROJECTS}/{}", api.all.len()))
}

fn show(name: &str, visible: Visibility) -> Value {
    let public = if visible == Visibility::Public { "true" } else { "false" };
    json!({"name": name, "metadata": {"public": public}, "repo_count": 0})
}

fn project_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or_default()
}

fn error(status: u16, code: &str, message: &str) -> Answer {
    Answer::error(status, code, message)
}
