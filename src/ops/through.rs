//! Where what is written through a mount goes on to: registries, by the engine of a push.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;

use super::{Images, Request, Result, TreeSpec};
use crate::{
    backend::{
        self, Backend, Kind, Remover, Sink,
        registry::{Registry, RegistryConfig, RegistrySink},
    },
    image::Reference,
    namespace::{Keeping, Upstream},
    template::{Template, Value},
    transfer::{self, Options, Route, Status},
};

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
}

impl Registries {
    pub(super) fn new(through: Arc<Through>, config: RegistryConfig) -> Result<Self> {
        Registry::check(&config)?;
        let concurrency = config.concurrency;
        Ok(Self { through, registry: Arc::new(Registry::new(config)), concurrency })
    }
}

#[async_trait]
impl Upstream for Registries {
    async fn push(&self, source: Arc<dyn Backend>, image: &Reference) -> backend::Result<()> {
        let route = Route { from: image.clone(), to: self.through.target(image)? };
        let sink: Arc<dyn Sink> = Arc::new(RegistrySink::new(self.registry.clone()));
        let options = Options { attachments: self.through.attachments, ..Options::default() };
        let observer: Arc<dyn transfer::Observer> = Arc::new(());
        let routes = [route];
        let report =
            transfer::copy(&source, &sink, &routes, &options, self.concurrency, &observer).await;
        let Some(report) = report.images.into_iter().next() else { return Ok(()) };
        for lost in report.warnings.iter().chain(&report.losses) {
            tracing::warn!(image = %routes[0].to, "{}: {lost}", routes[0].to);
        }
        match report.status {
            Status::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }

    fn takes_digests(&self) -> bool {
        self.through.naming.is_none()
    }

    fn deletes(&self) -> bool {
        self.through.deletes
    }

    async fn delete(&self, tag: &Reference) -> backend::Result<()> {
        let removal = self.registry.removal(&self.through.target(tag)?).await?;
        self.registry.remove(&removal).await
    }

    fn keeping(&self) -> Keeping {
        self.through.keeping
    }
}
