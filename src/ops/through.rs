//! Where what is written through a mount goes on to: registries, by the engine of a push.

use std::{
    num::NonZeroUsize,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use lru::LruCache;

use super::{Images, Request, Result, RouteError, TreeSpec};
use crate::{
    backend::{
        self, Backend, Kind, Removal, Remover, Sink,
        registry::{Registry, RegistryConfig, RegistrySink},
    },
    image::Reference,
    namespace::{Keeping, Upstream},
    template::{Template, Value},
    transfer::{self, Options, Route, Status},
    util::locked,
};

/// Names of which is remembered which image has got them.
const MAX_NAMED: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 16) - 1);

/// How what is written goes through to registries.
pub struct Through {
    /// Names the images at their registries, if they have others there than those that they have been written under.
    naming: Option<Request>,
    /// Whether attachments go with the images.
    pub attachments: bool,
    /// Whether tags that are removed are removed there, too.
    pub deletes: bool,
    /// What becomes of what has been pushed.
    pub keeping: Keeping,
}

impl Through {
    /// Under the names that `dest` renders with `vars`, if it is given; with attachments, and keeping all.
    pub fn new(dest: Option<Template>, vars: Value) -> Self {
        let naming = dest.map(|dest| {
            let from = TreeSpec::Directory(PathBuf::new());
            let to = TreeSpec::Registry { prefix: String::new() };
            Request { dest: Some(dest), vars, ..Request::new(from, to, Images::All) }
        });
        Self { naming, attachments: true, deletes: false, keeping: Keeping::Keep }
    }

    /// The name of `image` at its registry.
    fn target(&self, image: &Reference) -> backend::Result<Reference> {
        let Some(naming) = &self.naming else { return Ok(image.clone()) };
        let unfit = |reason: String| {
            backend::Error::new("--dest", format_args!("naming {image}"), Kind::Config(reason))
        };
        let routes = naming.routes(std::slice::from_ref(image));
        let routes = routes.map_err(|error| unfit(error.to_string()))?;
        let first = routes.into_iter().next().map(|route| route.to);
        first.ok_or_else(|| unfit("it has no name".to_owned()))
    }
}

/// The registries.
pub(super) struct Registries {
    through: Arc<Through>,
    registry: Arc<Registry>,
    concurrency: usize,
    /// Which image has got which name through this mount, where names are rendered.
    named: Mutex<LruCache<Reference, Reference>>,
}

impl Registries {
    pub(super) fn new(through: Arc<Through>, config: RegistryConfig) -> Result<Self> {
        Registry::check(&config)?;
        let concurrency = config.concurrency;
        let named = Mutex::new(LruCache::new(MAX_NAMED));
        Ok(Self { through, registry: Arc::new(Registry::new(config)), concurrency, named })
    }

    /// Notes which image gets a name. Whether that is new; an error if another image of this mount has it.
    fn claim(&self, route: &Route) -> backend::Result<bool> {
        // Without a template, an image has its own name.
        if self.through.naming.is_none() {
            return Ok(false);
        }
        let mut named = locked(&self.named);
        match named.get(&route.to) {
            Some(first) if *first != route.from => {
                let collision = RouteError::Collision {
                    first: first.clone().into(),
                    second: route.from.clone().into(),
                    target: route.to.clone().into(),
                };
                let doing = format_args!("naming {}", route.from);
                Err(backend::Error::new("--dest", doing, Kind::Config(collision.to_string())))
            }
            Some(_) => Ok(false),
            None => {
                named.put(route.to.clone(), route.from.clone());
                Ok(true)
            }
        }
    }

    async fn push_as(&self, source: Arc<dyn Backend>, route: &Route) -> backend::Result<()> {
        let sink: Arc<dyn Sink> = Arc::new(RegistrySink::new(self.registry.clone()));
        let options = Options { attachments: self.through.attachments, ..Options::default() };
        let observer: Arc<dyn transfer::Observer> = Arc::new(());
        let routes = std::slice::from_ref(route);
        let report =
            transfer::copy(&source, &sink, routes, &options, self.concurrency, &observer).await;
        let Some(report) = report.images.into_iter().next() else { return Ok(()) };
        for lost in report.warnings.iter().chain(&report.losses) {
            tracing::warn!(image = %route.to, "{}: {lost}", route.to);
        }
        match report.status {
            Status::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Upstream for Registries {
    async fn push(&self, source: Arc<dyn Backend>, image: &Reference) -> backend::Result<()> {
        let route = Route { from: image.clone(), to: self.through.target(image)? };
        let is_new = self.claim(&route)?;
        let pushed = self.push_as(source, &route).await;
        if pushed.is_err() && is_new {
            locked(&self.named).pop(&route.to);
        }
        pushed
    }

    fn takes_digests(&self) -> bool {
        self.through.naming.is_none()
    }

    fn deletes(&self) -> bool {
        self.through.deletes
    }

    fn target(&self, image: &Reference) -> backend::Result<Reference> {
        self.through.target(image)
    }

    async fn removal(&self, tag: &Reference) -> backend::Result<Removal> {
        self.registry.removal(&self.through.target(tag)?).await
    }

    async fn delete(&self, removal: &Removal) -> backend::Result<()> {
        self.registry.remove(removal).await?;
        let mut named = locked(&self.named);
        for name in &removal.names {
            named.pop(name);
        }
        Ok(())
    }

    fn keeping(&self) -> Keeping {
        self.through.keeping
    }
}
