//! What a failure is to programs: the one place where that is decided.

use std::io;

use fuser::Errno;

use crate::{
    backend::{Error, Kind},
    namespace::{Refusal, ViewError},
};

/// The number that a program gets for `error`.
pub(super) fn errno(error: &ViewError) -> Errno {
    match error {
        ViewError::Stale => Errno::ESTALE,
        ViewError::Offline(_) => Errno::EHOSTUNREACH,
        ViewError::Wrong(kind) => of_io(&io::Error::from(*kind)),
        ViewError::Tree(error) => of_tree(error),
        ViewError::Refused(refusal, _) => of_refusal(*refusal),
        // What the system says of the file that is written is what its writer has to know.
        ViewError::Disk { error, .. } => error.raw_os_error().map_or(Errno::EIO, Errno::from_i32),
    }
}

fn of_refusal(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Invalid => Errno::EINVAL,
        Refusal::Content => Errno::EIO,
        Refusal::Busy => Errno::EBUSY,
        Refusal::NotPermitted => Errno::EPERM,
        Refusal::ReadOnly => Errno::EROFS,
        Refusal::Denied => Errno::EACCES,
        Refusal::NoProject => Errno::ENOENT,
        Refusal::NotEmpty => Errno::ENOTEMPTY,
        Refusal::Exists => Errno::EEXIST,
        Refusal::OtherDevice => Errno::EXDEV,
        Refusal::TooLarge => Errno::EFBIG,
        Refusal::Unsupported => Errno::EOPNOTSUPP,
    }
}

fn of_tree(error: &Error) -> Errno {
    match error.kind() {
        Kind::NotFound(_) => Errno::ENOENT,
        Kind::Unauthorized(_) | Kind::Denied(_) | Kind::ForbiddenAddress(_) => Errno::EACCES,
        Kind::Stalled(_) | Kind::WaitTooLong { .. } => Errno::ETIMEDOUT,
        Kind::Offline => Errno::EHOSTUNREACH,
        Kind::Io(error) => of_io(error),
        Kind::Memory(_) => Errno::ENOMEM,
        // A platform that an image does not have is not there.
        Kind::Unfit(_) => Errno::ENOENT,
        Kind::Status { .. }
        | Kind::Incomplete(_)
        | Kind::Damaged(_)
        | Kind::Layer(_)
        | Kind::Connect(_)
        | Kind::Tls(_)
        | Kind::Interrupted(_)
        | Kind::Store(_)
        | Kind::Protocol(_)
        | Kind::Digest { .. }
        | Kind::Size { .. }
        | Kind::Manifest(_)
        | Kind::Unlisted(_)
        | Kind::Config(_)
        | Kind::InUse(_) => Errno::EIO,
    }
}

fn of_io(error: &io::Error) -> Errno {
    match error.kind() {
        io::ErrorKind::NotFound => Errno::ENOENT,
        io::ErrorKind::PermissionDenied => Errno::EACCES,
        io::ErrorKind::IsADirectory => Errno::EISDIR,
        io::ErrorKind::NotADirectory => Errno::ENOTDIR,
        io::ErrorKind::InvalidFilename => Errno::ENAMETOOLONG,
        _ => Errno::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_told_what_happened() {
        let of = |kind: Kind| errno(&ViewError::Tree(Error::new("registry r", "reading", kind)));
        for (kind, expected) in [
            (Kind::NotFound(String::new()), Errno::ENOENT),
            (Kind::Unauthorized(String::new()), Errno::EACCES),
            (Kind::Denied(String::new()), Errno::EACCES),
            (Kind::Connect(String::new()), Errno::EIO),
            (Kind::Stalled(std::time::Duration::from_secs(1)), Errno::ETIMEDOUT),
            (Kind::Io(io::ErrorKind::PermissionDenied.into()), Errno::EACCES),
            (Kind::Io(io::ErrorKind::StorageFull.into()), Errno::EIO),
        ] {
            let shown = format!("{kind:?}");
            assert_eq!(of(kind).code(), expected.code(), "{shown}");
        }
        assert_eq!(errno(&ViewError::Offline("x".into())).code(), Errno::EHOSTUNREACH.code());
        let too_long = ViewError::Wrong(io::ErrorKind::InvalidFilename);
        assert_eq!(errno(&too_long).code(), Errno::ENAMETOOLONG.code());
    }
}
