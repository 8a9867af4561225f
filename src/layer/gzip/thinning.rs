//! Finding out which bytes of a window are needed.
//!
//! Of the 32 KiB before a place in a deflate stream, what follows usually refers to a tenth. The rest can be
//! anything, so zeros are kept of it, which compress to nothing.

use super::zlib::{At, Inflate, WINDOW_BYTES};

/// Compressed bytes behind a place from which 32 KiB come in any stream that is meant to save room.
pub(in crate::layer) const FOLLOWING_BYTES: usize = 48 << 10;

/// Memory that a [`Thinner`] takes, in bytes.
pub(in crate::layer) const THINNER_BYTES: u64 = 256 << 10;

/// Makes zeros of the bytes of windows that nothing refers to.
///
/// What follows is decompressed twice, with windows that say at each byte where in the window it is: one
/// has the lower eight bits of that, the other the rest. The two differ at every place. So wherever the
/// two outputs are the same, the byte was in the stream, and wherever they differ they say which byte
/// of the window it is a copy of, by however many steps.
pub(in crate::layer) struct Thinner {
    inflates: [Inflate; 2],
    windows: [Box<[u8]>; 2],
    outputs: [Box<[u8]>; 2],
    is_used: Box<[bool]>,
}

/// The two bytes that stand for a place in a window: 15 bits, and one in which the bytes differ.
fn encode(place: usize) -> [u8; 2] {
    let low = place as u8;
    [low, (place >> 8) as u8 & 0x7f | !low & 0x80]
}

fn decode(low: u8, high: u8) -> usize {
    usize::from(high & 0x7f) << 8 | usize::from(low)
}

impl Thinner {
    /// `None` if there is no memory for it.
    pub(in crate::layer) fn new() -> Option<Self> {
        let window = |which: usize| (0..WINDOW_BYTES).map(|at| encode(at)[which]).collect();
        let output = || vec![0; WINDOW_BYTES].into_boxed_slice();
        Some(Self {
            inflates: [Inflate::new().ok()?, Inflate::new().ok()?],
            windows: [window(0), window(1)],
            outputs: [output(), output()],
            is_used: vec![false; WINDOW_BYTES].into_boxed_slice(),
        })
    }

    /// Makes zeros of the bytes of `window` that are not needed to decompress what follows it from the
    /// bit `blob_bits` on. `following` begins with the byte that has this bit, and has the next 32 KiB of
    /// the stream in it, or all that follow.
    ///
    /// `window` is what [`super::Boundary::window`] gives. If it cannot be found out it stays as it is.
    pub(in crate::layer) fn thin(&mut self, window: &mut [u8], blob_bits: u64, following: &[u8]) {
        let length = window.len().min(WINDOW_BYTES);
        let ([first, second], [low, high]) = (&mut self.inflates, &mut self.outputs);
        let of_low = decompress(first, &self.windows[0][..length], blob_bits, following, low);
        let of_high = decompress(second, &self.windows[1][..length], blob_bits, following, high);
        let produced = match (of_low, of_high) {
            (Ok(low), Ok(high)) if low == high => low,
            _ => return,
        };
        self.is_used.fill(false);
        for (low, high) in low.iter().zip(high.iter()).take(produced) {
            if low != high {
                self.is_used[decode(*low, *high)] = true;
            }
        }
        for (byte, is_used) in window.iter_mut().zip(&self.is_used) {
            *byte = if *is_used { *byte } else { 0 };
        }
    }
}

/// Decompresses what `output` has room for, or what there is before the end or damage; how much that is.
fn decompress(
    inflate: &mut Inflate,
    window: &[u8],
    blob_bits: u64,
    following: &[u8],
    output: &mut [u8],
) -> Result<usize, &'static str> {
    inflate.reset()?;
    inflate.set_window(window)?;
    let mut input = following;
    let bits = (blob_bits % 8) as u8;
    if let Some((first, rest)) = input.split_first().filter(|_| bits > 0) {
        inflate.begin_within(*first, 8 - bits)?;
        input = rest;
    }
    let mut filled = 0;
    loop {
        let step = inflate.step(input, &mut output[filled..], false);
        filled += step.produced;
        input = &input[step.consumed..];
        let is_over = !matches!(step.at, Ok(At::Middle)) || step.consumed + step.produced == 0;
        if is_over || filled == output.len() {
            return Ok(filled);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_bytes_of_its_own() {
        for place in 0..WINDOW_BYTES {
            let [low, high] = encode(place);
            assert_ne!(low, high);
            assert_eq!(decode(low, high), place);
        }
    }
}
