//! Who may read and write: passwords, and tokens from a token server at `/token`.

use super::answer::Answer;
use super::{Inner, State};
use crate::support::content::digest;
use crate::support::http::Request;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Who may read and write.
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
    /// Whether one gets a token without credentials, which is good for pulls.
    pub(crate) anonymous: bool,
    /// Nobody gets a token for pushes. It is not said; the token is good for less, as the specification wants.
    pub(crate) pull_only: bool,
    /// Passwords are good without a token, too.
    pub(crate) basic_too: bool,
    pub(crate) service: String,
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
            pull_only: false,
            basic_too: false,
            service: "hostile".to_owned(),
            identity_token: None,
            realm: None,
        }
    }
}

pub(super) struct Token {
    expires: Instant,
    uses: Option<u32>,
    scopes: Scopes,
}

/// By repository, what may be done there.
type Scopes = BTreeMap<String, BTreeSet<String>>;

/// What a request needs a token for.
fn needs(request: &Request) -> Scopes {
    let mut needs = Scopes::new();
    let mut add = |repository: &str, actions: &[&str]| {
        let known = needs.entry(repository.to_owned()).or_default();
        known.extend(actions.iter().map(|action| (*action).to_owned()));
    };
    if let Some(repository) = repository_of(&request.path) {
        add(repository, if request.is_write() { &["pull", "push"] } else { &["pull"] });
        // A mount reads the repository that it takes from.
        if request.method == "POST"
            && request.query("mount").is_some()
            && let Some(source) = request.query("from")
        {
            add(source, &["pull"]);
        }
    }
    needs
}

fn covers(scopes: &Scopes, needs: &Scopes) -> bool {
    needs.iter().all(|(repository, actions)| {
        scopes.get(repository).is_some_and(|given| given.is_superset(actions))
    })
}

/// As in a challenge: `repository:a:pull,push repository:b:pull`.
fn show(scopes: &Scopes) -> String {
    let one = |(repository, actions): (&String, &BTreeSet<String>)| {
        let actions: Vec<&str> = actions.iter().map(String::as_str).collect();
        format!("repository:{repository}:{}", actions.join(","))
    };
    scopes.iter().map(one).collect::<Vec<_>>().join(" ")
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
            if bearer.basic_too && given == basic(USER, PASSWORD) {
                return None;
            }
            let needs = needs(request);
            let now = Instant::now();
            let mut problem = "";
            if let Some(token) = given.strip_prefix("Bearer ") {
                problem = match state.tokens.get_mut(token) {
                    Some(known) if known.expires > now && known.uses != Some(0) => {
                        if covers(&known.scopes, &needs) {
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
            let mut challenge = format!("Bearer realm=\"{realm}\",service=\"{}\"", bearer.service);
            if !needs.is_empty() {
                challenge += &format!(",scope=\"{}\"", show(&needs));
            }
            challenge += problem;
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

pub(super) fn token(inner: &Inner, request: &Request) -> Answer {
    let state = &mut *inner.state();
    let Some(Access::Bearer(bearer)) = state.access.clone() else {
        return Answer::error(404, "UNSUPPORTED", "no tokens here");
    };
    let form = request.form();
    let scopes: Vec<String> = match request.method.as_str() {
        "POST" => form.get("scope").cloned().into_iter().collect(),
        _ => request.queries("scope").into_iter().map(str::to_owned).collect(),
    };
    state.scopes.extend(scopes.iter().flat_map(|all| all.split(' ')).map(str::to_owned));
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
    // One without credentials may read, where that is allowed at all.
    let reads_only = bearer.pull_only || (request.method != "POST" && given.is_none());
    let mut granted = Scopes::new();
    for (repository, actions) in scopes
        .iter()
        .flat_map(|scope| scope.split(' '))
        .filter_map(|scope| scope.strip_prefix("repository:"))
        .filter_map(|scope| scope.rsplit_once(':'))
        .filter(|(repository, _)| inner.front.get().is_none_or(|front| front.grants(repository)))
    {
        let actions = actions.split(',').filter(|action| *action == "pull" || !reads_only);
        granted.entry(repository.to_owned()).or_default().extend(actions.map(str::to_owned));
    }
    let expires = Instant::now() + bearer.lifetime;
    state.tokens.insert(token.clone(), Token { expires, uses: bearer.uses, scopes: granted });
    let mut body = json!({"token": token, "access_token": token});
    if let Some(seconds) = bearer.advertised {
        body["expires_in"] = seconds.into();
    }
    Answer::json(&body)
}
