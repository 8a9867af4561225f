//! Whether two files have the same content, without reading them where that can be told.

use std::{ops::Range, sync::Arc};

use crate::{
    backend::Result,
    layer::{Data, Kind, LayerIndex, Node, Origin},
    rootfs::{Tree, TreeFile},
};

/// What is read of a file at a time, in bytes.
const STEP: u64 = 1 << 20;

/// What is known of two contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sameness {
    Same,
    Different,
    /// They have to be read.
    Unknown,
}

/// Where the content of a file begins: the number of its layer, and the place in the stream of that.
pub(super) fn place(tree: &Tree, node: Node) -> (usize, u64) {
    let data = tree.rootfs().data(node).ok();
    data.map_or((0, 0), |data| (data.layer, data.extents.first().map_or(0, |e| e.stream_offset)))
}

/// What can be told of the contents of two files without reading them. What is no file in one of the trees
/// has no content that could differ.
pub(super) fn known_sameness(a: &Tree, in_a: Node, b: &Tree, in_b: Node) -> Sameness {
    let is_file = |tree: &Tree, node| tree.rootfs().attributes(node).kind == Kind::File;
    if !is_file(a, in_a) || !is_file(b, in_b) {
        return Sameness::Same;
    }
    let (one, other) = match (a.rootfs().data(in_a), b.rootfs().data(in_b)) {
        (Ok(one), Ok(other)) => (one, other),
        // Hard links that lead nowhere, for the same reason or not.
        (Err(one), Err(other)) if one == other => return Sameness::Same,
        _ => return Sameness::Different,
    };
    if one.size != other.size {
        return Sameness::Different;
    }
    if one.extents.is_empty() && other.extents.is_empty() {
        // Nothing but zeros, if anything.
        return Sameness::Same;
    }
    let index = |tree: &Tree, data: &Data| tree.rootfs().layers().get(data.layer).cloned();
    let (Some(of_one), Some(of_other)) = (index(a, &one), index(b, &other)) else {
        return Sameness::Unknown;
    };
    if one.extents == other.extents && is_same_stream(&of_one, &of_other) {
        return Sameness::Same;
    }
    match (of_one.chunk_digests(&one.extents), of_other.chunk_digests(&other.extents)) {
        (Some(one), Some(other)) if one == other => Sameness::Same,
        (Some(one), Some(other)) => {
            let cuts = |chunks: &[(Range<u64>, _)]| {
                chunks.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>()
            };
            // Cut alike, other digests are other bytes.
            if cuts(&one) == cuts(&other) { Sameness::Different } else { Sameness::Unknown }
        }
        _ => Sameness::Unknown,
    }
}

/// Whether two layers have the same stream, by what has been checked of them.
fn is_same_stream(one: &Arc<LayerIndex>, other: &Arc<LayerIndex>) -> bool {
    if Arc::ptr_eq(one, other) {
        return true;
    }
    let is_checked = |index: &LayerIndex| index.origin() == Origin::Pass;
    let has_same_diff_id = || one.diff_id().is_some() && one.diff_id() == other.diff_id();
    is_checked(one) && is_checked(other) && (one.blob() == other.blob() || has_same_diff_id())
}

/// Reads two files of the same size until they differ. Says whether they are the same, and how many bytes
/// were read of both together. Holes that both have are not read.
pub(super) async fn is_same_content(
    (a, in_a): (&Tree, Node),
    (b, in_b): (&Tree, Node),
) -> Result<(bool, u64)> {
    let (Some(one), Some(other)) = (a.open(in_a)?, b.open(in_b)?) else { return Ok((false, 0)) };
    let mut bytes = 0;
    let extents = |tree: &Tree, node| {
        let data = tree.rootfs().data(node).map(|data| data.extents).unwrap_or_default();
        data.into_iter().map(|e| e.file_offset..e.file_offset + e.length).collect::<Vec<_>>()
    };
    let parts = [extents(a, in_a), extents(b, in_b)].concat();
    for part in union(parts) {
        let mut at = part.start;
        while at < part.end {
            let length = STEP.min(part.end - at);
            bytes += 2 * length;
            if !is_same_part(&one, &other, at, length).await? {
                return Ok((false, bytes));
            }
            at += length;
        }
    }
    one.verified().await?;
    other.verified().await?;
    Ok((true, bytes))
}

async fn is_same_part(one: &TreeFile, other: &TreeFile, at: u64, length: u64) -> Result<bool> {
    // A step is not more than 1 MiB.
    let length = length as usize;
    let (one, other) = futures_util::try_join!(one.read(at, length), other.read(at, length))?;
    Ok(one == other)
}

/// What is in any of the ranges, in order.
fn union(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut all: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match all.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => all.push(range),
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_either_are_read_once() {
        assert_eq!(union(vec![5..7, 0..2, 1..3, 3..4, 6..9]), [0..4, 5..9]);
        assert_eq!(union(Vec::new()), []);
    }
}
