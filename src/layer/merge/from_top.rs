//! Looking up one path before all layers are known.

use super::{Kind, Node, Rootfs, build::OPAQUE};

/// What is known of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is what the layer with this number has as this node of [`Rootfs::raw`].
    Node {
        /// The number of the layer.
        layer: usize,
        /// The node in that layer's own tree.
        node: Node,
    },
    /// It is not there.
    Missing,
    /// The layer with this number has to be known first.
    Waits(usize),
    /// Only the merged tree can tell: it is a hard link, what it is in is one, a layer has different things of the
    /// same name, or it is the root of layers that have nothing in them.
    NeedsMerge,
}

/// What one layer says.
enum Said {
    Found(Node),
    /// A directory that the layer has no entry for: a lower one may have.
    Implied(Node),
    /// What lower layers have of it is not to be seen.
    Hidden,
    Nothing,
    NeedsMerge,
}

/// What a container sees at `path`, as far as that can be told. `layers` are the trees of the
/// layers, [`Rootfs::raw`], from the lowest to the highest; `None` where one is not known yet. A
/// hit in an upper layer does not need the lower ones.
pub fn find_from_top(layers: &[Option<&Rootfs>], path: &[u8]) -> Found {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|n| !n.is_empty()).collect();
    if names.iter().any(|name| name.starts_with(b".wh.")) {
        return Found::Missing;
    }
    let mut implied = None;
    let or_implied = |implied: Option<Found>| implied.unwrap_or(Found::Missing);
    for (number, layer) in layers.iter().enumerate().rev() {
        let Some(layer) = layer else { return Found::Waits(number) };
        match ask(layer, &names) {
            Said::Found(node) => {
                let is_dir = layer.attributes(node).kind == Kind::Dir;
                // A file under an implied directory is not to be seen.
                return match implied {
                    Some(found) if !is_dir => found,
                    _ => Found::Node { layer: number, node },
                };
            }
            Said::Implied(node) => {
                implied = Some(Found::Node { layer: number, node });
            }
            Said::Hidden => return or_implied(implied),
            Said::NeedsMerge => return Found::NeedsMerge,
            Said::Nothing => {}
        }
    }
    match implied {
        // The root is there in any case, even if no layer has anything in it.
        None if names.is_empty() => Found::NeedsMerge,
        implied => or_implied(implied),
    }
}

fn ask(layer: &Rootfs, names: &[&[u8]]) -> Said {
    let mut dir = layer.root();
    let mut is_hidden = false;
    for (at, name) in names.iter().enumerate() {
        let whiteout = [b".wh.", *name].concat();
        is_hidden |= layer.lookup(dir, OPAQUE).is_some() || layer.lookup(dir, &whiteout).is_some();
        match layer.lookup(dir, name) {
            None if is_hidden => return Said::Hidden,
            None => return Said::Nothing,
            Some(node) if layer.broken(node).is_some() => return Said::NeedsMerge,
            Some(node) if layer.attributes(node).kind == Kind::Dir => {
                if layer.is_anew(node) {
                    return Said::NeedsMerge;
                }
                dir = node;
            }
            Some(node) if at + 1 == names.len() => return Said::Found(node),
            // Something that is no directory has nothing in it.
            Some(_) => return Said::Hidden,
        }
    }
    match layer.is_implied(dir) {
        false => Said::Found(dir),
        // Whiteouts alone make no directory.
        true if !has_more_than_whiteouts(layer, dir) && is_hidden => Said::Hidden,
        true if !has_more_than_whiteouts(layer, dir) => Said::Nothing,
        true if is_hidden => Said::Found(dir),
        true => Said::Implied(dir),
    }
}

fn has_more_than_whiteouts(layer: &Rootfs, dir: Node) -> bool {
    let mut dirs = vec![dir];
    while let Some(dir) = dirs.pop() {
        for (name, node) in layer.entries(dir) {
            if name.starts_with(b".wh.") {
                continue;
            }
            if !layer.is_implied(node) || layer.is_anew(node) {
                return true;
            }
            dirs.push(node);
        }
    }
    false
}
