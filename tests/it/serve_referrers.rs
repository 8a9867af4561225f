//! `imgfs serve`: thousands of referrers of one image, in pages, and a server that pulls them through.

use crate::support::client::Client;
use crate::support::content::digest;
use crate::support::image::{Artifact, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST, single};
use crate::support::serving::Serving;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The largest manifest that anybody reads, in bytes.
const MAX_MANIFEST: usize = 4 << 20;

/// The file whose name ends with `digits`, somewhere below `dir`.
fn find(dir: &Path, digits: &str) -> Option<PathBuf> {
    std::fs::read_dir(dir).expect("listing").flatten().find_map(|entry| {
        match entry.file_type().expect("a type").is_dir() {
            true => find(&entry.path(), digits),
            false => entry.file_name().to_string_lossy().ends_with(digits).then(|| entry.path()),
        }
    })
}

/// Referrers of an image that is pushed to `team/app`: `count` of one kind with long annotations, and as many short ones
/// of another kind. The digest of the image, and those of each kind.
fn with_referrers(serving: &Serving, count: usize) -> (String, BTreeSet<String>, BTreeSet<String>) {
    let client = serving.client();
    let image = single(1);
    image.push_to(&client, "team/app", "v1");
    let first = Artifact::new("application/first").subject(&image).build();
    first.push_by_digest(&client, "team/app");
    // Pushing them all takes a while, so the others are put beside the first.
    let path = find(serving.images(), &first.digest()["sha256:".len()..]).expect("its file");
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let put = |kind: &str, number: usize, length: usize| {
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": kind,
            "config": {"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2},
            "layers": [],
            "subject": {"mediaType": OCI_MANIFEST, "digest": image.digest(), "size": 2},
            "annotations": {"number": number.to_string(), "text": "x".repeat(length)},
        });
        let bytes = manifest.to_string().into_bytes();
        let digest = digest(&bytes);
        let digits = &digest["sha256:".len()..];
        let own = name.replace(&first.digest()["sha256:".len()..], digits);
        std::fs::write(path.with_file_name(own), &bytes).expect("writing");
        digest
    };
    let long = (0..count).map(|number| put("application/long", number, 3000)).collect();
    let short = (0..count).map(|number| put("application/short+json", number, 1)).collect();
    (image.digest().to_owned(), long, short)
}

/// The referrers on all pages, and the number of pages.
fn all_pages(client: &Client, target: &str) -> (Vec<Value>, usize) {
    let (mut all, mut pages, mut next) = (Vec::new(), 0, target.to_owned());
    loop {
        let reply = client.get(&next);
        assert_eq!((reply.status, reply.header("content-type")), (200, OCI_INDEX));
        assert!(reply.body.len() <= MAX_MANIFEST, "{} bytes", reply.body.len());
        let is_filtered = target.contains("artifactType");
        let filtered = reply.header("oci-filters-applied").to_owned();
        assert_eq!(filtered, if is_filtered { "artifactType" } else { "" }, "page {pages}");
        all.extend(reply.json()["manifests"].as_array().expect("a list").iter().cloned());
        pages += 1;
        let link = reply.header("link");
        if link.is_empty() {
            return (all, pages);
        }
        let (path, relation) = link.split_once('>').expect("a target");
        assert_eq!(relation, "; rel=\"next\"");
        next = path.strip_prefix('<').expect("a target").to_owned();
    }
}

fn digests(all: &[Value]) -> BTreeSet<String> {
    let digests: BTreeSet<String> =
        all.iter().map(|one| one["digest"].as_str().expect("a digest").to_owned()).collect();
    assert_eq!(digests.len(), all.len(), "none of them is listed twice");
    digests
}

#[test]
fn thousands_of_referrers_come_in_pages_that_can_be_read() {
    let serving = Serving::fresh::<&str>(&[]);
    let (subject, long, short) = with_referrers(&serving, 2000);
    let client = serving.client();
    let target = format!("/v2/team/app/referrers/{subject}");
    let (all, pages) = all_pages(&client, &target);
    assert_eq!(pages, 2, "6 MB of annotations are two pages");
    assert_eq!(all.len(), 4001);
    let listed = digests(&all);
    assert!(long.is_subset(&listed) && short.is_subset(&listed));
    assert!(all.iter().all(|one| one["annotations"]["text"] != Value::Null
        || one["artifactType"] == "application/first"));
    // The filter goes along from page to page, whatever is in it.
    for kind in ["application/short+json", "application/short%2Bjson"] {
        let (all, pages) = all_pages(&client, &format!("{target}?artifactType={kind}&n=700"));
        assert_eq!((digests(&all), pages), (short.clone(), 3), "{kind}");
    }
    let both = "artifactType=application/long&artifactType=application/short%2Bjson";
    let (all, _) = all_pages(&client, &format!("{target}?{both}"));
    assert_eq!(all.len(), 4000);
    let (all, pages) = all_pages(&client, &format!("{target}?artifactType=application/none"));
    assert_eq!((all.len(), pages), (0, 1));
    for (query, status) in [("n=0", 200), ("n=x", 400), ("last=x", 400)] {
        assert_eq!(client.get(&format!("{target}?{query}")).status, status, "{query}");
    }
    // A server in front of this one has them all, too.
    let upstream = serving.host();
    let front = Serving::fresh(&["--upstream", &*upstream, "--upstream-wait", "60s"]);
    let through = format!("/v2/{}/team/app/referrers/{subject}", upstream.replace(':', "__"));
    let (all, pages) = all_pages(&front.client(), &through);
    assert_eq!((digests(&all), pages), (listed, 2));
}
