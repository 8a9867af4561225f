//! Storing credentials where Docker and its relatives look for them: in `config.json`, or in the credential
//! helper that this names.
//!
//! Everything else in the file stays as it is. It is written beside its place, with mode 0600, and renamed; of a
//! symbolic link, what it leads to is replaced. Who changes it holds a lock on its directory, so that two
//! logins at a time do not undo each other.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use tokio::time::timeout;

use super::{
    config::Credentials,
    credentials::{self, helper_program, server_key},
};
use crate::util::directory_of;

/// Symbolic links that are followed from the file to what it leads to.
const MAX_LINKS: usize = 16;

/// Members of an entry that hold credentials.
const SECRETS: [&str; 5] = ["auth", "username", "password", "identitytoken", "registrytoken"];

/// Where credentials were stored, or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file itself, which protects them by its mode only.
    File(PathBuf),
    /// In this credential helper.
    Helper(String),
}

/// Why credentials could not be stored or removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoginError {
    /// The file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        error: io::Error,
    },
    /// The file holds something else than a configuration. It is left as it is.
    #[error("{} is not a configuration of Docker: {reason}; it is left as it is", path.display())]
    Form {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        reason: String,
    },
    /// The credential helper does not do its work.
    #[error("{program}{reason}; {} names it", path.display())]
    Helper {
        /// Its program.
        program: String,
        /// What happened.
        reason: String,
        /// The file that names it.
        path: PathBuf,
    },
}

/// Docker's configuration: the file in `$DOCKER_CONFIG` or `~/.docker`. `None` if neither is set.
pub fn docker_config_file() -> Option<PathBuf> {
    credentials::docker_config_file()
}

/// Stores `username` and `password` for `registry`, as `docker login` does. A helper has `patience` to answer.
pub async fn store_login(
    path: &Path,
    registry: &str,
    (username, password): (&str, &str),
    patience: Duration,
) -> Result<Place, LoginError> {
    let mut config = Config::open(path)?;
    let key = server_key(registry);
    let place = match config.helper(&key) {
        Some(helper) => {
            let request = json!({"ServerURL": key, "Username": username, "Secret": password});
            let done = ask(&helper, "store", &request.to_string(), patience).await;
            done.map_err(|reason| config.helper_failed(&helper, reason))?;
            Place::Helper(helper)
        }
        None => Place::File(path.to_owned()),
    };
    let auth = STANDARD.encode(format!("{username}:{password}"));
    let auths = config.auths()?;
    // Those of other spellings would go before it.
    for alias in aliases(registry).iter().filter(|alias| **alias != key) {
        auths.shift_remove(alias);
    }
    let entry = auths.entry(key).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    if let Some(entry) = entry.as_object_mut() {
        SECRETS.iter().for_each(|name| drop(entry.shift_remove(*name)));
        if matches!(place, Place::File(_)) {
            entry.insert("auth".to_owned(), auth.into());
        }
    }
    config.write()?;
    Ok(place)
}

/// Removes what is stored for `registry`, and says where that was: nowhere, if nothing was stored.
pub async fn erase_login(
    path: &Path,
    registry: &str,
    patience: Duration,
) -> Result<Vec<Place>, LoginError> {
    let mut config = Config::open(path)?;
    let mut places = Vec::new();
    let key = server_key(registry);
    if let Some(helper) = config.helper(&key) {
        let known = credentials::ask_helper(&helper, &key, patience).await;
        if known.map_err(|reason| config.helper_said(&helper, &reason))?.is_some() {
            let done = ask(&helper, "erase", &key, patience).await;
            done.map_err(|reason| config.helper_failed(&helper, reason))?;
            places.push(Place::Helper(helper));
        }
    }
    let mut has_changed = false;
    if config.value.get("auths").is_some_and(|auths| !auths.is_null()) {
        let auths = config.auths()?;
        for alias in aliases(registry) {
            let Some(entry) = auths.shift_remove(&alias) else { continue };
            has_changed = true;
            let had_secret = SECRETS.iter().any(|name| entry.get(name).is_some());
            let place = Place::File(path.to_owned());
            if had_secret && !places.contains(&place) {
                places.push(place);
            }
        }
    }
    if has_changed {
        config.write()?;
    }
    Ok(places)
}

/// What an entry for `registry` may be called.
fn aliases(registry: &str) -> Vec<String> {
    let hosts = match registry {
        "docker.io" => vec!["docker.io", "index.docker.io", "registry-1.docker.io"],
        host => vec![host],
    };
    let spelled = hosts.iter().flat_map(|host| {
        ["", "https://", "http://"].iter().flat_map(move |scheme| {
            ["", "/", "/v1/", "/v2/", "/v1", "/v2"]
                .iter()
                .map(move |path| format!("{scheme}{host}{path}"))
        })
    });
    spelled.collect()
}

/// Runs a helper that is to do something. An error says what happened, but none of the secret.
async fn ask(helper: &str, verb: &str, input: &str, patience: Duration) -> Result<(), String> {
    let program = helper_program(helper);
    match timeout(patience, credentials::run(&program, verb, input)).await {
        Err(_) => Err(format!(" has not answered within {patience:?}")),
        Ok(Err(error)) => Err(format!(": {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            // They complain on either; of what a program says that has seen a secret, nothing is shown
            // that might be one.
            let said = [output.stderr, output.stdout].map(|said| {
                String::from_utf8_lossy(&said).trim().lines().next_back().unwrap_or("").to_owned()
            });
            let request: Value = serde_json::from_str(input).unwrap_or_default();
            let secret = request["Secret"].as_str().unwrap_or_default();
            let is_shown =
                |said: &&String| !said.is_empty() && (secret.is_empty() || !said.contains(secret));
            let said = said.iter().find(is_shown).map(String::as_str).unwrap_or("without a word");
            Err(format!(" failed to {verb}: {said}"))
        }
    }
}

/// A configuration that is being changed.
struct Config {
    /// As it is called.
    path: PathBuf,
    /// The file that is there, behind all links.
    target: PathBuf,
    value: Map<String, Value>,
    /// Holds the lock.
    _dir: File,
}

impl Config {
    fn open(path: &Path) -> Result<Self, LoginError> {
        let failed = |error| LoginError::Io { path: path.to_owned(), error };
        let form = |reason: String| LoginError::Form { path: path.to_owned(), reason };
        let target = behind_links(path).map_err(failed)?;
        let dir = directory_of(&target);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let dir = File::open(dir).map_err(failed)?;
        dir.lock().map_err(failed)?;
        let text = match fs::read_to_string(&target) {
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            read => read.map_err(failed)?,
        };
        let value = match text.trim() {
            "" => Map::new(),
            text => match serde_json::from_str(text) {
                Ok(Value::Object(value)) => value,
                Ok(_) => return Err(form("it is no object".to_owned())),
                Err(error) => {
                    return Err(form(format!("line {}, column {}", error.line(), error.column())));
                }
            },
        };
        Ok(Self { path: path.to_owned(), target, value, _dir: dir })
    }

    /// The helper for the entry `key`, if there is one.
    fn helper(&self, key: &str) -> Option<String> {
        let own = self.value.get("credHelpers").and_then(|helpers| helpers.get(key));
        let name =
            |value: &Value| value.as_str().filter(|name| !name.is_empty()).map(str::to_owned);
        own.and_then(name).or_else(|| self.value.get("credsStore").and_then(name))
    }

    fn auths(&mut self) -> Result<&mut Map<String, Value>, LoginError> {
        let path = &self.path;
        let auths = self.value.entry("auths").or_insert(Value::Null);
        if auths.is_null() {
            *auths = json!({});
        }
        auths.as_object_mut().ok_or_else(|| LoginError::Form {
            path: path.clone(),
            reason: "its `auths` is no object".to_owned(),
        })
    }

    fn helper_failed(&self, helper: &str, reason: String) -> LoginError {
        LoginError::Helper { program: helper_program(helper), reason, path: self.path.clone() }
    }

    /// The same with a text that names the program.
    fn helper_said(&self, helper: &str, text: &str) -> LoginError {
        let program = helper_program(helper);
        let reason = text.strip_prefix(program.as_str()).unwrap_or(text).to_owned();
        LoginError::Helper { program, reason, path: self.path.clone() }
    }

    fn write(&self) -> Result<(), LoginError> {
        let mut text = Vec::new();
        let indented = serde_json::ser::PrettyFormatter::with_indent(b"\t");
        let mut serializer = serde_json::Serializer::with_formatter(&mut text, indented);
        let written = serde::Serialize::serialize(&self.value, &mut serializer);
        let written = written.map_err(io::Error::other).and_then(|()| {
            text.push(b'\n');
            replace(&self.target, &text)
        });
        written.map_err(|error| LoginError::Io { path: self.path.clone(), error })
    }
}

/// The file that `path` leads to, which need not be there.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::read_link(&path) {
            // Of a relative one, from where the link is.
            Ok(target) => path = path.parent().unwrap_or(Path::new("")).join(target),
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(e) => return Err(e),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

/// Puts `content` in the place of the file `path`, at once, with mode 0600.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".imgfs-{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    // What a killed process of this number has left.
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary);
    let written = written.and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    if written.is_err() {
        // The error that counts is known.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Whether `credentials` are what any of `files` gives for `registry`. `None` if they give nothing.
pub async fn is_what_is_found(
    files: &[PathBuf],
    registry: &str,
    credentials: &Credentials,
    patience: Duration,
) -> Option<bool> {
    let found = credentials::lookup(files, registry, None, patience).await;
    found.ok().flatten().map(|found| found == *credentials)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn read(path: &Path) -> Value {
        serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn the_rest_of_the_file_stays_and_so_does_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("real.json");
        let text = r#"{"zebra": 1.50, "auths": {"b.io": {"auth": "dTpw", "email": "x"}, "https://a.io": {"auth": "eDp5"}},
            "HttpHeaders": {"X": "y"}, "credHelpers": {"c.io": "other"}}"#;
        fs::write(&real, text).unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o644)).unwrap();
        let link = dir.path().join("config.json");
        symlink("real.json", &link).unwrap();
        let before = read(&real);
        for registry in ["b.io", "a.io", "docker.io"] {
            let place = store_login(&link, registry, ("user", "p:w"), PATIENCE).await.unwrap();
            assert_eq!(place, Place::File(link.clone()));
        }
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o600);
        let after = read(&real);
        let auth = STANDARD.encode("user:p:w");
        assert_eq!(
            after["auths"],
            json!({"b.io": {"email": "x", "auth": auth}, "a.io": {"auth": auth},
                "https://index.docker.io/v1/": {"auth": auth}})
        );
        for key in ["zebra", "HttpHeaders", "credHelpers"] {
            assert_eq!(before[key], after[key]);
        }
        let order: Vec<&String> = after.as_object().unwrap().keys().collect();
        assert_eq!(order, ["zebra", "auths", "HttpHeaders", "credHelpers"]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "nothing is left beside it");

        let basic = Credentials::Basic { username: "user".into(), password: "p:w".into() };
        let found = is_what_is_found(std::slice::from_ref(&link), "a.io", &basic, PATIENCE).await;
        assert_eq!(found, Some(true));
        for (registry, places) in [("a.io", 1), ("docker.io", 1), ("a.io", 0), ("d.io", 0)] {
            let erased = erase_login(&link, registry, PATIENCE).await.unwrap();
            assert_eq!(erased.len(), places, "{registry}");
        }
        assert_eq!(read(&real)["auths"].as_object().unwrap().len(), 1);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    }

    #[tokio::test]
    async fn what_is_no_configuration_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        for text in ["{\"auths\": {\"a.io\": {\"auth\": \"c2VjcmV0\"", "[]", "{\"auths\": []}"] {
            fs::write(&path, text).unwrap();
            let error = store_login(&path, "b.io", ("u", "p"), PATIENCE).await.unwrap_err();
            assert!(matches!(error, LoginError::Form { .. }), "{error}");
            assert!(!error.to_string().contains("c2VjcmV0"));
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let new = dir.path().join("new/sub/config.json");
        assert!(erase_login(&new, "b.io", PATIENCE).await.unwrap().is_empty() && !new.exists());
        store_login(&new, "b.io", ("u", "p"), PATIENCE).await.unwrap();
        assert_eq!(read(&new)["auths"]["b.io"]["auth"], "dTpw");
        let mode = fs::metadata(new.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o700);
    }
}
