//! Credentials that other tools have stored: Docker's `config.json`, podman's `auth.json`, and the
//! credential helpers that they name.
//!
//! Files are read on threads that may block, and a helper that does not answer is killed.

use std::{
    collections::BTreeMap,
    env, fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::Value;
use tokio::{io::AsyncWriteExt, process::Command, task, time::timeout};

use super::config::Credentials;
use crate::image::Repository;

/// The files that are asked, in this order: `$REGISTRY_AUTH_FILE`; Docker's `config.json` (in
/// `$DOCKER_CONFIG` or `~/.docker`); podman's `containers/auth.json` (containers-auth.json(5)), first in
/// `$XDG_RUNTIME_DIR`, which is `/run/containers/UID/auth.json` where that is not set, then in `$XDG_CONFIG_HOME`
/// or `~/.config`.
pub fn default_files() -> Vec<PathBuf> {
    let user = rustix::process::geteuid();
    files_in(var, user.as_raw())
}

fn files_in(var: impl Fn(&str) -> Option<PathBuf>, user: u32) -> Vec<PathBuf> {
    let home = |dir: &str| Some(var("HOME")?.join(dir));
    let runtime = match var("XDG_RUNTIME_DIR") {
        Some(dir) => dir.join("containers/auth.json"),
        None => PathBuf::from(format!("/run/containers/{user}/auth.json")),
    };
    let config = var("XDG_CONFIG_HOME").or_else(|| home(".config"));
    [
        var("REGISTRY_AUTH_FILE"),
        docker_file(&var),
        Some(runtime),
        config.map(|dir| dir.join("containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Docker's own file of these.
pub(super) fn docker_config_file() -> Option<PathBuf> {
    docker_file(&var)
}

fn docker_file(var: &impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let dir = var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")));
    Some(dir?.join("config.json"))
}

fn var(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// What Docker calls the entry of `registry`.
pub(super) fn server_key(registry: &str) -> String {
    match registry {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        host => host.to_owned(),
    }
}

/// The program of a credential helper.
pub(super) fn helper_program(name: &str) -> String {
    format!("docker-credential-{name}")
}

/// What a file says beside the credentials that are in it. Any of it may be null.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: Option<BTreeMap<String, IgnoredAny>>,
    cred_helpers: Option<BTreeMap<String, Option<String>>>,
    creds_store: Option<String>,
}

impl Config {
    /// The helper for `key` alone.
    fn helper_for(&self, key: &str) -> Option<&str> {
        let helper = self.cred_helpers.as_ref()?.get(key)?.as_deref();
        helper.filter(|name| !name.is_empty())
    }
}

/// Reads the files that exist. Second, the first that cannot be read, with the reason.
async fn read(files: &[PathBuf]) -> (Vec<(PathBuf, Vec<u8>)>, Option<String>) {
    let files = files.to_vec();
    let read = task::spawn_blocking(move || {
        let (mut found, mut failed) = (Vec::new(), None);
        for path in files {
            match fs::read(&path) {
                Ok(text) => found.push((path, text)),
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    failed = Some(format!("{}: {error}", path.display()));
                    break;
                }
            }
        }
        (found, failed)
    });
    read.await.unwrap_or_else(|panic| (Vec::new(), Some(panic.to_string())))
}

/// The longest `registry/path` for which one of `files` has an entry of its own and which
/// `repository` is part of, as podman stores them; most often there is none.
pub(super) async fn stored_part(files: &[PathBuf], repository: &Repository) -> Option<String> {
    let whole = repository.to_string();
    let (found, _) = read(files).await;
    found
        .into_iter()
        .filter_map(|(_, text)| serde_json::from_slice::<Config>(&text).ok())
        .flat_map(|config| config.auths.unwrap_or_default().into_keys())
        .filter(|key| {
            let rest = whole.strip_prefix(key.as_str());
            key.len() > repository.registry().len()
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(String::len)
}

/// Looks up `registry`, or `part` of it, in `files`. A helper has `patience` to answer. An error
/// says which file or helper failed, without anything that it printed on its standard output, which
/// may be a secret.
pub(super) async fn lookup(
    files: &[PathBuf],
    registry: &str,
    part: Option<&str>,
    patience: Duration,
) -> Result<Option<Credentials>, String> {
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        _ => format!("https://{registry}"),
    };
    let keys: Vec<&str> = part.into_iter().chain([registry, &server]).collect();
    let (found, failed) = read(files).await;
    for (path, text) in found {
        let of_file = |reason: String| format!("{}: {reason}", path.display());
        let config: Config = serde_json::from_slice(&text).unwrap_or_default();
        for key in &keys {
            // Docker's order: a helper for this registry, what is in the file, a helper for all.
            let of_all = config.creds_store.as_ref().filter(|name| !name.is_empty());
            let found = match config.helper_for(key) {
                Some(helper) => ask_helper(helper, key, patience).await,
                None => match (in_file(&text, key), of_all) {
                    (Ok(None), Some(helper)) => ask_helper(helper, key, patience).await,
                    (found, _) => found,
                },
            };
            // A helper that knows nobody, or an `auth` that is only a colon, means nobody, too.
            if let Some(found) = found.map_err(of_file)?.filter(|found| !found.are_empty()) {
                return Ok(Some(found));
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// What stands in the file itself for `key`.
fn in_file(text: &[u8], key: &str) -> Result<Option<Credentials>, String> {
    // Without the helpers, which the library would run, and wait for without end.
    let Ok(mut config) = serde_json::from_slice::<Value>(text) else {
        return Err(CredentialRetrievalError::ConfigReadError.to_string());
    };
    if config.is_null() {
        return Ok(None);
    }
    if let Some(config) = config.as_object_mut() {
        config.remove("credHelpers");
        config.remove("credsStore");
    }
    let mut tokens = config.clone();
    for entry in entries(&mut tokens) {
        only_registry_token(entry);
    }
    // As in Docker, it goes before all else.
    if let Some(Credentials::IdentityToken(token)) = stored(&tokens, key)? {
        return Ok(Some(Credentials::RegistryToken(token)));
    }
    for entry in entries(&mut config) {
        without_what_is_empty(entry);
    }
    stored(&config, key)
}

/// The entries of a file, without those that are none.
fn entries(config: &mut Value) -> impl Iterator<Item = &mut serde_json::Map<String, Value>> {
    let auths = config.get_mut("auths").and_then(Value::as_object_mut);
    let auths = auths.map(|auths| {
        auths.retain(|_, entry| entry.is_object());
        auths.values_mut().filter_map(Value::as_object_mut)
    });
    auths.into_iter().flatten()
}

/// What the library finds for `key`, under whichever spelling.
fn stored(config: &Value, key: &str) -> Result<Option<Credentials>, String> {
    match docker_credential::get_credential_from_reader(config.to_string().as_bytes(), key) {
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credentials::IdentityToken(token))),
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            // Some tools fill up what they encode, and Docker takes that off again.
            let password = password.trim_matches('\0').to_owned();
            Ok(Some(Credentials::Basic { username, password }))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

/// Leaves only the token for the registry itself, in the place of an identity token, since the library does not
/// know it. Entries without one stay, empty, so that another spelling of their name does not take their place.
fn only_registry_token(entry: &mut serde_json::Map<String, Value>) {
    let token = entry.remove("registrytoken").filter(|token| token.as_str() != Some(""));
    entry.clear();
    entry.extend(token.filter(Value::is_string).map(|token| ("identitytoken".to_owned(), token)));
}

/// Leaves only what counts in an entry: as in Docker, an empty text stands for nothing, and `auth` goes
/// before a user name and password beside it.
fn without_what_is_empty(entry: &mut serde_json::Map<String, Value>) {
    entry.retain(|_, value| value.as_str().is_none_or(|text| !text.is_empty()));
    if entry.get("auth").is_some_and(Value::is_string) {
        entry.remove("username");
        entry.remove("password");
    }
}

/// What a credential helper answers.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Runs a credential helper, which may ask the user for something.
pub(super) async fn ask_helper(
    name: &str,
    key: &str,
    patience: Duration,
) -> Result<Option<Credentials>, String> {
    let program = helper_program(name);
    let answered = match timeout(patience, run(&program, "get", key)).await {
        Ok(answered) => answered.map_err(|error| format!("{program}: {error}"))?,
        Err(_) => return Err(format!("{program} has not answered within {patience:?}")),
    };
    if !answered.status.success() {
        // Helpers say on standard output that they have nothing, and exit with 1.
        if String::from_utf8_lossy(&answered.stdout).contains("not found") {
            return Ok(None);
        }
        let said = String::from_utf8_lossy(&answered.stderr);
        let said = said.trim().lines().next_back().unwrap_or_default();
        return Err(format!("{program} failed: {said}"));
    }
    let answer: HelperAnswer = serde_json::from_slice(&answered.stdout)
        .map_err(|_| format!("{program}: its answer is not what Docker specifies"))?;
    Ok(Some(match answer.username.as_str() {
        "<token>" => Credentials::IdentityToken(answer.secret),
        _ => Credentials::Basic { username: answer.username, password: answer.secret },
    }))
}

/// Runs a helper, with `input` on its standard input. It is killed if nobody waits any more.
pub(super) async fn run(
    program: &str,
    verb: &str,
    input: &str,
) -> io::Result<std::process::Output> {
    let mut child = Command::new(Path::new(program))
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()).await {
            // It has read nothing, and may answer all the same.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            written => written?,
        }
    }
    child.wait_with_output().await
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn files_are_asked_in_their_order() {
        let files = |set: &[(&str, &str)]| {
            let set = set.to_vec();
            let var = move |name: &str| {
                Some(PathBuf::from(set.iter().find(|(known, _)| *known == name)?.1))
            };
            let files = files_in(var, 7);
            files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(
            files(&[("HOME", "/h")]),
            [
                "/h/.docker/config.json",
                "/run/containers/7/auth.json",
                "/h/.config/containers/auth.json"
            ]
        );
        let all = [
            ("HOME", "/h"),
            ("REGISTRY_AUTH_FILE", "/r.json"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_RUNTIME_DIR", "/x"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        assert_eq!(
            files(&all),
            ["/r.json", "/d/config.json", "/x/containers/auth.json", "/c/containers/auth.json"]
        );
        assert_eq!(files(&[]), ["/run/containers/7/auth.json"]);
    }

    #[tokio::test]
    async fn the_most_specific_entry_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        // u:p, v:q and w:r
        let text = r#"{"auths":{"quay.io":{"auth":"dTpw"},"quay.io/team":{"auth":"djpx"},
            "https://index.docker.io/v1/":{"auth":"dzpy"},"bad.io":{"auth":"!"}}}"#;
        fs::write(&file, text).unwrap();
        let files = [dir.path().join("missing.json"), file];
        for (image, expected) in [
            ("quay.io/x", Some("u")),
            ("quay.io/team/app", Some("v")),
            ("quay.io/team", Some("v")),
            ("quay.io/teams", Some("u")),
            ("nginx", Some("w")),
            ("ghcr.io/x", None),
        ] {
            let reference: crate::image::Reference = image.parse().unwrap();
            let repository = reference.repository();
            let part = stored_part(&files, repository).await;
            let found = lookup(&files, repository.registry(), part.as_deref(), PATIENCE).await;
            let found = found.unwrap();
            let user = found.map(|c| match c {
                Credentials::Basic { username, .. } => username,
                _ => "token".into(),
            });
            assert_eq!(user.as_deref(), expected, "{image}");
        }
        let failed = lookup(&files, "bad.io", None, PATIENCE).await.unwrap_err();
        assert!(failed.contains("auth.json"), "{failed}");
    }

    #[tokio::test]
    async fn what_is_empty_or_null_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        for (entry, expected) in [
            (r#"{"auth":"","username":"u","password":"p"}"#, Some("u:p")),
            (r#"{"auth":null,"username":"u","password":"p","identitytoken":""}"#, Some("u:p")),
            (r#"{"auth":"dTpw","username":"","password":""}"#, Some("u:p")),
            (r#"{"auth":"dTpw","username":"other","password":"other"}"#, Some("u:p")),
            (r#"{"auth":"dTpw","identitytoken":"t","email":null}"#, Some("t")),
            (r#"{"auth":"","identitytoken":"t"}"#, Some("t")),
            (r#"{"auth":"","username":"","password":""}"#, None),
            (r#"{"auth":"Og=="}"#, None),
            (r#"{"auth":"dTpwAAA="}"#, Some("u:p")),
            (r#"{"registrytoken":"r"}"#, Some("registry r")),
            (r#"{"auth":"dTpw","identitytoken":"t","registrytoken":"r"}"#, Some("registry r")),
            (r#"{"auth":"dTpw","registrytoken":""}"#, Some("u:p")),
            (r#"{"auth":"dTpw","registrytoken":null}"#, Some("u:p")),
            (r#"{"auth":""}"#, None),
            ("{}", None),
            ("null", None),
        ] {
            let text = format!(
                r#"{{"auths":{{"quay.io":{entry},"other.io":null}},"credHelpers":{{"x.io":null}},"credsStore":""}}"#
            );
            fs::write(&file, text).unwrap();
            let found = lookup(std::slice::from_ref(&file), "quay.io", None, PATIENCE).await;
            let found = found.unwrap().map(|found| match found {
                Credentials::Basic { username, password } => format!("{username}:{password}"),
                Credentials::IdentityToken(token) => token,
                Credentials::RegistryToken(token) => format!("registry {token}"),
            });
            assert_eq!(found.as_deref(), expected, "{entry}");
        }
        for text in [r#"{"auths":null,"credHelpers":null,"credsStore":null}"#, "null", "{}"] {
            fs::write(&file, text).unwrap();
            let found = lookup(std::slice::from_ref(&file), "quay.io", None, PATIENCE).await;
            assert!(found.unwrap().is_none(), "{text}");
        }
    }
}
