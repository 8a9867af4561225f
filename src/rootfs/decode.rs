//! The spans of a layer, fetched and decompressed when they are read.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;

use super::{
    Store,
    index_store::Indexed,
    key::{LayerKey, Source},
    layer::Layer,
    location::Compressed,
    spans::Group,
};
use crate::{
    backend::{Kind, Result},
    layer::{DecodeError, LayerIndex, Origin, SpanDecoder, Work},
    util::Reservation,
};

/// What stays of decompressing spans besides what was wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Keeping {
    /// What was passed over, and the decoder, for a while.
    Recent,
    /// Nothing: it is not known yet whether it is the right layer.
    Nothing,
}

/// What has been fetched or made anew because spans were not what they should be.
enum Doubted {
    Nothing,
    Bytes,
    Index,
}

impl Layer {
    /// These spans, checked. They are decompressed once for all who need them at the same time, and
    /// what has to be decompressed on the way to them stays for a while, as does the decoder.
    pub(super) async fn spans(
        self: &Arc<Self>,
        index: &Arc<Indexed>,
        spans: Range<u32>,
    ) -> Result<Vec<Bytes>> {
        let key = self.key.of(index.source());
        let mut found = Vec::with_capacity(spans.len());
        let mut left = spans;
        while !left.is_empty() {
            if let Some(bytes) = self.recent_span(&key, index, left.start) {
                found.push(bytes);
                left.start += 1;
                continue;
            }
            let group = index.group(left.start);
            // A table of contents has its members anywhere; and one of SOCI has a window for each span.
            let end = match index.origin() {
                Origin::Pass => left.end,
                Origin::Toc | Origin::Ztoc => left.end.min(group.end),
            };
            let wanted = left.start..end;
            let name = (key, index.stream_range(group.start).start);
            let begin = || {
                let (layer, index) = (self.clone(), index.clone());
                async move {
                    if layer.recent_span(&key, &index, wanted.start).is_some() {
                        return Ok(None);
                    }
                    layer.decode(&index, wanted, Keeping::Recent).await.map(Some)
                }
            };
            let flight = self.store().decoding.run(name, begin);
            let came = flight.await.unwrap_or_else(|died| Err(self.died(died)))?;
            // Somebody else may have wanted others; what has been passed over for these is there.
            while let Some(came) = &came
                && !left.is_empty()
                && let Some(bytes) = came.get(&index.stream_range(left.start))
            {
                found.push(bytes.clone());
                left.start += 1;
            }
        }
        Ok(found)
    }

    /// A span that was decompressed lately.
    fn recent_span(&self, key: &LayerKey, index: &Indexed, span: u32) -> Option<Bytes> {
        let (bytes, hashed_bytes) = self.store().recent.get(key, index, span);
        self.store().decoded.add(Work { inflated_bytes: 0, hashed_bytes });
        bytes
    }

    /// Fetches and decompresses spans.
    pub(super) async fn decode(
        self: &Arc<Self>,
        index: &Arc<Indexed>,
        spans: Range<u32>,
        keeping: Keeping,
    ) -> Result<Arc<Group>> {
        let mut index = index.clone();
        let mut doubted = Doubted::Nothing;
        loop {
            let compressed = self.at.compressed().await?;
            let decoded = self
                .store()
                .with_memory(|| self.decode_once(&compressed, &index, spans.clone(), keeping));
            let error = match decoded.await? {
                Ok(group) => return Ok(group),
                Err(error) => error,
            };
            let of_window = matches!(error, DecodeError::Window(_) | DecodeError::NoWindow(_));
            doubted = match doubted {
                Doubted::Nothing if !of_window => {
                    self.at.distrust(&compressed, &error);
                    Doubted::Bytes
                }
                // The same bytes came again, so it may be the index that has been damaged since it was
                // read, or rather its windows.
                Doubted::Nothing | Doubted::Bytes if !index.has_windows() => {
                    let again = self.index_again(&index, of_window).await?;
                    if !is_cut_alike(&again, &index, &spans) {
                        let reason = "it has been indexed anew; what is open is to be opened again";
                        return Err(self.error(Kind::Layer(reason.into())));
                    }
                    index = again;
                    Doubted::Index
                }
                _ => {
                    if index.source() != Source::Pass {
                        self.scan_for_later();
                    }
                    return Err(self.error(Kind::Layer(error.to_string())));
                }
            };
        }
    }

    async fn decode_once(
        self: &Arc<Self>,
        compressed: &Compressed,
        index: &Arc<Indexed>,
        wanted: Range<u32>,
        keeping: Keeping,
    ) -> Result<std::result::Result<Arc<Group>, DecodeError>> {
        let decoder = match keeping {
            Keeping::Recent => {
                self.store().recent.take_decoder(&self.key.of(index.source()), index, wanted.start)
            }
            Keeping::Nothing => None,
        };
        let (first, range) = match &decoder {
            Some(decoder) => (decoder.next_span(), decoder.fetch_range(index, wanted.end)),
            None => (index.group(wanted.start).start, index.fetch_range(wanted.clone())),
        };
        // What comes in, what comes out, and as much again for the window of a zstd frame.
        let bytes = range.end - range.start + 2 * stream_bytes(index, &(first..wanted.end));
        let memory = self.store().sources.memory.reserve(bytes).map_err(|e| self.error(e))?;
        let bytes = self.at.fetch(compressed, range).await?;
        let (layer, of) = (self.clone(), index.clone());
        let decode = move || layer.decode_now(&of, &wanted, decoder, keeping, &bytes, memory);
        self.store().compute(decode).await.map_err(|e| self.error(e))
    }

    fn decode_now(
        &self,
        index: &Arc<Indexed>,
        wanted: &Range<u32>,
        decoder: Option<SpanDecoder>,
        keeping: Keeping,
        compressed: &[u8],
        mut memory: Reservation,
    ) -> std::result::Result<Arc<Group>, DecodeError> {
        let Store { recent, decoded, .. } = &**self.store();
        let key = self.key.of(index.source());
        let mut decoder = match decoder {
            Some(decoder) => decoder,
            None => {
                let window = self.window(index, wanted.start);
                SpanDecoder::new(index, wanted.start, window.as_deref())?
            }
        };
        let before = decoder.work();
        let mut found: Vec<(u64, Bytes)> = Vec::with_capacity(wanted.len());
        let mut passed = Vec::new();
        let result = decoder.push(index, wanted, compressed, &mut |one| {
            let stream_offset = index.stream_range(one.span).start;
            match one.span < wanted.start {
                true => passed.push((stream_offset, one)),
                false => found.push((stream_offset, one.bytes.into())),
            }
        });
        decoded.add(decoder.work().since(before));
        if !result? {
            return Err(DecodeError::Short(wanted.end.saturating_sub(1)));
        }
        // It becomes smaller, for which there is always room.
        let _ = memory.resize(found.iter().map(|(_, span)| span.len() as u64).sum());
        if keeping == Keeping::Recent {
            for (stream_offset, one) in passed {
                recent.put(&key, stream_offset, one.bytes.into(), one.is_checked);
            }
            for (stream_offset, bytes) in &found {
                recent.put(&key, *stream_offset, bytes.clone(), true);
            }
            if index.origin() == Origin::Pass {
                recent.put_decoder(&key, index, decoder);
            }
        }
        Ok(Arc::new(Group { spans: found.into(), _memory: memory }))
    }

    /// The window that decompressing begins with at the group of `span`, where it is not in memory.
    pub(super) fn window(&self, index: &Indexed, span: u32) -> Option<Vec<u8>> {
        let range = index.window_range(span).filter(|_| !index.has_windows())?;
        // If it cannot be read, decoding says that it is missing.
        self.store().index_store.window(&self.key.of(index.source()), range).ok()
    }
}

/// Decompressed bytes of these spans.
pub(super) fn stream_bytes(index: &LayerIndex, spans: &Range<u32>) -> u64 {
    let of = |span| {
        let range = index.stream_range(span);
        range.end - range.start
    };
    spans.clone().map(of).sum()
}

/// Whether these spans are the same by two indexes of a layer.
fn is_cut_alike(one: &Indexed, other: &Indexed, spans: &Range<u32>) -> bool {
    let of = |index: &Indexed| {
        let ranges: Vec<_> = spans.clone().map(|span| index.stream_range(span)).collect();
        (index.source(), index.stream_bytes(), ranges)
    };
    of(one) == of(other)
}
