//! What a mount shows of real registries, and of directories that others have made.

use crate::support::cli::{Imgfs, SAME};
use crate::support::content;
use crate::support::hostile::{Hostile, PASSWORD, USER};
use crate::support::image::{Artifact, Built, Image, Index};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::registry::{Registry, Tokens};
use crate::support::skopeo;
use crate::support::text;
use crate::support::tree::{self, assert_modes_and_times, assert_tree_sound};
use serde_json::json;
use std::path::Path;

fn two_platforms() -> Built {
    let image = |platform: &str, seed| {
        Image::new().platform(platform).layer(seed, 400_000).layer(9, 3_000_000).build()
    };
    Index::new().child(&image("linux/amd64", 1)).child(&image("linux/arm64", 2)).attest().build()
}

#[test]
fn real_registries_are_copied_out_of_a_mount_as_by_a_pull() {
    require!(Mounts);
    let helm = Artifact::with_config("application/vnd.cncf.helm.config.v1+json", b"{\"name\":1}")
        .blob("application/vnd.cncf.helm.chart.content.v1.tar+gzip", b"chart")
        .build();
    let images = [
        ("team/app", two_platforms()),
        ("team/docker", Image::new().docker().layer(3, 300_000).build()),
        ("charts/helm", helm),
        ("team/empty", Image::new().empty_layer().zero_byte_layer().build()),
    ];
    for registry in [Registry::plain(), Registry::token(Tokens::default()), Registry::tls_basic()] {
        for (repository, image) in &images {
            image.push_to(&registry, repository, "1");
        }
        let names: Vec<String> = images
            .iter()
            .map(|(repository, _)| format!("{}/{repository}:1", registry.host()))
            .collect();
        let imgfs = Imgfs::scratch();
        let auth = json!({"username": USER, "password": PASSWORD});
        let (auths, ca) = (imgfs.home().join("auths.json"), imgfs.home().join("ca.pem"));
        let all = json!({"auths": {registry.host(): auth}});
        std::fs::write(&auths, all.to_string()).expect("writing");
        let mut args = vec!["--auths", text(&auths)];
        if registry.is_tls() {
            std::fs::copy(registry.ca_file(), &ca).expect("copying");
            args.extend(["--ca-file", text(&ca)]);
        }
        args.extend(names.iter().flat_map(|name| ["--manifests", name]));
        let mut mount = Mounted::start(imgfs.images_dir(), &args);

        // A look into the middle of a layer fetches little.
        registry.forget_requests();
        let layer = Image::new().layer(9, 3_000_000).build();
        let path = format!("blobs/{}", layer.layers()[0]);
        let read = mount.slice(&path, 1_500_000, 4096).success().stdout;
        let right = &layer.blobs[&layer.layers()[0]].content.to_vec()[1_500_000..1_504_096];
        assert!(read == right, "wrong bytes");
        let requests = registry.requests();
        let gets: Vec<_> = requests.iter().filter(|request| request.is_blob_get()).collect();
        let bytes: u64 = gets.iter().map(|get| get.bytes).sum();
        assert!(gets.len() <= 2 && bytes <= 300 << 10, "{gets:?}");

        let copy = Imgfs::scratch();
        std::fs::create_dir(copy.images_dir()).expect("making a directory");
        mount.run("cp", &["-a", &mount.path("."), text(copy.images_dir())]).success();
        assert_tree_sound(copy.images_dir());
        assert_modes_and_times(copy.images_dir());
        copy.verify().success();
        for (repository, image) in &images {
            let manifest = copy.images_dir().join(registry.host()).join(repository);
            let manifest = std::fs::read(manifest.join("manifests/1")).expect("reading");
            assert_eq!(content::digest(&manifest), image.digest(), "{repository}");
            for digest in image.blobs.keys() {
                assert!(copy.images_dir().join("blobs").join(digest).exists(), "{digest}");
            }
        }
        assert_eq!(mount.stop().code(), Some(0));
        assert_eq!(mount.log(), Vec::<String>::new());

        // And it is of use to others.
        let target = Registry::plain();
        copy.push(&["--dest", &format!("{}/{SAME}", target.host())]).success();
        for (repository, image) in &images {
            skopeo::fetch(&format!("{}/{repository}:1", target.host()));
            let raw = skopeo::raw_manifest(&format!("{}/{repository}:1", target.host()));
            assert_eq!(content::digest(&raw), image.digest());
        }
    }
}

#[test]
fn directories_of_every_generation_are_read_as_they_are() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = two_platforms();
    let other = Image::new().layer(5, 70_000).build();
    for (repository, image) in [("team/app", &image), ("team/other", &other)] {
        image.push_to(&hostile, repository, "v1");
    }
    let host = hostile.host();
    for generation in 0..3 {
        let imgfs = Imgfs::scratch();
        let dir = imgfs.images_dir();
        match generation {
            0 => tree::kubekey_g0(dir, "team/app", "v1", &image),
            1 => tree::kubekey_g1(dir, &host, "team/app", "v1", &image),
            _ => tree::kubekey_g2(dir, &host, "team/app", "v1", &image),
        }
        // Modes are those of the mount.
        let seen = |dir: &Path| {
            let mut all = tree::snapshot(dir);
            all.values_mut().for_each(|look| look.mode = 0);
            all
        };
        let before = seen(dir);
        for further in [&["--offline"][..], &["--offline", "--no-passthrough"], &[]] {
            hostile.clear_log();
            let mount = Mounted::start(dir, further);
            let copy = Imgfs::scratch();
            std::fs::create_dir(copy.images_dir()).expect("making a directory");
            let target = text(copy.images_dir());
            mount.run("cp", &["-a", &mount.path("."), target]).success();
            assert_eq!(seen(copy.images_dir()), before, "{generation} {further:?}");
            assert_tree_sound(copy.images_dir());
            let images = |imgfs: &Imgfs| format!("{:?}", imgfs.ls().success().images());
            assert_eq!(images(&copy), images(&imgfs));
            assert_eq!(hostile.requests(), 0, "{:?}", hostile.log());
            assert_eq!(mount.log(), Vec::<String>::new());
        }
        // A name leads to it wherever it is: in the newest generation a tag is an entry of a map.
        if generation > 0 {
            let mount = Mounted::start(dir, &["--offline"]);
            let manifest = mount.cat(&format!("{host}/team/app/manifests/v1")).success();
            assert_eq!(content::digest(&manifest.stdout), image.digest(), "{generation}");
        }
        // What others have is shown beside it.
        let mount = Mounted::start::<&str>(dir, &[]);
        for (repository, image) in [("team/app", &image), ("team/other", &other)] {
            let manifest = mount.cat(&format!("{host}/{repository}/manifests/v1")).success();
            assert_eq!(content::digest(&manifest.stdout), image.digest(), "{generation}");
        }
        let layer = &other.layers()[0];
        let read = mount.cat(&format!("blobs/{layer}")).success();
        assert_eq!(content::digest(&read.stdout), *layer);
        // Of the image that is there, nothing but names was asked for.
        let sent = hostile.blob_bytes_sent();
        assert!(image.blobs.keys().all(|digest| !sent.contains_key(digest)), "{sent:?}");
        assert_eq!(seen(dir), before, "{generation}: nothing was changed");
    }
}
