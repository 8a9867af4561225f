//! The two sides of a transfer: a tree, and the names that images have in it.

use super::{
    error::{Position, TaskError},
    evaluate::{Evaluated, Scope, Trouble},
    node::Node,
};
use crate::{
    image::Reference,
    ops::{TreeSpec, TreeSpecError, bare_name, split_scheme, with_image},
    template::{Cause, Missing, Template, Value},
};

/// A tree, and what renders the names of images in it if they have not their own.
#[derive(Debug)]
pub(super) struct Side {
    pub(super) tree: TreeSpec,
    pub(super) name: Option<Template>,
}

/// What a text without a scheme before it is.
#[derive(Clone, Copy)]
pub(super) enum Bare {
    /// The path of a directory.
    Path,
    /// The path of a directory, if it looks like one; it could be an image as well.
    PathLike,
    /// The name of an image.
    Name,
}

/// Images as good as any, where those that there will be are not known.
const SAMPLES: [&str; 2] = ["docker.io/library/name:tag", "registry.example.com/team/part/other:1"];

impl Side {
    /// All registries.
    pub(super) fn registries() -> Self {
        Self::tree(TreeSpec::Registry { prefix: String::new() })
    }

    /// A tree in which images have their own names.
    pub(super) fn tree(tree: TreeSpec) -> Self {
        Self { tree, name: None }
    }

    fn named(name: Template) -> Self {
        Self { name: Some(name), ..Self::registries() }
    }

    /// The registry that all names are in, as far as samples can tell.
    pub(super) fn registry(&self, vars: &Value) -> Option<String> {
        if let TreeSpec::Registry { prefix } = &self.tree
            && !prefix.is_empty()
        {
            return Some(host(prefix));
        }
        let mut registries = samples().filter_map(|image| {
            let name =
                self.name.as_ref()?.render(&with_image(vars, &image), Missing::Error).ok()?;
            let reference: Reference = bare_name(&name).parse().ok()?;
            Some(reference.repository().registry().to_owned())
        });
        let first = registries.next()?;
        registries.all(|other| other == first).then_some(first)
    }
}

impl Scope {
    /// Reads `dest`, `src` or a path. `images` are those that it is for, as far as they are known.
    pub(super) fn side(&self, node: &Node, images: &[Reference], bare: Bare) -> Evaluated<Side> {
        let is_name = |text: &&str| Template::is_template(text) && text.contains("module.image");
        let Some(text) = node.text().filter(is_name) else {
            return self.constant_side(&self.text(node)?, bare, node.at);
        };
        let wrong = |reason: String| TaskError::at(node.at, reason);
        let template = self.template(node.at, text)?;
        self.ready(text)?;
        for image in images {
            let rendered = template
                .render(&with_image(&self.vars, image), Missing::Error)
                .map_err(|e| wrong(format!("template {e}, for {image}")))?;
            let name = image_name(&rendered, bare).and_then(|name| {
                name.parse::<Reference>().map_err(|e| format!("a name that is none: {e}"))
            });
            name.map_err(|reason| wrong(format!("for {image}, it gives {reason}")))?;
        }
        if images.is_empty() {
            self.try_samples(&template, bare).map_err(wrong)?;
        }
        Ok(Side::named(template))
    }

    /// What can be said of names before the images are known: of which kind they are, which shows
    /// with any image, and that a variable is missing whatever the image. That one cannot be named
    /// says nothing of the others.
    fn try_samples(&self, template: &Template, bare: Bare) -> Result<(), String> {
        let mut missing = None;
        for image in samples() {
            match template.render(&with_image(&self.vars, &image), Missing::Error) {
                Ok(name) => {
                    let name = image_name(&name, bare);
                    return name.map(|_| ()).map_err(|reason| format!("it gives {reason}"));
                }
                Err(error) if matches!(error.cause(), Cause::Missing(_)) => missing = Some(error),
                Err(_) => return Ok(()),
            }
        }
        missing.map_or(Ok(()), |error| Err(format!("template {error}")))
    }

    /// A tree or name that is the same for all images.
    fn constant_side(&self, text: &str, bare: Bare, at: Position) -> Evaluated<Side> {
        let wrong = |reason: String| Trouble::Wrong(TaskError::at(at, reason));
        let is_one_image = match split_scheme(text) {
            Some(("oci" | "registry", rest)) => names_one_image(rest),
            Some(_) => false,
            None if matches!(text.parse(), Ok(TreeSpec::Medium(_))) => false,
            None => match bare {
                Bare::Path => false,
                Bare::PathLike if looks_like_path(text) => false,
                Bare::PathLike => {
                    return Err(wrong(format!(
                        "`{text}` could be a directory or a name in a registry; write local://PATH \
                         or oci://HOST/NAME"
                    )));
                }
                Bare::Name if names_one_image(text) => true,
                Bare::Name => {
                    return Err(wrong(format!(
                        "`{text}` would be the name of every image; a name has a template for the \
                         repository and a tag, and oci://{text} puts all images below it"
                    )));
                }
            },
        };
        if is_one_image {
            let name = bare_name(text);
            name.parse::<Reference>().map_err(|e| wrong(e.to_string()))?;
            return Ok(Side::named(self.template(at, name)?));
        }
        text.parse().map(Side::tree).map_err(|error: TreeSpecError| wrong(error.to_string()))
    }

    /// The target of KubeKey's first alphas: a registry, and what stands there for everything but
    /// the last part of the repository.
    pub(super) fn old_target(&self, registry: &Node, namespace: Option<&Node>) -> Evaluated<Side> {
        let text = self.text(registry)?;
        let wrong = |node: &Node, error: &TreeSpecError| TaskError::at(node.at, error.to_string());
        let spec = if text.contains("://") { text } else { format!("registry://{text}") };
        let tree = spec.parse().map_err(|error| wrong(registry, &error))?;
        let TreeSpec::Registry { prefix } = &tree else {
            return Err(TaskError::at(registry.at, "this is a directory, not a registry").into());
        };
        if prefix.is_empty() {
            return Err(TaskError::at(registry.at, "expected the name of a registry").into());
        }
        let Some(node) = namespace else { return Ok(Side::tree(tree)) };
        let key = |trouble| match trouble {
            Trouble::Wrong(error) => Trouble::Wrong(error.key("push.namespace_override")),
            Trouble::NotYet => Trouble::NotYet,
        };
        let below = match self.text(node).map_err(key)? {
            namespace if namespace.is_empty() => prefix.clone(),
            namespace => format!("{prefix}/{namespace}"),
        };
        let valid = format!("registry://{below}").parse::<TreeSpec>();
        valid.map_err(|error| key(wrong(node, &error).into()))?;
        // Braces cannot stand in a name that has been accepted. The template is Go's, whatever the
        // task's are.
        let name = format!(
            "{below}/{{{{ .module.image.src.reference.repository | splitList \"/\" | last }}}}\
             :{{{{ .module.image.src.reference.reference }}}}"
        );
        let scope = Self { dialect: None, ..self.clone() };
        Ok(Side::named(scope.template(node.at, &name)?))
    }
}

/// The name in what a template has given that depends on the image: it is one in a registry.
fn image_name(rendered: &str, bare: Bare) -> Result<&str, String> {
    let name = rendered.trim();
    match split_scheme(name) {
        Some(("oci" | "registry", _)) => Ok(bare_name(name)),
        None if matches!(bare, Bare::Name) => Ok(name),
        Some((scheme, _)) if scheme != "local" => {
            Err(TreeSpecError::Scheme(scheme.to_owned()).to_string())
        }
        _ => Err(format!(
            "the directory `{name}`; in a directory, images are under their own names, so it cannot \
             depend on the image"
        )),
    }
}

/// Whether a name has a tag or a digest.
fn names_one_image(text: &str) -> bool {
    // What stands before `@` in front of the host would be credentials.
    text.split_once('/')
        .is_some_and(|(host, path)| !host.contains('@') && path.contains([':', '@']))
}

fn looks_like_path(text: &str) -> bool {
    matches!(text, "." | "..") || ["/", "~/", "./", "../"].iter().any(|s| text.starts_with(s))
}

/// `host:5000/team` -> `host:5000`
fn host(prefix: &str) -> String {
    prefix.split('/').next().unwrap_or_default().to_owned()
}

fn samples() -> impl Iterator<Item = Reference> {
    SAMPLES.iter().filter_map(|image| image.parse().ok())
}
