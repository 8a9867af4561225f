//! A step of a task into a [`Request`], with the variables of the moment.

use super::{
    Settings,
    error::{Findings, TaskError},
    evaluate::{Evaluated, Item, Scope, Trouble},
    side::{Bare, Side},
    steps::{Argument, Form, Step},
};
use crate::{
    backend::registry::{Entry, EntryKeys},
    image::{PlatformFilter, Reference},
    ops::{Images, Request, TreeSpec},
    transfer::{Options, Policy},
};

/// Evaluates arguments, all of them, so that one that is wrong does not hide the next.
pub(super) struct Converter<'a> {
    pub(super) scope: &'a Scope,
    pub(super) settings: &'a Settings,
    pub(super) findings: &'a mut Findings,
    /// Whether something could not be evaluated yet.
    pub(super) later: bool,
}

/// The images of a list, as they are written and as they are.
#[derive(Default)]
struct Listed {
    texts: Vec<String>,
    references: Vec<Reference>,
}

/// What all forms have in common.
struct Common {
    pattern: Option<regex::Regex>,
    options: Options,
    auths: Vec<Entry>,
    skip_tls_verify: Option<bool>,
}

impl Converter<'_> {
    /// The request, if everything in it is known and right.
    pub(super) fn request(&mut self, step: &Step) -> Option<Request> {
        match step.form {
            Form::Pull => self.pull(step),
            Form::Push => self.push(step),
            // An image that lacks a platform is no error in the old forms, as in KubeKey 4.0.0 to
            // 4.0.3, which have them.
            Form::Copy => {
                let names = ["from.path", "to.path", "from.manifests"];
                self.between(step, names, Bare::Path, Policy::Warn)
            }
            Form::Transfer => {
                let names = ["src", "dest", "manifests"];
                self.between(step, names, Bare::PathLike, Policy::Strict)
            }
        }
    }

    fn pull(&mut self, step: &Step) -> Option<Request> {
        let to = self.images_dir(step);
        let listed = self.listed(step, "manifests");
        let common = self.common(step, Policy::Warn);
        let listed = listed??;
        let registries = listed.references.iter().map(|image| image.repository().registry());
        let login = self.login(step, registries)?;
        let mut common = common?;
        common.auths.extend(login);
        Some(self.build(Side::registries(), to?, Images::Listed(listed.texts), common))
    }

    fn push(&mut self, step: &Step) -> Option<Request> {
        let from = self.images_dir(step);
        let common = self.common(step, Policy::Warn);
        let namespace = step.get("namespace_override");
        let (argument, to) = match (step.get("registry"), step.get("dest")) {
            (Some(_), Some(dest)) => {
                let reason = "`registry` and `dest` exclude each other: `dest` is the whole name";
                return self.wrong(dest, reason);
            }
            (Some(registry), None) => {
                let namespace = namespace.map(|argument| &argument.node);
                (registry, self.scope.old_target(&registry.node, namespace))
            }
            (None, dest) => match namespace {
                Some(namespace) => {
                    let reason = "this belongs beside `registry`; with `dest`, the name says it";
                    return self.wrong(namespace, reason);
                }
                None => (dest?, self.scope.side(&dest?.node, &[], Bare::Name)),
            },
        };
        let to = self.take(argument, to)?;
        match to.tree {
            TreeSpec::Directory(_) => {
                return self.wrong(argument, "this is a directory; a push goes to a registry");
            }
            TreeSpec::Medium(_) => {
                return self.wrong(argument, "a push goes to a registry; a copy goes there");
            }
            TreeSpec::Registry { .. } => {}
        }
        let registry = to.registry(&self.scope.vars);
        if let (None, Some(username)) = (&registry, step.get("username")) {
            let reason = "it depends on the image which registry this is for; give `auths`";
            return self.wrong(username, reason);
        }
        let login = self.login(step, registry.iter().map(String::as_str))?;
        let mut common = common?;
        common.auths.extend(login);
        Some(self.build(from?, to, Images::All, common))
    }

    /// From any tree to any other, whose names and images are under these arguments.
    fn between(
        &mut self,
        step: &Step,
        [from, to, manifests]: [&str; 3],
        bare: Bare,
        policy: Policy,
    ) -> Option<Request> {
        let listed = self.listed(step, manifests);
        let images = listed.as_ref().and_then(Option::as_ref);
        let images = images.map_or(&[][..], |listed| &listed.references);
        let mut side = |name| {
            let argument = step.get(name)?;
            let side = self.scope.side(&argument.node, images, bare);
            self.take(argument, side)
        };
        let (from, to) = (side(from), side(to));
        let common = self.common(step, policy);
        let (from, to) = (from?, to?);
        let images = match (listed?, &from.tree) {
            (Some(listed), _) => Images::Listed(listed.texts),
            (None, TreeSpec::Registry { prefix }) if prefix.is_empty() => {
                let reason =
                    format!("`{manifests}` is missing: registries do not list what they have");
                self.findings.error(TaskError::at(step.at, reason));
                return None;
            }
            (None, _) => Images::All,
        };
        Some(self.build(from, to, images, common?))
    }

    fn build(&self, from: Side, to: Side, images: Images, common: Common) -> Request {
        Request {
            from: from.tree,
            to: to.tree,
            images,
            name: None,
            pattern: common.pattern,
            source: from.name,
            dest: to.name,
            options: common.options,
            vars: self.scope.vars.clone(),
            auths: common.auths,
            skip_tls_verify: common.skip_tls_verify,
        }
    }

    /// Keeps what is wrong, under the name of the argument.
    fn take<T>(&mut self, argument: &Argument, result: Evaluated<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(Trouble::NotYet) => {
                self.later = true;
                None
            }
            Err(Trouble::Wrong(error)) => {
                self.findings.error(error.key(&argument.name));
                None
            }
        }
    }

    fn wrong<T>(&mut self, argument: &Argument, reason: impl Into<String>) -> Option<T> {
        self.findings.error(TaskError::at(argument.node.at, reason).key(&argument.name));
        None
    }

    /// The directory of `images_dir`, or the one of the command line.
    fn images_dir(&mut self, step: &Step) -> Option<Side> {
        let Some(argument) = step.get("images_dir") else {
            return Some(Side::tree(self.settings.images_dir.clone()));
        };
        let side = self.scope.side(&argument.node, &[], Bare::Path);
        let side = self.take(argument, side)?;
        match side.tree {
            TreeSpec::Directory(_) | TreeSpec::Medium(_) => Some(side),
            TreeSpec::Registry { .. } => {
                self.wrong(argument, "this is a registry, not a directory")
            }
        }
    }

    /// The listed images; `Some(None)` where no list is given.
    fn listed(&mut self, step: &Step, argument: &str) -> Option<Option<Listed>> {
        let Some(argument) = step.get(argument) else { return Some(None) };
        let items = self.scope.list(&argument.node);
        let items = self.take(argument, items)?;
        let mut listed = Listed::default();
        let mut all_right = true;
        for Item { at, text } in items {
            match text.parse() {
                Ok(reference) => {
                    listed.references.push(reference);
                    listed.texts.push(text);
                }
                Err(error) => {
                    all_right = false;
                    let error = TaskError::at(at, format!("{error}"));
                    self.findings.error(error.key(&argument.name));
                }
            }
        }
        all_right.then_some(Some(listed))
    }

    fn common(&mut self, step: &Step, policy: Policy) -> Option<Common> {
        let pattern = self.pattern(step);
        let platforms = self.platforms(step);
        let policy = self.policy(step, policy);
        let auths = match step.get("auths") {
            None => Some(Vec::new()),
            Some(argument) => {
                let base = &self.settings.base;
                let auths = self.scope.auths(&argument.node, base, self.findings);
                self.take(argument, auths)
            }
        };
        let skip_tls_verify = match step.get("skip_tls_verify") {
            None => Some(None),
            Some(argument) => self.take(argument, self.scope.flag(&argument.node)),
        };
        let options = Options {
            platforms: platforms?,
            policy: policy?,
            index: self.settings.options.index,
            attachments: self.settings.options.attachments,
            recheck: false,
        };
        let (pattern, auths, skip_tls_verify) = (pattern?, auths?, skip_tls_verify?);
        Some(Common { pattern, options, auths, skip_tls_verify })
    }

    fn pattern(&mut self, step: &Step) -> Option<Option<regex::Regex>> {
        let Some(argument) = step.get("pattern") else { return Some(None) };
        let text = self.take(argument, self.scope.text(&argument.node))?;
        match regex::Regex::new(&text) {
            Ok(pattern) => Some(Some(pattern)),
            Err(error) => {
                // The last line says what, those before it draw where.
                let error = error.to_string();
                let reason = error.lines().last().unwrap_or_default();
                let reason = reason.strip_prefix("error: ").unwrap_or(reason);
                self.wrong(argument, format!("`{text}` is not a regular expression: {reason}"))
            }
        }
    }

    fn platforms(&mut self, step: &Step) -> Option<PlatformFilter> {
        let Some(argument) = step.get("platform") else { return Some(PlatformFilter::All) };
        let items = self.take(argument, self.scope.list(&argument.node))?;
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        match PlatformFilter::parse(&texts) {
            Ok(platforms) => Some(platforms),
            Err(error) => self.wrong(argument, error.to_string()),
        }
    }

    fn policy(&mut self, step: &Step, default: Policy) -> Option<Policy> {
        let Some(argument) = step.get("policy") else { return Some(default) };
        match self.take(argument, self.scope.text(&argument.node))?.as_str() {
            "strict" => Some(Policy::Strict),
            "warn" => Some(Policy::Warn),
            other => self.wrong(argument, format!("expected strict or warn, not `{other}`")),
        }
    }

    /// `username` and `password`, which earlier releases had in place of `auths`, for the one
    /// registry that the images are in or go to.
    fn login<'r>(
        &mut self,
        step: &Step,
        mut registries: impl Iterator<Item = &'r str>,
    ) -> Option<Option<Entry>> {
        let (username, password) = match (step.get("username"), step.get("password")) {
            (None, None) => return Some(None),
            (Some(username), Some(password)) => (username, password),
            (Some(argument), None) | (None, Some(argument)) => {
                return self.wrong(argument, "`username` and `password` go together");
            }
        };
        let mut keys = EntryKeys::default();
        for (key, argument) in [("username", username), ("password", password)] {
            let value = self.take(argument, self.scope.verbatim(&argument.node))?;
            if let Err(reason) = keys.set(key, &value) {
                return self.wrong(argument, reason);
            }
        }
        // Without images, nobody is asked.
        let Some(registry) = registries.next() else { return Some(None) };
        if let Some(other) = registries.find(|other| *other != registry) {
            let reason = format!(
                "this is for one registry, but the images are in {registry} and {other}; give \
                 `auths` with an entry for each"
            );
            return self.wrong(username, reason);
        }
        match keys.set("registry", registry).map_err(str::to_owned) {
            Ok(_) => match keys.finish(&self.settings.base) {
                Ok(entry) => Some(Some(entry)),
                Err(reason) => self.wrong(username, reason),
            },
            Err(reason) => self.wrong(username, reason),
        }
    }
}
