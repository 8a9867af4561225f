//! Credentials that other tools have stored: Docker's `config.json`, podman's `auth.json`, and the
//! credential helpers that they name.

use std::{collections::BTreeMap, env, fs, io::ErrorKind, path::PathBuf};

use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::de::IgnoredAny;

use super::config::Credentials;
use crate::image::Repository;

/// The files that are asked, in this order: `$REGISTRY_AUTH_FILE`, Docker's `config.json`
/// (in `$DOCKER_CONFIG` or `~/.docker`), `$XDG_RUNTIME_DIR/containers/auth.json`.
pub fn default_files() -> Vec<PathBuf> {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let docker = var("DOCKER_CONFIG").or_else(|| Some(var("HOME")?.join(".docker")));
    [
        var("REGISTRY_AUTH_FILE"),
        docker.map(|dir| dir.join("config.json")),
        var("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// What `docker_credential` does not tell of a file.
#[derive(Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Config {
    auths: BTreeMap<String, IgnoredAny>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

impl Config {
    /// The program that is asked for `key`.
    fn helper(&self, key: &str) -> Option<String> {
        let name = self.cred_helpers.get(key).or(self.creds_store.as_ref())?;
        Some(format!("docker-credential-{name}"))
    }
}

/// The longest `registry/path` for which one of `files` has an entry of its own and which
/// `repository` is part of, as podman stores them; most often there is none.
pub(crate) fn stored_part(files: &[PathBuf], repository: &Repository) -> Option<String> {
    let whole = repository.to_string();
    files
        .iter()
        .filter_map(|path| fs::read(path).ok())
        .filter_map(|text| serde_json::from_slice::<Config>(&text).ok())
        .flat_map(|config| config.auths.into_keys())
        .filter(|key| {
            let rest = whole.strip_prefix(key.as_str());
            key.len() > repository.registry().len()
                && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
        .max_by_key(String::len)
}

/// Looks up `registry`, or `part` of it, in `files`. An error tells which file or helper failed,
/// without anything that it printed on its standard output, which may be a secret.
pub(crate) fn lookup(
    files: &[PathBuf],
    registry: &str,
    part: Option<&str>,
) -> Result<Option<Credentials>, String> {
    let server = match registry {
        "docker.io" => "https://index.docker.io/v1/".to_owned(),
        _ => format!("https://{registry}"),
    };
    let keys: Vec<&str> = part.into_iter().chain([registry, &server]).collect();
    for path in files {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => continue,
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        for key in &keys {
            match docker_credential::get_credential_from_reader(text.as_slice(), key) {
                Ok(DockerCredential::IdentityToken(token)) => {
                    return Ok(Some(Credentials::IdentityToken(token)));
                }
                Ok(DockerCredential::UsernamePassword(username, password)) => {
                    return Ok(Some(Credentials::Basic { username, password }));
                }
                Err(CredentialRetrievalError::NoCredentialConfigured) => {}
                // Helpers say on standard output that they have nothing, and exit with 1.
                Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                    if stdout.contains("not found") => {}
                Err(CredentialRetrievalError::HelperFailure { helper, stderr, .. }) => {
                    let said = stderr.trim().lines().next_back().unwrap_or_default();
                    return Err(format!("{}: {helper} failed: {said}", path.display()));
                }
                Err(error) => {
                    let config: Config = serde_json::from_slice(&text).unwrap_or_default();
                    let helper =
                        config.helper(key).map(|name| format!("{name}: ")).unwrap_or_default();
                    return Err(format!("{}: {helper}{error}", path.display()));
                }
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_entry_counts() {
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
            let part = stored_part(&files, repository);
            let found = lookup(&files, repository.registry(), part.as_deref()).unwrap();
            let user = found.map(|c| match c {
                Credentials::Basic { username, .. } => username,
                Credentials::IdentityToken(_) => "token".into(),
            });
            assert_eq!(user.as_deref(), expected, "{image}");
        }
        assert!(lookup(&files, "bad.io", None).unwrap_err().contains("auth.json"));
    }
}
