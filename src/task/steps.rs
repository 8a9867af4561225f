//! The arguments of KubeKey's `image` module, in every form and spelling that it ever had.

use std::collections::BTreeMap;

use super::{
    error::{Findings, Position, TaskError},
    node::{Data, Key, Node},
};

/// One transfer that a task asks for, its arguments not evaluated yet.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) form: Form,
    pub(super) at: Position,
    arguments: BTreeMap<&'static str, Argument>,
}

/// An argument: the key as it is written, and what is under it.
#[derive(Clone, Debug)]
pub(super) struct Argument {
    pub(super) name: String,
    pub(super) node: Node,
}

/// The forms that the module has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// `pull`: registries to directory.
    Pull,
    /// `push`: directory to registry.
    Push,
    /// `copy`: tree to tree.
    Copy,
    /// The newer form, with `src` and `dest`.
    Transfer,
}

/// An argument's name here, and how it is spelt.
type Spellings = &'static [(&'static str, &'static [&'static str])];

const SKIP_TLS_VERIFY: (&str, &[&str]) =
    ("skip_tls_verify", &["skip_tls_verify", "skipTLSVerify", "insecure"]);
const PATTERN: (&str, &[&str]) = ("pattern", &["src_pattern", "pattern"]);

const PULL: Spellings = &[
    ("manifests", &["manifests"]),
    ("images_dir", &["images_dir"]),
    ("platform", &["platform"]),
    ("policy", &["policy"]),
    ("auths", &["auths"]),
    ("username", &["username"]),
    ("password", &["password"]),
    SKIP_TLS_VERIFY,
];

const PUSH: Spellings = &[
    ("images_dir", &["images_dir"]),
    PATTERN,
    ("dest", &["dest"]),
    ("registry", &["registry"]),
    ("namespace_override", &["namespace_override"]),
    ("auths", &["auths"]),
    ("username", &["username"]),
    ("password", &["password"]),
    SKIP_TLS_VERIFY,
];

const COPY: Spellings = &[
    ("platform", &["platform"]),
    ("policy", &["policy"]),
    ("auths", &["auths"]),
    SKIP_TLS_VERIFY,
    // These two are mappings of their own.
    ("from", &["from"]),
    ("to", &["to"]),
];

const COPY_FROM: Spellings = &[("from.path", &["path"]), ("from.manifests", &["manifests"])];
const COPY_TO: Spellings = &[("to.path", &["path"]), ("pattern", &["src_pattern", "pattern"])];

const TRANSFER: Spellings = &[
    ("manifests", &["manifests"]),
    ("src", &["src"]),
    ("dest", &["dest"]),
    PATTERN,
    ("policy", &["policy"]),
    ("platform", &["platform"]),
    ("auths", &["auths"]),
    SKIP_TLS_VERIFY,
];

const FORMS: [(&str, Form); 3] = [("pull", Form::Pull), ("push", Form::Push), ("copy", Form::Copy)];

/// The form that a key stands for.
pub(super) fn form(key: &str) -> Option<Form> {
    FORMS.iter().find(|(name, _)| *name == key).map(|(_, form)| *form)
}

/// What stands under `image:`: any of `pull`, `push` and `copy`, which are carried out in that
/// order as KubeKey 4.0.0 to 4.0.3 did; or the newer form.
pub(super) fn module(node: &Node, findings: &mut Findings) -> Vec<Step> {
    let Data::Map(entries) = &node.data else {
        let reason = format!(
            "expected a mapping with pull, push, copy, or src and dest, not {}",
            node.what()
        );
        findings.error(TaskError::at(node.at, reason).key("image"));
        return Vec::new();
    };
    let (old, rest): (Vec<_>, Vec<_>) =
        entries.iter().partition(|(key, _)| form(&key.name).is_some());
    if old.is_empty() {
        return Step::parse(Form::Transfer, "image", node, findings).into_iter().collect();
    }
    for (key, _) in rest {
        let reason = "this cannot stand beside pull, push and copy; it belongs under one of them";
        findings.error(TaskError::at(key.at, reason).key(&key.name));
    }
    in_order(old.into_iter().map(|(key, node)| (key, node)), findings)
}

/// The steps of `pull`, `push` and `copy`, in that order.
pub(super) fn in_order<'a>(
    entries: impl Iterator<Item = (&'a Key, &'a Node)>,
    findings: &mut Findings,
) -> Vec<Step> {
    let mut entries: Vec<_> =
        entries.filter_map(|(key, node)| Some((form(&key.name)?, key, node))).collect();
    entries.sort_by_key(|(form, ..)| *form as u8);
    entries
        .into_iter()
        .filter_map(|(form, key, node)| Step::parse(form, &key.name, node, findings))
        .collect()
}

impl Step {
    fn parse(form: Form, name: &str, node: &Node, findings: &mut Findings) -> Option<Self> {
        let mut step = Self { form, at: node.at, arguments: BTreeMap::new() };
        let before = findings.errors.len();
        match (&node.data, form) {
            // What KubeKey's first alphas had.
            (Data::List(_), Form::Pull) => {
                let argument = Argument { name: name.to_owned(), node: node.clone() };
                step.arguments.insert("manifests", argument);
            }
            (Data::Map(entries), Form::Pull) => step.fill(PULL, name, entries, findings),
            (Data::Map(entries), Form::Push) => step.fill(PUSH, name, entries, findings),
            (Data::Map(entries), Form::Transfer) => step.fill(TRANSFER, "", entries, findings),
            (Data::Map(entries), Form::Copy) => {
                step.fill(COPY, name, entries, findings);
                for (part, spellings) in [("from", COPY_FROM), ("to", COPY_TO)] {
                    let Some(Argument { name, node }) = step.arguments.remove(part) else {
                        continue;
                    };
                    match &node.data {
                        Data::Map(entries) => step.fill(spellings, &name, entries, findings),
                        _ => {
                            let reason =
                                format!("expected a mapping with `path`, not {}", node.what());
                            findings.error(TaskError::at(node.at, reason).key(&name));
                        }
                    }
                }
            }
            _ => {
                let reason = format!("expected a mapping, not {}", node.what());
                findings.error(TaskError::at(node.at, reason).key(name));
            }
        }
        let required: &[_] = match form {
            Form::Pull => &[("manifests", "manifests")],
            Form::Push if step.get("registry").is_some() => &[],
            Form::Push => &[("dest", "dest")],
            Form::Copy => &[("from.path", "from.path"), ("to.path", "to.path")],
            Form::Transfer => &[("src", "src"), ("dest", "dest")],
        };
        if findings.errors.len() > before {
            return None;
        }
        for (argument, shown) in required {
            if step.get(argument).is_none() {
                findings.error(TaskError::at(node.at, format!("`{shown}` is missing")).key(name));
            }
        }
        (findings.errors.len() == before).then_some(step)
    }

    fn fill(
        &mut self,
        spellings: Spellings,
        parent: &str,
        entries: &[(Key, Node)],
        findings: &mut Findings,
    ) {
        for (key, node) in entries {
            let name = match parent {
                "" => key.name.clone(),
                parent => format!("{parent}.{}", key.name),
            };
            let known = spellings.iter().find(|(_, spelt)| spelt.contains(&key.name.as_str()));
            let Some(&(argument, _)) = known else {
                let names = spellings.iter().flat_map(|(_, spelt)| spelt.iter().copied());
                let reason = format!("there is no such argument{}", did_you_mean(&key.name, names));
                findings.error(TaskError::at(key.at, reason).key(&name));
                continue;
            };
            // `key:` with nothing behind it says nothing.
            if node.is_null() {
                continue;
            }
            let before = self.arguments.insert(argument, Argument { name, node: node.clone() });
            if let Some(before) = before {
                let reason = format!("this is said already, as `{}`", before.name);
                findings.error(TaskError::at(key.at, reason).key(&key.name));
            }
        }
    }

    /// The argument, if it is given.
    pub(super) fn get(&self, argument: &str) -> Option<&Argument> {
        self.arguments.get(argument)
    }

    /// Everything that is given.
    pub(super) fn nodes(&self) -> impl Iterator<Item = &Argument> {
        self.arguments.values()
    }
}

/// `; did you mean ...?` where a name is near enough.
pub(super) fn did_you_mean<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> String {
    names
        .map(|known| (strsim::jaro_winkler(name, known), known))
        .filter(|(near, _)| *near > 0.85)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, known)| format!("; did you mean `{known}`?"))
        .unwrap_or_default()
}
