//! Trees of files as `lstat`, `read` and `getxattr` tell of them, and what differs between two of them.

use super::content::digest_of_reader;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    Char,
    Block,
    Fifo,
    Other,
}

/// One entry, under its path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: Kind,
    /// Without the type.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Of a file or of a symbolic link.
    pub(crate) size: u64,
    pub(crate) mtime: (i64, u32),
    pub(crate) links: u64,
    /// The first of all paths that share its inode.
    pub(crate) first_name: Vec<u8>,
    pub(crate) device: (u32, u32),
    /// The digest of a file's bytes, or why they cannot be read.
    pub(crate) content: String,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// By path, without `/` at its ends; the root's is empty.
pub(crate) type Snapshot = BTreeMap<Vec<u8>, Item>;

/// The names that imgfs adds.
const ADDED: &[u8] = b"user.imgfs.";

/// All that is in a directory, and itself. What cannot be looked at is a panic; what cannot be read is noted.
pub(crate) fn snapshot(root: &Path) -> Snapshot {
    let mut found = BTreeMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let metadata =
            std::fs::symlink_metadata(&full).unwrap_or_else(|error| told_of(&full, &error));
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap_or_else(|error| told_of(&full, &error)) {
                let name = entry.unwrap_or_else(|error| told_of(&full, &error)).file_name();
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                waiting.push([&path, slash, name.as_bytes()].concat());
            }
        }
        let known = found.insert(path, metadata);
        assert!(known.is_none(), "{} is listed twice", full.display());
    }
    // In the order of the paths, so that the first name is the same whoever lists.
    let mut first_names = HashMap::new();
    let described = found.into_iter().map(|(path, metadata)| {
        let mut item = describe(&root.join(OsStr::from_bytes(&path)), &metadata);
        item.first_name = if item.links < 2 || item.kind == Kind::Dir {
            path.clone()
        } else {
            let inode = (metadata.dev(), metadata.ino());
            first_names.entry(inode).or_insert_with(|| path.clone()).clone()
        };
        (path, item)
    });
    described.collect()
}

fn told_of<T>(path: &Path, error: &std::io::Error) -> T {
    panic!("{}: {error}", path.display())
}

fn describe(path: &Path, metadata: &Metadata) -> Item {
    let file_type = metadata.file_type();
    let kind = match () {
        () if file_type.is_file() => Kind::File,
        () if file_type.is_dir() => Kind::Dir,
        () if file_type.is_symlink() => Kind::Symlink,
        () if file_type.is_char_device() => Kind::Char,
        () if file_type.is_block_device() => Kind::Block,
        () if file_type.is_fifo() => Kind::Fifo,
        () => Kind::Other,
    };
    let is_device = matches!(kind, Kind::Char | Kind::Block);
    let device = if is_device { metadata.rdev() } else { 0 };
    let content = match kind {
        Kind::File => std::fs::File::open(path)
            .and_then(|mut file| digest_of_reader(&mut file))
            .unwrap_or_else(|error| error.to_string()),
        _ => String::new(),
    };
    let target = match kind {
        Kind::Symlink => std::fs::read_link(path).unwrap_or_else(|error| told_of(path, &error)),
        _ => PathBuf::new(),
    };
    Item {
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        size: if kind == Kind::Dir { 0 } else { metadata.size() },
        mtime: (
            metadata.mtime(),
            u32::try_from(metadata.mtime_nsec()).expect("less than a second"),
        ),
        links: metadata.nlink(),
        first_name: Vec::new(),
        device: (rustix::fs::major(device), rustix::fs::minor(device)),
        content,
        target: target.into_os_string().into_vec(),
        xattrs: xattrs(path),
    }
}

/// The extended attributes that the file itself has.
pub(crate) fn xattrs(path: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut list = vec![0; 1 << 16];
    let length = match rustix::fs::llistxattr(path, &mut list[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => panic!("listing the attributes of {}: {error}", path.display()),
    };
    let names = list[..length].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty() && !name.starts_with(ADDED))
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..])
                .unwrap_or_else(|error| {
                    panic!("{} of {}: {error}", name.escape_ascii(), path.display())
                });
            value.truncate(length);
            (name.to_vec(), value)
        })
        .collect()
}

/// What differs, a line each: `PATH: MODE is X, not Y`. `allowed` may let a difference pass.
pub(crate) fn differences(
    wanted: &Snapshot,
    found: &Snapshot,
    allowed: impl Fn(&Difference<'_>) -> bool,
) -> Vec<String> {
    let mut lines = Vec::new();
    let paths: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    for path in paths {
        for difference in differences_at(path, wanted.get(path), found.get(path)) {
            if !allowed(&difference) {
                let Difference { path, what, wanted, found, .. } = difference;
                lines.push(format!("/{}: {what} is {found}, not {wanted}", path.escape_ascii()));
            }
        }
    }
    lines
}

/// Panics with what differs.
#[track_caller]
pub(crate) fn assert_same(wanted: &Snapshot, found: &Snapshot) {
    let lines = differences(wanted, found, |_| false);
    assert!(lines.is_empty(), "{} differences:\n{}", lines.len(), shortened(&lines));
}

/// The first of many lines.
pub(crate) fn shortened(lines: &[String]) -> String {
    let mut text = lines.iter().take(60).cloned().collect::<Vec<_>>().join("\n");
    if lines.len() > 60 {
        text.push_str("\n...");
    }
    text
}

/// One thing that is not the same.
pub(crate) struct Difference<'a> {
    pub(crate) path: &'a [u8],
    /// The name of the attribute; `entry` if there is none on one side.
    pub(crate) what: &'static str,
    pub(crate) kind: Kind,
    pub(crate) wanted: String,
    pub(crate) found: String,
}

fn differences_at<'a>(
    path: &'a [u8],
    wanted: Option<&Item>,
    found: Option<&Item>,
) -> Vec<Difference<'a>> {
    let kind = wanted.or(found).map_or(Kind::Other, |item| item.kind);
    let (Some(wanted), Some(found)) = (wanted, found) else {
        let shown = |item: Option<&Item>| {
            item.map_or("nothing".to_owned(), |item| format!("{:?}", item.kind))
        };
        let (wanted, found) = (shown(wanted), shown(found));
        return vec![Difference { path, what: "entry", kind, wanted, found }];
    };
    let mut all = Vec::new();
    let mut same = |what, wanted: String, found: String| {
        if wanted != found {
            all.push(Difference { path, what, kind, wanted, found });
        }
    };
    let text = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let attributes = |item: &Item| {
        let pairs =
            item.xattrs.iter().map(|(name, value)| format!("{}={}", text(name), text(value)));
        pairs.collect::<Vec<_>>().join(" ")
    };
    same("kind", format!("{:?}", wanted.kind), format!("{:?}", found.kind));
    same("mode", format!("{:o}", wanted.mode), format!("{:o}", found.mode));
    same("owner", wanted.uid.to_string(), found.uid.to_string());
    same("group", wanted.gid.to_string(), found.gid.to_string());
    same("size", wanted.size.to_string(), found.size.to_string());
    same("mtime", format!("{:?}", wanted.mtime), format!("{:?}", found.mtime));
    same("links", wanted.links.to_string(), found.links.to_string());
    same("first name", text(&wanted.first_name), text(&found.first_name));
    same("device", format!("{:?}", wanted.device), format!("{:?}", found.device));
    same("content", wanted.content.clone(), found.content.clone());
    same("target", text(&wanted.target), text(&found.target));
    same("xattrs", attributes(wanted), attributes(found));
    all
}
