//! Who may read: passwords, and tokens from a token server at `/token`.

use super::State;
use super::answer::Answer;
use crate::support::content::digest;
use crate::support::http::Request;
use serde_json::json;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Who may read.
#[derive(Debug, Clone)]
pub(crate) enum Access {
    Open,
    Basic { user: String, password: String },
    Bearer(Bearer),
}

impl Access {
    pub(crate) fn basic() -> Self {
        Self::Basic { user: USER.to_owned(), password: PASSWORD.to_owned() }
    }
}

/// The user that all registries of the tests know.
pub(crate) const USER: &str = "bed";
pub(crate) const PASSWORD: &str = "secret";

/// Settings of the built-in token server.
#[derive(Debug, Clone)]
pub(crate) struct Bearer {
    /// How long a token is good, whatever the server says.
    pub(crate) lifetime: Duration,
    /// How many requests a token is good for.
    pub(crate) uses: Option<u32>,
    /// What the server says in `expires_in`; nothing when `None`.
    pub(crate) advertised: Option<u64>,
    /// Whether one gets a token without credentials.
    pub(crate) anonymous: bool,
    /// Accepted in `grant_type=refresh_token`. When set, passwords are refused.
    pub(crate) identity_token: Option<String>,
    /// Where the challenge sends clients, when not to this server.
    pub(crate) realm: Option<String>,
}

impl Bearer {
    pub(crate) fn new() -> Self {
        Self {
            lifetime: Duration::from_mins(5),
            uses: None,
            advertised: Some(300),
            anonymous: false,
            identity_token: None,
            realm: None,
        }
    }
}

pub(super) struct Token {
    pub(super) expires: Instant,
    pub(super) uses: Option<u32>,
    /// Repositories that may be pulled from.
    pub(super) repositories: BTreeSet<String>,
}

/// The refusal of a request that does not carry what `access` demands.
pub(super) fn refuse(state: &mut State, request: &Request) -> Option<Answer> {
    let given = request.header("authorization").unwrap_or_default().to_owned();
    match state.access.clone()? {
        Access::Open => None,
        Access::Basic { user, password } => {
            if given == basic(&user, &password) {
                return None;
            }
            let refusal = Answer::error(401, "UNAUTHORIZED", "authentication required");
            Some(refusal.with("WWW-Authenticate", "Basic realm=\"hostile\""))
        }
        Access::Bearer(bearer) => {
            let repository = repository_of(&request.path);
            let now = Instant::now();
            let mut problem = "";
            if let Some(token) = given.strip_prefix("Bearer ") {
                problem = match state.tokens.get_mut(token) {
                    Some(known) if known.expires > now && known.uses != Some(0) => {
                        let allowed = repository
                            .is_none_or(|repository| known.repositories.contains(repository));
                        if allowed {
                            known.uses = known.uses.map(|left| left - 1);
                            return None;
                        }
                        ",error=\"insufficient_scope\""
                    }
                    _ => ",error=\"invalid_token\"",
                };
            }
            let own = request.header("host").unwrap_or_default();
            let realm = bearer.realm.unwrap_or_else(|| format!("http://{own}/token"));
            let scope = repository
                .map(|repository| format!(",scope=\"repository:{repository}:pull\""))
                .unwrap_or_default();
            let challenge = format!("Bearer realm=\"{realm}\",service=\"hostile\"{scope}{problem}");
            let refusal = Answer::error(401, "UNAUTHORIZED", "authentication required");
            Some(refusal.with("WWW-Authenticate", challenge))
        }
    }
}

pub(super) fn repository_of(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/v2/")?;
    ["/manifests/", "/blobs/", "/tags/", "/referrers/"]
        .iter()
        .filter_map(|part| rest.rsplit_once(part))
        .map(|(repository, _)| repository)
        .next()
}

/// The value of an `Authorization` header.
pub(crate) fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("{user}:{password}");
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

pub(super) fn token(state: &mut State, request: &Request) -> Answer {
    let Some(Access::Bearer(bearer)) = state.access.clone() else {
        return Answer::error(404, "UNSUPPORTED", "no tokens here");
    };
    let form = request.form();
    let scopes: Vec<String> = match request.method.as_str() {
        "POST" => form.get("scope").cloned().into_iter().collect(),
        _ => request.queries("scope").into_iter().map(str::to_owned).collect(),
    };
    let given = request.header("authorization");
    let known = if request.method == "POST" {
        match form.get("grant_type").map(String::as_str) {
            Some("refresh_token") => {
                bearer.identity_token.is_some()
                    && form.get("refresh_token") == bearer.identity_token.as_ref()
            }
            Some("password") => {
                bearer.identity_token.is_none()
                    && form.get("username").is_some_and(|user| user == USER)
                    && form.get("password").is_some_and(|password| password == PASSWORD)
            }
            _ => return Answer::error(400, "UNSUPPORTED", "grant_type"),
        }
    } else {
        match given {
            Some(given) => bearer.identity_token.is_none() && given == basic(USER, PASSWORD),
            None => bearer.anonymous,
        }
    };
    if !known {
        return Answer::error(401, "UNAUTHORIZED", "wrong credentials");
    }
    state.issued += 1;
    let token = format!("token-{}-{}", state.issued, &digest(&state.issued.to_le_bytes())[7..39]);
    let repositories = scopes
        .iter()
        .flat_map(|scope| scope.split(' '))
        .filter_map(|scope| scope.strip_prefix("repository:"))
        .filter_map(|scope| scope.rsplit_once(':'))
        .filter(|(_, actions)| actions.split(',').any(|action| action == "pull"))
        .map(|(repository, _)| repository.to_owned())
        .collect();
    state.tokens.insert(
        token.clone(),
        Token { expires: Instant::now() + bearer.lifetime, uses: bearer.uses, repositories },
    );
    let mut body = json!({"token": token, "access_token": token});
    if let Some(seconds) = bearer.advertised {
        body["expires_in"] = seconds.into();
    }
    Answer::json(&body)
}
