//! References: what is accepted is shown in a form that is accepted as the same, and never leads
//! out of a directory.
#![no_main]

use imgfs::image::{Platform, Reference};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse::<Reference>().as_ref(), Ok(&reference));
        let repository = reference.repository();
        for part in repository.path().split('/').chain([repository.registry()]).chain(reference.tag()) {
            assert!(!part.is_empty() && part != "." && part != "..");
        }
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse::<Platform>().as_ref(), Ok(&platform));
    }
});
