//! The `--auths` file.
#![no_main]

use std::path::Path;

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = imgfs::backend::registry::Auths::parse(text, Path::new(""));
});
