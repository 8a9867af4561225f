//! `imgfs login` and `imgfs logout`

use std::{
    fs::{File, OpenOptions},
    io::{self, IsTerminal, Read, Write},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use imgfs::{
    backend::registry::{
        Credentials, Entry, Place, Registry, RegistryConfig, default_credential_files,
        docker_config_file, erase_login, is_what_is_found, store_login,
    },
    image::Repository,
};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;

use super::{
    Failure, Outcome,
    args::{LoginArgs, LogoutArgs},
    block_on,
    output::Output,
    registries::read_password,
};

/// How long a credential helper, which may ask the user for something, has to answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// The longest name or password that is typed in, in bytes.
const MAX_LINE: usize = 4096;

pub(crate) fn login(args: &LoginArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let registry = host(&args.registry)?;
    let file = config_file()?;
    let username = match &args.username {
        Some(name) => name.clone(),
        None => Terminal::open()?.ask("Username: ", Echo::On)?,
    };
    if username.is_empty() || username.contains(':') {
        return Err(Failure::new("a user name is not empty and has no colon"));
    }
    let password = match args.password_stdin {
        true => read_password()?,
        false => Terminal::open()?.ask("Password: ", Echo::Off)?,
    };
    if password.is_empty() {
        return Err(Failure::new("the password is empty; nothing was stored"));
    }
    let credentials = Credentials::Basic { username: username.clone(), password: password.clone() };
    if !args.no_check {
        let registry_of = Registry::new(config(args, &registry, &credentials)?);
        let asked = block_on(registry_of.check_login(&registry))?.map_err(|error| {
            let failure = Failure::from(error);
            let hint = failure.hint.clone();
            let failure = Failure::new(format!("{}; nothing was stored", failure.message));
            match hint {
                Some(hint) if !hint.contains("imgfs login") => failure.hint(hint),
                _ => failure.hint("check user name and password; many registries want an access token in the password's place"),
            }
            .of_image()
        })?;
        if !asked {
            output.warning(&format!(
                "{registry} asks nobody for credentials, so these could not be checked"
            ));
        }
    }
    let place = block_on(store_login(&file, &registry, (&username, &password), PATIENCE))?
        .map_err(|error| Failure::new(error.to_string()).of_image())?;
    if let Place::File(path) = &place {
        output.warning(&format!(
            "the password is not encrypted in {}; a credential helper (credsStore in it) keeps it safer",
            path.display()
        ));
    }
    let files = default_credential_files();
    let found = block_on(is_what_is_found(&files, &registry, &credentials, PATIENCE))?;
    if found != Some(true) {
        let others = files.iter().filter(|other| **other != file && other.exists());
        let others: Vec<String> = others.map(|path| path.display().to_string()).collect();
        output.warning(&format!(
            "something else is found for {registry} before this: look into {}",
            if others.is_empty() { file.display().to_string() } else { others.join(" and ") }
        ));
    }
    output
        .line(&format!("logged in to {registry} as {username}; {}", in_place(&place, "stored in")));
    output.event(&json!({"event": "report", "command": "login", "registry": registry, "username": username, "stored_in": shown(&place)}));
    Ok(Outcome::Done)
}

pub(crate) fn logout(args: &LogoutArgs, output: &Output) -> Result<Outcome, Failure> {
    let registry = host(&args.registry)?;
    let file = config_file()?;
    let places = block_on(erase_login(&file, &registry, PATIENCE))?
        .map_err(|error| Failure::new(error.to_string()).of_image())?;
    output.event(&json!({"event": "report", "command": "logout", "registry": registry, "removed_from": places.iter().map(shown).collect::<Vec<_>>()}));
    let nobody = Credentials::IdentityToken(String::new());
    let left =
        block_on(is_what_is_found(&default_credential_files(), &registry, &nobody, PATIENCE))?;
    if left.is_some() {
        output.warning(&format!(
            "another file still has credentials for {registry}, which go on being used: $REGISTRY_AUTH_FILE or podman's auth.json (`podman logout {registry}`)"
        ));
    }
    if places.is_empty() {
        output.warning(&format!("nothing is stored for {registry} in {}", file.display()));
        return Ok(Outcome::NothingMatched);
    }
    for place in &places {
        output.line(&format!("logged out of {registry}; {}", in_place(place, "removed from")));
    }
    Ok(Outcome::Done)
}

fn in_place(place: &Place, verb: &str) -> String {
    format!("{verb} {}", shown(place))
}

fn shown(place: &Place) -> String {
    match place {
        Place::File(path) => path.display().to_string(),
        Place::Helper(name) => format!("docker-credential-{name}"),
    }
}

/// The registry that `text` names, in normal form.
fn host(text: &str) -> Result<String, Failure> {
    let bare = text.split_once("://").map_or(text, |(_, rest)| rest).trim_end_matches('/');
    let bare = bare.strip_suffix("/v1").or_else(|| bare.strip_suffix("/v2")).unwrap_or(bare);
    if bare.contains('@') {
        // It may be a password.
        let message =
            "a registry is given as HOST[:PORT]; user name and password do not belong into it";
        return Err(Failure::new(message));
    }
    if bare.contains('/') {
        let message = format!(
            "`{bare}` is a repository; credentials are stored for a whole registry, HOST[:PORT]"
        );
        return Err(Failure::new(message));
    }
    let known = format!("{bare}/any/any").parse::<imgfs::image::Reference>();
    let registry = known.ok().map(|known| known.repository().registry().to_owned());
    match registry {
        Some(registry) if registry != "docker.io" || bare.contains("docker.io") => {
            Repository::new(&registry, "any/any")?;
            Ok(registry)
        }
        _ => Err(Failure::new(format!("`{bare}` is not the name of a registry, HOST[:PORT]"))),
    }
}

fn config_file() -> Result<PathBuf, Failure> {
    docker_config_file().ok_or_else(|| {
        Failure::new("neither DOCKER_CONFIG nor HOME is set, so there is no place for credentials")
    })
}

fn config(
    args: &LoginArgs,
    registry: &str,
    credentials: &Credentials,
) -> Result<RegistryConfig, Failure> {
    let config = RegistryConfig {
        defaults: args.access.settings(),
        entries: vec![Entry {
            prefix: registry.to_owned(),
            credentials: Some(credentials.clone()),
            ..Entry::default()
        }],
        resolve: args.access.resolve.clone(),
        ..RegistryConfig::default()
    };
    Registry::check(&config)?;
    Ok(config)
}

/// Whether what is typed is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Echo {
    On,
    Off,
}

/// The terminal of whoever runs this, whatever standard input and output are.
struct Terminal {
    file: File,
    /// As it was.
    modes: Termios,
}

impl Terminal {
    fn open() -> Result<Self, Failure> {
        let opened = OpenOptions::new().read(true).write(true).open("/dev/tty");
        let opened = opened.and_then(|file| {
            let modes = tcgetattr(&file)?;
            Ok(Self { file, modes })
        });
        opened.map_err(|_| {
            let message = "there is no terminal to ask for the user name and password";
            Failure::new(message).hint(match io::stdin().is_terminal() {
                true => "give --username and --password-stdin",
                false => "give --username NAME and --password-stdin, as in: imgfs login --username NAME --password-stdin HOST < FILE",
            })
        })
    }

    /// Asks for a line. Keys that end a process end the question.
    fn ask(mut self, prompt: &str, echo: Echo) -> Result<String, Failure> {
        let failed = |error: io::Error| Failure::new(format!("the terminal: {error}"));
        if echo == Echo::Off {
            let mut quiet = self.modes.clone();
            quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
            tcsetattr(&self.file, OptionalActions::Flush, &quiet).map_err(|e| failed(e.into()))?;
        }
        write!(self.file, "{prompt}").and_then(|()| self.file.flush()).map_err(failed)?;
        let mut line = Vec::new();
        loop {
            let mut key = [0];
            match self.file.read(&mut key).map_err(failed)? {
                0 => break,
                _ if line.len() >= MAX_LINE => return Err(Failure::new("that is too long")),
                _ => {}
            }
            match key[0] {
                b'\n' | b'\r' => break,
                // Interrupt, end, quit.
                3 | 4 | 28 if echo == Echo::Off => {
                    return Err(Failure::new("interrupted; nothing was stored"));
                }
                // Delete and backspace take a character, which may have several bytes.
                8 | 127 if echo == Echo::Off => {
                    while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
                }
                // The whole line.
                21 if echo == Echo::Off => line.clear(),
                byte => line.push(byte),
            }
        }
        if echo == Echo::Off {
            writeln!(self.file).map_err(failed)?;
        }
        let line = String::from_utf8(line);
        line.map_err(|_| Failure::new("what was typed is not UTF-8"))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing.
        let _ = tcsetattr(&self.file, OptionalActions::Flush, &self.modes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_named_in_many_ways() {
        for (text, expected) in [
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("Quay.io", Some("quay.io")),
            ("https://quay.io/v2/", Some("quay.io")),
            ("host:5000", Some("host:5000")),
            ("localhost", Some("localhost")),
            ("[::1]:5000", Some("[::1]:5000")),
            ("quay.io/team", None),
            ("registry", None),
            ("", None),
            ("user:hunter2@quay.io", None),
        ] {
            let found = host(text);
            assert_eq!(found.as_deref().ok(), expected, "{text}");
            assert!(found.is_ok() || !found.unwrap_err().message.contains("hunter2"));
        }
    }
}
