//! Sockets for programs of root on this machine.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt},
        net::UnixStream,
    },
    path::Path,
};

use tokio::net::UnixListener;

/// Nobody else may connect.
const MODE: u32 = 0o600;

/// A socket that only root can connect to, open.
pub struct LocalListener(UnixListener);

impl LocalListener {
    /// Listens at `path`, with mode 0600; the directory above is created if need be. What a process that has ended
    /// has left there is replaced. Has to be called in a runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir)?;
        }
        let is_left = fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
            && UnixStream::connect(path).is_err();
        if is_left {
            fs::remove_file(path)?;
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, Permissions::from_mode(MODE))?;
        Ok(Self(listener))
    }

    /// A socket that somebody else has opened. Has to be called in a runtime.
    pub fn from_std(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self)
    }

    pub(crate) fn into_inner(self) -> UnixListener {
        self.0
    }
}
