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

/// The files that are asked, in this order: `$REGISTRY_AUTH_FILE`, Docker's `config.json`
/// (in `$DOCKER_CONFIG` or `~/.docker`), `$XDG_RUNTIME_DIR/containers/auth.json`.
pub fn default_files() -> Vec<PathBuf> {
    [
        var("REGISTRY_AUTH_FILE"),
        docker_config_file(),
        var("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Docker's own file of these.
pub(super) fn docker_config_file() -> Option<PathBuf> {
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
            if let Some(found) = found.map_err(of_file)? {
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
        if let Some(auths) = config.get_mut("auths").and_then(Value::as_object_mut) {
            auths.retain(|_, entry| entry.is_object());
            let entries = auths.values_mut().filter_map(Value::as_object_mut);
            entries.for_each(without_what_is_empty);
        }
    }
    match docker_credential::get_credential_from_reader(config.to_string().as_bytes(), key) {
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credentials::IdentityToken(token))),
        Ok(DockerCredential::UsernamePassword(username, password)) => {
            Ok(Some(Credentials::Basic { username, password }))
        }
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
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
                Credentials::IdentityToken(_) => "token".into(),
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
