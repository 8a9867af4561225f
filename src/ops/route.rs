//! Names: which images a [`Request`] means, and what they are called at the target.

use std::collections::HashMap;

use super::request::{Images, Request, TreeSpec, bare_name};
use crate::{
    image::{Reference, ReferenceError},
    template::{Missing, Template, TemplateError, Value, image_vars},
    transfer::Route,
};

/// Why an image has no name at the source or at the target.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// Not a reference.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The image is named in full, and is not in the tree.
    #[error("`{image}` is not in {tree}")]
    Elsewhere {
        /// As it was given.
        image: String,
        /// The tree.
        tree: String,
    },
    /// A template fails.
    #[error("{which}, for {image}: {error}")]
    Template {
        /// Which template.
        which: &'static str,
        /// The image that it was rendered for.
        image: Box<Reference>,
        /// The place and the cause.
        error: Box<TemplateError>,
    },
    /// A template gives something that is no name.
    #[error("{which}, for {image}: it gives `{rendered}`: {reason}")]
    Rendered {
        /// Which template.
        which: &'static str,
        /// The image that it was rendered for.
        image: Box<Reference>,
        /// What it gave.
        rendered: String,
        /// Why that is no name.
        reason: String,
    },
    /// The target is all registries, and nothing says which.
    #[error("{0} has no name at the target: say which registry (registry://HOST), or give `dest`")]
    Nowhere(Box<Reference>),
    /// Two images would overwrite each other.
    #[error("{first} and {second} would both become {target}")]
    Collision {
        /// One of them.
        first: Box<Reference>,
        /// The other.
        second: Box<Reference>,
        /// The name that both would get.
        target: Box<Reference>,
    },
    /// An image would be copied onto itself.
    #[error("{0} would be copied onto itself")]
    Itself(Box<Reference>),
}

impl Request {
    /// The images that are listed in the request and match its pattern, in their order. `None` if
    /// the tree itself has to be asked which images it has.
    pub fn listed(&self) -> Result<Option<Vec<Reference>>, RouteError> {
        let Images::Listed(texts) = &self.images else { return Ok(None) };
        let mut found = Vec::new();
        for text in texts {
            let image = self.from.image(text)?;
            if self.matches(&image, Some(text.trim())) {
                found.push(image);
            }
        }
        Ok(Some(found))
    }

    /// Whether `image` matches the pattern: by its name as a person writes it, as KubeKey has
    /// called it, or as it was `written` in the request.
    pub fn matches(&self, image: &Reference, written: Option<&str>) -> bool {
        let Some(pattern) = &self.pattern else { return true };
        let name = image.to_string();
        // KubeKey 4.0.3 knew Docker Hub by this name only.
        let kubekeys =
            name.strip_prefix("docker.io/").map(|rest| format!("registry-1.docker.io/{rest}"));
        pattern.is_match(&name)
            || kubekeys.is_some_and(|name| pattern.is_match(&name))
            || written.is_some_and(|text| pattern.is_match(text))
    }

    /// The names of `images` at the source and at the target.
    pub fn routes(&self, images: &[Reference]) -> Result<Vec<Route>, RouteError> {
        let mut routes = Vec::new();
        let mut targets: HashMap<Reference, Reference> = HashMap::new();
        for image in images {
            let from = match &self.source {
                Some(template) => self.rendered("src", template, image)?,
                None => image.clone(),
            };
            let to = self.target(image)?;
            if from == to && self.from.is_same_as(&self.to) {
                return Err(RouteError::Itself(from.into()));
            }
            // A tag is the name that it gets, whatever digest it is pinned to.
            let name = to.tag().map_or_else(|| to.clone(), |tag| to.repository().tagged(tag));
            match targets.insert(name, from.clone()) {
                Some(first) if first != from => {
                    return Err(RouteError::Collision {
                        first: first.into(),
                        second: from.into(),
                        target: to.into(),
                    });
                }
                Some(_) => {}
                None => routes.push(Route { from, to }),
            }
        }
        Ok(routes)
    }

    fn target(&self, image: &Reference) -> Result<Reference, RouteError> {
        if let Some(template) = &self.dest {
            return self.rendered("dest", template, image);
        }
        let TreeSpec::Registry { prefix } = &self.to else { return Ok(image.clone()) };
        if prefix.is_empty() {
            return Err(RouteError::Nowhere(image.clone().into()));
        }
        // What is below the one tree comes below the other.
        let path = image.repository().path();
        let relative = match self.from.path() {
            Some(above) if path == above => "",
            Some(above) => {
                path.strip_prefix(above).and_then(|rest| rest.strip_prefix('/')).unwrap_or(path)
            }
            None => path,
        };
        let name = match (relative, prefix.contains('/')) {
            ("", true) => prefix.clone(),
            ("", false) => format!("{prefix}/{path}"),
            _ => format!("{prefix}/{relative}"),
        };
        Ok(format!("{name}{}", suffix(image)).parse()?)
    }

    fn rendered(
        &self,
        which: &'static str,
        template: &Template,
        image: &Reference,
    ) -> Result<Reference, RouteError> {
        let vars = with_image(&self.vars, image);
        let rendered = template.render(&vars, Missing::Error).map_err(|error| {
            RouteError::Template { which, image: image.clone().into(), error: error.into() }
        })?;
        let refuse = |reason: String| RouteError::Rendered {
            which,
            image: image.clone().into(),
            rendered: rendered.trim().chars().take(300).collect(),
            reason,
        };
        let name = bare_name(&rendered);
        // `REPOSITORY:{{ tag }}` of an image that has none: it must not become `latest`.
        let name = match (name.strip_suffix(':'), image.digest()) {
            (None, _) => name.to_owned(),
            (Some(name), Some(digest)) => format!("{name}@{digest}"),
            (Some(_), None) => return Err(refuse("its tag is empty".to_owned())),
        };
        let tree = if which == "src" { &self.from } else { &self.to };
        tree.image(&name).map_err(|error| match error {
            RouteError::Reference(error) => refuse(error.reason().to_owned()),
            other => refuse(other.to_string()),
        })
    }
}

/// The variables, with those of an image.
pub fn with_image(vars: &Value, image: &Reference) -> Value {
    let digest = image.digest().map(|digest| digest.to_string());
    let mut vars = vars.clone();
    vars.merge(image_vars(
        image.repository().registry(),
        image.repository().path(),
        image.tag().or(digest.as_deref()).unwrap_or_default(),
        image.tag(),
        digest.as_deref(),
    ));
    vars
}

fn suffix(image: &Reference) -> String {
    let tag = image.tag().map(|tag| format!(":{tag}")).unwrap_or_default();
    let digest = image.digest().map(|digest| format!("@{digest}")).unwrap_or_default();
    tag + &digest
}

impl TreeSpec {
    /// Whether the same name means the same image in both.
    fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            // A prefix only says which part of all registries is meant.
            (Self::Registry { .. }, Self::Registry { .. }) => true,
            _ => self == other,
        }
    }

    /// The path that all names in the tree begin with, if there is one.
    fn path(&self) -> Option<&str> {
        match self {
            Self::Registry { prefix } => prefix.split_once('/').map(|(_, path)| path),
            Self::Directory(_) | Self::Medium(_) => None,
        }
    }

    /// The image that `text` means in this tree: named in full, or below the tree's prefix.
    pub fn image(&self, text: &str) -> Result<Reference, RouteError> {
        let text = text.trim();
        let prefix = match self {
            Self::Registry { prefix } if !prefix.is_empty() => prefix,
            _ => return Ok(text.parse()?),
        };
        let first = text.split('/').next().unwrap_or_default();
        let names_registry = text.contains('/')
            && (first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost"));
        if !names_registry {
            let joint = if text.starts_with([':', '@']) { "" } else { "/" };
            return Ok(format!("{prefix}{joint}{text}").parse()?);
        }
        let image: Reference = text.parse()?;
        let name = image.repository().to_string();
        let inside = name.strip_prefix(prefix.as_str());
        match inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('/')) {
            true => Ok(image),
            false => Err(RouteError::Elsewhere { image: text.to_owned(), tree: self.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(from: &str, to: &str) -> Request {
        Request::new(from.parse().unwrap(), to.parse().unwrap(), Images::All)
    }

    fn images(names: &[&str]) -> Vec<Reference> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn names_follow_their_trees() {
        for (from, to, image, expected) in [
            ("dir", "other", "nginx:1", "docker.io/library/nginx:1"),
            ("dir", "registry://hub.io", "nginx:1", "hub.io/library/nginx:1"),
            ("dir", "registry://hub.io/mirror", "quay.io/a/b:1", "hub.io/mirror/a/b:1"),
            ("registry://quay.io", "dir", "a/b:1", "quay.io/a/b:1"),
            ("registry://quay.io", "dir", "quay.io/a/b:1", "quay.io/a/b:1"),
            ("registry://quay.io/a", "registry://hub.io/m", "b:1", "hub.io/m/b:1"),
            ("registry://quay.io/a/b", "registry://hub.io/m", ":1", "hub.io/m:1"),
            ("registry://quay.io/a/b", "registry://hub.io", "quay.io/a/b:1", "hub.io/a/b:1"),
            ("registry://", "registry://hub.io", "nginx", "hub.io/library/nginx:latest"),
            ("registry://h:5000", "dir", "x", "h:5000/x:latest"),
        ] {
            let request = request(from, to);
            let image = request.from.image(image).unwrap();
            let routes = request.routes(&[image]).unwrap();
            assert_eq!(routes[0].to.to_string(), expected, "{from} {to}");
        }
    }

    #[test]
    fn templates_name_targets() {
        let mut push = request("dir", "registry://");
        let template = "hub.kubekey/{{ .module.image.src.reference.repository }}:{{ .module.image.reference.reference }}";
        push.dest = Some(Template::parse(template, None).unwrap());
        let digest = format!("quay.io/x@sha256:{}", "0".repeat(64));
        let by_tag = "hub.kubekey/{{ .module.image.reference.repository }}:{{ .module.image.reference.tag }}";
        push.dest = Some(Template::parse(by_tag, None).unwrap());
        let routes = push.routes(&images(&[&digest])).unwrap();
        assert_eq!(routes[0].to.to_string(), digest.replace("quay.io", "hub.kubekey"));
        push.dest = Some(Template::parse(template, None).unwrap());
        let routes = push.routes(&images(&["kubesphere/ks-apiserver:v4.1.3", &digest])).unwrap();
        assert_eq!(routes[0].to.to_string(), "hub.kubekey/kubesphere/ks-apiserver:v4.1.3");
        assert_eq!(routes[1].to.to_string(), digest.replace("quay.io", "hub.kubekey"));
    }

    #[test]
    fn what_cannot_be_named_is_said() {
        let with = |to: &str, dest: &str| {
            let dest = Some(Template::parse(dest, None).unwrap());
            Request { dest, ..request("dir", to) }
        };
        let pinned = format!("a:1@{}", crate::image::Digest::sha256(b"pinned"));
        for (request, names, part) in [
            (with("registry://", "h.io/x:1"), &["a:1", "b:1"][..], "would both become h.io/x:1"),
            (request("registry://", "dir"), &["a:1", &pinned], "would both become"),
            (
                with("registry://", "h.io/{{ .no }}:1"),
                &["a:1"],
                "dest, for docker.io/library/a:1: 1:",
            ),
            (with("registry://", "h.io/x:"), &["a:1"], "it gives `h.io/x:`: its tag is empty"),
            (with("registry://", "h.io/UP:1"), &["a:1"], "it gives `h.io/UP:1`: "),
            (with("registry://", "{{ \"\" }}"), &["a:1"], "it is empty"),
            (with("registry://h.io/p", "h.io/q:1"), &["a:1"], "is not in registry://h.io/p"),
            (request("dir", "registry://"), &["a:1"], "has no name at the target"),
            (request("dir", "dir"), &["a:1"], "onto itself"),
        ] {
            let error = request.routes(&images(names)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let request = request("registry://quay.io/a", "dir");
        let error = request.from.image("ghcr.io/x:1").unwrap_err().to_string();
        assert_eq!(error, "`ghcr.io/x:1` is not in registry://quay.io/a");
        assert!(request.from.image("quay.io/ab:1").is_err());
    }

    #[test]
    fn patterns_match_names_as_people_write_them() {
        let mut request = request("dir", "other");
        request.pattern = Some(regex::Regex::new("^docker.io/library/nginx:").unwrap());
        request.images = Images::Listed(vec!["nginx:1".into(), "redis:1".into()]);
        assert_eq!(request.listed().unwrap().unwrap(), images(&["nginx:1"]));
        for (pattern, matches) in
            [("^nginx", true), ("^registry-1.docker.io/", true), ("redis", false), ("", true)]
        {
            request.pattern = Some(regex::Regex::new(pattern).unwrap());
            assert_eq!(request.matches(&images(&["nginx:1"])[0], Some("nginx:1")), matches);
        }
    }
}
