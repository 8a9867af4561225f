//! Start-up profiles: reading never panics, what is read is within its bounds, and is written as it was read.
#![no_main]

use imgfs::layer::{Profile, ProfileRecorder};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(profile) = Profile::parse(text) else { return };
    assert!(profile.reads().len() <= Profile::MAX_READS);
    assert!(profile.read_bytes() <= Profile::MAX_READ_BYTES);
    for read in profile.reads() {
        let stream = &profile.streams()[usize::from(read.stream)];
        assert!(read.range.start < read.range.end && read.range.end <= stream.bytes);
    }
    let written = profile.to_bytes();
    if written.len() as u64 <= Profile::MAX_BYTES {
        assert_eq!(Profile::parse(&written).expect("what was written"), profile);
    }
    // A recording of the same, and what comes of both.
    let mut recorder = ProfileRecorder::new(profile.image(), None);
    for read in profile.reads().iter().take(64) {
        let stream = profile.streams()[usize::from(read.stream)];
        recorder.note(&stream, read.range.clone());
    }
    let _ = recorder.meets(&profile);
    let joined = recorder.profile().with_earlier(&profile);
    assert!(joined.reads().len() <= Profile::MAX_READS);
    assert!(joined.read_bytes() <= Profile::MAX_READ_BYTES);
    for read in joined.reads() {
        let stream = &joined.streams()[usize::from(read.stream)];
        assert!(read.range.start < read.range.end && read.range.end <= stream.bytes);
    }
});
