//! Sending files without reading them, for plain HTTP/1.1 over TCP.
//!
//! hyper sends bytes that it is given, and knows no files. So it is given placeholders: slices of one block of zeros,
//! for each of which a part of a file is noted with the connection. When hyper writes a slice that lies in that block,
//! the connection sends the part of the file instead, with `sendfile`. hyper writes what it has been given in order and
//! without copying it as long as the connection takes several buffers at once, which [`super::connection`] does; an
//! answer over HTTP/2 or TLS has no placeholders.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    ops::Range,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::{io::Interest, net::TcpStream};

use crate::util::{locked, read_cached};

/// The most that one placeholder stands for, in bytes.
pub(super) const MAX_PART: u64 = 1 << 20;

/// A file is looked at once in so many bytes to find out whether it is in memory.
const LOOK_EVERY: u64 = 256 << 10;

static PLACEHOLDER: [u8; MAX_PART as usize] = [0; MAX_PART as usize];

/// A part of a file that is to be sent.
struct Part {
    file: Arc<File>,
    left: Range<u64>,
}

/// The parts for which hyper has been given placeholders that it has not written yet, in their order.
#[derive(Default)]
pub(super) struct Parts(Mutex<VecDeque<Part>>);

impl Parts {
    /// The placeholder for `range` of `file`, of at most [`MAX_PART`] bytes, if that can be sent without waiting for the
    /// disk, as far as a few looks tell.
    pub(super) fn placeholder(&self, file: &Arc<File>, range: &Range<u64>) -> Option<Bytes> {
        let length = usize::try_from(range.end - range.start).ok()?;
        let placeholder = PLACEHOLDER.get(..length).filter(|some| !some.is_empty())?;
        let looks = (range.start..range.end).step_by(LOOK_EVERY as usize).chain([range.end - 1]);
        let is_here = |at| matches!(read_cached(file, at, 1), Some(Ok(byte)) if byte.len() == 1);
        if !looks.into_iter().all(is_here) {
            return None;
        }
        locked(&self.0).push_back(Part { file: file.clone(), left: range.clone() });
        Some(Bytes::from_static(placeholder))
    }

    /// Sends what the placeholder of `length` bytes, which is what is left of the first one, stands for. Returns how much
    /// was sent, at least a byte.
    pub(super) fn poll_send(
        &self,
        stream: &TcpStream,
        context: &mut Context<'_>,
        length: usize,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(stream.poll_write_ready(context))?;
            let mut parts = locked(&self.0);
            let Some(part) = parts.front_mut() else {
                return Poll::Ready(Err(io::Error::other("there is no file for a placeholder")));
            };
            let rest = usize::try_from(part.left.end - part.left.start).unwrap_or(usize::MAX);
            let mut offset = part.left.start;
            let sent = stream.try_io(Interest::WRITABLE, || {
                Ok(rustix::fs::sendfile(stream, &*part.file, Some(&mut offset), rest.min(length))?)
            });
            match sent {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Ok(sent) => {
                    part.left.start += sent as u64;
                    if part.left.is_empty() {
                        parts.pop_front();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                Err(e) if e.raw_os_error() == Some(Errno::INTR.raw_os_error()) => {}
                Err(e) => return Poll::Ready(Err(e)),
            }
        }
    }
}

/// Whether `bytes` are a placeholder, or what is left of one.
pub(super) fn is_placeholder(bytes: &[u8]) -> bool {
    !bytes.is_empty() && PLACEHOLDER.as_ptr_range().contains(&bytes.as_ptr())
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn placeholders_are_told_from_other_zeros() {
        assert!(is_placeholder(&PLACEHOLDER[5..10]));
        for other in [&b""[..], &[0; 10], &vec![0; 1 << 20]] {
            assert!(!is_placeholder(other));
        }
    }

    #[tokio::test]
    async fn what_a_placeholder_stands_for_is_sent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 99) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = Arc::new(File::open(&path).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let sending = tokio::spawn(async move {
            let parts = Parts::default();
            let mut at = 0;
            while at < 3_000_000 {
                let end = (at + MAX_PART).min(3_000_000);
                let mut left = parts.placeholder(&file, &(at..end)).unwrap();
                while !left.is_empty() {
                    assert!(is_placeholder(&left));
                    let send = std::future::poll_fn(|c| parts.poll_send(&server, c, left.len()));
                    let sent = send.await.unwrap();
                    left = left.slice(sent..);
                }
                at = end;
            }
            assert!(parts.placeholder(&file, &(3_000_000..3_000_001)).is_none(), "beyond the end");
            server.shutdown().await.unwrap();
        });
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        sending.await.unwrap();
        assert!(got == content);
    }
}
