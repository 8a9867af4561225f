//! Manifests: reading never panics, and a filtered index is an index again.
#![no_main]

use imgfs::image::{FilteredIndex, Manifest, PlatformFilter, filter_index};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let Ok(manifest) = Manifest::parse(text.to_vec().into(), None) else { return };
    assert_eq!(manifest.bytes(), text);
    let children = manifest.children();
    let platforms: Vec<_> = children.iter().map(|child| child.platform.clone()).collect();
    let filter = PlatformFilter::parse(&["linux/amd64"]).unwrap();
    let kept = filter.select(&platforms).kept;
    let keep: Vec<_> = (0..children.len())
        .map(|i| kept.contains(&i).then(|| (children[i].digest, children[i].size)))
        .collect();
    let filtered =
        FilteredIndex { original: &manifest, keep: &keep, platforms: filter.to_string() };
    if let Ok(made) = filter_index(&filtered) {
        assert_eq!(made.children().len(), kept.len());
    }
});
