//! What is said on the socket of a daemon: a request on one line, and the answer on another, as JSON.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::registry::Credentials;

/// The longest request or answer, in bytes.
pub const MAX_LINE: u64 = 16 << 20;

/// What a daemon is asked to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Order {
    /// Record an image that is about to be pulled.
    Prepare {
        /// Its name.
        image: String,
        /// What to log in with.
        #[serde(default)]
        login: Login,
    },
    /// Record an image, and list it by its name.
    Add {
        /// Its name.
        image: String,
    },
    /// Tell what is recorded.
    List,
    /// Forget images.
    Remove {
        /// Their names or digests.
        images: Vec<String>,
        /// The stores that may need something.
        graphroots: Vec<PathBuf>,
    },
    /// Remove what nobody needs.
    Prune {
        /// The stores that may need something.
        graphroots: Vec<PathBuf>,
        /// Only tell what would be removed.
        is_dry: bool,
    },
}

/// What to log in with, as containers/image writes it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Login {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
    /// A token in place of both.
    pub identity_token: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login(..)")
    }
}

impl Login {
    /// The same as credentials; `None` where nothing is given.
    pub fn credentials(self) -> Option<Credentials> {
        let Self { username, password, identity_token } = self;
        if !identity_token.is_empty() {
            return Some(Credentials::IdentityToken(identity_token));
        }
        let is_given = !username.is_empty() || !password.is_empty();
        is_given.then_some(Credentials::Basic { username, password })
    }
}

/// How a daemon has answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// It is done, with what is to be told of it.
    Done(Value),
    /// It is not done, for this reason.
    Failed(String),
}

/// Asks the daemon at `socket`, and waits for its answer for at most `patience`, if that is given.
pub fn ask(socket: &Path, order: &Order, patience: Option<Duration>) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(patience)?;
    stream.set_write_timeout(patience)?;
    let mut line = serde_json::to_vec(order)?;
    line.push(b'\n');
    stream.write_all(&line)?;
    let mut text = Vec::new();
    stream.take(MAX_LINE).read_to_end(&mut text)?;
    if text.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text)?)
}

/// Reads what containers/image writes to a helper: names of images, each with what to log in with.
///
/// ```
/// let read = imgfs::store::wire::helper_request(br#"{"quay.io/a:1":{"username":"u","password":"p"}}"#)?;
/// assert_eq!((read[0].0.as_str(), read[0].1.username.as_str()), ("quay.io/a:1", "u"));
/// assert!(imgfs::store::wire::helper_request(b"{}").is_err());
/// # Ok::<(), String>(())
/// ```
pub fn helper_request(text: &[u8]) -> Result<Vec<(String, Login)>, String> {
    let parsed: serde_json::Map<String, Value> = serde_json::from_slice(text).map_err(|_| {
        "standard input is not {\"IMAGE\": {\"username\": ..., \"password\": ...}}".to_owned()
    })?;
    if parsed.is_empty() {
        return Err("standard input names no image".to_owned());
    }
    let of_image = |(image, login): (String, Value)| {
        // What it says is not quoted: it may be a secret.
        let login: Option<Login> = serde_json::from_value(login)
            .map_err(|_| format!("what is given to log in with for {image} is malformed"))?;
        Ok((image, login.unwrap_or_default()))
    };
    parsed.into_iter().map(of_image).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_write_is_read() {
        let read = |text: &str| helper_request(text.as_bytes());
        assert_eq!(read(r#"{"quay.io/a:1":{}}"#).unwrap()[0].1.clone().credentials(), None);
        assert!(read(r#"{"quay.io/a:1":null}"#).unwrap()[0].1.clone().credentials().is_none());
        let token = read(r#"{"quay.io/a:1":{"identityToken":"t"}}"#).unwrap().remove(0).1;
        assert!(token.credentials() == Some(Credentials::IdentityToken("t".into())));
        for text in ["", "[]", "{", r#"{"a":5}"#] {
            let error = read(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
        let secret = read(r#"{"a":{"password":"hunter2"}}"#).unwrap();
        assert!(!format!("{secret:?}").contains("hunter2"));
    }
}
