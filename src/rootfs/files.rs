//! The files of a platform or of a layer, from before anything of them is known.

use std::sync::Arc;

use super::{Images, Tree, TreeFile, Variant, layer::Layer, scan::Scan};
use crate::{
    backend::{Error, Result},
    layer::{Found, Kind, Node, Rootfs, find_from_top},
};

/// Symbolic links that a path may lead through.
const MAX_LINKS: u32 = 40;

/// The longest name of a file in bytes, as everywhere in Linux.
const MAX_NAME_BYTES: usize = 255;

/// The files of a platform or of a layer. Their tree is made when it is needed. Until then
/// what a container sees of one path can often be told from the upper layers, so the first file does
/// not wait for the lowest layer. A tree that has been let go is made again when it is needed.
pub struct Files {
    images: Images,
    variant: Arc<Variant>,
    /// The layer, if it is not all of them.
    layer: Option<usize>,
    layers: Vec<Arc<Layer>>,
}

/// What is known of a path.
pub enum FileFound {
    /// It is this. If the tree has not been made it is of one of the layers, and of a directory
    /// nobody knows yet what is in it.
    At(Arc<Tree>, Node),
    /// It is not there.
    Missing,
    /// More layers have to be known.
    Unknown,
}

/// What has to be known first.
enum Waits {
    /// The layer with this number.
    Layer(usize),
    All,
}

/// Why a path leads to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It is not there.
    #[error("there is no such file or directory in the image")]
    Missing,
    /// Something on the way is no directory.
    #[error("something on the way there is no directory")]
    NotADirectory,
    /// A part of it has more than 255 bytes.
    #[error("a part of the path has more than 255 bytes, which no name of a file has")]
    NameTooLong,
    /// It goes through more than 40 symbolic links.
    #[error("it goes through too many symbolic links")]
    Loop,
}

impl Files {
    pub(super) fn new(
        images: Images,
        variant: Arc<Variant>,
        layer: Option<usize>,
        layers: Vec<Arc<Layer>>,
    ) -> Self {
        Self { images, variant, layer, layers }
    }

    /// The tree, if it has been made and not been let go.
    pub fn made(&self) -> Option<Arc<Tree>> {
        self.images.known_tree(&self.variant, self.layer)
    }

    /// Whether the tree can be made without scanning a layer.
    pub async fn is_indexed(&self) -> bool {
        let layers: Vec<_> = match self.layer {
            None => self.layers.clone(),
            Some(number) => self.layers.get(number).cloned().into_iter().collect(),
        };
        let is_indexed = move || layers.iter().all(|layer| layer.is_indexed());
        tokio::task::spawn_blocking(is_indexed).await.unwrap_or(false)
    }

    /// The tree, made now if need be. That takes a scan of each layer that nobody has looked into
    /// before; it ends by itself when nothing comes.
    pub async fn tree(&self) -> Result<Arc<Tree>> {
        self.images.tree(&self.variant, self.layer).await
    }

    /// What is at `path`, as far as it is known now: nothing is read or made. Symbolic links are not
    /// followed.
    pub fn find_now(&self, path: &[u8]) -> FileFound {
        let found = self.look(path).ok().or_else(|| {
            let number = self.first_unknown()?;
            let scan = self.layers.get(number)?.scan()?;
            let tree = self.images.known_scanned(&self.variant, number, &scan)?;
            self.look_into_scanned(path, number, &tree)
        });
        found.unwrap_or(FileFound::Unknown)
    }

    /// What is at `path`; never [`FileFound::Unknown`]. Layers are looked into from the top down, as
    /// far as it takes.
    pub async fn find(&self, path: &[u8]) -> Result<FileFound> {
        // What has been made on the way is not let go before it has been looked into.
        let mut trees = Vec::new();
        loop {
            match self.look(path) {
                Ok(FileFound::Missing) => {
                    // It may be in what cannot be read.
                    return self.damage().map_or(Ok(FileFound::Missing), Err);
                }
                Ok(found) => return Ok(found),
                Err(Waits::All) => trees.push(self.tree().await?),
                Err(Waits::Layer(number)) => {
                    // Begins a scan, if there has to be one.
                    let index = self.layers.get(number).map(Layer::index);
                    let scan = self.layers.get(number).and_then(|layer| layer.scan());
                    let scanned = scan.as_ref().map(|scan| scan.scanned());
                    if let Some(scan) = scan
                        && let Some(found) = self.find_scanned(path, number, scan).await
                    {
                        return Ok(found);
                    }
                    let more = async {
                        if let Some(mut scanned) = scanned
                            && scanned.changed().await.is_ok()
                        {
                            return;
                        }
                        // When the scan ends, that is told by the index.
                        std::future::pending::<()>().await;
                    };
                    let tree = async {
                        let _index = match index {
                            Some(index) => match index.await {
                                // For memory, the tree waits.
                                Err(error) if !error.is_short_of_memory() => return Err(error),
                                done => done.ok(),
                            },
                            None => None,
                        };
                        self.images.tree(&self.variant, Some(number)).await
                    };
                    tokio::select! {
                        tree = tree => trees.push(tree?),
                        () = more => {}
                    }
                }
            }
        }
    }

    /// What is at `path`, if that has been seen in the scan of the layer `number`.
    async fn find_scanned(&self, path: &[u8], number: usize, scan: Arc<Scan>) -> Option<FileFound> {
        let known = self.images.known_scanned(&self.variant, number, &scan);
        if let Some(found) = known.and_then(|tree| self.look_into_scanned(path, number, &tree)) {
            return Some(found);
        }
        let (images, variant) = (self.images.clone(), self.variant.clone());
        let (layer, wanted) = (self.layers.get(number)?.clone(), path.to_vec());
        let make = move || images.scanned_tree(&variant, number, &layer, &scan, &wanted);
        let tree = self.images.store().compute(make).await.ok()??;
        self.look_into_scanned(path, number, &tree)
    }

    /// What is at `path`, if it is in the layer `number`, of which `tree` is what has been scanned.
    fn look_into_scanned(&self, path: &[u8], number: usize, tree: &Arc<Tree>) -> Option<FileFound> {
        let mut trees = self.upper_layers();
        *trees.get_mut(number)? = Some(tree.clone());
        match find_from_top(&known_of(&trees), path) {
            // What it does not have yet it may still bring.
            Found::Node { layer, node } if layer == number && tree.has_all_of(node) => {
                Some(FileFound::At(tree.clone(), node))
            }
            _ => None,
        }
    }

    /// Why `file` may not be what the image has at its path: a layer above its own is damaged, and may have had
    /// another file there, or a whiteout.
    pub fn damage_above(&self, file: &TreeFile) -> Option<Error> {
        if self.layer.is_some() {
            return None;
        }
        let own = self.layers.iter().rposition(|layer| layer.at.blob.digest == file.layer());
        let first = own.map_or(0, |own| own + 1);
        // From the top, where it is decided.
        (first..self.layers.len()).rev().find_map(|number| match self.made() {
            Some(tree) => tree.damage_of(number),
            None => self.images.known_tree(&self.variant, Some(number))?.damage().cloned(),
        })
    }

    fn damage(&self) -> Option<Error> {
        self.made().and_then(|tree| tree.damage().cloned())
    }

    fn look(&self, path: &[u8]) -> std::result::Result<FileFound, Waits> {
        if let Some(tree) = self.made() {
            return Ok(match tree.rootfs().find(path) {
                Some(node) => FileFound::At(tree, node),
                None => FileFound::Missing,
            });
        }
        if self.layer.is_some() {
            return Err(Waits::All);
        }
        let trees = self.upper_layers();
        let known = known_of(&trees);
        match find_from_top(&known, path) {
            Found::Node { layer, node } => match trees.get(layer).cloned().flatten() {
                Some(tree) => Ok(FileFound::At(tree, node)),
                None => Err(Waits::All),
            },
            Found::Missing if known.iter().flatten().any(|layer| is_damaged(layer)) => {
                Err(Waits::All)
            }
            Found::Missing => Ok(FileFound::Missing),
            Found::Waits(number) => Err(Waits::Layer(number)),
            Found::NeedsMerge => Err(Waits::All),
        }
    }

    /// What is at `path`, as a process in a container would find it: symbolic links are followed,
    /// and lead nowhere outside. The last one is followed only if `follows_last`.
    pub async fn resolve(
        &self,
        path: &[u8],
        follows_last: bool,
    ) -> Result<std::result::Result<(Arc<Tree>, Node), PathError>> {
        let mut left: Vec<Vec<u8>> = Vec::new();
        let push = |left: &mut Vec<Vec<u8>>, path: &[u8]| {
            let names = path.split(|b| *b == b'/').rev().filter(|name| !name.is_empty());
            left.extend(names.map(<[u8]>::to_vec));
            left.iter().any(|name| name.len() > MAX_NAME_BYTES)
        };
        if push(&mut left, path) {
            return Ok(Err(PathError::NameTooLong));
        }
        let (mut at, mut links): (Vec<Vec<u8>>, _) = (Vec::new(), 0);
        loop {
            let FileFound::At(tree, node) = self.find(&at.join(&b'/')).await? else {
                return Ok(Err(PathError::Missing));
            };
            if let Some(target) = tree.rootfs().symlink_target(node)
                && (follows_last || !left.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return Ok(Err(PathError::Loop));
                }
                at.pop();
                if target.starts_with(b"/") {
                    at.clear();
                }
                if push(&mut left, target) {
                    return Ok(Err(PathError::NameTooLong));
                }
                continue;
            }
            let Some(name) = left.pop() else { return Ok(Ok((tree, node))) };
            if tree.rootfs().attributes(node).kind != Kind::Dir {
                return Ok(Err(PathError::NotADirectory));
            }
            match &name[..] {
                b"." => {}
                b".." => drop(at.pop()),
                _ => at.push(name),
            }
        }
    }

    /// The layers that are known, from the top down to the first that is not.
    fn upper_layers(&self) -> Vec<Option<Arc<Tree>>> {
        let mut trees = vec![None; self.layers.len()];
        for number in (0..self.layers.len()).rev() {
            let Some(tree) = self.images.known_tree(&self.variant, Some(number)) else { break };
            trees[number] = Some(tree);
        }
        trees
    }

    /// The uppermost layer that is not known.
    fn first_unknown(&self) -> Option<usize> {
        self.upper_layers().iter().rposition(Option::is_none)
    }
}

fn known_of(trees: &[Option<Arc<Tree>>]) -> Vec<Option<&Rootfs>> {
    trees.iter().map(|tree| tree.as_ref().map(|tree| tree.rootfs())).collect()
}

fn is_damaged(tree: &Rootfs) -> bool {
    tree.layers().iter().any(|layer| layer.damage().is_some())
}
