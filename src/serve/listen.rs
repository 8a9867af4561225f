//! Where is listened: addresses as people write them, and the sockets behind them.

use std::{
    fmt::{self, Display, Formatter},
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
};

use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::stream::Stream;

/// Where to listen: `127.0.0.1:5000`, `[::1]:5000`, `localhost:5000`, `:5000` for all addresses of the machine, or
/// `unix:/run/imgfs.sock`. Port 0 is a free one.
///
/// ```
/// use imgfs::serve::Address;
///
/// assert_eq!("127.0.0.1:5000".parse::<Address>()?.to_string(), "127.0.0.1:5000");
/// assert!("localhost:0".parse::<Address>()?.is_loopback());
/// assert!(!":5000".parse::<Address>()?.is_loopback());
/// assert!("unix:/run/imgfs.sock".parse::<Address>()?.is_loopback());
/// assert!("5000".parse::<Address>().is_err());
/// # Ok::<(), imgfs::serve::AddressError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An IP address and a port.
    Tcp(SocketAddr),
    /// The path of a socket. What a process that has ended has left there is replaced.
    Unix(PathBuf),
}

/// A text is no address to listen at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address to listen at; write it as in 127.0.0.1:5000, [::1]:5000, :5000 or unix:/run/imgfs.sock"
)]
pub struct AddressError(String);

impl Address {
    /// Whether only programs of this machine can get there.
    pub fn is_loopback(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    /// Opens the socket. Connections are taken from now on, and wait until they are accepted.
    pub(super) async fn bind(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => TcpListener::bind(address).await.map(Listener::Tcp),
            Self::Unix(path) => bind_unix(path).await.map(Listener::Unix),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError(text.chars().take(200).collect());
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.is_empty() {
                true => Err(wrong()),
                false => Ok(Self::Unix(path.into())),
            };
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Tcp(address));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        match host {
            "localhost" => Ok(Self::Tcp((Ipv4Addr::LOCALHOST, port).into())),
            "" | "*" => Ok(Self::Tcp((Ipv6Addr::UNSPECIFIED, port).into())),
            _ => Err(wrong()),
        }
    }
}

impl Display for Address {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The sockets that a service manager has opened for this process (`LISTEN_FDS`, as systemd does).
pub(super) struct Inherited;

impl Inherited {
    /// Takes them; none if the process was not started so.
    pub(super) fn take() -> io::Result<Vec<Listener>> {
        let mut passed = ListenFd::from_env();
        let mut listeners = Vec::new();
        for number in 0..passed.len() {
            // Each of them is of one kind only, and a wrong question does not take it away.
            if let Ok(Some(tcp)) = passed.take_tcp_listener(number) {
                tcp.set_nonblocking(true)?;
                listeners.push(Listener::Tcp(TcpListener::from_std(tcp)?));
            } else if let Ok(Some(unix)) = passed.take_unix_listener(number) {
                unix.set_nonblocking(true)?;
                listeners.push(Listener::Unix(UnixListener::from_std(unix)?));
            } else {
                let message =
                    "the service manager has passed a socket that nothing can be accepted at";
                return Err(io::Error::other(message));
            }
        }
        Ok(listeners)
    }
}

/// Binds the socket at `path`. One that nobody listens at any more is replaced.
async fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(e) if e.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(path).await.is_ok() {
                return Err(e);
            }
            let is_socket = std::fs::symlink_metadata(path).is_ok_and(|meta| {
                use std::os::unix::fs::FileTypeExt;
                meta.file_type().is_socket()
            });
            if !is_socket {
                return Err(e);
            }
            std::fs::remove_file(path)?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
}

/// A socket at which connections come.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    /// The next connection.
    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole: there is nothing to wait for.
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }

    /// Where it listens, with the port that was taken.
    pub(super) fn address(&self) -> io::Result<Address> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(Address::Tcp),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(Address::Unix(address.as_pathname().map(Path::to_owned).unwrap_or_default()))
            }
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Peer {
    Tcp(SocketAddr),
    /// A program of this machine.
    Local,
}

impl Display for Peer {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().fmt(f),
            Self::Local => f.write_str("local"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_people_write_them() {
        for (text, shown) in [
            ("0.0.0.0:5000", "0.0.0.0:5000"),
            ("[::1]:80", "[::1]:80"),
            (":5000", "[::]:5000"),
            ("*:5000", "[::]:5000"),
            ("localhost:1", "127.0.0.1:1"),
            ("unix:x", "unix:x"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
        }
        for text in
            ["", "5000", "a.b:1", "1.2.3.4", "1.2.3.4:x", "1.2.3.4:70000", "unix:", "::1:80"]
        {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }

    #[test]
    fn who_can_get_there() {
        for (text, is_loopback) in [
            ("127.3.2.1:1", true),
            ("[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("unix:/x", true),
            ("0.0.0.0:1", false),
            ("[::]:1", false),
            ("192.168.1.1:1", false),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().is_loopback(), is_loopback, "{text}");
        }
    }

    #[tokio::test]
    async fn what_an_ended_process_has_left_is_replaced_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(Address::Unix(path.clone()).bind().await.unwrap());
        let held = Address::Unix(path.clone()).bind().await.unwrap();
        assert!(Address::Unix(path).bind().await.is_err(), "somebody listens there");
        drop(held);
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert!(Address::Unix(file.clone()).bind().await.is_err());
        assert_eq!(std::fs::read_to_string(file).unwrap(), "x");
    }
}
