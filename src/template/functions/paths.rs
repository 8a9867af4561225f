//! sprig's functions on paths: Go's `path`, and `path/filepath` as on Linux, which is the same.

use super::{Call, Function, function};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("base", "s", base),
    function("osBase", "s", base),
    function("dir", "s", dir),
    function("osDir", "s", dir),
    function("clean", "s", |call| Ok(clean(&call.text(0)).into())),
    function("osClean", "s", |call| Ok(clean(&call.text(0)).into())),
    function("ext", "s", extension),
    function("osExt", "s", extension),
    function("isAbs", "s", |call| Ok(call.text(0).starts_with('/').into())),
    function("osIsAbs", "s", |call| Ok(call.text(0).starts_with('/').into())),
];

fn base(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(0);
    let name = text.trim_end_matches('/');
    Ok(match (text.is_empty(), name.rsplit('/').next()) {
        (true, _) => ".".into(),
        (false, Some("") | None) => "/".into(),
        (false, Some(name)) => name.into(),
    })
}

fn dir(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(0);
    Ok(match text.rfind('/') {
        None => ".".into(),
        Some(slash) => clean(&text[..=slash]).into(),
    })
}

fn extension(call: &mut Call<'_>) -> Result<Value, Cause> {
    let text = call.text(0);
    let name = text.rsplit('/').next().unwrap_or_default();
    Ok(name.rfind('.').map_or("", |dot| &name[dot..]).into())
}

/// `path.Clean`
fn clean(path: &str) -> String {
    let is_absolute = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if is_absolute => {}
            part => parts.push(part),
        }
    }
    match (is_absolute, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".into(),
        (false, false) => parts.join("/"),
    }
}
