//! The part of a mount below `.imgfs`: what is inside images.
//!
//! ```text
//! .imgfs/<registry>/<repository>:<tag>        -> <name>@<digest>
//! .imgfs/<registry>/<repository>@<digest>/    an image
//!     manifest.json  status.json
//!     rootfs                                  -> <platform>/rootfs
//!     <platform>/config.json  manifest.json
//!     <platform>/rootfs/                      a tree: what a container sees
//!     <platform>/layers/<number>/             a tree: what the layer has by itself
//! .imgfs/.trees/<chain>/                      a tree: what the lowest layers of an image make, by their content
//! ```
//!
//! What is above the trees is known by its path, as in the rest of the mount. What is in a tree is
//! known by numbers: an inode's has a bit that says so, the number of the tree, and that of the node.
//! All of that is made of digests, so it is the same after a remount, and nothing has to be
//! remembered of a file for the kernel's sake.
//!
//! A tree is made when somebody looks into it, which takes a scan of each layer that nobody has
//! looked into before. It may be let go when memory is short. Of a tree of which the kernel knows anything
//! a short record stays that says what it is of, so that it is made again when the kernel speaks of it;
//! of what is above the trees, the path says that. What cannot be answered without that is answered by
//! `..._later`, which may take its time, in place of `..._now`.

mod chains;
mod places;
mod records;
mod trees;

use std::{
    any::Any,
    num::NonZeroUsize,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use lru::LruCache;

use super::{
    ABSENT, Attributes, Entry, Found, Handle, Question, Settings, ViewError,
    inodes::{Inodes, Kind},
    names,
    repositories::Repositories,
    values::About,
};
use crate::{
    backend::{self, Error},
    catalogue::Catalogue,
    image::{ChainId, Digest, Platform, PlatformFilter, Reference},
    layer::{Kind as FileKind, Node},
    rootfs::{Image, Images, Tree},
    util::{Kept, locked},
};

use places::{content_of, link_to};
use records::{Records, Slot};
use trees::open_node;

pub(super) use places::Place;
pub(super) use records::{TreeId, is_in_tree, tree_of};
pub(super) use trees::EarlyNames;
/// Tags of which is remembered where they lead, and images that are listed for having been looked into.
const MAX_NAMES: NonZeroUsize = NonZeroUsize::MIN.saturating_add((1 << 14) - 1);

/// What the inside of images is, as far as anybody has looked.
pub(super) struct Inside {
    inodes: Arc<Inodes>,
    /// Which names are listed beside `.imgfs`: they are listed in it, too.
    repositories: Arc<Repositories>,
    images: Images,
    platform: Platform,
    /// Whether an image for one other platform is shown alone all the same.
    any_single_platform: bool,
    tag_ttl: Duration,
    /// Where tags lead.
    catalogue: Catalogue,
    /// Images that somebody has looked into, as paths below `.imgfs`; whether they are links.
    seen: Mutex<LruCache<String, FileKind>>,
    /// Trees that the kernel may know something of.
    records: Mutex<Records>,
    slots: Kept<TreeId, Slot>,
    /// The tree that is shown in place of everything else.
    root: OnceLock<(TreeId, Arc<Tree>)>,
}

/// Something that is in use, whatever it is, as long as this exists.
pub(super) type InUse = Arc<dyn Any + Send + Sync>;

/// What takes time to find out.
#[derive(Clone, Debug)]
pub(super) enum Wanted {
    /// Where a tag leads.
    Tag(Reference),
    /// What an image is.
    Image(Reference, Digest),
    /// What a platform of an image is.
    Platform(Arc<Image>, String),
    /// What a chain of layers is.
    Chain(ChainId),
    /// What has this path in a tree.
    Below(TreeId, String),
    /// What has this name in a node of a tree.
    Named(TreeId, u32, Vec<u8>),
    /// What has this name, which is no text, in the directory with this path.
    NamedBelow(String, Vec<u8>),
}

impl Wanted {
    /// Whether finding it out ends by itself when nothing comes: layers are looked into as long as
    /// something of them does.
    pub(super) fn ends_by_itself(&self) -> bool {
        matches!(self, Self::Below(..) | Self::Named(..) | Self::NamedBelow(..))
    }
}

impl Inside {
    pub(super) fn new(
        inodes: Arc<Inodes>,
        repositories: Arc<Repositories>,
        images: Images,
        catalogue: Catalogue,
        settings: &Settings,
    ) -> Self {
        Self {
            inodes,
            repositories,
            images,
            platform: settings.platform.clone(),
            any_single_platform: settings.options.platforms == PlatformFilter::All,
            tag_ttl: settings.tag_ttl,
            catalogue,
            seen: Mutex::new(LruCache::new(MAX_NAMES)),
            records: Mutex::default(),
            slots: Kept::new(&settings.budget),
            root: OnceLock::new(),
        }
    }

    /// Keeps what was read when images started.
    pub(super) fn finish(&self) {
        self.images.finish_starts();
    }

    /// Finds out what it takes, which is known as long as the result is in use.
    async fn make_known(&self, wanted: &Wanted) -> backend::Result<InUse> {
        Ok(match wanted {
            Wanted::Tag(name) => {
                self.images.resolve(name).await?;
                locked(&self.seen).put(name.to_string(), FileKind::Symlink);
                Arc::new(())
            }
            Wanted::Image(name, digest) => {
                let image = self.images.image(name.repository(), *digest).await?;
                locked(&self.seen).put(name.to_string(), FileKind::Dir);
                image
            }
            Wanted::Platform(image, platform) => {
                Arc::new((image.clone(), self.images.variant(image, platform).await?))
            }
            Wanted::Chain(chain) => Arc::new(self.images.chain(chain).await?),
            Wanted::Below(..) | Wanted::Named(..) | Wanted::NamedBelow(..) => Arc::new(()),
        })
    }
}

impl Inside {
    /// Shows the root file system of `image` in place of everything else. Fails if there is no such
    /// image, or not for the platform.
    pub(super) async fn show_only(&self, image: &Reference) -> Result<(), ViewError> {
        let digest = self.images.manifest(image).await?.digest();
        let opened = self.images.image(image.repository(), digest).await?;
        let unfit = |reason: String| {
            Error::new("image", format_args!("opening {image}"), backend::Kind::Unfit(reason))
        };
        let platform = opened.platform_for(&self.platform).or_else(|| {
            let mut all = opened.platforms();
            all.next().filter(|_| self.any_single_platform && all.next().is_none())
        });
        let Some(platform) = platform else {
            let all: Vec<&str> = opened.platforms().collect();
            let (wanted, all) = (&self.platform, all.join(", "));
            return Err(unfit(format!("it is not for {wanted}; --platform takes: {all}")).into());
        };
        let variant = self.images.variant(&opened, platform).await?;
        let variant = variant.ok_or_else(|| unfit("it has no such platform".into()))?;
        let name = image.repository().pinned(digest);
        let id = self.tree_id(&name, platform, &variant, None);
        // What is wrong with it is told now, and what is mounted never changes.
        let tree = self.made_tree(id).await?;
        self.told(id);
        let _ = self.root.set((id, tree));
        Ok(())
    }

    /// Whether nothing that is shown can change any more: it is one tree, which has been made.
    pub(super) fn is_fixed(&self) -> bool {
        self.root.get().is_some()
    }

    /// Whether all that is shown is fixed and every file of it can be opened.
    pub(super) fn opens_every_file(&self) -> bool {
        self.root.get().is_some_and(|(_, tree)| !tree.rootfs().has_broken())
    }

    // --- names above the trees ---

    /// What `path`, which is below `.imgfs`, leads to.
    pub(super) fn look(&self, path: &str) -> Result<Found, ViewError> {
        let place = self.place(path);
        Ok(match place {
            Place::Nothing => Found::Absent(chains::absent(path)),
            Place::Ask(wanted) => {
                Found::Ask(Question { path: path.to_owned(), about: About::Inside(wanted) })
            }
            Place::Tree(id) => match self.tree(id) {
                Some(tree) => self.found_in_tree(id, &tree, Some(tree.rootfs().root()))?,
                // What its root looks like can be told soon.
                None => {
                    let about = About::Inside(Wanted::Below(id, String::new()));
                    Found::Ask(Question { path: path.to_owned(), about })
                }
            },
            Place::Below(id, rest) => match self.tree(id) {
                Some(tree) => self.found_in_tree(id, &tree, tree.rootfs().find(rest.as_bytes()))?,
                None => {
                    let about = About::Inside(Wanted::Below(id, rest));
                    Found::Ask(Question { path: path.to_owned(), about })
                }
            },
            place => {
                let ino = self.inodes.tell(path, &content_of(&place), Kind::Inside);
                Found::Entry(self.entry_of_place(ino, &place))
            }
        })
    }

    /// Finds out what it takes, and answers the lookup again.
    pub(super) async fn find_out(&self, path: &str, wanted: &Wanted) -> Result<Found, ViewError> {
        let mut wanted = wanted.clone();
        let mut in_use = Vec::new();
        loop {
            match &wanted {
                Wanted::Below(id, rest) => return self.find_out_below(path, *id, rest).await,
                Wanted::Named(id, node, name) => {
                    let tree = self.made_tree(*id).await?;
                    let rootfs = tree.rootfs();
                    let found = rootfs.node(*node).and_then(|node| rootfs.lookup(node, name));
                    return self.found_in_tree(*id, &tree, found);
                }
                Wanted::NamedBelow(above, name) => {
                    let (place, _in_use) = self.place_later(above).await?;
                    let (id, rest) = match place {
                        Place::Below(id, rest) => (id, rest),
                        Place::Tree(id) => (id, String::new()),
                        _ => return Ok(Found::Absent(ABSENT)),
                    };
                    let tree = self.made_tree(id).await?;
                    let path = [rest.as_bytes(), b"/", name].concat();
                    return self.found_in_tree(id, &tree, tree.rootfs().find(&path));
                }
                Wanted::Tag(_) | Wanted::Image(..) | Wanted::Platform(..) | Wanted::Chain(_) => {}
            }
            match self.make_known(&wanted).await {
                Err(error) if error.is_not_found() => return Ok(Found::Absent(ABSENT)),
                done => in_use.push(done?),
            }
            match self.look(path)? {
                Found::Ask(Question { about: About::Inside(next), .. }) => {
                    // A tag holds for no time at all if the user wants that.
                    if let (Wanted::Tag(name), Wanted::Tag(_)) = (&wanted, &next) {
                        let target = self.catalogue.last_resolved(name);
                        let Some(digest) = target else { return Ok(Found::Absent(ABSENT)) };
                        let link = Place::Link(link_to(name, digest));
                        let ino = self.inodes.tell(path, &content_of(&link), Kind::Inside);
                        return Ok(Found::Entry(self.entry_of_place(ino, &link)));
                    }
                    wanted = next;
                }
                found => return Ok(found),
            }
        }
    }

    /// The attributes of `ino`, which is `place`, if they can be told now.
    pub(super) fn attributes_of_place(
        &self,
        ino: u64,
        place: &Place,
    ) -> Result<Option<Entry>, ViewError> {
        match place {
            Place::Nothing => Err(ViewError::Stale),
            Place::Below(id, rest) => Ok(self.attributes_below(ino, *id, rest)),
            // It is a tag, which may lead elsewhere by now.
            Place::Ask(_) => {
                let attributes = Attributes::symlink(ino, 0);
                Ok(Some(Entry { attributes, ttl: Duration::ZERO }))
            }
            place => Ok(Some(self.entry_of_place(ino, place))),
        }
    }

    pub(super) async fn attributes_later(&self, ino: u64) -> Result<Entry, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            return self.attributes_in_tree_later(id, node).await;
        }
        let (place, _in_use) = self.place_later(&self.inodes.path_of(ino)?).await?;
        if let Place::Below(id, rest) = &place {
            let _in_use = self.node_below_later(*id, rest).await?;
            return self.attributes_below(ino, *id, rest).ok_or(ViewError::Stale);
        }
        self.attributes_of_place(ino, &place)?.ok_or(ViewError::Stale)
    }

    /// Opens the file that is `place`, if that takes no time.
    pub(super) fn open_place(&self, place: &Place) -> Result<Option<Handle>, ViewError> {
        Ok(Some(match place {
            Place::File(content) => Handle::Content(content.clone()),
            Place::Fresh(content) => Handle::Fresh(content.clone()),
            Place::Below(id, rest) => match self.node_below(*id, rest) {
                Some((tree, node)) => open_node(&tree, node)?,
                None => return Ok(None),
            },
            Place::Directory(_) | Place::Tree(_) => {
                return Err(ViewError::Wrong(std::io::ErrorKind::IsADirectory));
            }
            Place::Link(_) | Place::Nothing | Place::Ask(_) => return Err(ViewError::Stale),
        }))
    }

    /// Opens the file `ino`, if it is inside an image, however long that takes.
    pub(super) async fn open_later(&self, ino: u64) -> Result<Option<Handle>, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let tree = self.made_tree(id).await?;
            return open_node(&tree, tree.rootfs().node(node).ok_or(ViewError::Stale)?).map(Some);
        }
        let path = self.inodes.path_of(ino)?;
        if names::form(&path) != names::Form::Inside {
            return Ok(None);
        }
        match self.place_later(&path).await? {
            (Place::Below(id, rest), _in_use) => {
                let (tree, node) = self.node_below_later(id, &rest).await?;
                open_node(&tree, node).map(Some)
            }
            (place, _in_use) => self.open_place(&place),
        }
    }

    /// Where the symbolic link `ino` leads, if that can be told now. `None` if [`Inside::link_target`] has
    /// to find it out.
    pub(super) fn link_target_now(&self, ino: u64) -> Result<Option<Bytes>, ViewError> {
        if let Some((id, node)) = self.in_tree(ino) {
            let Some(tree) = self.tree(id) else { return Ok(None) };
            let node = tree.rootfs().node(node).ok_or(ViewError::Stale)?;
            return target_of(&tree, node).map(Some);
        }
        match self.place_now(&self.inodes.path_of(ino)?) {
            Some(Place::Link(target)) => Ok(Some(target.into())),
            Some(Place::Below(id, rest)) => match self.node_below(id, &rest) {
                Some((tree, node)) => target_of(&tree, node).map(Some),
                None => Ok(None),
            },
            // The time for which it holds is over: what it was is better than nothing.
            Some(Place::Ask(Wanted::Tag(name))) => {
                let digest = self.catalogue.last_resolved(&name);
                Ok(digest.map(|digest| link_to(&name, digest).into()))
            }
            None => Ok(None),
            Some(_) => Err(ViewError::Wrong(std::io::ErrorKind::InvalidInput)),
        }
    }

    /// Where the symbolic link `ino` leads, however long it takes to know.
    pub(super) async fn link_target(&self, ino: u64) -> Result<Bytes, ViewError> {
        let mut _in_use: Vec<InUse> = Vec::new();
        if let Some((id, _)) = self.in_tree(ino) {
            _in_use.push(self.made_tree(id).await?);
        } else {
            let (place, held) = self.place_later(&self.inodes.path_of(ino)?).await?;
            _in_use.extend(held);
            match place {
                Place::Below(id, rest) => {
                    let (tree, _) = self.node_below_later(id, &rest).await?;
                    _in_use.push(tree);
                }
                Place::Ask(wanted) => {
                    self.make_known(&wanted).await?;
                }
                _ => {}
            }
        }
        self.link_target_now(ino)?.ok_or(ViewError::Stale)
    }
}

fn target_of(tree: &Tree, node: Node) -> Result<Bytes, ViewError> {
    let target = tree.rootfs().symlink_target(node).map(Bytes::copy_from_slice);
    target.ok_or(ViewError::Wrong(std::io::ErrorKind::InvalidInput))
}
