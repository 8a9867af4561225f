//! From a [`Request`] to a transfer: opens the trees, finds the images, names them, and copies.

use std::{collections::BTreeSet, path::Path, sync::Arc};

use imgfs::{
    backend::{
        Kind,
        images_dir::{ImagesDir, Layout, Linking},
        registry::Registry,
    },
    image::{Reference, Repository, is_attachment_tag},
    task::{Images, Request, RouteError, TreeSpec},
    transfer::Route,
};
use serde_json::json;

use super::{
    Failure, Outcome,
    args::RegistryArgs,
    block_on,
    output::Output,
    registries,
    transfer::{Job, Tree, Verb, report_event},
};

/// What the command line says beside the request.
pub(crate) struct Setting<'a> {
    pub(crate) verb: Verb,
    /// The task that it is a part of.
    pub(crate) task: Option<&'a str>,
    pub(crate) registries: &'a RegistryArgs,
    /// Of a new directory.
    pub(crate) layout: Option<Layout>,
    pub(crate) linking: Linking,
    /// Create what projects are missing in Harbor.
    pub(crate) create_projects: bool,
    /// Say what would be done, and do nothing.
    pub(crate) dry_run: bool,
    pub(crate) output: &'a Arc<Output>,
}

impl From<RouteError> for Failure {
    fn from(error: RouteError) -> Self {
        Self::new(error.to_string())
    }
}

/// Does what `request` asks for, and tells how it went.
pub(crate) fn carry_out(request: &Request, setting: &Setting<'_>) -> Result<Outcome, Failure> {
    let output = setting.output;
    // Names first: what is wrong with them is known before anything else is touched.
    let listed = request.listed()?;
    let early = listed.as_deref().map(|images| request.routes(images)).transpose()?;
    let from = match &request.from {
        TreeSpec::Directory(path) => Some(ImagesDir::open(path)?),
        TreeSpec::Registry { .. } => None,
    };
    // A directory that is not there is made when there is something to put into it.
    let mut to = match &request.to {
        TreeSpec::Directory(path) if setting.dry_run || path.exists() => {
            Some(open_target(path, request, setting)?)
        }
        TreeSpec::Directory(_) | TreeSpec::Registry { .. } => None,
    };
    let local = match (&listed, &from) {
        (None, Some(dir)) => Some(images_of(dir, request)?),
        _ => None,
    };
    let local_routes = local.as_deref().map(|images| request.routes(images)).transpose()?;
    let known = early.or(local_routes);
    let names = registry_names(request, known.as_deref().unwrap_or_default());
    let mut config = registries::config(setting.registries, &names, output)?;
    config.entries.splice(0..0, request.auths.iter().cloned());
    config.defaults.skip_tls_verify |= request.skip_tls_verify.unwrap_or(false);
    Registry::check(&config)?;
    config.without_referrers =
        to.as_ref().map(ImagesDir::registries_without_referrers).unwrap_or_default();
    let (known_without, concurrency) = (config.without_referrers.clone(), config.concurrency);
    let registry = Arc::new(Registry::new(config));
    let routes = match known {
        Some(routes) => routes,
        None => request.routes(&block_on(tags_of(&registry, request))??)?,
    };
    if routes.is_empty() {
        output.warning(match (&request.images, &request.pattern) {
            (_, Some(_)) => "no image matches the pattern: nothing to do",
            (Images::Listed(_), None) => "no image is named: nothing to do",
            (Images::All, None) => "there is no image in the source: nothing to do",
        });
        let command = setting.verb.command();
        let event = report_event(setting.task);
        output.event(&json!({"event": event, "command": command, "images": []}));
        return Ok(Outcome::NothingMatched);
    }
    if let (TreeSpec::Directory(path), None) = (&request.to, &to) {
        to = Some(open_target(path, request, setting)?);
    }
    if setting.create_projects && to.is_none() && !setting.dry_run {
        create_projects(&registry, &routes, output)?;
    }
    let side = |dir: Option<ImagesDir>| match dir {
        Some(dir) => Tree::Directory(dir),
        None => Tree::Registries(registry.clone()),
    };
    let (from, to) = (side(from), side(to));
    let job = Job {
        verb: setting.verb,
        task: setting.task,
        from: &from,
        to: &to,
        routes: &routes,
        options: &request.options,
        concurrency,
        dry_run: setting.dry_run,
        output,
    };
    let outcome = job.run()?;
    if let (Tree::Directory(dir), false) = (&to, setting.dry_run) {
        for name in registry.without_referrers() {
            if !known_without.contains(&name)
                && let Err(error) = dir.note_without_referrers(&name)
            {
                // At worst it is asked once more the next time.
                output.warning(&error.to_string());
            }
        }
    }
    Ok(outcome)
}

/// Opens the directory to be filled; a dry run creates none.
fn open_target(
    root: &Path,
    request: &Request,
    setting: &Setting<'_>,
) -> Result<ImagesDir, Failure> {
    if let TreeSpec::Directory(from) = &request.from
        && let (Ok(from), Ok(to)) = (from.canonicalize(), root.canonicalize())
        && from == to
        && request.dest.is_none()
    {
        return Err(Failure::new(format!(
            "source and target are the same directory, {}",
            root.display()
        )));
    }
    match (setting.dry_run, root.exists()) {
        (true, true) => Ok(ImagesDir::open(root)?),
        (true, false) => Ok(ImagesDir::absent(root)),
        _ => Ok(ImagesDir::create(root, setting.layout, setting.linking)?),
    }
}

/// The images of a directory that match: those with a tag, and those that somebody asked for by
/// digest. What is attached to them goes with them.
fn images_of(dir: &ImagesDir, request: &Request) -> Result<Vec<Reference>, Failure> {
    let inventory = dir.inventory()?;
    let tagged: BTreeSet<(&Repository, _)> = inventory
        .images
        .iter()
        .filter(|image| image.reference.tag().is_some())
        .map(|image| (image.reference.repository(), image.digest))
        .collect();
    let wanted = inventory.images.iter().filter(|image| {
        let (name, is_pin) = (&image.reference, image.reference.tag().is_none());
        let is_double = is_pin && tagged.contains(&(name.repository(), image.digest));
        !image.is_attachment && !is_double && request.matches(name, None)
    });
    Ok(wanted.map(|image| image.reference.clone()).collect())
}

/// The images in the repository that the request has as its source.
async fn tags_of(registry: &Registry, request: &Request) -> Result<Vec<Reference>, Failure> {
    let TreeSpec::Registry { prefix } = &request.from else { return Ok(Vec::new()) };
    let repository = match prefix.split_once('/') {
        Some((host, path)) => Repository::new(host, path)?,
        None => {
            return Err(Failure::new(format!(
                "{}: all images of a registry cannot be listed; name the images, or a repository (registry://HOST/PATH)",
                request.from
            )));
        }
    };
    let tags = registry.all_tags(&repository).await?;
    let images = tags.iter().filter(|tag| !is_attachment_tag(tag));
    let images = images.map(|tag| repository.tagged(tag));
    Ok(images.filter(|image| request.matches(image, None)).collect())
}

/// The registries that are asked, as far as they are known by now.
fn registry_names(request: &Request, routes: &[Route]) -> Vec<String> {
    let mut names = BTreeSet::new();
    for (spec, side) in [
        (&request.from, routes.iter().map(|route| &route.from).collect::<Vec<_>>()),
        (&request.to, routes.iter().map(|route| &route.to).collect()),
    ] {
        if let TreeSpec::Registry { prefix } = spec {
            let host = prefix.split('/').next().filter(|host| !host.is_empty());
            names.extend(host.map(str::to_owned));
            names.extend(side.iter().map(|image| image.repository().registry().to_owned()));
        }
    }
    names.into_iter().collect()
}

fn create_projects(
    registry: &Arc<Registry>,
    routes: &[Route],
    output: &Output,
) -> Result<(), Failure> {
    let project = |repository: &Repository| {
        let path = repository.path().split('/').next().unwrap_or_default();
        (repository.registry().to_owned(), path.to_owned())
    };
    let mut seen = BTreeSet::new();
    let repositories = routes.iter().map(|route| route.to.repository());
    let first_of_each = repositories.filter(|repository| seen.insert(project(repository)));
    let first_of_each: Vec<Repository> = first_of_each.cloned().collect();
    block_on(async {
        for repository in first_of_each {
            match registry.ensure_project(&repository).await {
                Ok(true) => {
                    let (host, path) = project(&repository);
                    output.line(&format!("{host}: project {path} created"));
                    output.event(&json!({"event": "project", "registry": host, "project": path}));
                }
                Ok(false) => {}
                // It is no Harbor, and the option makes no sense.
                Err(error) if matches!(error.kind(), Kind::Config(_)) => return Err(error.into()),
                // It fails its own images, and no others.
                Err(error) => output.error(&error.to_string(), error.hint()),
            }
        }
        Ok(())
    })?
}

impl From<imgfs::image::ReferenceError> for Failure {
    fn from(error: imgfs::image::ReferenceError) -> Self {
        Self::new(error.to_string())
    }
}
