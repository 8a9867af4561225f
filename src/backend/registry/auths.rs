//! The `--auths` file: KubeKey's `auths` section on its own, as YAML or JSON.
//!
//! ```yaml
//! skip_tls_verify: false          # default for all entries
//! auths:                          # or the list alone
//!   - repo: registry.example.com:5000/team
//!     username: robot
//!     password: 0123              # scalars are taken as they are written
//!     plain_http: true
//! ```
//!
//! Every spelling that a KubeKey release or its documents ever used is accepted. A key that is
//! none of them is reported with its line: an ignored `usrname` would be an anonymous request.
//! A Docker `config.json` is accepted too.

use std::path::{Path, PathBuf};

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Spanned, options};

use super::config::{Credentials, Entry, normalise_prefix};

/// What an `--auths` file says.
#[derive(Debug, Default)]
pub struct Auths {
    /// The entries, in their order.
    pub entries: Vec<Entry>,
    /// The section-wide default.
    pub skip_tls_verify: Option<bool>,
    /// The file is a Docker `config.json`, to be read as one.
    pub is_docker_config: bool,
    /// Oddities that do not stop anything, each with its line.
    pub warnings: Vec<String>,
}

/// Why an `--auths` file cannot be used: one line, or several with the place marked.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct AuthsError {
    path: PathBuf,
    reason: String,
}

impl Auths {
    /// Reads the file at `path`. Relative names of certificate files are relative to it.
    pub fn load(path: &Path) -> Result<Self, AuthsError> {
        let fail = |reason: String| AuthsError { path: path.to_owned(), reason };
        let text = std::fs::read_to_string(path).map_err(|e| fail(e.to_string()))?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, base).map_err(fail)
    }

    /// Reads the text of such a file; `base` is where relative file names start.
    ///
    /// ```
    /// use imgfs::backend::registry::Auths;
    /// use std::path::Path;
    ///
    /// let text = "- repo: quay.io/team\n  username: someone\n  password: secret\n  ca_file: ca.pem\n";
    /// let auths = Auths::parse(text, Path::new("/etc/imgfs"))?;
    /// assert_eq!(auths.entries[0].prefix, "quay.io/team");
    /// assert_eq!(auths.entries[0].ca_file.as_deref(), Some(Path::new("/etc/imgfs/ca.pem")));
    /// assert!(Auths::parse("- repo: [", Path::new("")).is_err());
    /// # Ok::<(), String>(())
    /// ```
    pub fn parse(text: &str, base: &Path) -> Result<Self, String> {
        // Without this, a user called `no` would be `false`.
        let options = options! { strict_booleans: true };
        let raw: RawAuths =
            serde_saphyr::from_str_with_options(text, options).map_err(|e| describe(&e, text))?;
        let mut auths = Self {
            skip_tls_verify: raw.skip_tls_verify,
            is_docker_config: raw.is_docker_config,
            warnings: unknown_keys(&raw.unknown),
            ..Self::default()
        };
        for entry in raw.entries {
            auths.warnings.extend(unknown_keys(&entry.value.unknown));
            let line = entry.referenced.line();
            auths.entries.push(entry.value.check(base).map_err(|e| format!("line {line}: {e}"))?);
        }
        Ok(auths)
    }
}

/// Where and what, without a word of the file: any of them may be a secret.
pub(crate) fn describe(error: &serde_saphyr::Error, file: &str) -> String {
    let text = error.to_string();
    let reason = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let reason = reason.strip_prefix("error: ").unwrap_or(reason);
    // The place is said once.
    let reason = match reason.split_once(": ") {
        Some((place, rest)) if place.starts_with("line ") => rest,
        _ => reason,
    };
    // Advice for who programs with it.
    let reason = reason.split(", set ").next().unwrap_or(reason);
    // What stands in quotes is quoted from the file.
    let mut shown = String::new();
    for (index, part) in reason.split(['"', '`', '\'']).enumerate() {
        shown += if index % 2 == 0 { part } else { "..." };
    }
    match error.location() {
        Some(at) => {
            let line = file.lines().nth(usize::try_from(at.line()).unwrap_or(0).saturating_sub(1));
            let key = line.and_then(known_key).map(|key| format!(", {key}")).unwrap_or_default();
            format!("line {}, column {}{key}: {shown}", at.line(), at.column())
        }
        None => shown,
    }
}

/// The key on a line of the file, if it is one of ours and can be no secret.
fn known_key(line: &str) -> Option<&str> {
    let key = line.trim_start_matches([' ', '-', '{']).split(':').next()?.trim();
    let known = ["repo", "registry", "username", "password", "insecure", "plain_http", "auths"];
    let known = known.contains(&key) || key.starts_with("skip") || key.ends_with("_file");
    (known && key.len() < 20).then_some(key)
}

fn unknown_keys(keys: &[(u64, String)]) -> Vec<String> {
    keys.iter().map(|(line, key)| format!("line {line}: unknown key `{key}` is ignored")).collect()
}

#[derive(Default)]
struct RawAuths {
    entries: Vec<Spanned<RawEntry>>,
    skip_tls_verify: Option<bool>,
    is_docker_config: bool,
    unknown: Vec<(u64, String)>,
}

#[derive(Default)]
struct RawEntry {
    repo: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identity_token: Option<String>,
    skip_tls_verify: Option<bool>,
    plain_http: Option<bool>,
    ca_file: Option<String>,
    cert_file: Option<String>,
    key_file: Option<String>,
    unknown: Vec<(u64, String)>,
}

impl RawEntry {
    fn check(self, base: &Path) -> Result<Entry, String> {
        let prefix = normalise_prefix(&self.repo.ok_or("an entry needs `repo` (or `registry`)")?);
        if prefix.is_empty() {
            return Err("`repo` is empty".into());
        }
        let credentials = match (self.username, self.password, self.identity_token) {
            (None, None, None) => None,
            (_, None, Some(token)) => Some(Credentials::IdentityToken(token)),
            (Some(username), Some(password), None) => {
                Some(Credentials::Basic { username, password })
            }
            (Some(_), None, None) => {
                return Err(format!("`{prefix}` has a username but no password"));
            }
            (None, Some(_), _) => return Err(format!("`{prefix}` has a password but no username")),
            (Some(_), Some(_), Some(_)) => {
                return Err(format!("`{prefix}` has a password and an identity_token"));
            }
        };
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(format!("`{prefix}` needs both cert_file and key_file, or neither"));
        }
        let file = |name: Option<String>| name.filter(|n| !n.is_empty()).map(|n| base.join(n));
        Ok(Entry {
            prefix,
            credentials,
            plain_http: self.plain_http,
            skip_tls_verify: self.skip_tls_verify,
            ca_file: file(self.ca_file),
            cert_file: file(self.cert_file),
            key_file: file(self.key_file),
        })
    }
}

/// The keys of one entry of `auths` that does not come from a file of its own.
#[derive(Default)]
pub struct EntryKeys(RawEntry);

impl EntryKeys {
    /// Takes the value of `key` in any of its spellings; an empty one counts as none. Tells whether
    /// there is such a key. An error does not quote the value.
    ///
    /// ```
    /// use imgfs::backend::registry::EntryKeys;
    /// use std::path::Path;
    ///
    /// let mut keys = EntryKeys::default();
    /// assert_eq!(keys.set("repo", "quay.io"), Ok(true));
    /// assert_eq!(keys.set("plain_http", "true"), Ok(true));
    /// assert_eq!(keys.set("colour", "blue"), Ok(false), "there is no such key");
    /// assert!(keys.set("plain_http", "perhaps").is_err());
    /// let entry = keys.finish(Path::new(""))?;
    /// assert_eq!((&*entry.prefix, entry.plain_http), ("quay.io", Some(true)));
    /// # Ok::<(), String>(())
    /// ```
    pub fn set(&mut self, key: &str, value: &str) -> Result<bool, &'static str> {
        let Some(field) = Field::named(key) else { return Ok(false) };
        let text = Some(value.to_owned()).filter(|value| !value.is_empty());
        match field {
            Field::Repo => self.0.repo = text,
            Field::Username => self.0.username = text,
            Field::Password => self.0.password = text,
            Field::IdentityToken => self.0.identity_token = text,
            Field::SkipTlsVerify => self.0.skip_tls_verify = flag(value)?,
            Field::PlainHttp => self.0.plain_http = flag(value)?,
            Field::CaFile => self.0.ca_file = text,
            Field::CertFile => self.0.cert_file = text,
            Field::KeyFile => self.0.key_file = text,
        }
        Ok(true)
    }

    /// Checks that they fit together. Relative names of certificate files are relative to `base`.
    pub fn finish(self, base: &Path) -> Result<Entry, String> {
        self.0.check(base)
    }
}

/// What a key of an entry means.
enum Field {
    Repo,
    Username,
    Password,
    IdentityToken,
    SkipTlsVerify,
    PlainHttp,
    CaFile,
    CertFile,
    KeyFile,
}

impl Field {
    fn named(key: &str) -> Option<Self> {
        Some(match key {
            "repo" | "registry" => Self::Repo,
            "username" => Self::Username,
            "password" => Self::Password,
            "identity_token" | "identitytoken" => Self::IdentityToken,
            "insecure" | "skip_tls_verify" | "skipTLSVerify" => Self::SkipTlsVerify,
            "plain_http" | "plainHTTP" | "plainHttp" => Self::PlainHttp,
            "ca_file" | "ca_cert" => Self::CaFile,
            "cert_file" => Self::CertFile,
            "key_file" => Self::KeyFile,
            _ => return None,
        })
    }
}

/// A boolean in any of YAML's and people's spellings; nothing is none.
pub(crate) fn flag(text: &str) -> Result<Option<bool>, &'static str> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" => Ok(Some(true)),
        "false" | "no" | "off" | "0" => Ok(Some(false)),
        "" => Ok(None),
        _ => Err("expected true or false"),
    }
}

struct Flag(Option<bool>);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
        flag(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for RawEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;
        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = RawEntry;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an entry with repo, username, password and so on")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawEntry, A::Error> {
                let mut entry = RawEntry::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    match Field::named(&key.value) {
                        Some(Field::Repo) => entry.repo = map.next_value()?,
                        Some(Field::Username) => entry.username = map.next_value()?,
                        Some(Field::Password) => entry.password = map.next_value()?,
                        Some(Field::IdentityToken) => entry.identity_token = map.next_value()?,
                        Some(Field::SkipTlsVerify) => {
                            entry.skip_tls_verify = map.next_value::<Flag>()?.0;
                        }
                        Some(Field::PlainHttp) => entry.plain_http = map.next_value::<Flag>()?.0,
                        Some(Field::CaFile) => entry.ca_file = map.next_value()?,
                        Some(Field::CertFile) => entry.cert_file = map.next_value()?,
                        Some(Field::KeyFile) => entry.key_file = map.next_value()?,
                        None => {
                            map.next_value::<IgnoredAny>()?;
                            entry.unknown.push((key.referenced.line(), key.value));
                        }
                    }
                }
                Ok(entry)
            }
        }
        deserializer.deserialize_map(EntryVisitor)
    }
}

impl<'de> Deserialize<'de> for RawAuths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AuthsVisitor)
    }
}

struct AuthsVisitor;

impl<'de> Visitor<'de> for AuthsVisitor {
    type Value = RawAuths;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of auths, or a mapping with `auths`")
    }

    fn visit_unit<E>(self) -> Result<RawAuths, E> {
        Ok(RawAuths::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<RawAuths, A::Error> {
        let mut auths = RawAuths::default();
        while let Some(entry) = seq.next_element()? {
            auths.entries.push(entry);
        }
        Ok(auths)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawAuths, A::Error> {
        let mut auths = RawAuths::default();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            match key.value.as_str() {
                "auths" => match map.next_value()? {
                    AuthsValue::List(entries) => auths.entries = entries,
                    AuthsValue::Docker => auths.is_docker_config = true,
                },
                "credsStore" | "credHelpers" => {
                    auths.is_docker_config = true;
                    map.next_value::<IgnoredAny>()?;
                }
                "insecure" | "skip_tls_verify" | "skipTLSVerify" => {
                    auths.skip_tls_verify = map.next_value::<Flag>()?.0;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    auths.unknown.push((key.referenced.line(), key.value));
                }
            }
        }
        if auths.is_docker_config {
            auths.unknown.clear(); // It has many keys that are none of our business.
        }
        Ok(auths)
    }
}

/// What stands under `auths`: KubeKey's list, or Docker's mapping.
enum AuthsValue {
    List(Vec<Spanned<RawEntry>>),
    Docker,
}

impl<'de> Deserialize<'de> for AuthsValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = AuthsValue;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of entries")
            }

            fn visit_unit<E>(self) -> Result<AuthsValue, E> {
                Ok(AuthsValue::List(Vec::new()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<AuthsValue, A::Error> {
                Ok(AuthsValue::List(AuthsVisitor.visit_seq(seq)?.entries))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<AuthsValue, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(AuthsValue::Docker)
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Auths, String> {
        Auths::parse(text, Path::new("/etc/imgfs"))
    }

    #[test]
    fn every_spelling() {
        let auths = parse(
            "skip_tls_verify: true\nauths:\n\
             - repo: https://Registry.example.com:5000/team/\n  username: robot\n  password: 00123\n  insecure: no\n\
             - registry: docker.io\n  username: no\n  password: 1e5\n  plain_http: 'True'\n  ca_cert: ca.pem\n\
             - {registry: a.io, skipTLSVerify: yes, cert_file: /c.pem, key_file: k.pem}\n",
        )
        .unwrap();
        assert_eq!(auths.skip_tls_verify, Some(true));
        let [a, b, c] = &auths.entries[..] else { panic!("{auths:?}") };
        let basic =
            |u: &str, p: &str| Some(Credentials::Basic { username: u.into(), password: p.into() });
        assert_eq!(a.prefix, "registry.example.com:5000/team");
        assert!(a.credentials == basic("robot", "00123"), "digits stay as written");
        assert_eq!(a.skip_tls_verify, Some(false));
        assert!(b.credentials == basic("no", "1e5"));
        assert_eq!(
            (b.plain_http, b.ca_file.as_deref()),
            (Some(true), Some(Path::new("/etc/imgfs/ca.pem")))
        );
        assert_eq!(c.skip_tls_verify, Some(true));
        assert_eq!(c.cert_file.as_deref(), Some(Path::new("/c.pem")));
        assert!(auths.warnings.is_empty(), "{:?}", auths.warnings);
    }

    #[test]
    fn a_list_alone_and_json() {
        assert_eq!(parse("- repo: a.io\n").unwrap().entries[0].prefix, "a.io");
        assert_eq!(
            parse(r#"[{"repo":"a.io","username":"u","password":1}]"#).unwrap().entries.len(),
            1
        );
        assert!(parse("").unwrap().entries.is_empty());
        assert!(parse("auths:\n").unwrap().entries.is_empty());
        let docker = parse(r#"{"auths":{"a.io":{"auth":"dTpw"}},"HttpHeaders":{}}"#).unwrap();
        assert!(docker.is_docker_config && docker.warnings.is_empty());
    }

    #[test]
    fn mistakes_have_their_line() {
        let auths = parse("- repo: a.io\n  usrname: u\n").unwrap();
        assert_eq!(auths.warnings, ["line 2: unknown key `usrname` is ignored"]);
        for (text, part) in [
            ("- username: u\n  password: p\n", "line 1: an entry needs `repo`"),
            (
                "- repo: b.io\n- repo: a.io\n  username: u\n",
                "line 2: `a.io` has a username but no password",
            ),
            ("- repo: a.io\n  cert_file: x\n", "both cert_file and key_file"),
            (
                "- repo: a.io\n  plain_http: perhaps\n",
                "line 2, column 15, plain_http: expected true or false",
            ),
            ("- repo: a.io\n  plain_http: perhaps\n", "line 2"),
            ("- repo: [\n", "line"),
            ("just text", "expected"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
        for text in [
            "user hunter2",
            "- hunter2",
            "- repo: a.io\n  password: hunter2\n  plain_http: maybe\n",
            "- repo: a.io\n  password: [hunter2]\n",
            "auths: hunter2",
            "- repo: a.io\n  password: 'hunter2\n",
        ] {
            let error = parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
