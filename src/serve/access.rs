//! Who may do what: users with passwords in a file of htpasswd's, or with certificates, and rules.
//!
//! A file of rules has one rule a line: a pattern of names, users, and what they may do there.
//!
//! ```text
//! # names            users       may
//! public/**          *           pull
//! public/**          anonymous   pull
//! team-a/**          alice,bob   pull,push
//! **                 admin       pull,push,delete
//! ```
//!
//! `*` in a pattern stands for anything within a component, `**` for anything at all. Names are those that clients
//! use without `ns=`; the full one (`registry.local/team-a/app`) is compared as well. `*` for a user is everybody who
//! is logged in, `anonymous` everybody else. What several rules allow adds up; without a rule nothing is allowed.

use std::{
    collections::HashMap,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    sync::Mutex,
    time::{Duration, Instant},
};

use base64::Engine;
use hyper::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use lru::LruCache;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::{
    reload::{Reloading, read_text},
    reply::{Problem, Result},
};
use crate::util::locked;

/// How long a password that was right need not be checked again.
const CHECKED_HOLDS: Duration = Duration::from_secs(300);

/// Passwords that are known to be right.
const KEPT_CHECKS: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Passwords that are checked at once: each takes a processor for a tenth of a second.
const CHECKS_AT_ONCE: usize = 2;

/// The longest password, in bytes: bcrypt takes no more than 72 of them.
const MAX_PASSWORD: usize = 1024;

/// What is compared with for a user who does not exist, so that it takes as long.
const NOBODY: &str = "$2b$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum User {
    Anonymous,
    Named(String),
}

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Pull,
    Push,
    Delete,
}

/// Who may do what.
#[derive(Clone, Debug, Default)]
pub struct AccessSettings {
    /// Users with their passwords, hashed with bcrypt (`htpasswd -B`).
    pub htpasswd: Option<PathBuf>,
    /// Rules; see the documentation.
    pub rules: Option<PathBuf>,
    /// Whether everybody may pull, where nothing else is said.
    pub anonymous_pull: bool,
    /// Whether certificates prove who clients are.
    pub certificates: bool,
}

pub(super) struct Access {
    passwords: Option<Reloading<HashMap<String, String>>>,
    rules: Option<Reloading<Vec<Rule>>>,
    anonymous_pull: bool,
    /// Whether anybody has to prove who he is.
    is_closed: bool,
    checked: Mutex<LruCache<[u8; 32], Instant>>,
    checks: Semaphore,
}

#[derive(Debug)]
struct Rule {
    pattern: String,
    users: Vec<String>,
    actions: Vec<Action>,
}

/// Whether a rule is for those who have not logged in.
fn is_for_strangers(rules: &Reloading<Vec<Rule>>) -> bool {
    rules.get().iter().any(|rule| rule.means(&User::Anonymous))
}

impl Access {
    pub(super) fn new(settings: &AccessSettings) -> std::result::Result<Self, String> {
        let passwords = settings
            .htpasswd
            .clone()
            .map(|path| Reloading::new(vec![path], |paths| parse_passwords(&paths[0])));
        let rules = settings.rules.clone().map(|path| {
            Reloading::new(vec![path], |paths| parse_rules(&paths[0], &read_text(&paths[0])?))
        });
        let rules = rules.transpose()?;
        let is_closed = settings.htpasswd.is_some() || settings.certificates;
        if is_closed && !settings.anonymous_pull && rules.as_ref().is_some_and(is_for_strangers) {
            tracing::warn!(
                "the rules let those pull who have not logged in, but all have to: give --anonymous pull, too"
            );
        }
        Ok(Self {
            passwords: passwords.transpose()?,
            rules,
            anonymous_pull: settings.anonymous_pull,
            is_closed,
            checked: Mutex::new(LruCache::new(KEPT_CHECKS)),
            checks: Semaphore::new(CHECKS_AT_ONCE),
        })
    }

    /// Whether somebody who has not proved who he is has to be asked for that before anything else: a client that
    /// is not asked at first may never say it.
    pub(super) fn asks(&self, user: &User) -> bool {
        self.is_closed && *user == User::Anonymous
    }

    /// Whether everybody may pull everything.
    pub(super) fn all_may_pull(&self) -> bool {
        self.rules.is_none() && (!self.is_closed || self.anonymous_pull)
    }

    /// Whether somebody learns nothing at all before he has proved who he is.
    pub(super) fn keeps_out(&self, user: &User) -> bool {
        self.asks(user) && !self.all_may_pull()
    }

    /// Who sends a request with these headers over a connection with this certificate.
    pub(super) async fn user(
        &self,
        headers: &HeaderMap,
        certificate: Option<&str>,
    ) -> Result<User> {
        let of_certificate = || certificate.map_or(User::Anonymous, |n| User::Named(n.to_owned()));
        let Some(passwords) = &self.passwords else { return Ok(of_certificate()) };
        let Some(header) = headers.get(AUTHORIZATION) else { return Ok(of_certificate()) };
        let credentials = header.to_str().ok().and_then(parse_basic);
        let Some((name, password)) = credentials else {
            return Err(self.unauthorized("the credentials make no sense; Basic is spoken here"));
        };
        // So it is sent by clients that have none.
        if name.is_empty() && password.is_empty() {
            return Ok(of_certificate());
        }
        let hash = passwords.get().get(&name).cloned();
        let is_known = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let key: [u8; 32] = Sha256::new()
            .chain_update(hash.as_bytes())
            .chain_update([0])
            .chain_update(name.as_bytes())
            .chain_update([0])
            .chain_update(password.as_bytes())
            .finalize()
            .into();
        let at = locked(&self.checked).get(&key).copied();
        if at.is_some_and(|at| at.elapsed() < CHECKED_HOLDS) {
            return Ok(User::Named(name));
        }
        let _permit = self.checks.acquire().await;
        let check = move || bcrypt::verify(password, &hash).unwrap_or(false);
        let is_right = tokio::task::spawn_blocking(check).await.unwrap_or(false);
        if !is_right || !is_known {
            return Err(self.unauthorized("the user name or the password is wrong"));
        }
        locked(&self.checked).put(key, Instant::now());
        Ok(User::Named(name))
    }

    /// Fails unless `user` may do this in the repository that clients call `name`, or `full`.
    pub(super) fn check(&self, user: &User, action: Action, name: &str, full: &str) -> Result<()> {
        if self.allows(user, action, name, full) {
            return Ok(());
        }
        match user {
            User::Anonymous if self.is_closed => Err(self.unauthorized("log in first")),
            _ => {
                let message = format!("{} may not {} {name}", user.shown(), action.verb());
                Err(Problem::new(StatusCode::FORBIDDEN, "DENIED", message))
            }
        }
    }

    pub(super) fn allows(&self, user: &User, action: Action, name: &str, full: &str) -> bool {
        let is_stranger = self.is_closed && *user == User::Anonymous;
        if is_stranger && !(self.anonymous_pull && action == Action::Pull) {
            return false;
        }
        let Some(rules) = &self.rules else { return true };
        let rules = rules.get();
        rules.iter().any(|rule| {
            let names = [name, full].into_iter().any(|name| matches(&rule.pattern, name));
            names && rule.actions.contains(&action) && rule.means(user)
        })
    }

    pub(super) fn unauthorized(&self, message: &str) -> Problem {
        let problem = Problem::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        match &self.passwords {
            Some(_) => problem.header(WWW_AUTHENTICATE, "Basic realm=\"imgfs\", charset=\"UTF-8\""),
            None => problem.header(WWW_AUTHENTICATE, "Certificate realm=\"imgfs\""),
        }
    }
}

impl User {
    pub(super) fn shown(&self) -> &str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Named(name) => name,
        }
    }
}

impl Action {
    fn verb(self) -> &'static str {
        match self {
            Self::Pull => "pull from",
            Self::Push => "push to",
            Self::Delete => "delete from",
        }
    }
}

impl Rule {
    fn means(&self, user: &User) -> bool {
        self.users.iter().any(|own| match user {
            User::Anonymous => own == "anonymous",
            User::Named(name) => own == "*" || own == name,
        })
    }
}

/// `Basic <base64 of name:password>`
fn parse_basic(header: &str) -> Option<(String, String)> {
    let (scheme, encoded) = header.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(encoded.trim()).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (name, password) = text.split_once(':')?;
    let is_short = password.len() <= MAX_PASSWORD;
    is_short.then(|| (name.to_owned(), password.to_owned()))
}

fn parse_passwords(path: &Path) -> std::result::Result<HashMap<String, String>, String> {
    let text = read_text(path)?;
    let mut users = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let place = || format!("{}, line {}", path.display(), number + 1);
        let (name, hash) =
            line.split_once(':').ok_or_else(|| format!("{}: no colon in it", place()))?;
        if !["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind)) {
            return Err(format!(
                "{}: the password of {name} is not hashed with bcrypt; make the line with `htpasswd -B`",
                place()
            ));
        }
        users.insert(name.to_owned(), hash.to_owned());
    }
    match users.is_empty() {
        true => Err(format!("{}: nobody is in it", path.display())),
        false => Ok(users),
    }
}

fn parse_rules(path: &Path, text: &str) -> std::result::Result<Vec<Rule>, String> {
    let mut rules = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let wrong = |what: &str| format!("{}, line {}: {what}", path.display(), number + 1);
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [pattern, users, actions] = fields[..] else {
            return Err(wrong("three fields are expected: names, users, and pull, push or delete"));
        };
        let actions: std::result::Result<Vec<Action>, String> = actions
            .split(',')
            .map(|word| match word {
                "pull" => Ok(Action::Pull),
                "push" => Ok(Action::Push),
                "delete" => Ok(Action::Delete),
                other => Err(wrong(&format!("`{other}` is none of pull, push and delete"))),
            })
            .collect();
        rules.push(Rule {
            pattern: pattern.to_owned(),
            users: users.split(',').map(str::to_owned).collect(),
            actions: actions?,
        });
    }
    Ok(rules)
}

/// Whether `name` is what `pattern` says: `*` is anything within a component, `**` anything at all.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // Which beginnings of the name the pattern so far can be.
    let mut can = vec![false; name.len() + 1];
    can[0] = true;
    let mut at = 0;
    while at < pattern.len() {
        let mut next = vec![false; name.len() + 1];
        let is_wide = pattern[at..].starts_with(b"**");
        match pattern[at] {
            b'*' => {
                let mut reached = false;
                for end in 0..=name.len() {
                    let crosses = end > 0 && name[end - 1] == b'/' && !is_wide;
                    reached = can[end] || (reached && !crosses);
                    next[end] = reached;
                }
                at += if is_wide { 2 } else { 1 };
            }
            byte => {
                for end in 1..=name.len() {
                    next[end] = can[end - 1] && name[end - 1] == byte;
                }
                at += 1;
            }
        }
        can = next;
    }
    can[name.len()]
}

/// Calls every parser of this module with `text`.
#[cfg(feature = "fuzzing")]
pub(super) fn fuzz(text: &str) {
    let _ = parse_basic(text);
    let _ = parse_rules(Path::new("rules"), text);
    let (pattern, name) = text.split_at(text.floor_char_boundary(text.len() / 2));
    let _ = matches(pattern, name);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_of_names() {
        for (pattern, name, expected) in [
            ("**", "a/b/c", true),
            ("*", "a", true),
            ("*", "a/b", false),
            ("team/**", "team/a/b", true),
            ("team/**", "team", false),
            ("team*", "team-a", true),
            ("team/*/x", "team/a/x", true),
            ("team/*/x", "team/a/b/x", false),
            ("a/**/z", "a/b/c/z", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn credentials_as_clients_send_them() {
        let encode = |text: &str| {
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        };
        let pair = |name: &str, password: &str| Some((name.to_owned(), password.to_owned()));
        assert_eq!(parse_basic(&encode("a:b:c")), pair("a", "b:c"));
        assert_eq!(parse_basic(&encode(":")), pair("", ""));
        assert_eq!(parse_basic(&encode("a:b").replace("Basic", "bAsIc")), pair("a", "b"));
        for wrong in [encode("ab"), "Basic".into(), "Basic !".into(), "Bearer x".into()] {
            assert_eq!(parse_basic(&wrong), None, "{wrong}");
        }
        assert_eq!(parse_basic(&encode(&format!("a:{}", "x".repeat(MAX_PASSWORD + 1)))), None);
    }

    fn access(files: &[(&str, &str)], anonymous_pull: bool) -> (tempfile::TempDir, Access) {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = AccessSettings { anonymous_pull, ..AccessSettings::default() };
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            match *name {
                "htpasswd" => settings.htpasswd = Some(path),
                _ => settings.rules = Some(path),
            }
        }
        let access = Access::new(&settings).unwrap();
        (dir, access)
    }

    fn htpasswd() -> String {
        format!("# users\nalice:{}\n", bcrypt::hash("secret", 4).unwrap())
    }

    #[tokio::test]
    async fn who_asks_is_who_knows_the_password() {
        let (_dir, access) = access(&[("htpasswd", &htpasswd())], false);
        let user = async |credentials: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(text) = credentials {
                let encoded = base64::engine::general_purpose::STANDARD.encode(text);
                headers.insert(AUTHORIZATION, format!("Basic {encoded}").parse().unwrap());
            }
            access.user(&headers, None).await
        };
        assert_eq!(user(None).await.unwrap(), User::Anonymous);
        assert_eq!(user(Some(":")).await.unwrap(), User::Anonymous);
        for _ in 0..2 {
            assert_eq!(user(Some("alice:secret")).await.unwrap(), User::Named("alice".into()));
        }
        for wrong in ["alice:wrong", "bob:secret", "alice:"] {
            assert_eq!(user(Some(wrong)).await.unwrap_err().status(), 401, "{wrong}");
        }
        assert_eq!(locked(&access.checked).len(), 1, "only what was right is remembered");
    }

    #[test]
    fn rules_add_up() {
        let rules = "public/** * pull\npublic/** anonymous pull # everybody\n\n\
                     registry.local/team/** alice pull,push\n** admin pull,push,delete\n";
        let (_dir, access) = access(&[("htpasswd", &htpasswd()), ("rules", rules)], true);
        let named = |name: &str| User::Named(name.to_owned());
        for (user, action, name, expected) in [
            (User::Anonymous, Action::Pull, "public/a", true),
            (User::Anonymous, Action::Pull, "team/a", false),
            (User::Anonymous, Action::Push, "public/a", false),
            (named("bob"), Action::Pull, "public/a", true),
            (named("bob"), Action::Pull, "team/a", false),
            (named("alice"), Action::Push, "team/a", true),
            (named("alice"), Action::Delete, "team/a", false),
            (named("admin"), Action::Delete, "team/a", true),
        ] {
            let full = format!("registry.local/{name}");
            assert_eq!(access.allows(&user, action, name, &full), expected, "{user:?} {name}");
        }
        let denied = access.check(&named("bob"), Action::Push, "team/a", "x").unwrap_err();
        assert_eq!(denied.status(), 403);
        let stranger = access.check(&User::Anonymous, Action::Push, "team/a", "x").unwrap_err();
        assert_eq!(stranger.status(), 401);
    }

    #[test]
    fn files_that_make_no_sense_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for text in ["", "alice", "alice:plain", "alice:{SHA}x", "alice:$apr1$x$y"] {
            std::fs::write(&path, text).unwrap();
            assert!(parse_passwords(&path).is_err(), "{text}");
        }
        for text in ["a b", "a b c", "a b pull d", "a b pull,fly"] {
            assert!(parse_rules(&path, text).is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_has_a_password() {
        assert!(bcrypt::verify("x", NOBODY).is_ok_and(|right| !right));
    }
}
