//! A real object store, which nobody has made for these tests.

use crate::places::{Bed, listed};
use crate::support::content;
use crate::support::image::{Built, Image, single};
use crate::support::need::require;
use crate::support::seaweed::SeaweedFs;
use crate::support::serving::Serving;
use crate::support::skopeo::{Place, Skopeo};
use crate::support::text;
use crate::support::tree::{self, assert_tree_sound};
use std::fs;
use std::path::Path;

fn bed() -> (SeaweedFs, Bed) {
    let store = SeaweedFs::start();
    let imgfs = store.client();
    (store, Bed::with(imgfs))
}

/// A directory with one image, of which the layer is sent in parts.
fn large(bed: &Bed, tag: &str, seed: u64) -> (String, Built) {
    let image = Image::new().layer(seed, 17_000_000).build();
    let dir = bed.path(tag);
    tree::kubekey_g1(&dir, "quay.io", "x/large", tag, &image);
    (text(&dir).to_owned(), image)
}

#[track_caller]
fn assert_same_blobs(at: &Path, image: &Built) {
    for digest in image.blobs.keys() {
        let stored = fs::read(at.join("blobs").join(digest)).expect("the blob is there");
        assert_eq!(&content::digest(&stored), digest);
    }
}

#[test]
fn what_a_real_store_gets_comes_back_as_it_was() {
    require!(ObjectStore);
    let (store, bed) = bed();
    let (from, app, other) = bed.images();
    let (large, heavy) = large(&bed, "1", 5);
    let place = store.place("some/prefix");
    for source in [&from, &large] {
        bed.copy(source, &place, &["--all"]).success();
        let again = bed.copy(source, &place, &["--all"]).success();
        assert!(again.images().iter().all(|image| image["status"] == "unchanged"), "{again}");
    }
    assert_eq!(listed(&bed.imgfs, &place).len(), 3);
    bed.imgfs.run(&["verify", "--full", &place]).success();

    let to = bed.path("to");
    bed.copy(&place, text(&to), &["--all"]).success();
    assert_tree_sound(&to);
    for image in [&app, &other, &heavy] {
        assert_same_blobs(&to, image);
    }

    // A tag moves from where it was.
    let (dir, moved) = (bed.path("moved"), single(77));
    tree::kubekey_g1(&dir, "quay.io", "team/other", "v2", &moved);
    bed.copy(text(&dir), &place, &["--all"]).success();
    let name = ("quay.io/team/other:v2".to_owned(), moved.digest().to_owned());
    assert!(listed(&bed.imgfs, &place).contains(&name), "{:?}", listed(&bed.imgfs, &place));
}

#[test]
fn many_writers_into_a_real_store_lose_nothing() {
    require!(ObjectStore);
    let (store, bed) = bed();
    let place = store.place("p");
    // All bring the same layer at the same time.
    let (from, image) = large(&bed, "1", 9);
    let runs: Vec<_> = (0..6)
        .map(|at| {
            let dest = format!("quay.io/x/large:{at}");
            let copy = ["copy", "--json", "--from", &from, "--to", &place, "--dest", &dest];
            bed.imgfs.spawn(&[&copy[..], &["--all"]].concat())
        })
        .collect();
    for run in runs {
        run.wait().success();
    }
    let expected = (0..6).map(|at| (format!("quay.io/x/large:{at}"), image.digest().to_owned()));
    assert_eq!(listed(&bed.imgfs, &place), expected.collect());
    bed.imgfs.run(&["verify", "--full", &place]).success();
}

#[test]
fn a_run_that_is_killed_leaves_a_real_store_for_the_next_one() {
    require!(ObjectStore);
    let (store, bed) = bed();
    let place = store.place("p");
    for round in 0..4 {
        let tag = format!("r{round}");
        let (from, image) = large(&bed, &tag, 20 + round);
        let run = bed.imgfs.spawn(&["copy", "--json", "--from", &from, "--to", &place, "--all"]);
        std::thread::sleep(std::time::Duration::from_millis(150 * round));
        run.kill9();
        // Whether it came to its end or not: what is named is whole.
        let output = bed.imgfs.run(&["verify", "--full", &place]);
        assert!(matches!(output.code(), 0 | 3), "{output}");
        bed.copy(&from, &place, &["--all"]).success();
        let to = bed.path(&format!("to-{tag}"));
        bed.copy(&place, text(&to), &[&format!("quay.io/x/large:{tag}")]).success();
        assert_tree_sound(&to);
        assert_same_blobs(&to, &image);
    }
}

#[test]
fn servers_over_a_real_store_take_and_give_images() {
    require!(ObjectStore);
    let (store, bed) = bed();
    let image = Image::new().layer(31, 17_000_000).layer(32, 1000).build();
    let layout = bed.path("layout");
    image.write_oci_layout(&layout, "v1");
    let serve = |args: &[&str]| Serving::bucket(&store.place("p"), store.environment(), args);
    let (writer, reader) = (serve(&["--allow-delete"]), serve(&["--read-only", "--redirect"]));
    let skopeo = Skopeo::new();
    let at = |serving: &Serving| Place::plain(&format!("{}/team/app:v1", serving.host()));
    skopeo.copy(&Place::layout(&layout, "v1"), &at(&writer));
    assert_eq!(skopeo.inspect_raw(&at(&reader)), image.root().bytes);
    for (name, serving) in [("written", &writer), ("redirected", &reader)] {
        let back = bed.path(name);
        skopeo.copy(&at(serving), &Place::layout(&back, "v1"));
        for digest in image.blobs.keys() {
            let file = back.join("blobs").join(digest.replace(':', "/"));
            let stored = fs::read(file).expect("the blob is there");
            assert_eq!(&content::digest(&stored), digest, "{name}");
        }
    }
    // It is an image of the bucket like any other.
    let name = ("registry.local/team/app:v1".to_owned(), image.digest().to_owned());
    assert_eq!(listed(&bed.imgfs, &store.place("p")), [name].into());
    bed.imgfs.run(&["verify", "--full", &store.place("p")]).success();
    assert_eq!(
        writer
            .client()
            .send("DELETE", "/v2/team/app/manifests/v1", &[], b"")
            .expect("a response")
            .status,
        202
    );
    assert_eq!(reader.client().head("/v2/team/app/manifests/v1").status, 404);
}
