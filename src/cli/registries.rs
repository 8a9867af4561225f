//! Registry options and files into the one configuration.

use std::{
    io::{self, Read},
    sync::OnceLock,
};

use imgfs::backend::registry::{
    Auths, Credentials, Entry, Registry, RegistryConfig, default_credential_files,
};

use super::{Failure, args::RegistryArgs, output::Output};

/// The longest password that is read from standard input, in bytes.
const MAX_PASSWORD: u64 = 64 << 10;

/// Reads everything that says how to reach `registries`.
pub(crate) fn config(
    args: &RegistryArgs,
    registries: &[String],
    output: &Output,
) -> Result<RegistryConfig, Failure> {
    let mut config = RegistryConfig {
        defaults: args.access.settings(),
        credential_files: default_credential_files(),
        concurrency: usize::from(args.concurrency),
        connections_per_blob: usize::from(args.connections_per_blob),
        connect_timeout: args.connect_timeout,
        stall_timeout: args.stall_timeout,
        max_wait: args.max_wait,
        resolve: args.access.resolve.clone(),
        ..RegistryConfig::default()
    };
    if let Some(username) = &args.username {
        config.entries.push(command_line_entry(username, registries, &args.password)?);
    }
    if let Some(path) = &args.auths {
        let auths = Auths::load(path).map_err(|e| Failure::new(format!("--auths: {e}")))?;
        for warning in &auths.warnings {
            output.warning(&format!("{}: {warning}", path.display()));
        }
        if auths.is_docker_config {
            config.credential_files.insert(0, path.clone());
        }
        config.entries.extend(auths.entries);
        config.auths_file = Some(path.clone());
        config.defaults.skip_tls_verify |= auths.skip_tls_verify.unwrap_or(false);
    }
    Registry::check(&config)?;
    Ok(config)
}

fn command_line_entry(
    username: &str,
    registries: &[String],
    password: &OnceLock<String>,
) -> Result<Entry, Failure> {
    let registry = match registries {
        [registry] => registry,
        [] => {
            return Err(Failure::new("--username needs images that say which registry it is for"));
        }
        [one, other, ..] => {
            let message =
                format!("--username is for one registry, but the images are in {one} and {other}");
            return Err(Failure::new(message).hint("use --auths FILE with an entry for each"));
        }
    };
    // It can be read once, and several tasks may need it.
    let password = match password.get() {
        Some(known) => known.clone(),
        None => {
            let read = read_password()?;
            password.get_or_init(|| read).clone()
        }
    };
    let credentials = Credentials::Basic { username: username.to_owned(), password };
    Ok(Entry { prefix: registry.clone(), credentials: Some(credentials), ..Entry::default() })
}

/// Reads the password from standard input.
pub(crate) fn read_password() -> Result<String, Failure> {
    let mut password = String::new();
    io::stdin()
        .take(MAX_PASSWORD)
        .read_to_string(&mut password)
        .map_err(|e| Failure::new(format!("--password-stdin: {e}")))?;
    let password = password.trim_end_matches(['\r', '\n']).to_owned();
    if password.is_empty() {
        return Err(Failure::new("--password-stdin: standard input is empty"));
    }
    Ok(password)
}
