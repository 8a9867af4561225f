//! Start-up profiles: what is read of an image in its first seconds, in order.
//!
//! A profile names parts of layers: the digest of the layer, and a range of its decompressed stream. So it
//! means the same on every machine, however the layer has been indexed there. It is a hint: whoever follows it
//! reads these parts early, and what is read is checked as always. The form is described in
//! `docs/profiles.md`.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    ops::Range,
};

use serde::Deserialize;

use super::Origin;
use crate::image::Digest;

/// What a profile is, as the type of an artifact that is attached to an image.
pub const PROFILE_ARTIFACT_TYPE: &str = "application/vnd.imgfs.profile.v1";

/// The type of the blob that it is in.
pub const PROFILE_MEDIA_TYPE: &str = "application/vnd.imgfs.profile.v1+json";

/// The version of the form that is read and written.
const VERSION: u32 = 1;

/// What is read is noted in pieces of so many bytes: pages.
const GRAIN: u64 = 4096;

/// A read that begins this close behind the end of the one before makes that longer, in bytes: both are in
/// the same block of a cache more often than not.
const JOINED_GAP: u64 = 32 << 10;

/// A part that was not read in so many starts, one after the other, is no part of the profile any more.
const FORGOTTEN_AFTER: u8 = 3;

/// Which stream of a layer the ranges are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// The archive, decompressed.
    Archive,
    /// The contents of files, as an index of a table of contents has them; see [`super::LayerIndex`].
    Contents,
}

impl StreamKind {
    /// That of an index that was made of this.
    pub fn of(origin: Origin) -> Self {
        match origin {
            Origin::Pass | Origin::Ztoc => Self::Archive,
            Origin::Toc => Self::Contents,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Contents => "contents",
        }
    }
}

/// The stream of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProfiledStream {
    /// The digest of the layer, as it is in the manifest.
    pub layer: Digest,
    /// Which stream it is.
    pub kind: StreamKind,
    /// Bytes of the stream, or [`ProfiledStream::UNKNOWN`].
    pub bytes: u64,
}

impl ProfiledStream {
    /// The bytes of a stream that nobody had read to its end.
    pub const UNKNOWN: u64 = u64::MAX;

    /// Whether both mean the same stream, as far as that is known.
    fn is(&self, other: &Self) -> bool {
        let is_unknown = [self.bytes, other.bytes].contains(&Self::UNKNOWN);
        (self.layer, self.kind) == (other.layer, other.kind)
            && (is_unknown || self.bytes == other.bytes)
    }

    /// Whether it is this one, which has `bytes` bytes.
    pub fn is_of(&self, layer: &Digest, kind: StreamKind, bytes: u64) -> bool {
        self.is(&Self { layer: *layer, kind, bytes })
    }
}

/// A part of a stream that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfiledRead {
    /// Which of [`Profile::streams`].
    pub stream: u16,
    /// Bytes of the stream; not empty, and within it.
    pub range: Range<u64>,
    /// In how many of the last starts it was not read.
    pub missed: u8,
}

/// What is read of an image for one platform when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    image: Digest,
    platform: Option<String>,
    /// Where the image was. Only in what is kept on this machine.
    repository: Option<String>,
    streams: Vec<ProfiledStream>,
    reads: Vec<ProfiledRead>,
}

/// Why some bytes are no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// There are too many of them.
    #[error("it has {0} bytes; a profile has at most {max}", max = Profile::MAX_BYTES)]
    TooLarge(u64),
    /// They are no JSON, or something is missing or malformed.
    #[error("the profile is malformed: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another imgfs has written it.
    #[error("it is a profile of version {0}; this imgfs reads version {VERSION}")]
    Version(u32),
    /// It says what cannot be.
    #[error("the profile makes no sense: {0}")]
    Content(String),
}

#[derive(Deserialize)]
struct Document {
    version: u32,
    image: Digest,
    #[serde(default)]
    platform: Option<String>,
    #[serde(default)]
    repository: Option<String>,
    streams: Vec<DocumentStream>,
    reads: Vec<DocumentRead>,
}

#[derive(Deserialize)]
struct DocumentStream {
    layer: Digest,
    stream: String,
    #[serde(default)]
    bytes: Option<u64>,
}

/// `[stream, offset, length]`, and how often it was missed.
#[derive(Deserialize)]
#[serde(untagged)]
enum DocumentRead {
    Read(u16, u64, u64),
    Missed(u16, u64, u64, u8),
}

impl Profile {
    /// The most bytes that a profile has.
    pub const MAX_BYTES: u64 = 1 << 20;

    /// The most parts.
    pub const MAX_READS: usize = 16 << 10;

    /// The most layers.
    pub const MAX_STREAMS: usize = 1 << 10;

    /// The most bytes that all parts have together.
    pub const MAX_READ_BYTES: u64 = 512 << 20;

    /// The longest name of a platform or repository, in bytes.
    const MAX_NAME: usize = 512;

    /// Reads a profile.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        if bytes.len() as u64 > Self::MAX_BYTES {
            return Err(ProfileError::TooLarge(bytes.len() as u64));
        }
        // The version first: another one may have another form.
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let Head { version } = serde_json::from_slice(bytes)?;
        if version != VERSION {
            return Err(ProfileError::Version(version));
        }
        let document: Document = serde_json::from_slice(bytes)?;
        debug_assert_eq!(document.version, VERSION);
        let wrong = |what: String| Err(ProfileError::Content(what));
        if document.streams.len() > Self::MAX_STREAMS || document.reads.len() > Self::MAX_READS {
            return wrong(format!(
                "it has {} streams and {} reads; at most {} and {} are taken",
                document.streams.len(),
                document.reads.len(),
                Self::MAX_STREAMS,
                Self::MAX_READS
            ));
        }
        for name in [&document.platform, &document.repository].into_iter().flatten() {
            if name.len() > Self::MAX_NAME || name.chars().any(char::is_control) {
                return wrong("a name in it is none".into());
            }
        }
        let mut streams: Vec<ProfiledStream> = Vec::with_capacity(document.streams.len());
        for stream in document.streams {
            let kind = match stream.stream.as_str() {
                "archive" => StreamKind::Archive,
                "contents" => StreamKind::Contents,
                _ => return wrong("it is of a stream that nobody knows".into()),
            };
            let bytes = stream.bytes.unwrap_or(ProfiledStream::UNKNOWN);
            streams.push(ProfiledStream { layer: stream.layer, kind, bytes });
        }
        let (mut reads, mut sum) = (Vec::with_capacity(document.reads.len()), 0_u64);
        for (number, read) in document.reads.into_iter().enumerate() {
            let (stream, offset, length, missed) = match read {
                DocumentRead::Read(stream, offset, length) => (stream, offset, length, 0),
                DocumentRead::Missed(stream, offset, length, missed) => {
                    (stream, offset, length, missed)
                }
            };
            let Some(of) = streams.get(usize::from(stream)) else {
                return wrong(format!("read {number} is of stream {stream}, which is not there"));
            };
            match offset.checked_add(length) {
                Some(end) if length > 0 && end <= of.bytes => {
                    reads.push(ProfiledRead { stream, range: offset..end, missed });
                }
                _ => return wrong(format!("read {number} is not within its stream")),
            }
            sum = sum.saturating_add(length);
        }
        if sum > Self::MAX_READ_BYTES {
            return wrong(format!(
                "it has {sum} bytes read; at most {} are taken",
                Self::MAX_READ_BYTES
            ));
        }
        let Document { image, platform, repository, .. } = document;
        Ok(Self { image, platform, repository, streams, reads })
    }

    /// Its written form: JSON, one read a line.
    pub fn to_bytes(&self) -> Vec<u8> {
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let mut out = format!("{{\"version\":{VERSION},\n\"image\":\"{}\",\n", self.image);
        for (key, name) in [("platform", &self.platform), ("repository", &self.repository)] {
            if let Some(name) = name {
                let _ = writeln!(out, "\"{key}\":{},", text(name));
            }
        }
        let streams = self.streams.iter().map(|stream| {
            let (layer, kind) = (&stream.layer, stream.kind.name());
            let bytes = match stream.bytes {
                ProfiledStream::UNKNOWN => String::new(),
                bytes => format!(",\"bytes\":{bytes}"),
            };
            format!("{{\"layer\":\"{layer}\",\"stream\":\"{kind}\"{bytes}}}")
        });
        let reads = self.reads.iter().map(|ProfiledRead { stream, range, missed }| {
            let (offset, length) = (range.start, range.end - range.start);
            match missed {
                0 => format!("[{stream},{offset},{length}]"),
                _ => format!("[{stream},{offset},{length},{missed}]"),
            }
        });
        let streams: Vec<String> = streams.collect();
        let reads: Vec<String> = reads.collect();
        let _ = writeln!(out, "\"streams\":[{}],", streams.join(",\n"));
        let _ = writeln!(out, "\"reads\":[{}]}}", reads.join(",\n"));
        out.into_bytes()
    }

    /// The digest of the manifest that it is of: that of one platform.
    pub fn image(&self) -> Digest {
        self.image
    }

    /// What that runs on, as in `linux/amd64`.
    pub fn platform(&self) -> Option<&str> {
        self.platform.as_deref()
    }

    /// Where the image was when it was recorded, if it was on this machine.
    pub fn repository(&self) -> Option<&str> {
        self.repository.as_deref()
    }

    /// The streams that are read.
    pub fn streams(&self) -> &[ProfiledStream] {
        &self.streams
    }

    /// What is read, in the order in which it is first read.
    pub fn reads(&self) -> &[ProfiledRead] {
        &self.reads
    }

    /// Bytes of all reads.
    pub fn read_bytes(&self) -> u64 {
        self.reads.iter().map(|read| read.range.end - read.range.start).sum()
    }

    /// The same for others to see: it does not say where the image was.
    #[must_use]
    pub fn for_others(mut self) -> Self {
        self.repository = None;
        self
    }

    /// The same with the place where the image is.
    #[must_use]
    pub fn seen_in(mut self, repository: String) -> Self {
        self.repository = Some(repository).filter(|name| name.len() <= Self::MAX_NAME);
        self
    }

    /// This, and what `earlier` starts have read besides: that comes last, and is forgotten after a few starts
    /// in which nobody reads it. So a look at one file does not spoil what was learned of real starts.
    #[must_use]
    pub fn with_earlier(mut self, earlier: &Self) -> Self {
        if earlier.image != self.image {
            return self;
        }
        let mut covered: HashMap<(Digest, StreamKind), Covered> = HashMap::new();
        for read in &self.reads {
            let stream = self.streams[usize::from(read.stream)];
            covered.entry((stream.layer, stream.kind)).or_default().add(&read.range);
        }
        let mut sum = self.read_bytes();
        for read in &earlier.reads {
            let missed = read.missed.saturating_add(1);
            let Some(stream) = earlier.streams.get(usize::from(read.stream)) else { continue };
            // What it says of the size of a stream may be wrong.
            let is_other = |known: &ProfiledStream| {
                (known.layer, known.kind) == (stream.layer, stream.kind) && !known.is(stream)
            };
            if missed > FORGOTTEN_AFTER || self.streams.iter().any(is_other) {
                continue;
            }
            let covered = covered.entry((stream.layer, stream.kind)).or_default();
            for range in covered.add(&read.range) {
                sum += range.end - range.start;
                let has_room = self.reads.len() < Self::MAX_READS && sum <= Self::MAX_READ_BYTES;
                let Some(number) = self.number(stream).filter(|_| has_room) else { return self };
                if range.end <= self.streams[usize::from(number)].bytes {
                    self.reads.push(ProfiledRead { stream: number, range, missed });
                }
            }
        }
        self
    }

    /// The number of a stream, which is added if need be and there is room.
    fn number(&mut self, stream: &ProfiledStream) -> Option<u16> {
        let known = self.streams.iter().position(|known| known.is(stream));
        let number = known.unwrap_or(self.streams.len());
        if number >= Self::MAX_STREAMS {
            return None;
        }
        let place = u16::try_from(number).ok()?;
        match self.streams.get_mut(number) {
            Some(known) if stream.bytes < known.bytes => {
                // What has been read of it knows better.
                let is_within =
                    |read: &ProfiledRead| read.stream != place || read.range.end <= stream.bytes;
                if !self.reads.iter().all(is_within) {
                    return None;
                }
                known.bytes = stream.bytes;
            }
            Some(_) => {}
            None => self.streams.push(*stream),
        }
        Some(place)
    }
}

/// Parts of a stream that have been seen: beginnings and ends.
#[derive(Debug, Default)]
struct Covered(BTreeMap<u64, u64>);

impl Covered {
    /// Adds `range`, and gives what of it was not there.
    fn add(&mut self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut new = Vec::new();
        let (mut from, mut to, mut at) = (range.start, range.end, range.start);
        // Those that overlap or touch it become one with it.
        let first = self.0.range(..=range.start).next_back();
        let first = first.filter(|(_, end)| **end >= range.start).map(|(start, _)| *start);
        let touched: Vec<(u64, u64)> = self
            .0
            .range(first.unwrap_or(range.start)..=range.end)
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touched {
            if start > at {
                new.push(at..start);
            }
            at = at.max(end);
            (from, to) = (from.min(start), to.max(end));
            self.0.remove(&start);
        }
        if at < range.end {
            new.push(at..range.end);
        }
        self.0.insert(from, to);
        new
    }

    fn has_any_of(&self, range: &Range<u64>) -> bool {
        let before = self.0.range(..range.end).next_back();
        before.is_some_and(|(_, end)| *end > range.start)
    }
}

/// What is read of an image, as it is read.
#[derive(Debug)]
pub struct ProfileRecorder {
    profile: Profile,
    covered: Vec<Covered>,
    sum: u64,
}

impl ProfileRecorder {
    /// Begins to record what is read of the manifest `image`.
    pub fn new(image: Digest, platform: Option<String>) -> Self {
        let (streams, reads) = (Vec::new(), Vec::new());
        let profile = Profile { image, platform, repository: None, streams, reads };
        Self { profile, covered: Vec::new(), sum: 0 }
    }

    /// Notes that the bytes `range` of `stream` are read. Whether there is room for more.
    pub fn note(&mut self, stream: &ProfiledStream, range: Range<u64>) -> bool {
        let start = range.start / GRAIN * GRAIN;
        let end = range.end.checked_next_multiple_of(GRAIN).unwrap_or(u64::MAX).min(stream.bytes);
        if start >= end {
            return true;
        }
        let Some(number) = self.profile.number(stream) else { return false };
        self.covered.resize_with(self.profile.streams.len(), Covered::default);
        for new in self.covered[usize::from(number)].add(&(start..end)) {
            let is_full = self.profile.reads.len() >= Profile::MAX_READS;
            let last = self.profile.reads.last_mut().filter(|last| {
                let near = last.range.end..=last.range.end.saturating_add(JOINED_GAP);
                last.stream == number && near.contains(&new.start)
            });
            self.sum += new.end - last.as_ref().map_or(new.start, |last| last.range.end);
            match last {
                _ if self.sum > Profile::MAX_READ_BYTES => return false,
                Some(last) => last.range.end = new.end,
                None if is_full => return false,
                None => {
                    self.profile.reads.push(ProfiledRead { stream: number, range: new, missed: 0 });
                }
            }
        }
        true
    }

    /// How many parts have been read.
    pub fn len(&self) -> usize {
        self.profile.reads.len()
    }

    /// Whether nothing has been read yet.
    pub fn is_empty(&self) -> bool {
        self.profile.reads.is_empty()
    }

    /// What has been read so far.
    pub fn profile(&self) -> Profile {
        self.profile.clone()
    }

    /// Whether something has been read that `profile` has, too.
    pub fn meets(&self, profile: &Profile) -> bool {
        profile.reads.iter().any(|read| {
            let stream = profile.streams.get(usize::from(read.stream));
            let is_it = |known: &ProfiledStream| stream.is_some_and(|stream| stream.is(known));
            let known = self.profile.streams.iter().position(is_it);
            let covered = known.and_then(|number| self.covered.get(number));
            covered.is_some_and(|covered| covered.has_any_of(&read.range))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(name: &str) -> ProfiledStream {
        let layer = Digest::sha256(name.as_bytes());
        ProfiledStream { layer, kind: StreamKind::Archive, bytes: 10 << 20 }
    }

    fn recorded(reads: &[(&str, Range<u64>)]) -> Profile {
        let mut recorder =
            ProfileRecorder::new(Digest::sha256(b"image"), Some("linux/arm64".into()));
        for (name, range) in reads {
            assert!(recorder.note(&stream(name), range.clone()));
        }
        recorder.profile()
    }

    fn ranges(profile: &Profile) -> Vec<(u16, Range<u64>, u8)> {
        profile.reads().iter().map(|r| (r.stream, r.range.clone(), r.missed)).collect()
    }

    #[test]
    fn what_is_read_is_noted_once_in_order_and_by_pages() {
        let profile = recorded(&[
            ("a", 100..200),
            ("b", 1_000_000..1_000_001),
            // It has been read already.
            ("a", 0..4096),
            // Soon behind the last one.
            ("b", 1_010_000..1_020_000),
            ("a", 0..10_000),
            ("a", (10 << 20) - 1..(10 << 20) + 77),
        ]);
        let end = 10 << 20;
        let page = |n: u64| n * 4096;
        assert_eq!(
            ranges(&profile),
            [
                (0, 0..4096, 0),
                (1, page(244)..page(250), 0),
                (0, 4096..page(3), 0),
                (0, end - 4096..end, 0)
            ]
        );
        assert_eq!(profile.streams().len(), 2);
        assert_eq!(profile.platform(), Some("linux/arm64"));
    }

    #[test]
    fn it_is_read_as_it_was_written() {
        let profile = recorded(&[("a", 0..1), ("b", 5..100_000), ("a", 2 << 20..3 << 20)]);
        let profile =
            profile.with_earlier(&recorded(&[("c", 0..1)])).seen_in("quay.io/a\"b".into());
        let written = profile.to_bytes();
        let read = Profile::parse(&written).unwrap();
        assert_eq!(read, profile);
        assert_eq!(read.repository(), Some("quay.io/a\"b"));
        assert_eq!(read.for_others().repository(), None);
        let none = recorded(&[]);
        assert_eq!(Profile::parse(&none.to_bytes()).unwrap(), none);
    }

    #[test]
    fn what_was_read_earlier_comes_last_and_is_forgotten() {
        let start = recorded(&[("a", 0..8192), ("b", 0..4096)]);
        let look = recorded(&[("b", 0..1), ("c", 0..1)]);
        let mut profile = look.clone().with_earlier(&start);
        assert_eq!(ranges(&profile), [(0, 0..4096, 0), (1, 0..4096, 0), (2, 0..8192, 1)]);
        // The next start has it all again.
        let again = start.clone().with_earlier(&profile);
        assert_eq!(ranges(&again), [(0, 0..8192, 0), (1, 0..4096, 0), (2, 0..4096, 1)]);
        for _ in 0..FORGOTTEN_AFTER {
            profile = look.clone().with_earlier(&profile);
        }
        assert_eq!(ranges(&profile), ranges(&look));
        // That of another image does not matter.
        let other = ProfileRecorder::new(Digest::sha256(b"other"), None).profile();
        assert_eq!(other.clone().with_earlier(&start), other);
    }

    #[test]
    fn a_recording_is_bounded() {
        let mut recorder = ProfileRecorder::new(Digest::sha256(b"image"), None);
        let large = ProfiledStream { bytes: 1 << 40, ..stream("a") };
        assert!(recorder.note(&large, 0..Profile::MAX_READ_BYTES));
        assert!(!recorder.note(&large, 1 << 39..(1 << 39) + 1));
        assert!(Profile::parse(&recorder.profile().to_bytes()).is_ok());
        let mut recorder = ProfileRecorder::new(Digest::sha256(b"image"), None);
        let all = (0..).take_while(|n| recorder.note(&large, n << 20..(n << 20) + 1)).count();
        assert_eq!(all, Profile::MAX_READS);
        let written = recorder.profile().to_bytes();
        assert!(Profile::parse(&written).is_ok(), "{} bytes", written.len());
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let right = String::from_utf8(recorded(&[("a", 0..4096)]).to_bytes()).unwrap();
        assert!(Profile::parse(right.as_bytes()).is_ok());
        for (from, to, why) in [
            ("\"version\":1", "\"version\":2", "version 2"),
            ("\"version\":1", "\"version\":-1", "malformed"),
            ("[0,0,4096]", "[1,0,4096]", "stream 1"),
            ("[0,0,4096]", "[0,0,0]", "not within"),
            ("[0,0,4096]", "[0,10485760,1]", "not within"),
            ("[0,0,4096]", "[0,18446744073709551615,2]", "not within"),
            ("[0,0,4096]", "[0,0]", "malformed"),
            ("\"archive\"", "\"something\"", "nobody knows"),
            ("sha256:", "sha256:/../", "malformed"),
            ("linux/arm64", "linux\\u0000", "name"),
        ] {
            let error = Profile::parse(right.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert!(error.to_string().contains(why), "{to}: {error}");
        }
        let many = vec!["[0,0,4096]"; Profile::MAX_READS + 1].join(",");
        assert!(Profile::parse(right.replace("[0,0,4096]", &many).as_bytes()).is_err());
        let large = vec!["[0,0,10485760]"; 52].join(",");
        let error = Profile::parse(right.replace("[0,0,4096]", &large).as_bytes()).unwrap_err();
        assert!(error.to_string().contains("bytes read"), "{error}");
        let long = vec![b' '; Profile::MAX_BYTES as usize + 1];
        assert!(matches!(Profile::parse(&long), Err(ProfileError::TooLarge(_))));
    }

    #[test]
    fn a_read_meets_what_is_in_a_profile() {
        let profile = recorded(&[("a", 1 << 20..2 << 20), ("b", 0..1)]);
        let meets = |name: &str, range: Range<u64>| {
            let mut recorder = ProfileRecorder::new(Digest::sha256(b"image"), None);
            recorder.note(&stream(name), range);
            recorder.meets(&profile)
        };
        assert!(meets("a", 0..(1 << 20) + 1) && meets("a", (2 << 20) - 1..3 << 20));
        assert!(!meets("a", 0..1 << 20) && !meets("a", 2 << 20..3 << 20));
        assert!(meets("b", 0..1) && !meets("c", 0..1));
    }
}
