//! The files of a platform or of a layer, from before anything of them is known.

use std::sync::{Arc, Mutex};

use tokio::sync::OnceCell;

use super::{Images, Tree, Variant, layer::Layer};
use crate::{
    backend::{Error, Result},
    layer::{Found, Kind, Node, Rootfs, find_from_top},
    util::locked,
};

/// Symbolic links that a path may lead through.
const MAX_LINKS: u32 = 40;

/// The files of a platform or of a layer. Their tree is made when it is needed, once. Until then
/// what a container sees of one path can often be told from the upper layers, so the first file does
/// not wait for the lowest layer.
pub struct Files {
    images: Images,
    variant: Arc<Variant>,
    /// The layer, if it is not all of them.
    layer: Option<usize>,
    layers: Vec<Arc<Layer>>,
    tree: OnceCell<Arc<Tree>>,
    /// Each layer by itself, once it is known and as long as the tree has not been made.
    upper: Mutex<Vec<Option<Arc<Tree>>>>,
    /// What had passed of the next one when somebody asked last.
    passing: Mutex<Option<(usize, Arc<Tree>)>>,
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
    Layer(Arc<Layer>),
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
        let upper = Mutex::new(vec![None; layers.len()]);
        Self {
            images,
            variant,
            layer,
            layers,
            tree: OnceCell::new(),
            upper,
            passing: Mutex::default(),
        }
    }

    /// The tree, if it has been made.
    pub fn made(&self) -> Option<&Arc<Tree>> {
        self.tree.get()
    }

    /// Whether the tree can be made without passing a layer.
    pub fn is_indexed(&self) -> bool {
        match self.layer {
            None => self.layers.iter().all(|layer| layer.is_indexed()),
            Some(number) => self.layers.get(number).is_some_and(|layer| layer.is_indexed()),
        }
    }

    /// The tree, made now if need be. That takes a pass over each layer that nobody has looked into
    /// before; it ends by itself when nothing comes.
    pub async fn tree(&self) -> Result<Arc<Tree>> {
        let made = self.tree.get_or_try_init(|| self.images.merge(&self.variant, self.layer));
        let tree = made.await?.clone();
        locked(&self.upper).fill(None);
        *locked(&self.passing) = None;
        Ok(tree)
    }

    /// What is at `path`, as far as it is known now. Symbolic links are not followed.
    pub fn find_now(&self, path: &[u8]) -> FileFound {
        let found = self.look(path).ok().or_else(|| self.look_while_it_passes(path));
        found.unwrap_or(FileFound::Unknown)
    }

    /// What is at `path`; never [`FileFound::Unknown`]. Layers are looked into from the top down, as
    /// far as it takes.
    pub async fn find(&self, path: &[u8]) -> Result<FileFound> {
        loop {
            match self.look(path) {
                Ok(FileFound::Missing) if self.damage().is_some() => {
                    // It may be in what cannot be read.
                    return self.damage().map_or(Ok(FileFound::Missing), Err);
                }
                Ok(found) => return Ok(found),
                Err(Waits::Layer(layer)) => {
                    let index = layer.index();
                    let passed = layer.pass().map(|pass| pass.passed());
                    if let Some(found) = self.look_while_it_passes(path) {
                        return Ok(found);
                    }
                    let more = async {
                        match passed {
                            Some(mut passed) => drop(passed.changed().await),
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        index = index => drop(index?),
                        () = more => {}
                    }
                }
                Err(Waits::All) => drop(self.tree().await?),
            }
        }
    }

    /// What is at `path`, if it is in a layer that is passing, and has passed.
    fn look_while_it_passes(&self, path: &[u8]) -> Option<FileFound> {
        let mut trees = self.upper_layers();
        let number = trees.iter().rposition(Option::is_none)?;
        let mut passing = locked(&self.passing);
        let known = passing.as_ref().filter(|(of, tree)| {
            *of == number && tree.rootfs().find(path).is_some_and(|node| tree.has_all_of(node))
        });
        let tree = match known {
            Some((_, tree)) => tree.clone(),
            None => {
                let layer = self.layers.get(number)?;
                let tree = self.images.passing_tree(&self.variant, number, layer, path)?;
                *passing = Some((number, tree.clone()));
                tree
            }
        };
        trees[number] = Some(tree.clone());
        match find_from_top(&known_of(&trees), path) {
            // What it does not have yet it may still bring.
            Found::Node { layer, node } if layer == number && tree.has_all_of(node) => {
                Some(FileFound::At(tree, node))
            }
            _ => None,
        }
    }

    fn damage(&self) -> Option<Error> {
        self.made().and_then(|tree| tree.damage().cloned())
    }

    fn look(&self, path: &[u8]) -> std::result::Result<FileFound, Waits> {
        if let Some(tree) = self.made() {
            return Ok(match tree.rootfs().find(path) {
                Some(node) => FileFound::At(tree.clone(), node),
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
            Found::Waits(number) => match self.layers.get(number) {
                // It cannot be told of a layer that is not what the configuration says.
                Some(layer) if layer.known_index().is_none() => Err(Waits::Layer(layer.clone())),
                _ => Err(Waits::All),
            },
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
        };
        push(&mut left, path);
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
                push(&mut left, target);
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
        let mut trees = locked(&self.upper);
        for (number, layer) in self.layers.iter().enumerate().rev() {
            if trees[number].is_some() {
                continue;
            }
            let Some(index) = layer.known_index() else { break };
            let tree = self.images.raw_tree(&self.variant, number, layer, &index);
            let Ok(tree) = tree else { break };
            trees[number] = Some(tree);
        }
        trees.clone()
    }
}

fn known_of(trees: &[Option<Arc<Tree>>]) -> Vec<Option<&Rootfs>> {
    trees.iter().map(|tree| tree.as_ref().map(|tree| tree.rootfs())).collect()
}

fn is_damaged(tree: &Rootfs) -> bool {
    tree.layers().iter().any(|layer| layer.damage().is_some())
}
