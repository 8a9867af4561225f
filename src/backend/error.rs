//! What goes wrong with a tree: on which side, in which operation, with which object, and why.

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use crate::{
    image::{Digest, ManifestError},
    util::OutOfMemory,
};

/// Shorthand for results of this floor.
pub type Result<T> = std::result::Result<T, Error>;

/// An error with its place. Cheap to clone, since one blob's error is many images' error.
#[derive(Clone, Debug)]
pub struct Error(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    side: String,
    doing: String,
    /// The other host at which it went wrong, if the side has led there.
    host: Option<String>,
    kind: Kind,
    attempts: u32,
    /// Nobody is to try again: that has been done.
    settled: bool,
}

/// The causes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Kind {
    /// The name or content does not exist there.
    #[error("not found{}", detail(.0))]
    NotFound(String),
    /// Credentials are missing or wrong.
    #[error("not authorised{}", detail(.0))]
    Unauthorized(String),
    /// The credentials do not suffice.
    #[error("access denied{}", detail(.0))]
    Denied(String),
    /// The registry asked to wait, for longer than allowed.
    #[error("the registry {}{}", too_long(wait), detail(message))]
    WaitTooLong {
        /// What `Retry-After` asked for.
        wait: Duration,
        /// What the body said.
        message: String,
    },
    /// The registry answered with an error status.
    #[error("the registry answered {status}{}", detail(.message))]
    Status {
        /// HTTP status.
        status: u16,
        /// What the body said.
        message: String,
        /// What `Retry-After` asked for.
        retry_after: Option<Duration>,
    },
    /// The registry lacks what a manifest names.
    #[error("the registry says that parts of it are missing there{}", detail(.0))]
    Incomplete(String),
    /// No connection could be made.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// The address is one to which imgfs connects only if the user has named the host.
    #[error("not connecting: {0}")]
    ForbiddenAddress(String),
    /// TLS could not be agreed on, or the certificate is not trusted.
    #[error("TLS failed: {0}")]
    Tls(String),
    /// The connection broke, or ended before all bytes had come.
    #[error("the connection broke: {0}")]
    Interrupted(String),
    /// An object store has failed, or could not be asked, however often it was tried.
    #[error("{0}")]
    Store(String),
    /// Not a byte came for too long.
    #[error("no byte came for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    /// The answer breaks the distribution specification.
    #[error("the registry's answer makes no sense: {0}")]
    Protocol(String),
    /// Content does not have the digest it is named by.
    #[error("digest mismatch: expected {expected}, found {found}")]
    Digest {
        /// The name.
        expected: Digest,
        /// What the bytes hash to.
        found: Digest,
    },
    /// Content does not have the size that its descriptor states.
    #[error("size mismatch: expected {expected} bytes, found {found}")]
    Size {
        /// What the descriptor says, in bytes.
        expected: u64,
        /// What is there, in bytes.
        found: u64,
    },
    /// A file of an images_dir is not what its name says.
    #[error("{0}")]
    Damaged(Box<Kind>),
    /// The registry does not tell which repositories it has.
    #[error("{0}")]
    Unlisted(String),
    /// It is not local, and the network is not to be used.
    #[error("it is not local, and imgfs is offline")]
    Offline,
    /// What is inside a layer cannot be read.
    #[error("{0}")]
    Layer(String),
    /// A manifest cannot be read.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// A request that cannot be met, such as a platform that an image does not have.
    #[error("{0}")]
    Unfit(String),
    /// There is no room for it in memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// The configuration (credentials, certificates, layout) is wrong.
    #[error("{0}")]
    Config(String),
    /// Another process has it to itself.
    #[error("{0}")]
    InUse(String),
    /// The file system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
}

fn too_long(wait: &Duration) -> String {
    format!("asks to wait {} s, which is more than --max-wait allows", wait.as_secs())
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Error {
    /// An error on `side` (`registry quay.io`, `images_dir /x`) while `doing` something to an
    /// object (`fetching blob sha256:...`).
    ///
    /// ```
    /// use imgfs::backend::{Error, Kind};
    ///
    /// let error = Error::new("registry quay.io", "looking up quay.io/a:1", Kind::NotFound(String::new()));
    /// assert!(error.is_not_found() && !error.is_transient());
    /// assert!(error.to_string().contains("looking up quay.io/a:1"));
    /// let full = Error::new("images_dir /x", "writing y", std::io::Error::from(std::io::ErrorKind::StorageFull));
    /// assert!(full.is_no_space());
    /// ```
    pub fn new(side: impl fmt::Display, doing: impl fmt::Display, kind: impl Into<Kind>) -> Self {
        let (side, doing) = (side.to_string(), doing.to_string());
        let kind = kind.into();
        Self(Arc::new(Inner { side, doing, host: None, kind, attempts: 1, settled: false }))
    }

    /// The same error, at `host`, to which the side has led.
    pub(crate) fn at(self, host: &str) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { host: Some(host.to_owned()), ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// An input or output error at `path`.
    pub fn io(path: &Path, doing: &str, error: io::Error) -> Self {
        Self::new("images_dir", format_args!("{doing} {}", path.display()), error)
    }

    /// The same error after so many attempts, which were all.
    pub(crate) fn after(self, attempts: u32) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { attempts, settled: true, ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// The same error on a side that uses another one.
    pub(super) fn on(self, side: &str) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(inner) => Self(Arc::new(Inner { side: side.to_owned(), ..inner })),
            Err(shared) => Self(shared),
        }
    }

    /// The same trouble, seen as something else.
    pub(crate) fn with_kind(&self, kind: Kind) -> Self {
        let same = Self::new(&self.0.side, &self.0.doing, kind);
        match &self.0.host {
            Some(host) => same.at(host),
            None => same,
        }
    }

    /// The cause.
    pub fn kind(&self) -> &Kind {
        &self.0.kind
    }

    /// What was being done, and on which side, without what went wrong.
    pub(crate) fn operation(&self) -> String {
        format!("{}: {}", self.0.side, self.0.doing)
    }

    /// Whether the object does not exist there.
    pub fn is_not_found(&self) -> bool {
        matches!(self.kind(), Kind::NotFound(_))
    }

    /// Whether another process has it to itself.
    pub fn is_in_use(&self) -> bool {
        matches!(self.kind(), Kind::InUse(_))
    }

    /// Whether it went wrong at another host, to which the side has led: that says nothing about the
    /// side itself.
    pub fn is_elsewhere(&self) -> bool {
        self.0.host.is_some()
    }

    /// Whether another repository may well have what this one does not give.
    pub fn is_refusal(&self) -> bool {
        matches!(self.kind(), Kind::NotFound(_) | Kind::Denied(_) | Kind::Unauthorized(_))
    }

    /// Whether content came that is another than was asked for.
    pub fn is_mismatch(&self) -> bool {
        matches!(self.kind(), Kind::Digest { .. } | Kind::Size { .. })
    }

    /// Whether the other side has found that it lacks what a manifest names.
    pub fn is_incomplete(&self) -> bool {
        matches!(self.kind(), Kind::Incomplete(_))
    }

    /// Whether the same request may well succeed a moment later.
    pub fn is_transient(&self) -> bool {
        if self.0.settled {
            return false;
        }
        match self.kind() {
            Kind::Status { status, .. } => matches!(status, 408 | 429 | 500 | 502 | 503 | 504),
            Kind::Connect(_)
            | Kind::Interrupted(_)
            | Kind::Store(_)
            | Kind::Stalled(_)
            | Kind::Protocol(_)
            | Kind::Digest { .. }
            | Kind::Size { .. } => true,
            _ => false,
        }
    }

    /// Whether there was no room in memory because of what others use, and give back.
    pub fn is_short_of_memory(&self) -> bool {
        matches!(self.kind(), Kind::Memory(error) if error.is_transient())
    }

    /// Whether the disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self.kind(), Kind::Io(e)
            if matches!(e.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
    }

    /// What the user can do about it, if there is something.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self.kind() {
            Kind::Unauthorized(_) | Kind::Denied(_) if self.is_elsewhere() => {
                "it is for the registry to let you in there: run the same command again, and tell the registry's owner if that does not help"
            }
            Kind::Unauthorized(m) | Kind::Denied(m)
                if m.contains("project") && m.contains("not found") =>
            {
                "the project must be there before anything in it; a push or copy creates it with --create-projects"
            }
            Kind::Unauthorized(_) => {
                "give credentials with --auths FILE, --username and --password-stdin, or store them with `imgfs login` (what docker and podman have stored is read, too)"
            }
            Kind::Denied(_) => {
                "these credentials lack the right to do this; ask the registry's owner"
            }
            Kind::Tls(m) if m.contains("plain HTTP") => {
                "the registry speaks HTTP, not HTTPS: use --plain-http, or plain_http in --auths"
            }
            Kind::Tls(m) if m.contains("marked as an authority") => {
                "have the certificate issued by an authority of your own and give that with --ca-file, or skip the check with --insecure"
            }
            Kind::Tls(_) => {
                "give the registry's CA with --ca-file, or skip the check with --insecure"
            }
            // That of another medium says it all.
            Kind::Connect(_) if !self.0.side.starts_with("registry") => return None,
            Kind::Connect(_) => {
                "check the registry's name, the network, and HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
            }
            Kind::Unlisted(_) => {
                "not every registry lists its repositories, and few do for everybody; name one to see its tags: imgfs ls registry://HOST/REPOSITORY"
            }
            Kind::ForbiddenAddress(_) => {
                "if this host is meant, name it: in --registries of a mount, or by an entry for it in --auths"
            }
            Kind::WaitTooLong { .. } => "run the same command later, or raise --max-wait",
            Kind::Store(_) => {
                "run the same command again: what has been stored is kept; if it fails every time, check the name of the bucket, and the endpoint and the region in the environment"
            }
            Kind::Stalled(_) => {
                "run the same command again: a directory keeps what has been fetched"
            }
            // The refusal of a client without certificate often arrives as nothing else.
            Kind::Interrupted(_) => {
                "run the same command again: a directory keeps what has been fetched; if it breaks every time, the registry may want a client certificate (cert_file and key_file in --auths)"
            }
            Kind::Io(_) if self.is_no_space() => match self.0.side.as_str() {
                "images_dir" => {
                    "free some space and run the same command again: a directory keeps what has been fetched"
                }
                _ => "free some space and run the same command again",
            },
            Kind::Io(e) if e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
                match self.0.side.as_str() {
                    "cache" => "give a directory that can be written to: --cache-dir DIR",
                    "images_dir" => {
                        "this file system can only be read: `imgfs mount --cache-dir DIR` and `imgfs serve --read-only` show what is there"
                    }
                    _ => return None,
                }
            }
            Kind::Damaged(_) => {
                "`imgfs verify --repair` fetches again what is broken or missing in a directory"
            }
            Kind::Digest { .. } | Kind::Size { .. } => {
                "what the source holds, or a proxy on the way to it, is damaged; nothing of it was kept"
            }
            _ => return None,
        })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: ", self.0.side, self.0.doing)?;
        match (&self.0.host, &self.0.kind) {
            (None, kind) => write!(f, "{kind}")?,
            (Some(host), Kind::Status { status, message, .. }) => {
                write!(f, "{host}, to which it leads, answered {status}{}", detail(message))?;
            }
            (Some(host), Kind::WaitTooLong { wait, message }) => {
                write!(f, "{host}, to which it leads, {}{}", too_long(wait), detail(message))?;
            }
            (Some(host), kind) => write!(f, "at {host}, to which it leads: {kind}")?,
        }
        match self.0.attempts {
            0 | 1 => Ok(()),
            attempts => write!(f, " (after {attempts} attempts)"),
        }
    }
}

impl std::error::Error for Error {}
