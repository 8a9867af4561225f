//! A blob that is read one part after another, each with one `GET`.

use std::ops::Range;

use bytes::Bytes;

use super::ObjectTree;
use crate::{
    backend::{BoxStream, Error, Kind, Result},
    image::{Descriptor, Digest},
};

/// A blob of a bucket, read where it is.
pub struct BlobReader {
    tree: ObjectTree,
    blob: Descriptor,
    open: Option<Open>,
}

/// A request that is under way.
struct Open {
    stream: BoxStream,
    /// Which byte of the blob comes next, and up to which was asked for.
    at: u64,
    end: u64,
    rest: Bytes,
}

impl BlobReader {
    /// The blob `digest` of `size` bytes. Nothing is asked yet.
    pub fn new(tree: &ObjectTree, digest: &Digest, size: u64) -> Self {
        Self { tree: tree.clone(), blob: Descriptor::new("", *digest, size), open: None }
    }

    /// Asks for `range`; `None` if the blob is not there in its size.
    pub async fn open(mut self, range: &Range<u64>) -> Result<Option<Self>> {
        match self.ask(range).await {
            Ok(()) => Ok(Some(self)),
            Err(error) if matches!(error.kind(), Kind::NotFound(_) | Kind::Size { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn ask(&mut self, range: &Range<u64>) -> Result<()> {
        let stream = self.tree.read_blob(&self.blob, range.clone()).await?;
        self.open = Some(Open { stream, at: range.start, end: range.end, rest: Bytes::new() });
        Ok(())
    }

    fn error(&self, reason: String) -> Error {
        let doing = format_args!("fetching blob {}", self.blob.digest);
        Error::new(&self.tree.inner.side, doing, Kind::Store(reason))
    }

    /// The next bytes of `range`, at most `most`. A range that goes on where the last piece ended, and does not go
    /// further than was asked for, takes no other request.
    pub async fn read(&mut self, range: Range<u64>, most: usize) -> Result<Bytes> {
        let goes_on = |open: &Open| open.at == range.start && range.end <= open.end;
        if !self.open.as_ref().is_some_and(goes_on) {
            self.ask(&range).await?;
        }
        if let Some(open) = &mut self.open {
            while open.rest.is_empty() {
                match open.stream.next().await? {
                    Some(piece) => open.rest = piece,
                    None => return Err(self.error("it has ended before its end".to_owned())),
                }
            }
            let wanted = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let piece = open.rest.split_to(open.rest.len().min(wanted).min(most));
            open.at += piece.len() as u64;
            return Ok(piece);
        }
        Err(self.error("it is not open".to_owned()))
    }
}
