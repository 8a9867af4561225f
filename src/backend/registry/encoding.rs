//! Content that has been compressed on its way (RFC 9110, section 8.4). Nobody asks for that: all digests
//! and sizes are of what is not encoded. Some way stations do it all the same.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use flate2::{read, write};
use reqwest::header::{CONTENT_ENCODING, HeaderMap};

/// How much is decompressed at a time, in bytes. What comes out is at most about a thousand times as much.
const STEP: usize = 4 << 10;

/// What has been done to the content of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Plain,
    Gzip,
    /// Something that cannot be undone here.
    Other(String),
}

impl Encoding {
    /// What the headers of an answer say.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(CONTENT_ENCODING).iter();
        let text =
            values.map(|value| String::from_utf8_lossy(value.as_bytes()).to_ascii_lowercase());
        let text = text.collect::<Vec<_>>().join(",");
        // Object stores keep `aws-chunked` from uploads, where it has been undone long since.
        let is_done = |name: &&str| !["", "identity", "aws-chunked"].contains(name);
        let mut names = text.split(',').map(str::trim).filter(is_done);
        match (names.next(), names.next()) {
            (None, _) => Self::Plain,
            (Some("gzip" | "x-gzip"), None) => Self::Gzip,
            _ => Self::Other(text.chars().filter(char::is_ascii_graphic).take(40).collect()),
        }
    }

    /// Why content in this encoding cannot be read.
    pub(super) fn refusal(name: &str) -> String {
        format!(
            "it sends content in the encoding `{name}`, for which it has not been asked; a proxy on the way may do that"
        )
    }
}

/// Decodes the body of an answer if it is encoded, to at most `max` bytes; `None` if it has more. An error
/// says why it cannot be.
pub(super) fn decode(
    encoding: &Encoding,
    body: Vec<u8>,
    max: usize,
) -> Result<Option<Vec<u8>>, String> {
    match encoding {
        // What is in bodies that are read whole is text.
        Encoding::Gzip if body.starts_with(&[0x1f, 0x8b]) => {
            let mut decoded = Vec::new();
            let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
            let mut decoder = read::MultiGzDecoder::new(body.as_slice()).take(limit);
            decoder.read_to_end(&mut decoded).map_err(|e| damaged(&e))?;
            Ok(Some(decoded).filter(|decoded| decoded.len() <= max))
        }
        Encoding::Other(name) if !is_text(&body) => Err(Encoding::refusal(name)),
        _ => Ok(Some(body)),
    }
}

fn is_text(body: &[u8]) -> bool {
    std::str::from_utf8(body).is_ok_and(|text| !text.contains('\0'))
}

fn damaged(error: &io::Error) -> String {
    format!("it sends content in the encoding `gzip`, which is damaged ({error})")
}

/// Decompresses gzip as it comes.
pub(super) struct Gunzip {
    /// What has come and is not decompressed.
    rest: Bytes,
    decoder: write::MultiGzDecoder<Vec<u8>>,
}

impl Gunzip {
    pub(super) fn new() -> Self {
        Self { rest: Bytes::new(), decoder: write::MultiGzDecoder::new(Vec::new()) }
    }

    /// Takes what has come, after [`Gunzip::next`] has given all there was.
    pub(super) fn feed(&mut self, chunk: Bytes) {
        self.rest = chunk;
    }

    /// The next piece, or `None` if more has to come first.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, String> {
        while !self.rest.is_empty() {
            let step = self.rest.len().min(STEP);
            self.decoder.write_all(&self.rest[..step]).map_err(|e| damaged(&e))?;
            self.rest.advance(step);
            let piece = std::mem::take(self.decoder.get_mut());
            if !piece.is_empty() {
                return Ok(Some(piece.into()));
            }
        }
        Ok(None)
    }

    /// What is left when nothing more comes.
    pub(super) fn finish(&mut self) -> Result<Bytes, String> {
        self.decoder.try_finish().map_err(|e| damaged(&e))?;
        Ok(std::mem::take(self.decoder.get_mut()).into())
    }
}

#[cfg(test)]
mod tests {
    use flate2::Compression;

    use super::*;

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = write::GzEncoder::new(Vec::new(), Compression::best());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn encodings() {
        let of = |values: &[&str]| {
            Encoding::of(&values.iter().map(|v| (CONTENT_ENCODING, v.parse().unwrap())).collect())
        };
        for plain in
            [&[][..], &["identity"], &[""], &["aws-chunked"], &["aws-chunked,", "identity"]]
        {
            assert_eq!(of(plain), Encoding::Plain, "{plain:?}");
        }
        for gzip in [&["gzip"][..], &["GZIP "], &["x-gzip"], &["aws-chunked, gzip"]] {
            assert_eq!(of(gzip), Encoding::Gzip, "{gzip:?}");
        }
        assert_eq!(of(&["gzip, br"]), Encoding::Other("gzip,br".into()));
    }

    #[test]
    fn bodies_are_decoded_to_a_limit() {
        let text = b"{}".repeat(1000);
        let body = gzip(&text);
        assert_eq!(decode(&Encoding::Gzip, body.clone(), 2000), Ok(Some(text)));
        assert_eq!(decode(&Encoding::Gzip, body.clone(), 1999), Ok(None));
        assert!(decode(&Encoding::Gzip, body[..20].to_vec(), 2000).is_err());
        // The header lies.
        assert_eq!(decode(&Encoding::Gzip, b"{}".to_vec(), 10), Ok(Some(b"{}".to_vec())));
        let other = Encoding::Other("br".into());
        assert_eq!(decode(&other, b"{}".to_vec(), 10), Ok(Some(b"{}".to_vec())));
        assert!(decode(&other, body, 2000).unwrap_err().contains("`br`"));
    }

    #[test]
    fn streams_are_decoded_piece_by_piece() {
        let content = vec![7; 50 << 20];
        let mut body = gzip(&content[..content.len() - 3]);
        body.extend(gzip(&content[content.len() - 3..]));
        let mut gunzip = Gunzip::new();
        let mut found = 0;
        for chunk in body.chunks(30_000) {
            gunzip.feed(Bytes::copy_from_slice(chunk));
            while let Some(piece) = gunzip.next().unwrap() {
                assert!(piece.len() <= STEP * 1100, "{}", piece.len());
                found += piece.len();
            }
        }
        found += gunzip.finish().unwrap().len();
        assert_eq!(found, content.len());

        let mut gunzip = Gunzip::new();
        gunzip.feed(Bytes::from_static(b"no gzip at all"));
        assert!(gunzip.next().is_err());
        let mut gunzip = Gunzip::new();
        gunzip.feed(Bytes::from(body).slice(..100));
        assert!(gunzip.next().is_ok() && gunzip.finish().is_err());
    }
}
