//! KubeKey's other modules, which imgfs knows by name only.

use super::node::{Data, Key, Node};

const MODULES: &[&str] = &[
    "add_hostvars",
    "assert",
    "command",
    "copy",
    "debug",
    "fetch",
    "gen_cert",
    "http_get_file",
    "include_vars",
    "multipath_conf",
    "prometheus",
    "result",
    "set_fact",
    "setup",
    "shell",
    "storage",
    "template",
];

/// The other module that a task is for, and what it is given.
pub(super) fn other(entries: &[(Key, Node)]) -> Option<(&'static str, &Node)> {
    if entries.iter().any(|(key, _)| key.name == "image") {
        return None;
    }
    entries.iter().find_map(|(key, node)| {
        let module = MODULES.iter().find(|module| **module == key.name)?;
        let has = |names: &[&str]| match &node.data {
            Data::Map(entries) => entries.iter().any(|(key, _)| names.contains(&key.name.as_str())),
            _ => false,
        };
        // These two are also words of the image module.
        let is_other = match *module {
            "copy" => has(&["src", "content", "dest"]) && !has(&["from", "to"]),
            "template" => has(&["src", "content", "dest"]),
            _ => true,
        };
        is_other.then_some((*module, node))
    })
}

/// Names of variables that a task of this module sets.
pub(super) fn variables(module: &str, node: &Node) -> Vec<String> {
    let names = |node: &Node| match &node.data {
        Data::Map(entries) => entries.iter().map(|(key, _)| key.name.clone()).collect(),
        _ => Vec::new(),
    };
    let under = |wanted: &str| match &node.data {
        Data::Map(entries) => entries.iter().find(|(key, _)| key.name == wanted).map(|(_, n)| n),
        _ => None,
    };
    match module {
        "set_fact" => names(node),
        "add_hostvars" => under("vars").map(names).unwrap_or_default(),
        _ => Vec::new(),
    }
}
