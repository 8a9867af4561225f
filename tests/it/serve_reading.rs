//! `imgfs serve`: what is read, by the sentences of the distribution specification and of docs/serve.md.

use crate::support::cli::Imgfs;
use crate::support::client::{Client, Reply};
use crate::support::content::{Content, digest};
use crate::support::hostile::Hostile;
use crate::support::image::{
    Artifact, Built, DOCKER_LIST, Image, Index, OCI_INDEX, OCI_MANIFEST, Receiver as _,
};
use crate::support::serving::Serving;
use crate::support::tree;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

/// A tree that a pull has made of `image`, as `host/team/app:v1`, and what its repository is called.
fn pulled(image: &Built) -> (Imgfs, String) {
    let registry = Hostile::start();
    image.push_to(&registry, "team/app", "v1");
    let imgfs = Imgfs::scratch();
    imgfs.pull(&[format!("{}/team/app:v1", registry.host())]).success();
    (imgfs, format!("{}/team/app", registry.host().replace(':', "__")))
}

fn ranged(client: &Client, target: &str, range: &str) -> Reply {
    client.send("GET", target, &[("Range", range)], b"").expect("a response")
}

#[test]
fn a_pulled_tree_is_served_byte_for_byte() {
    let image = crate::support::image::two_platforms(1);
    let (imgfs, name) = pulled(&image);
    let before = tree::snapshot(imgfs.images_dir());
    let serving = Serving::start(imgfs.images_dir(), &["--read-only"]);
    let client = serving.client();
    assert_eq!(client.get("/v2/").status, 200);
    assert_eq!(client.get("/v2/").header("docker-distribution-api-version"), "registry/2.0");
    for reference in ["v1", image.digest()] {
        let target = format!("/v2/{name}/manifests/{reference}");
        let (head, get) = (client.head(&target), client.get(&target));
        assert_eq!((get.status, &get.body), (200, &image.root().bytes), "{reference}");
        assert_eq!((head.status, head.body.len()), (200, 0));
        for reply in [&head, &get] {
            assert_eq!(reply.header("content-type"), image.root().media_type);
            assert_eq!(reply.header("content-length"), image.root().bytes.len().to_string());
            assert_eq!(reply.header("docker-content-digest"), image.digest());
            assert_eq!(reply.header("etag"), format!("\"{}\"", image.digest()));
            assert_eq!(reply.header("content-encoding"), "");
        }
    }
    for manifest in &image.manifests {
        let reply = client.get(&format!("/v2/{name}/manifests/{}", manifest.digest));
        assert_eq!(reply.body, manifest.bytes);
    }
    for blob in image.blobs.values() {
        let target = format!("/v2/{name}/blobs/{}", blob.digest);
        let (head, get) = (client.head(&target), client.get(&target));
        assert_eq!(digest(&get.body), blob.digest);
        for reply in [&head, &get] {
            assert_eq!(reply.status, 200);
            assert_eq!(reply.header("content-length"), blob.size().to_string());
            assert_eq!(reply.header("docker-content-digest"), blob.digest);
            assert_eq!(reply.header("accept-ranges"), "bytes");
        }
    }
    assert_eq!(client.get(&format!("/v2/{name}/tags/list")).json()["tags"][0], "v1");
    assert_eq!(client.get("/v2/_catalog").json()["repositories"][0], name);
    // What is read only is left as it is.
    assert_eq!(client.ask("POST", &format!("/v2/{name}/blobs/uploads/"), b"").status, 405);
    assert_eq!(tree::snapshot(imgfs.images_dir()), before);
}

#[test]
fn whatever_accept_says_the_stored_bytes_are_served() {
    let image = crate::support::image::single(2);
    let (imgfs, name) = pulled(&image);
    let serving = Serving::start(imgfs.images_dir(), &["--read-only"]);
    let target = format!("/v2/{name}/manifests/v1");
    let lines = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, "application/json", "*/*", "text/html"];
    let lines = lines.map(|line| ("Accept", line));
    let reply = serving.client().send("GET", &target, &lines, b"").expect("a response");
    assert_eq!((reply.status, reply.body), (200, image.root().bytes.clone()));
    let none = serving.client().send("GET", &target, &[("Accept", "text/html")], b"");
    assert_eq!(none.expect("a response").status, 200);
}

#[test]
fn ranges_one_several_and_beyond() {
    let bytes: Vec<u8> = (0..300_000_u32).map(|at| (at / 7) as u8).collect();
    let image = Image::new().layer_raw("application/x", &bytes).build();
    let (imgfs, name) = pulled(&image);
    let serving = Serving::start(imgfs.images_dir(), &["--read-only"]);
    let client = serving.client();
    let target = format!("/v2/{name}/blobs/{}", digest(&bytes));
    let size = bytes.len();
    for (range, part) in [
        ("bytes=0-0", 0..1),
        ("bytes=5-99", 5..100),
        ("bytes=200000-", 200_000..size),
        ("bytes=-100", size - 100..size),
        ("bytes=299999-400000", 299_999..size),
    ] {
        let reply = ranged(&client, &target, range);
        assert_eq!(reply.status, 206, "{range}");
        let (first, last) = (part.start, part.end - 1);
        assert_eq!(reply.header("content-range"), format!("bytes {first}-{last}/{size}"));
        assert_eq!(reply.header("content-length"), part.len().to_string());
        assert!(reply.body == bytes[part], "{range}");
    }
    for range in ["bytes=300000-", "bytes=500-0", "bytes=-0"] {
        let reply = ranged(&client, &target, range);
        assert_eq!(reply.status, 416, "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes */{size}"));
    }
    assert_eq!(ranged(&client, &target, "lines=1-2").status, 200);

    // As skopeo asks for a layer with a table of contents.
    let reply = ranged(&client, &target, "bytes=10-19,100-104");
    assert_eq!(reply.status, 206);
    let kind = reply.header("content-type").to_owned();
    let boundary = kind.strip_prefix("multipart/byteranges; boundary=").expect("a boundary");
    let part = |range: &str, bytes: &[u8]| {
        let head = "Content-Type: application/octet-stream\r\nContent-Range: bytes ";
        [format!("--{boundary}\r\n{head}{range}/{size}\r\n\r\n").as_bytes(), bytes, b"\r\n"]
            .concat()
    };
    let expected = [
        part("10-19", &bytes[10..20]),
        part("100-104", &bytes[100..105]),
        format!("--{boundary}--\r\n").into_bytes(),
    ];
    assert_eq!(reply.body, expected.concat());
    assert_eq!(reply.header("content-length"), reply.body.len().to_string());
}

#[test]
fn conditions() {
    let image = crate::support::image::single(3);
    let (imgfs, name) = pulled(&image);
    let serving = Serving::start(imgfs.images_dir(), &["--read-only"]);
    let client = serving.client();
    let layer = &image.layers()[0];
    for (target, own) in [
        (format!("/v2/{name}/manifests/v1"), image.digest()),
        (format!("/v2/{name}/blobs/{layer}"), layer.as_str()),
    ] {
        for (tag, status) in [
            (format!("\"{own}\""), 304),
            (format!("\"x\", W/\"{own}\""), 304),
            ("\"x\"".into(), 200),
        ] {
            let reply = client.send("GET", &target, &[("If-None-Match", &tag)], b"");
            let reply = reply.expect("a response");
            assert_eq!(reply.status, status, "{tag}");
            assert_eq!(reply.body.is_empty(), status == 304);
            assert_eq!(reply.header("docker-content-digest"), own);
        }
    }
    let target = format!("/v2/{name}/blobs/{layer}");
    let part = [("Range", "bytes=0-9"), ("If-Range", "\"other\"")];
    assert_eq!(client.send("GET", &target, &part, b"").expect("a response").status, 200);
}

#[test]
fn names_lead_where_the_rules_say() {
    let serving = Serving::fresh(&[] as &[&str]);
    let client = serving.client();
    let image = crate::support::image::single(4);
    // Local, and another registry's, by each of the ways.
    image.push_to(&client, "pause", "1");
    image.push_to(&client, "quay.io/team/app", "1");
    image.push_to(&client, "docker.io/library/nginx", "1");
    image.push_to(&client, "host__5000/app", "1");
    for path in
        ["registry.local/pause", "quay.io/team/app", "docker.io/library/nginx", "host:5000/app"]
    {
        let manifests = serving.images().join(path).join("manifests/1");
        assert!(manifests.is_file(), "{}", manifests.display());
    }
    for (target, status) in [
        ("/v2/pause/manifests/1", 200),
        ("/v2/registry.local/pause/manifests/1", 200),
        ("/v2/library/pause/manifests/1", 404),
        ("/v2/team/app/manifests/1?ns=quay.io", 200),
        ("/v2/nginx/manifests/1?ns=docker.io", 200),
        ("/v2/library/nginx/manifests/1?ns=registry-1.docker.io", 200),
        // Not here, and so the default registry's.
        ("/v2/library/nginx/manifests/1", 200),
        ("/v2/nginx/manifests/1", 200),
        ("/v2/app/manifests/1?ns=host%3A5000", 200),
        ("/v2/app/manifests/1?ns=host:5000", 200),
        ("/v2/app/manifests/1?ns=quay.io", 404),
        ("/v2/team/app/manifests/1", 404),
    ] {
        assert_eq!(client.get(target).status, status, "{target}");
    }
    let echoed = client.get("/v2/app/manifests/1?ns=host%3A5000");
    assert_eq!(echoed.header("oci-namespace"), "host:5000");
    let catalog = client.get("/v2/_catalog").json();
    assert_eq!(
        catalog["repositories"],
        serde_json::json!([
            "docker.io/library/nginx",
            "host__5000/app",
            "pause",
            "quay.io/team/app"
        ])
    );
    for name in ["Upper/x", "a/../b", "a//b", "..", "a/.b", &"a".repeat(256), "-a"] {
        let reply = client.get(&format!("/v2/{name}/manifests/1"));
        assert!([400, 404].contains(&reply.status), "{name}: {}", reply.status);
        if reply.status == 400 {
            assert_eq!(reply.code(), "NAME_INVALID", "{name}");
        }
    }
    assert_eq!(client.get("/v2/a/manifests/1?ns=nodots").code(), "NAME_INVALID");
}

#[test]
fn lists_have_pages_in_the_order_of_bytes() {
    let serving = Serving::fresh(&[] as &[&str]);
    let client = serving.client();
    let image = crate::support::image::single(5);
    for tag in ["b", "a", "B", "10", "9"] {
        image.push_to(&client, "team/app", tag);
    }
    let list = "/v2/team/app/tags/list";
    assert_eq!(client.get(list).json()["tags"], serde_json::json!(["10", "9", "B", "a", "b"]));
    let page = client.get(&format!("{list}?n=2"));
    assert_eq!(page.json()["tags"], serde_json::json!(["10", "9"]));
    assert_eq!(page.header("link"), format!("<{list}?last=9&n=2>; rel=\"next\""));
    let page = client.get(&format!("{list}?n=2&last=9"));
    assert_eq!(page.json()["tags"], serde_json::json!(["B", "a"]));
    let last = client.get(&format!("{list}?n=2&last=a"));
    assert_eq!((last.json()["tags"].clone(), last.header("link")), (serde_json::json!(["b"]), ""));
    assert_eq!(client.get(&format!("{list}?n=0")).json()["tags"], serde_json::json!([]));
    assert_eq!(client.get(&format!("{list}?last=aa")).json()["tags"], serde_json::json!(["b"]));
    assert_eq!(client.get(&format!("{list}?n=x")).status, 400);
    let unknown = client.get("/v2/other/tags/list");
    assert_eq!((unknown.status, unknown.code()), (404, "NAME_UNKNOWN".into()));
    assert_eq!(client.get("/v2/_catalog?n=1").json()["repositories"][0], "team/app");
}

#[test]
fn referrers_are_an_index_in_any_case() {
    let serving = Serving::fresh(&[] as &[&str]);
    let client = serving.client();
    let image = crate::support::image::single(6);
    image.push_to(&client, "team/app", "1");
    let list = format!("/v2/team/app/referrers/{}", image.digest());
    let empty = client.get(&list);
    assert_eq!((empty.status, empty.header("content-type")), (200, OCI_INDEX));
    assert_eq!(empty.json()["manifests"], serde_json::json!([]));
    let unknown = format!("/v2/nothing/referrers/{}", digest(b"x"));
    assert_eq!(client.get(&unknown).status, 200);

    let sbom = Artifact::new("application/x-sbom").blob("text/plain", b"sbom").subject(&image);
    let sbom = sbom.annotation("made", "here").build();
    let signature = Artifact::new("application/x-sig").blob("text/plain", b"s").subject(&image);
    let signature = signature.build();
    for artifact in [&sbom, &signature] {
        artifact.push_by_digest(&client, "team/app");
    }
    let all = client.get(&list).json()["manifests"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(2));
    let filtered = client.get(&format!("{list}?artifactType=application%2Fx-sbom"));
    assert_eq!(filtered.header("oci-filters-applied"), "artifactType");
    let found = &filtered.json()["manifests"];
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    assert_eq!(found[0]["digest"], sbom.digest());
    assert_eq!(found[0]["artifactType"], "application/x-sbom");
    assert_eq!(found[0]["annotations"]["made"], "here");
    let plus = Artifact::new("application/x+json").blob("text/plain", b"+").subject(&image).build();
    plus.push_by_digest(&client, "team/app");
    for spelling in ["application/x+json", "application%2Fx%2Bjson"] {
        let filtered = client.get(&format!("{list}?artifactType={spelling}")).json();
        assert_eq!(filtered["manifests"].as_array().map(Vec::len), Some(1), "{spelling}");
    }
    assert_eq!(found[0]["size"], sbom.root().bytes.len());

    // A list under the fallback tag counts as well.
    let other = Artifact::new("application/x-other").blob("text/plain", b"o").build();
    other.push_by_digest(&client, "team/app");
    let tag = image.digest().replace(':', "-");
    let fallback = Index::new().child(&other).build();
    client.put_manifest("team/app", &tag, OCI_INDEX, &fallback.root().bytes);
    let all = client.get(&list).json()["manifests"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(4));
    // But not what refers to something else, or is not here any more.
    let another = crate::support::image::single(7);
    another.push_to(&client, "team/app", "2");
    let gone = Artifact::new("application/x-gone").blob("text/plain", b"g").build();
    let of_another = Artifact::new("application/x-sig").blob("text/plain", b"s").subject(&another);
    let of_another = of_another.build();
    of_another.push_by_digest(&client, "team/app");
    let fallback = Index::new().child(&other).child(&of_another).child(&gone).build();
    let mut listing = std::fs::File::create(
        serving.images().join("registry.local/team/app/manifests").join(&tag),
    );
    let written = listing.as_mut().map(|file| file.write_all(&fallback.root().bytes));
    written.expect("creating").expect("writing");
    let all = client.get(&list).json()["manifests"].clone();
    assert_eq!(all.as_array().map(Vec::len), Some(4), "{all}");
}

#[test]
fn a_manifest_that_is_written_in_place_counts_when_it_is_whole() {
    let image = crate::support::image::single(8);
    let (imgfs, name) = pulled(&image);
    let serving = Serving::start(imgfs.images_dir(), &[] as &[&str]);
    let client = serving.client();
    let target = format!("/v2/{name}/manifests/v1");
    assert_eq!(client.get(&target).status, 200);
    let tag = imgfs.images_dir().join(name.replace("__", ":")).join("manifests/v1");
    // As `cp` over it does it.
    let mut file = std::fs::OpenOptions::new().write(true).truncate(true).open(tag).expect("tag");
    // Long enough ago that nobody looks again for that reason.
    std::thread::sleep(std::time::Duration::from_millis(20));
    let list = format!("/v2/{name}/tags/list");
    for _ in 0..3 {
        assert_eq!(client.get(&target).status, 404);
        assert_eq!(client.get(&list).status, 404);
    }
    file.write_all(&image.root().bytes).expect("writing");
    assert_eq!(client.get(&target).body, image.root().bytes);
    assert_eq!(client.get(&list).json()["tags"], serde_json::json!(["v1"]));
}

#[test]
fn what_changes_in_the_tree_counts_at_once() {
    let image = crate::support::image::single(7);
    let (imgfs, name) = pulled(&image);
    let registry = Hostile::start();
    let serving = Serving::start(imgfs.images_dir(), &[] as &[&str]);
    let client = serving.client();
    let target = format!("/v2/{name}/manifests/v1");
    assert_eq!(client.get(&target).body, image.root().bytes);
    // Another process writes.
    let other = crate::support::image::single(8);
    other.push_to(&registry, "team/other", "v1");
    imgfs.pull(&[format!("{}/team/other:v1", registry.host())]).success();
    let there = format!("/v2/{}/team/other/manifests/v1", registry.host().replace(':', "__"));
    assert_eq!(client.get(&there).body, other.root().bytes);
    let host = name.split('/').next().expect("a host").replace("__", ":");
    imgfs
        .run(&[
            "rm",
            "--images-dir",
            crate::support::text(imgfs.images_dir()),
            &format!("{host}/team/app:v1"),
        ])
        .success();
    assert_eq!(client.get(&target).status, 404);
    let blob = image.layers()[0].clone();
    assert_eq!(client.get(&format!("/v2/{name}/blobs/{blob}")).status, 404, "no manifest names it");
}

/// What has come of a request that ends with a closed connection: the head, and how many bytes of the body came.
fn raw(host: &str, request: &str) -> (String, usize, bool) {
    let mut stream = TcpStream::connect(host).expect("connecting");
    stream.write_all(request.as_bytes()).expect("asking");
    let (mut all, mut buffer, mut is_reset) = (Vec::new(), [0; 65536], false);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => all.extend_from_slice(&buffer[..read]),
            Err(_) => {
                is_reset = true;
                break;
            }
        }
    }
    let end = all.windows(4).position(|four| four == b"\r\n\r\n").map_or(all.len(), |at| at + 4);
    (String::from_utf8_lossy(&all[..end]).into_owned(), all.len() - end, is_reset)
}

#[test]
fn a_damaged_blob_never_ends_well() {
    let size = 1_000_000;
    let content = Content::Generated { seed: 9, size };
    let image = Image::new().layer(9, size).build();
    assert!(image.blobs.contains_key(&content.digest()));
    let (imgfs, name) = pulled(&image);
    let path = imgfs.images_dir().join("blobs").join(content.digest());
    tree::flip_byte_quietly(&path, 10);
    let serving = Serving::start(imgfs.images_dir(), &[] as &[&str]);
    let target = format!("/v2/{name}/blobs/{}", content.digest());
    let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let (head, came, is_reset) = raw(&serving.host(), &request);
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(is_reset && came < size as usize, "{came} bytes, reset: {is_reset}");
    // Now it is known.
    assert_eq!(serving.client().get(&target).status, 404);
    // Nor does a part of it, though that may have the wrong byte in it and not the last one.
    let serving = Serving::start(imgfs.images_dir(), &[] as &[&str]);
    for range in ["bytes=0-20", "bytes=0-999998", "bytes=5-8,10-12"] {
        let request = request.replace("\r\n\r\n", &format!("\r\nRange: {range}\r\n\r\n"));
        let (head, came, is_reset) = raw(&serving.host(), &request);
        let is_refused = head.starts_with("HTTP/1.1 404 ");
        assert!(is_refused || (is_reset && came < 900_000), "{range}: {head} {came} {is_reset}");
    }
    // A part that is not at the end is nobody's proof, and a wrong size is no blob at all.
    tree::truncate(&path, size / 2);
    assert_eq!(serving.client().head(&target).status, 404);
}

#[test]
fn a_part_of_a_request_is_no_error_and_the_next_one_is_answered() {
    // containerd 2 opens `N-` and drops the connection after its part.
    let image = Image::new().layer(10, 4_000_000).build();
    let (imgfs, name) = pulled(&image);
    let log = tempfile::tempdir().expect("a directory");
    let file = log.path().join("log");
    let serving = Serving::start(imgfs.images_dir(), &["--log-file", crate::support::text(&file)]);
    let target = format!("/v2/{name}/blobs/{}", image.layers()[0]);
    for _ in 0..5 {
        let mut stream = TcpStream::connect(serving.host()).expect("connecting");
        let request = format!("GET {target} HTTP/1.1\r\nHost: x\r\nRange: bytes=1000-\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("asking");
        stream.read_exact(&mut [0; 5000]).expect("a part");
    }
    assert_eq!(serving.client().get(&target).status, 200);
    let said = std::fs::read_to_string(&file).unwrap_or_default() + &serving.said("stderr");
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
}
