//! Archives, with checksums that are right: nothing panics, and the index is read as it was written.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: (u16, Vec<u8>)| {
    let (piece, mut archive) = input;
    for block in archive.chunks_exact_mut(512) {
        // Every block could be a header.
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    imgfs::layer::fuzzing::blob(&archive, piece);
});
