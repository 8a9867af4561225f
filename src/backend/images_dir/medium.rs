//! What the file system that an images_dir is on can do, where file systems differ.

use std::{
    ffi::OsStr,
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

use super::Layout;
use crate::backend::ConfinedDir;

/// Types of file systems as `statfs(2)` tells them, with what people call them.
const FILE_SYSTEMS: [(u32, &str); 9] = [
    (MSDOS, "FAT"),
    (EXFAT, "exFAT"),
    (FUSE, "a FUSE file system, such as those for exFAT and NTFS"),
    (0x5346_544e, "NTFS"),
    (0x7366_746e, "NTFS"),
    (0xff53_4d42, "SMB"),
    (0xfe53_4d42, "SMB"),
    (0x0102_1997, "9p, as of a virtual machine"),
    (0x786f_4256, "a shared folder of VirtualBox"),
];

const MSDOS: u32 = 0x4d44;
const EXFAT: u32 = 0x2011_bab0;
const FUSE: u32 = 0x6573_5546;

/// File systems on other machines.
const REMOTE: [u32; 7] = [
    0x6969, // NFS
    0x517b, // SMB, and the newer two of its drivers
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997, // 9p
    0x00c3_6400, // Ceph
    0x5346_414f, // AFS
];

/// File systems without a disk.
const IN_MEMORY: [u32; 2] = [
    0x0102_1994, // tmpfs
    0x8584_58f6, // ramfs
];

/// Whether the directory is on another machine: what that cannot take, such as for the lack of space, may only be
/// told when a file is flushed.
pub(super) fn is_remote(root: &ConfinedDir) -> bool {
    file_system(root).is_some_and(|kind| REMOTE.contains(&kind))
}

/// Whether the directory is on no disk.
pub(super) fn is_in_memory(root: &ConfinedDir) -> bool {
    file_system(root).is_some_and(|kind| IN_MEMORY.contains(&kind))
}

/// The type of the file system that the directory is on.
fn file_system(root: &ConfinedDir) -> Option<u32> {
    let dir = root.open_dir(root.path()).ok()?;
    let stat = rustix::fs::fstatfs(&dir).ok()?;
    // The numbers have 32 bits, in a field that is wider and signed on some platforms.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Some(stat.f_type as u32)
}

/// What people call the file system, in brackets; nothing if it is none of those that differ.
pub(super) fn describe(root: &ConfinedDir) -> String {
    let kind = file_system(root);
    let known = FILE_SYSTEMS.iter().find(|(number, _)| Some(*number) == kind);
    known.map(|(_, name)| format!(" ({name})")).unwrap_or_default()
}

/// Whether what has been found out of a file holds as long as its inode number, size and times are the same,
/// also for another process. FAT and exFAT have no inode numbers, those that are shown begin anew with each
/// mount, and a stick may have been written to elsewhere in the meantime.
pub(super) fn knows_files_again(root: &ConfinedDir, layout: Layout) -> bool {
    match file_system(root) {
        Some(MSDOS | EXFAT) => false,
        // Some of them do. Those that take names with colons are taken for such.
        Some(FUSE) => layout != Layout::Portable,
        _ => true,
    }
}

/// Whether a file in the directory of `root` can have a name with a colon. Creates such a file, and removes it.
///
/// A file system may refuse it, with one error or another; NTFS may take it for the name of a stream of another
/// file.
pub(super) fn takes_colons(root: &ConfinedDir) -> io::Result<bool> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let plain = format!(".imgfs-{}-{number}", std::process::id());
        let name = format!("{plain}:x");
        let [plain_path, path] = [&plain, &name].map(|name| root.path().join(name));
        match root.create_new(&path) {
            Ok(_) => {
                let names = root.open_dir(root.path()).and_then(|dir| dir.entries());
                let is_there = |entries: Vec<_>| has_name(&entries, &name);
                let taken = names.map(is_there);
                root.remove_if_there(&path)?;
                root.remove_if_there(&plain_path)?;
                return taken;
            }
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            // Unless nothing at all can be created, it is the name.
            Err(_) => match root.create_new(&plain_path) {
                Ok(_) => return root.remove_file(&plain_path).map(|()| false),
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            },
        }
    }
}

/// Whether the file `path` of `root` is there under another spelling only, in capitals and small letters: a file
/// system that does not tell them apart gives `A` to whoever asks for `a`.
pub(super) fn is_another_spelling(root: &ConfinedDir, path: &Path) -> io::Result<bool> {
    let (Some(above), Some(name)) = (path.parent(), path.file_name().and_then(OsStr::to_str))
    else {
        return Ok(false);
    };
    let inode = |path: &Path| match root.stat(path) {
        Ok(meta) => Ok(Some((meta.dev(), meta.ino()))),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    };
    let swapped = name.chars().map(|letter| match letter.is_ascii_lowercase() {
        true => letter.to_ascii_uppercase(),
        false => letter.to_ascii_lowercase(),
    });
    let swapped: String = swapped.collect();
    // Where each has a file of its own, or there are no letters, the names are told apart.
    if swapped == name
        || inode(path)?.is_none_or(|own| inode(&above.join(&swapped)).ok().flatten() != Some(own))
    {
        return Ok(false);
    }
    Ok(!has_name(&root.open_dir(above)?.entries()?, name))
}

fn has_name(entries: &[crate::backend::DirEntry], name: &str) -> bool {
    entries.iter().any(|entry| entry.name == *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_file_system_takes_colons_and_keeps_nothing_of_the_trial() {
        let dir = tempfile::tempdir().unwrap();
        let root = ConfinedDir::open(dir.path()).unwrap();
        assert!(takes_colons(&root).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let [file, other] = ["A", "a"].map(|name| dir.path().join(name));
        std::fs::write(&file, "x").unwrap();
        assert!(!is_another_spelling(&root, &file).unwrap());
        assert!(!is_another_spelling(&root, &other).unwrap());
        assert_eq!(describe(&root), "");
        assert!(knows_files_again(&root, Layout::Portable));
    }
}
