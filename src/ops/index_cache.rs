//! Where a user keeps what has been found out of images that are in no images_dir.

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use crate::{backend::ConfinedDir, rootfs::IndexCache};

/// Writable by the group or by others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The directory of the user who runs this process for what has been found out of images, with at most
/// `limit_bytes`: `$XDG_CACHE_HOME/imgfs`, or `~/.cache/imgfs`. It is created with mode 0700.
///
/// `None` if there is no such place, or if others can write there: what is in it is believed when it
/// fits its digests, and an index says what a layer contains. Nothing is created in the home of somebody
/// else, as by root with `sudo`.
///
/// ```
/// use imgfs::ops::user_index_cache;
///
/// if let Some(cache) = user_index_cache(1 << 30) {
///     assert!(cache.dir.path().ends_with("imgfs"));
/// }
/// ```
pub fn user_index_cache(limit_bytes: u64) -> Option<IndexCache> {
    let path = place(env::var_os("XDG_CACHE_HOME"), env::var_os("HOME"))?;
    open(&path, limit_bytes)
}

/// The same directory, if it can be used.
pub(super) fn user_dir() -> Option<PathBuf> {
    user_index_cache(0).map(|cache| cache.dir.path().to_owned())
}

/// Where it is. A variable that is no absolute path counts as not set (XDG base directory
/// specification).
fn place(cache_home: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let absolute = |path: OsString| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
    let base = cache_home.and_then(absolute);
    let base = base.or_else(|| home.and_then(absolute).map(|home| home.join(".cache")))?;
    Some(base.join("imgfs"))
}

fn open(path: &Path, limit_bytes: u64) -> Option<IndexCache> {
    let user = rustix::process::geteuid();
    if fs::symlink_metadata(path).is_err() {
        let above = path.ancestors().skip(1).find_map(|above| fs::metadata(above).ok())?;
        if user.is_root() && above.uid() != 0 {
            return None;
        }
        DirBuilder::new().recursive(true).mode(0o700).create(path).ok()?;
    }
    // Of a link, the link: somebody else's may lead anywhere.
    if fs::symlink_metadata(path).ok()?.uid() != user.as_raw() {
        return None;
    }
    let dir = ConfinedDir::open(path).ok()?;
    // What has been opened, whatever the path leads to now.
    let opened = rustix::fs::fstat(dir.open_dir(path).ok()?).ok()?;
    let is_own = opened.st_uid == user.as_raw() && opened.st_mode & WRITABLE_BY_OTHERS == 0;
    is_own.then_some(IndexCache { dir, limit_bytes })
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_place_is_what_the_specification_says() {
        for (cache_home, home, expected) in [
            (Some("/c"), Some("/h"), Some("/c/imgfs")),
            (None, Some("/h"), Some("/h/.cache/imgfs")),
            (Some(""), Some("/h"), Some("/h/.cache/imgfs")),
            (Some("relative"), Some("/h"), Some("/h/.cache/imgfs")),
            (None, Some("relative"), None),
            (None, None, None),
        ] {
            let found = place(cache_home.map(OsString::from), home.map(OsString::from));
            assert_eq!(found.as_deref(), expected.map(Path::new), "{cache_home:?} {home:?}");
        }
    }

    #[test]
    fn it_is_created_for_the_user_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cache/imgfs");
        assert!(open(&path, 1).is_some());
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o700);
        assert!(open(&path, 1).is_some());
    }

    #[test]
    fn what_others_can_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imgfs");
        fs::create_dir(&path).unwrap();
        for (mode, is_used) in [(0o700, true), (0o755, true), (0o770, false), (0o702, false)] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(open(&path, 1).is_some(), is_used, "{mode:o}");
        }
        let file = dir.path().join("file");
        fs::write(&file, b"").unwrap();
        assert!(open(&file, 1).is_none());
    }

    #[test]
    fn what_belongs_to_somebody_else_is_not_used() {
        if !rustix::process::geteuid().is_root() {
            // Only root can give a directory away; `/` is somebody else's then.
            assert!(open(Path::new("/"), 1).is_none());
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("home/imgfs");
        fs::create_dir_all(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), None).unwrap();
        assert!(open(&path, 1).is_none());
        std::os::unix::fs::chown(path.parent().unwrap(), Some(65534), None).unwrap();
        fs::remove_dir(&path).unwrap();
        assert!(open(&path, 1).is_none() && !path.exists());
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        assert!(open(&link, 1).is_some());
        std::os::unix::fs::lchown(&link, Some(65534), None).unwrap();
        assert!(open(&link, 1).is_none());
    }
}
