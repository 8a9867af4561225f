//! The graph under a reference: which manifests and blobs an image consists of, after the
//! platform filter.

use std::{collections::BTreeMap, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures_util::future::try_join_all;

use super::{IndexMode, Options, Policy};
use crate::{
    backend::{Backend, Error, Kind, Result, Sink},
    image::{
        Descriptor, Digest, FilteredIndex, Manifest, Platform, PlatformFilter, Reference,
        Repository, View, choose, filter_index,
    },
    util::drop_repeats,
};

/// Indexes nested deeper than this are refused.
const MAX_DEPTH: usize = 8;

/// An image with more manifests than this is refused: each is held in memory while planning.
const MAX_MANIFESTS: usize = 2000;

/// Nor may they have more bytes than this together.
const MAX_MANIFESTS_BYTES: usize = 16 << 20;

/// The largest configuration that is read to find out a platform, in bytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// What an image consists of.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// All manifests, children before their indexes, the root last.
    pub manifests: Vec<Manifest>,
    /// All blobs, each once.
    pub blobs: BTreeMap<Digest, Descriptor>,
    /// Bytes of blobs that a registry is known to have, and that are not among them.
    pub there: u64,
    /// Blobs that had to be read for planning, or that manifests have in them.
    pub contents: BTreeMap<Digest, Bytes>,
    /// The platforms that are in it.
    pub platforms: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
    /// Indexes that are kept as they are, with the platforms of which the children are wanted.
    pub sparse: Vec<(Digest, String)>,
}

/// Explores graphs of one repository.
pub(super) struct Explorer<'a> {
    pub source: &'a Arc<dyn Backend>,
    pub sink: &'a Arc<dyn Sink>,
    /// The repository at the source, and the one at the target.
    pub from: &'a Repository,
    pub to: &'a Repository,
    pub options: &'a Options,
}

/// A part of a graph on its way up.
struct Node {
    digest: Digest,
    size: u64,
    graph: Graph,
    /// Whether anything in it was wanted.
    wanted: bool,
    missing: Vec<Platform>,
}

impl Explorer<'_> {
    /// Explores everything under `root`, which the target has or has not. `None` if the platform
    /// filter leaves nothing of it (and the policy does not make an error of that).
    pub(super) async fn explore(&self, root: Manifest, name: &Reference) -> Result<Option<Graph>> {
        let bounds = Bounds::default();
        let filter = &self.options.platforms;
        let mut node = self.node(root, filter, Place::Root, &bounds).await?;
        if !node.missing.is_empty() {
            let names: Vec<_> = node.missing.iter().map(Platform::to_string).collect();
            let has = match node.graph.platforms.join(", ") {
                has if has.is_empty() => String::new(),
                has => format!("; of what was asked for it has {has}"),
            };
            let message = format!("it does not have the platform {}{has}", names.join(", "));
            if self.options.policy == Policy::Strict {
                return Err(self.unfit(name, message));
            }
            node.graph.warnings.push(message);
        }
        drop_repeats(&mut node.graph.platforms);
        Ok(node.wanted.then_some(node.graph))
    }

    fn unfit(&self, what: impl std::fmt::Display, message: String) -> Error {
        Error::new(self.side(), format_args!("planning {what}"), Kind::Unfit(message))
    }

    /// Where the graph is.
    fn side(&self) -> String {
        self.source.side(self.from)
    }

    fn node<'b>(
        &'b self,
        manifest: Manifest,
        filter: &'b PlatformFilter,
        place: Place,
        bounds: &'b Bounds,
    ) -> Pin<Box<dyn Future<Output = Result<Node>> + Send + 'b>> {
        Box::pin(async move {
            bounds.take(&manifest).map_err(|e| self.unfit(manifest.digest(), e))?;
            match manifest.view() {
                View::Image { .. } => self.image(manifest, filter, place).await,
                View::Index { .. } if place.depth() >= MAX_DEPTH => {
                    let message = format!("its indexes are nested more than {MAX_DEPTH} deep");
                    Err(self.unfit(self.from, message))
                }
                View::Index { .. } => self.index(manifest, filter, place, bounds).await,
            }
        })
    }

    /// The blobs that a manifest names directly.
    fn blobs(&self, manifest: &Manifest) -> Result<Graph> {
        let mut graph = Graph::default();
        for blob in manifest.blobs() {
            if let Some(content) = blob.embedded() {
                graph.contents.insert(blob.digest, content.clone());
            }
            if let Some(other) = graph.blobs.insert(blob.digest, blob.clone())
                && other.size != blob.size
            {
                let message = format!("it states two sizes for {}", blob.digest);
                return Err(self.unfit(manifest.digest(), message));
            }
        }
        Ok(graph)
    }

    async fn image(
        &self,
        manifest: Manifest,
        filter: &PlatformFilter,
        place: Place,
    ) -> Result<Node> {
        let mut graph = self.blobs(&manifest)?;
        let mut missing = Vec::new();
        let mut wanted = true;
        // Most children of an index have been chosen by what the index says of them.
        if place.is_unsaid()
            && filter != &PlatformFilter::All
            && let View::Image { config, .. } = manifest.view()
            && config.is_image_config()
        {
            let (platform, content) = self.platform_of(config).await?;
            graph.contents.extend(content.map(|content| (config.digest, content)));
            match platform {
                Some(platform) => {
                    graph.platforms.push(platform.to_string());
                    let selection = filter.select(&[Some(platform)]);
                    wanted = !selection.kept.is_empty();
                    missing = selection.missing;
                    if !wanted {
                        let is = std::mem::take(&mut graph.platforms);
                        graph.warnings.push(format!("it is for {} only", is.join(", ")));
                    }
                }
                None if place == Place::Root => {
                    let message = "its configuration does not say which platform it is for";
                    return Err(self.unfit(config.digest, message.into()));
                }
                // Others take such a child, too, and it may be the only one.
                None => graph.warnings.push(
                    "of one of its images neither the index nor the configuration says what it runs on; it is taken for what was asked for"
                        .to_owned(),
                ),
            }
        }
        let (digest, size) = (manifest.digest(), manifest.bytes().len() as u64);
        graph.manifests.push(manifest);
        Ok(Node { digest, size, graph, wanted, missing })
    }

    /// What an image runs on, if its configuration says so, and the configuration, if it had to be
    /// fetched.
    async fn platform_of(&self, config: &Descriptor) -> Result<(Option<Platform>, Option<Bytes>)> {
        if config.size > MAX_CONFIG_BYTES {
            let message = format!("its configuration has {} bytes", config.size);
            return Err(self.unfit(config.digest, message));
        }
        let local = self.sink.content(self.to, config).await?;
        let (text, fetched) = match local {
            Some(text) => (text, None),
            None => {
                let text = read_small(self.source.as_ref(), self.from, config).await?;
                (text.clone(), Some(text))
            }
        };
        Ok((Platform::of_config(&text), fetched))
    }

    async fn index(
        &self,
        manifest: Manifest,
        filter: &PlatformFilter,
        place: Place,
        bounds: &Bounds,
    ) -> Result<Node> {
        let children = manifest.children();
        if children.len() > MAX_MANIFESTS {
            let message = format!("it has more than {MAX_MANIFESTS} manifests");
            return Err(self.unfit(manifest.digest(), message));
        }
        // What is not even at the source, on purpose, cannot be wanted.
        let sparse = self.source.sparse(&manifest.digest());
        let sparse = sparse.filter(|_| filter == &PlatformFilter::All);
        let only_these = sparse.as_ref().and_then(|p| PlatformFilter::parse(&[p]).ok());
        if let (Some(platforms), true) = (&sparse, self.sink.capabilities().requires_whole_images) {
            return Err(self.unfit(
                manifest.digest(),
                format!(
                    "of this index only {platforms} is here, and a registry takes whole indexes only; with --platform {platforms} a new one is written of it"
                ),
            ));
        }
        let mut graph = self.blobs(&manifest)?;
        // What names blobs alone runs nowhere.
        let is_list_of_blobs = children.is_empty() && !graph.blobs.is_empty();
        let filter = only_these.as_ref().unwrap_or(filter);
        let filter = if is_list_of_blobs { &PlatformFilter::All } else { filter };
        // Nested indexes have no platform of their own and are looked into; so are manifests
        // about which the index says nothing.
        let (kept, missing_here) = choose(children, filter);
        let kept = match &sparse {
            Some(_) => self.there(kept, children).await?,
            None => kept,
        };
        let explored = try_join_all(kept.iter().map(|&(at, inner_filter)| async move {
            let inner = if inner_filter { filter } else { &PlatformFilter::All };
            let node = self.child(&children[at], inner, place, bounds).await?;
            Ok::<_, Error>((at, inner_filter, node))
        }))
        .await?;

        let mut keep: Vec<Option<(Digest, u64)>> = vec![None; children.len()];
        let mut missing = missing_here;
        let mut wanted = filter == &PlatformFilter::All;
        for (at, nested, node) in explored {
            if nested {
                // What one nested index lacks, another may have.
                missing.retain(|platform| node.missing.contains(platform));
            }
            if !node.wanted {
                continue;
            }
            wanted = true;
            keep[at] = Some((node.digest, node.size));
            let named = children[at].platform.as_ref().filter(|p| !p.is_unknown());
            graph.platforms.extend(named.map(Platform::to_string));
            graph.add(node.graph);
        }
        let dropped = keep
            .iter()
            .zip(children)
            .any(|(keep, child)| keep.is_none_or(|(digest, _)| digest != child.digest));
        let keep_it = self.options.index == IndexMode::Keep || sparse.is_some();
        if dropped && keep_it && self.sink.capabilities().requires_whole_images {
            let message = "a registry takes whole indexes only; without `--index keep` a new one is written of the platforms that are wanted";
            return Err(self.unfit(manifest.digest(), message.into()));
        }
        let root = if dropped && !keep_it {
            let platforms = self.options.platforms.to_string();
            filter_index(&FilteredIndex { original: &manifest, keep: &keep, platforms })
                .map_err(|e| self.unfit(manifest.digest(), e.to_string()))?
        } else {
            let wanted = match (dropped, sparse) {
                (true, Some(platforms)) => platforms,
                (true, None) => self.options.platforms.to_string(),
                (false, _) => "all".to_owned(),
            };
            graph.sparse.push((manifest.digest(), wanted));
            manifest.clone()
        };
        let (digest, size) = (root.digest(), root.bytes().len() as u64);
        graph.manifests.push(root);
        Ok(Node { digest, size, graph, wanted, missing })
    }

    /// The chosen children of an index that is sparse on purpose, without attestations that are not there: which of
    /// these are, nobody has said.
    async fn there(
        &self,
        kept: Vec<(usize, bool)>,
        children: &[Descriptor],
    ) -> Result<Vec<(usize, bool)>> {
        let mut found = Vec::with_capacity(kept.len());
        for (at, nested) in kept {
            let child = &children[at];
            if child.attests().is_some() {
                match self.source.manifest(&self.from.pinned(child.digest)).await {
                    Err(error) if error.is_not_found() => continue,
                    read => drop(read?),
                }
            }
            found.push((at, nested));
        }
        Ok(found)
    }

    async fn child(
        &self,
        child: &Descriptor,
        filter: &PlatformFilter,
        place: Place,
        bounds: &Bounds,
    ) -> Result<Node> {
        let here = match self.sink.capabilities().has_round_trips {
            true => None,
            // Whatever is wrong with it there, the source has a good one.
            false => self.sink.manifest(&self.to.pinned(child.digest)).await.ok(),
        };
        let manifest = match here {
            Some(manifest) => manifest,
            None => self.source.manifest(&self.from.pinned(child.digest)).await?,
        };
        let found = manifest.bytes().len() as u64;
        if found != child.size {
            let (doing, expected) = (format!("reading {}", child.digest), child.size);
            return Err(Error::new(self.side(), doing, Kind::Size { expected, found }));
        }
        let depth = place.depth() + 1;
        let place = match child.platform {
            None => Place::Unsaid(depth),
            Some(_) => Place::Chosen(depth),
        };
        self.node(manifest, filter, place, bounds).await
    }
}

/// Where in a graph a manifest stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On top, where only its configuration says what it runs on.
    Root,
    /// This deep below the root, in an index that says what it runs on.
    Chosen(usize),
    /// This deep below the root, in an index that does not.
    Unsaid(usize),
}

impl Place {
    fn depth(self) -> usize {
        match self {
            Self::Root => 0,
            Self::Chosen(depth) | Self::Unsaid(depth) => depth,
        }
    }

    /// Whether what it runs on is not known yet.
    fn is_unsaid(self) -> bool {
        !matches!(self, Self::Chosen(_))
    }
}

impl Graph {
    /// Takes over another part; what is in both is there once.
    pub(super) fn add(&mut self, other: Self) {
        for manifest in other.manifests {
            if !self.manifests.iter().any(|known| known.digest() == manifest.digest()) {
                self.manifests.push(manifest);
            }
        }
        self.blobs.extend(other.blobs);
        self.there += other.there;
        self.contents.extend(other.contents);
        self.platforms.extend(other.platforms);
        self.warnings.extend(other.warnings);
        self.sparse.extend(other.sparse);
    }
}

/// Bounds what one image may make us hold.
#[derive(Default)]
struct Bounds {
    manifests: std::sync::atomic::AtomicUsize,
    bytes: std::sync::atomic::AtomicUsize,
}

impl Bounds {
    fn take(&self, manifest: &Manifest) -> std::result::Result<(), String> {
        use std::sync::atomic::Ordering::Relaxed;
        let manifests = self.manifests.fetch_add(1, Relaxed) + 1;
        let bytes = self.bytes.fetch_add(manifest.bytes().len(), Relaxed) + manifest.bytes().len();
        if manifests > MAX_MANIFESTS {
            return Err(format!("it has more than {MAX_MANIFESTS} manifests"));
        }
        if bytes > MAX_MANIFESTS_BYTES {
            return Err(format!("its manifests have more than {MAX_MANIFESTS_BYTES} bytes"));
        }
        Ok(())
    }
}

/// Reads a small blob whole, and checks it.
async fn read_small(
    source: &dyn Backend,
    repository: &Repository,
    blob: &Descriptor,
) -> Result<Bytes> {
    let mut stream = source.read(repository, blob, 0..blob.size).await?;
    let mut content = Vec::new();
    while let Some(piece) = stream.next().await? {
        content.extend_from_slice(&piece);
    }
    let (expected, found) = (blob.digest, Digest::of(blob.digest.algorithm(), &content));
    if found != expected {
        let kind = Kind::Digest { expected, found };
        return Err(Error::new(
            source.side(repository),
            format_args!("reading blob {expected}"),
            kind,
        ));
    }
    Ok(content.into())
}
