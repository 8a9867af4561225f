//! Lists of images and layers that other programs have written, and what a helper is told.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    imgfs::store::fuzz_graphroot(text);
    let _ = imgfs::store::wire::helper_request(text);
});
