//! The distribution specification 1.1 as a table: what is asked, and what has to be answered. Each row stands for a
//! sentence with MUST or SHOULD; the endpoints are numbered as there.

use crate::support::content::digest;
use crate::support::image::{OCI_CONFIG, OCI_GZIP, OCI_INDEX, OCI_MANIFEST};
use crate::support::s3::{Dialect, S3};
use crate::support::serving::Serving;
use serde_json::json;
use std::collections::HashMap;

/// One request and its answer. `{name}` in a text stands for what is known under that name.
struct Row {
    endpoint: &'static str,
    method: &'static str,
    target: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: &'static str,
    status: u16,
    /// Headers of the answer; an empty value means that it has to be there.
    answers: &'static [(&'static str, &'static str)],
    /// What has to be in the body.
    says: &'static str,
    /// The name under which the `Location` of the answer is known afterwards.
    location: &'static str,
}

const ROW: Row = Row {
    endpoint: "",
    method: "GET",
    target: "",
    headers: &[],
    body: "",
    status: 200,
    answers: &[],
    says: "",
    location: "",
};

const UPLOADS: &str = "/v2/{repo}/blobs/uploads/";

/// A row, written short.
macro_rules! row {
    ($endpoint:literal $method:ident $target:expr => $status:literal $(, $field:ident: $value:expr)*) => {
        Row { endpoint: $endpoint, method: stringify!($method), target: $target, status: $status,
              $($field: $value,)* ..ROW }
    };
}

#[rustfmt::skip]
const TABLE: &[Row] = &[
    // Determining support.
    row!("end-1" GET "/v2/" => 200, answers: &[("docker-distribution-api-version", "registry/2.0")]),
    // What is not there.
    row!("end-2" GET "/v2/{repo}/blobs/{layer}" => 404, says: "BLOB_UNKNOWN"),
    row!("end-2" HEAD "/v2/{repo}/blobs/{layer}" => 404),
    row!("end-3" GET "/v2/{repo}/manifests/none" => 404, says: "MANIFEST_UNKNOWN"),
    row!("end-3" HEAD "/v2/{repo}/manifests/none" => 404),
    row!("end-3" GET "/v2/{repo}/manifests/{layer}" => 404),
    row!("end-8a" GET "/v2/{repo}/tags/list" => 404, says: "NAME_UNKNOWN"),
    row!("end-12a" GET "/v2/{repo}/referrers/{layer}" => 200, answers: &[("content-type", OCI_INDEX)], says: "\"manifests\":[]"),
    row!("end-13" GET "/v2/{repo}/blobs/uploads/none" => 404, says: "BLOB_UPLOAD_UNKNOWN"),
    // A blob by POST, then PUT.
    row!("end-4a" POST UPLOADS => 202, answers: &[("location", ""), ("range", "0-0")], location: "one"),
    row!("end-13" GET "{one}" => 204, answers: &[("location", ""), ("range", "")]),
    row!("end-6" PUT "{one}?digest={config}" => 201, headers: &[("Content-Type", "application/octet-stream")], body: "{}",
        answers: &[("location", ""), ("docker-content-digest", "{config}")], location: "config_at"),
    row!("end-2" GET "{config_at}" => 200, says: "{}"),
    row!("end-2" HEAD "{config_at}" => 200, answers: &[("content-length", "2"), ("docker-content-digest", "{config}")]),
    // A blob by one POST.
    row!("end-4b" POST "/v2/{repo}/blobs/uploads/?digest={single}" => 201, body: "single", answers: &[("location", "")]),
    row!("end-4b" POST "/v2/{repo}/blobs/uploads/?digest={single}" => 400, body: "another", says: "DIGEST_INVALID"),
    // A blob in chunks.
    row!("end-4a" POST UPLOADS => 202, headers: &[("Content-Length", "0")], location: "chunked"),
    row!("end-5" PATCH "{chunked}" => 416, headers: &[("Content-Range", "3-4")], body: "er", answers: &[("location", ""), ("range", "")]),
    row!("end-5" PATCH "{chunked}" => 202, headers: &[("Content-Range", "0-2")], body: "lay", answers: &[("range", "0-2")], location: "chunked"),
    row!("end-5" PATCH "{chunked}" => 416, headers: &[("Content-Range", "0-2")], body: "lay", answers: &[("range", "0-2")]),
    row!("end-13" GET "{chunked}" => 204, answers: &[("range", "0-2")], location: "chunked"),
    row!("end-6" PUT "{chunked}?digest={layer}" => 416, headers: &[("Content-Range", "9-9")], body: "x"),
    row!("end-5" PATCH "{chunked}" => 202, headers: &[("Content-Range", "3-3")], body: "e", answers: &[("range", "0-3")], location: "chunked"),
    row!("end-6" PUT "{chunked}?digest={layer}" => 201, headers: &[("Content-Range", "4-4")], body: "r", answers: &[("location", "")]),
    row!("end-2" GET "/v2/{repo}/blobs/{layer}" => 200, says: "layer", answers: &[("content-length", "5")]),
    row!("end-2" GET "/v2/{repo}/blobs/{layer}" => 206, headers: &[("Range", "bytes=1-2")], says: "ay", answers: &[("content-range", "bytes 1-2/5")]),
    row!("end-2" GET "/v2/{repo}/blobs/{layer}" => 416, headers: &[("Range", "bytes=5-9")]),
    // An upload that is given up.
    row!("end-4a" POST UPLOADS => 202, location: "cancelled"),
    row!("end-14" DELETE "{cancelled}" => 204),
    row!("end-13" GET "{cancelled}" => 404),
    // Mounting.
    row!("end-11" POST "/v2/{other}/blobs/uploads/?mount={layer}&from={repo}" => 201, answers: &[("location", "/v2/{other}/blobs/{layer}")]),
    row!("end-11" POST "/v2/{third}/blobs/uploads/?mount={layer}" => 201, answers: &[("location", "")]),
    row!("end-11" POST "/v2/{other}/blobs/uploads/?mount={missing}&from={repo}" => 202, answers: &[("location", "")]),
    // Manifests.
    row!("end-7" PUT "/v2/{repo}/manifests/v1" => 404, headers: &[("Content-Type", OCI_MANIFEST)], body: "{lacking}", says: "MANIFEST_BLOB_UNKNOWN"),
    row!("end-7" PUT "/v2/{repo}/manifests/v1" => 201, headers: &[("Content-Type", OCI_MANIFEST)], body: "{manifest}",
        answers: &[("docker-content-digest", "{manifest_digest}")], location: "manifest_at"),
    row!("end-3" GET "{manifest_at}" => 200, says: "{manifest}", answers: &[("content-type", OCI_MANIFEST), ("docker-content-digest", "{manifest_digest}")]),
    row!("end-3" HEAD "/v2/{repo}/manifests/v1" => 200, answers: &[("content-length", ""), ("content-type", OCI_MANIFEST), ("docker-content-digest", "{manifest_digest}")]),
    row!("end-7" PUT "/v2/{repo}/manifests/{manifest_digest}" => 201, headers: &[("Content-Type", OCI_MANIFEST)], body: "{manifest}"),
    row!("end-7" PUT "/v2/{repo}/manifests/{missing}" => 400, headers: &[("Content-Type", OCI_MANIFEST)], body: "{manifest}", says: "DIGEST_INVALID"),
    row!("end-7" PUT "/v2/{repo}/manifests/sha256:bad" => 400, headers: &[("Content-Type", OCI_MANIFEST)], body: "{manifest}"),
    row!("end-3" GET "/v2/{repo}/manifests/sha256:bad" => 400),
    // Referrers.
    row!("end-7" PUT "/v2/{repo}/manifests/{referrer_digest}" => 201, headers: &[("Content-Type", OCI_MANIFEST)], body: "{referrer}",
        answers: &[("oci-subject", "{manifest_digest}")]),
    row!("end-12a" GET "/v2/{repo}/referrers/{manifest_digest}" => 200, says: "{referrer_digest}", answers: &[("content-type", OCI_INDEX)]),
    row!("end-12b" GET "/v2/{repo}/referrers/{manifest_digest}?artifactType=application/x" => 200, says: "{referrer_digest}",
        answers: &[("oci-filters-applied", "artifactType")]),
    row!("end-12b" GET "/v2/{repo}/referrers/{manifest_digest}?artifactType=application/y" => 200, says: "\"manifests\":[]"),
    // Tags.
    row!("end-7" PUT "/v2/{repo}/manifests/v2" => 201, headers: &[("Content-Type", OCI_MANIFEST)], body: "{manifest}"),
    row!("end-8a" GET "/v2/{repo}/tags/list" => 200, says: "[\"v1\",\"v2\"]"),
    row!("end-8b" GET "/v2/{repo}/tags/list?n=1" => 200, says: "[\"v1\"]", answers: &[("link", "")]),
    row!("end-8b" GET "/v2/{repo}/tags/list?n=1&last=v1" => 200, says: "[\"v2\"]"),
    row!("end-8b" GET "/v2/{repo}/tags/list?n=0" => 200, says: "[]"),
    // Deleting.
    row!("end-10" DELETE "/v2/{repo}/blobs/{layer}" => 405),
    row!("end-9" DELETE "/v2/{repo}/manifests/v2" => 202),
    row!("end-3" HEAD "/v2/{repo}/manifests/v2" => 404),
    row!("end-9" DELETE "/v2/{repo}/manifests/{referrer_digest}" => 202),
    row!("end-9" DELETE "/v2/{repo}/manifests/{manifest_digest}" => 202),
    row!("end-3" HEAD "/v2/{repo}/manifests/{manifest_digest}" => 404),
    row!("end-10" DELETE "/v2/{repo}/blobs/{layer}" => 202),
    row!("end-2" HEAD "/v2/{repo}/blobs/{layer}" => 404),
    row!("end-10" DELETE "/v2/{repo}/blobs/{missing}" => 404),
    row!("end-2" HEAD "/v2/{other}/blobs/{layer}" => 200),
    // Other methods.
    row!("end-2" POST "/v2/{repo}/blobs/{layer}" => 405, answers: &[("allow", "")]),
    row!("end-8a" DELETE "/v2/{repo}/tags/list" => 405, answers: &[("allow", "")]),
];

fn filled(text: &str, known: &HashMap<&'static str, String>) -> String {
    known
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

#[test]
fn the_specification_row_by_row() {
    check(&Serving::fresh(&["--allow-delete"]));
}

#[test]
fn the_specification_row_by_row_over_a_bucket() {
    for dialect in [Dialect::S3, Dialect::Gcs] {
        let store = S3::like(dialect);
        let bucket = store.place("some/prefix");
        check(&Serving::bucket(&bucket, store.environment(), &["--allow-delete"]));
        assert_eq!(store.open_uploads(), 0);
    }
}

fn check(serving: &Serving) {
    let client = serving.client();
    let config = json!({"mediaType": OCI_CONFIG, "digest": digest(b"{}"), "size": 2});
    let layer =
        |bytes: &[u8]| json!({"mediaType": OCI_GZIP, "digest": digest(bytes), "size": bytes.len()});
    let manifest = |layers: &[serde_json::Value], more: &[(&str, serde_json::Value)]| {
        let mut manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers,
        });
        for (key, value) in more {
            manifest[*key] = value.clone();
        }
        manifest.to_string()
    };
    let image = manifest(&[layer(b"layer")], &[]);
    let subject =
        json!({"mediaType": OCI_MANIFEST, "digest": digest(image.as_bytes()), "size": image.len()});
    let referrer = manifest(&[], &[("subject", subject), ("artifactType", json!("application/x"))]);
    let mut known: HashMap<&'static str, String> = HashMap::from([
        ("repo", "conformance/repo1".to_owned()),
        ("other", "conformance/repo2".to_owned()),
        ("third", "conformance/repo3".to_owned()),
        ("config", digest(b"{}")),
        ("layer", digest(b"layer")),
        ("single", digest(b"single")),
        ("missing", digest(b"missing")),
        ("manifest_digest", digest(image.as_bytes())),
        ("referrer_digest", digest(referrer.as_bytes())),
        ("lacking", manifest(&[layer(b"not here")], &[])),
        ("manifest", image),
        ("referrer", referrer),
    ]);
    for (number, row) in TABLE.iter().enumerate() {
        let target = filled(row.target, &known);
        let place = format!("row {number}, {}: {} {target}", row.endpoint, row.method);
        let body = filled(row.body, &known);
        let reply = client.send(row.method, &target, row.headers, body.as_bytes());
        let reply = reply.unwrap_or_else(|| panic!("{place}: no response"));
        let said = String::from_utf8_lossy(&reply.body).into_owned();
        assert_eq!(reply.status, row.status, "{place}: {said}");
        for (name, value) in row.answers {
            let found = reply.header(name);
            assert_ne!(found, "", "{place}: {name} is missing");
            if !value.is_empty() {
                assert_eq!(found, filled(value, &known), "{place}: {name}");
            }
        }
        assert!(said.contains(&filled(row.says, &known)), "{place}: {said}");
        if reply.status >= 400 && row.method != "HEAD" {
            assert_eq!(reply.header("content-type"), "application/json", "{place}");
            assert_ne!(reply.code(), "", "{place}: {said}");
        }
        if !row.location.is_empty() {
            let location = reply.header("location").to_owned();
            assert!(location.starts_with("/v2/"), "{place}: {location}");
            known.insert(row.location, location);
        }
    }
}
