//! Variables for templates, from files and from the command line.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use clap::{Args, ValueHint};
use imgfs::template::Value;

use super::Failure;

/// The largest file of variables, in bytes.
const MAX_VARS_BYTES: u64 = 16 << 20;

/// Where the variables of templates come from.
#[derive(Args, Default)]
#[command(next_help_heading = "Variables")]
pub(crate) struct VarsArgs {
    /// Read variables from a YAML or JSON file; of several the later wins, and maps are merged
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) vars: Vec<PathBuf>,
    /// Set a variable, as in --set registry.host=r.example.com; the value is read as YAML
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
}

impl VarsArgs {
    /// All variables: those of the files in their order, then those of `--set`.
    pub(crate) fn load(&self) -> Result<Value, Failure> {
        let mut vars = Value::map();
        for path in &self.vars {
            vars.merge(read(path)?);
        }
        for setting in &self.set {
            let failed = |reason: &str| Failure::new(format!("--set {setting}: {reason}"));
            let (key, text) =
                setting.split_once('=').ok_or_else(|| failed("expected KEY=VALUE"))?;
            let value = scalar(text).map_err(|reason| failed(&reason))?;
            vars.set_path(key, value).map_err(|e| failed(&e.to_string()))?;
        }
        Ok(vars)
    }
}

fn read(path: &Path) -> Result<Value, Failure> {
    let failed = |reason: String| Failure::new(format!("--vars {}: {reason}", path.display()));
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    let mut text = String::new();
    file.take(MAX_VARS_BYTES + 1).read_to_string(&mut text).map_err(|e| failed(e.to_string()))?;
    if text.len() as u64 > MAX_VARS_BYTES {
        return Err(failed(format!("it is larger than {} MiB", MAX_VARS_BYTES >> 20)));
    }
    if text.trim().is_empty() {
        return Ok(Value::map());
    }
    match yaml(&text).map_err(failed)? {
        serde_json::Value::Null => Ok(Value::map()),
        value @ serde_json::Value::Object(_) => Ok(value.into()),
        _ => Err(failed("1:1: expected a map of variables".into())),
    }
}

/// A value of `--set`: nothing is the empty string.
fn scalar(text: &str) -> Result<Value, String> {
    if text.trim().is_empty() {
        return Ok("".into());
    }
    yaml(text).map(Value::from)
}

/// Reads YAML; JSON is YAML, too. An error has its `line:column` first.
fn yaml(text: &str) -> Result<serde_json::Value, String> {
    // Without this, a user called `no` would be `false`.
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.to_string();
        let line = message.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let reason = line.strip_prefix("error: ").unwrap_or(line);
        match error.location() {
            Some(place) => {
                // The place is said once.
                let prefix = format!("line {} column {}: ", place.line(), place.column());
                let reason = reason.strip_prefix(&prefix).unwrap_or(reason);
                format!("{}:{}: {reason}", place.line(), place.column())
            }
            None => reason.to_owned(),
        }
    })
}
