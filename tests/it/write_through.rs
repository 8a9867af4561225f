//! Writing through a mount to registries: a copy is a push.

use crate::support::cli::Imgfs;
use crate::support::hostile::{Access, Bearer, Fault, Hostile, Kinds, Match};
use crate::support::image::{Built, Image, Index, cosign_signature, digest_tag};
use crate::support::mount::Mounted;
use crate::support::need::require;
use crate::support::registry::Registry;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::written::{self, HOST, directory, pending, python};
use crate::support::{seed, text};
use std::path::Path;

fn empty() -> Imgfs {
    let imgfs = Imgfs::scratch();
    std::fs::create_dir(imgfs.images_dir()).expect("making a directory");
    imgfs
}

fn through(images_dir: &Path, args: &[&str]) -> Mounted {
    let all = ["--write", "through", "--max-wait", "3s", "--stall-timeout", "3s"];
    Mounted::start(images_dir, &[&all[..], args].concat())
}

/// Copies a tag of the mount to another name in it, with a directory for it.
fn copy_tag(mount: &Mounted, from: &str, to: &str) -> crate::support::mount::Done {
    let above = to.rsplit_once('/').expect("a directory").0;
    mount.run("mkdir", &["-p", &mount.path(above)]).success();
    mount.run("cp", &[mount.path(from), mount.path(to)])
}

fn tag(host: &str, image: &str) -> String {
    let (repository, tag) = image.rsplit_once(':').expect("a tag");
    format!("{host}/{repository}/manifests/{tag}")
}

#[test]
fn cp_of_a_tag_is_a_push() {
    require!(Mounts);
    let registry = Registry::plain();
    let images = written::zoo();
    let local = directory(&images);
    let mount = through(local.images_dir(), &[]);
    for (name, image) in &images {
        let to = tag(&registry.host(), &format!("pushed/{name}"));
        copy_tag(&mount, &tag(HOST, name), &to).success();
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        let pushed = registry.manifest(&format!("pushed/{repository}"), tag);
        assert_eq!(pushed.as_deref(), Some(&*image.root().bytes), "{name}");
        assert_eq!(mount.cat(&to).success().stdout, image.root().bytes);
    }
    assert_eq!(pending(&mount), []);
    assert_tree_sound(local.images_dir());
    // The same again moves nothing, and another repository of the registry has its blobs mounted.
    registry.forget_requests();
    let (from, to) = (tag(HOST, "team/app:1"), tag(&registry.host(), "pushed/team/app:1"));
    copy_tag(&mount, &from, &to).success();
    copy_tag(&mount, &from, &tag(&registry.host(), "again/app:1")).success();
    let asked = registry.requests();
    assert!(!asked.iter().any(|r| r.method == "PATCH"), "{asked:?}");
    assert_eq!(mount.log(), Vec::<String>::new());
}

#[test]
fn tags_that_are_one_file_are_pushed() {
    require!(Mounts);
    let registry = Registry::plain();
    let images = [1, 2].map(|n| Image::new().layer(n, 1000).build());
    let source = tempfile::tempdir().expect("making a temporary directory");
    for (tag, image) in ["1", "2"].into_iter().zip(&images) {
        tree::kubekey_g2(source.path(), &registry.host(), "team/app", tag, image);
    }
    let dest = format!("{}/other/app:{{{{ .module.image.reference.tag }}}}", registry.host());
    for (args, repository) in [(&[][..], "team/app"), (&["--dest", &dest], "other/app")] {
        let local = empty();
        let mount = through(local.images_dir(), args);
        let from = format!("{}/.", text(source.path()));
        mount.run("cp", &["-a", &from, &mount.path("")]).success();
        for (tag, image) in ["1", "2"].into_iter().zip(&images) {
            let pushed = registry.manifest(repository, tag);
            assert_eq!(pushed.as_deref(), Some(&*image.root().bytes), "{repository}:{tag}");
        }
        assert_eq!(pending(&mount), []);
    }
}

#[test]
fn a_directory_is_pushed_under_other_names() {
    require!(Mounts);
    let hostile = Hostile::start();
    let mut images = written::zoo();
    let signed = cosign_signature(&images[1].1);
    let signature = digest_tag(images[1].1.digest(), ".sig");
    let name = format!("team/docker:{signature}");
    images.push((Box::leak(name.into_boxed_str()), signed));
    let source = directory(&images);
    let target = empty();
    let dest = format!(
        "{}/mirror/{{{{ .module.image.reference.repository }}}}:{{{{ .module.image.reference.tag }}}}",
        hostile.host()
    );
    let mount = through(target.images_dir(), &["--dest", &dest, "--registries", &hostile.host()]);
    let from = format!("{}/.", text(source.images_dir()));
    mount.run("cp", &["-a", &from, &mount.path("")]).success();
    assert_eq!(pending(&mount), []);
    for (name, image) in &images {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        let found = hostile.manifest(&format!("mirror/{repository}"), tag);
        assert_eq!(found.as_deref(), Some(&*image.root().bytes), "{name}");
    }
    assert!(hostile.manifest("mirror/team/docker", &signature).is_some());
    assert_eq!(tree::snapshot(target.images_dir()), tree::snapshot(source.images_dir()));
    target.verify().success();
}

#[test]
fn what_only_a_push_needed_is_not_kept() {
    require!(Mounts);
    let (origin, hostile) = (Hostile::start(), Hostile::start());
    let image = Image::new().layer(1, 200_000).build();
    let index = Index::new().child(&image).child(&Image::new().layer(2, 100_000).build()).build();
    index.push_to(&origin, "team/app", "1");
    let target = directory(&[("kept/app:1", image.clone())]);
    let before = tree::snapshot(target.images_dir());
    let mut mount = through(target.images_dir(), &["--no-keep"]);
    let from = tag(&origin.host(), "team/app:1");
    let to = tag(&hostile.host(), "team/app:1");
    copy_tag(&mount, &from, &to).success();
    assert_eq!(hostile.manifest("team/app", "1").as_deref(), Some(&*index.root().bytes));
    assert_eq!(mount.stop().code(), Some(0));
    let is_file = |(path, look): &(String, tree::Look)| !look.digest.is_empty() && !path.is_empty();
    let files = |all: std::collections::BTreeMap<_, _>| -> Vec<_> {
        all.into_iter().filter(is_file).collect()
    };
    assert_eq!(files(tree::snapshot(target.images_dir())), files(before), "{:?}", mount.log());
    target.verify().success();
}

#[test]
fn what_is_not_kept_stays_until_all_has_been_pushed() {
    require!(Mounts);
    let hostile = Hostile::start();
    let images = written::zoo();
    let source = directory(&images);
    let target = empty();
    let dest = format!(
        "{}/d/{{{{ .module.image.reference.repository }}}}:{{{{ .module.image.reference.tag }}}}",
        hostile.host()
    );
    let mut mount = through(target.images_dir(), &["--no-keep", "--dest", &dest]);
    // All blobs come before the first manifest, and images share some.
    let from = format!("{}/", text(source.images_dir()));
    mount.run("rsync", &["-a", &from, &mount.path("")]).success();
    assert_eq!(pending(&mount), []);
    for (name, image) in &images {
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        let pushed = hostile.manifest(&format!("d/{repository}"), tag);
        assert_eq!(pushed.as_deref(), Some(&*image.root().bytes), "{name}");
    }
    assert_eq!(mount.log(), Vec::<String>::new());
    assert_eq!(mount.stop().code(), Some(0));
    let left = tree::snapshot(target.images_dir()).into_iter();
    let left: Vec<_> = left.filter(|(_, look)| !look.digest.is_empty()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn what_a_waiting_manifest_may_need_is_kept() {
    require!(Mounts);
    let hostile = Hostile::start();
    let shared = Image::new().layer(1, 100_000);
    let first = shared.clone().build();
    let second = shared.layer(2, 50_000).build();
    let files = written::files_of(&first, "team/app", "1");
    let target = empty();
    let dest = format!("{}/d/app:{{{{ .module.image.reference.tag }}}}", hostile.host());
    let mut mount = through(target.images_dir(), &["--no-keep", "--dest", &dest]);
    let scratch = tempfile::tempdir().expect("making a temporary directory");
    let write = |mount: &Mounted, files: &[(String, Vec<u8>)]| {
        mount.run("mkdir", &["-p", &mount.path(&format!("{HOST}/team/app/manifests"))]).success();
        for (path, content) in files {
            let file = written::file(scratch.path(), "content", content);
            mount.run("cp", &[text(&file), &mount.path(path)]).success();
        }
    };
    write(&mount, &files);
    assert!(hostile.manifest("d/app", "1").is_some());
    // The second one lacks its own layer.
    let mut rest = written::files_of(&second, "team/app", "2");
    rest.retain(|(path, _)| !files.iter().any(|(known, _)| known == path));
    let layer = rest
        .iter()
        .position(|(path, content)| path.starts_with("blobs/") && content.len() >= 50_000);
    let layer = rest.remove(layer.expect("it has a layer of its own"));
    write(&mount, &rest);
    assert_eq!(pending(&mount).len(), 1);
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    write(&mount, &[layer]);
    assert_eq!(pending(&mount), []);
    assert_eq!(hostile.manifest("d/app", "2").as_deref(), Some(&*second.root().bytes));
}

#[test]
fn images_that_would_get_one_name_do_not_overwrite_each_other() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = |seed| Image::new().layer(seed, 10_000).build();
    let local = directory(&[("team/app:1", image(1)), ("team/app:2", image(2))]);
    let target = empty();
    let dest = format!("{}/{{{{ .module.image.reference.repository }}}}:stable", hostile.host());
    let mount = through(target.images_dir(), &["--dest", &dest]);
    let from =
        |name: &str| local.images_dir().join(name).into_os_string().into_string().expect("text");
    let blobs = from("blobs/.");
    mount.run("cp", &["-r", &blobs, &mount.path("blobs")]).success();
    let manifests = format!("{HOST}/team/app/manifests");
    mount.run("mkdir", &["-p", &mount.path(&manifests)]).success();
    let put = |tag: &str| {
        let path = format!("{manifests}/{tag}");
        mount.run("cp", &[from(&path), mount.path(&path)])
    };
    put("1").success();
    let pushed = hostile.manifest("team/app", "stable");
    assert!(pushed.is_some());
    put("2").fails_with("Input/output error");
    let said = [&*format!("{HOST}/team/app:1 and {HOST}/team/app:2 would both become")];
    assert_eq!(mount.logged(&said).len(), 1, "{:?}", mount.log());
    assert_eq!(hostile.manifest("team/app", "stable"), pushed);
    // The same image again is no other one.
    put("1").success();
}

#[test]
fn a_tag_is_not_removed_where_others_would_go_with_it() {
    require!(Mounts);
    let registry = Registry::plain();
    let image = Image::new().layer(1, 100_000).build();
    let local = directory(&[("team/app:1", image.clone())]);
    let at = |image: &str| tag(&registry.host(), image);
    let mount = through(local.images_dir(), &[]);
    copy_tag(&mount, &tag(HOST, "team/app:1"), &at("team/app:1")).success();
    drop(mount);
    let mut mount = Mounted::start(local.images_dir(), &["--write", "through,delete"]);
    let has = |image: &str| {
        let (repository, tag) = image.rsplit_once(':').expect("a tag");
        registry.manifest(repository, tag).is_some()
    };
    // Both names would lead to the manifest that goes with the old one.
    let (one, nine) = (at("team/app:1"), at("team/app:9"));
    mount.run("mv", &[mount.path(&one), mount.path(&nine)]).fails_with("not permitted");
    assert!(has("team/app:1") && !has("team/app:9"));
    assert_eq!(mount.logged(&["is not renamed to", "copy it (cp)"]).len(), 1, "{:?}", mount.log());
    // In another repository, it is another manifest.
    mount.run("mkdir", &["-p", &mount.path(&at("other/app:1").replace("/1", ""))]).success();
    mount.run("mv", &[mount.path(&one), mount.path(&at("other/app:1"))]).success();
    assert!(!has("team/app:1") && has("other/app:1"));
    assert_eq!(mount.stop().code(), Some(0));
    mount.restart();
    copy_tag(&mount, &at("other/app:1"), &at("other/app:stable")).success();
    mount.run("rm", &[mount.path(&at("other/app:1"))]).fails_with("busy");
    assert!(has("other/app:1") && has("other/app:stable"));
    let way_out = format!("imgfs rm --yes registry://{}/other/app:1", registry.host());
    let said = [&*format!("{}/other/app:stable", registry.host()), &*way_out];
    assert_eq!(mount.logged(&said).len(), 1, "{:?}", mount.log());
    // Once the other one leads elsewhere, it can be removed.
    Image::new().layer(2, 1_000).build().push_to(&registry, "other/app", "stable");
    mount.run("rm", &[mount.path(&at("other/app:1"))]).success();
    assert!(!has("other/app:1") && has("other/app:stable"));
}

#[test]
fn tags_between_registries_are_copied_with_all_that_they_need() {
    require!(Mounts);
    let origin = Hostile::start();
    let image = Image::new().layer(1, 300_000);
    let index = Index::new()
        .child(&image.build())
        .child(&image.clone().platform("linux/arm64").layer(2, 50_000).build())
        .build();
    index.push_to(&origin, "team/app", "1");
    let target = empty();
    let mount = Mounted::start(target.images_dir(), &["--write", "local"]);
    let from = tag(&origin.host(), "team/app:1");
    // What is only at the registry has another time than what is here, so that rsync brings it.
    let time = |path: &str| mount.run("stat", &["-c", "%Y", &mount.path(path)]).success().text();
    assert_eq!(time(&from), "0\n");
    copy_tag(&mount, &from, "copy.example/app/manifests/1").success();
    copy_tag(&mount, &from, &tag(&origin.host(), "team/app:stable")).success();
    assert_eq!(pending(&mount), []);
    assert_tree_sound(target.images_dir());
    let names: Vec<String> =
        target.ls().images().iter().map(|i| i["image"].as_str().unwrap().to_owned()).collect();
    let stable = format!("{}/team/app:stable", origin.host());
    let mut expected = vec!["copy.example/app:1".to_owned(), stable];
    expected.sort();
    let mut names = names;
    names.sort();
    assert_eq!(names, expected);
    assert_ne!(time("copy.example/app/manifests/1"), "0\n");
    // Nobody else's registry has been written to.
    assert!(
        !origin.log().iter().any(|r| matches!(&*r.method, "PUT" | "POST" | "PATCH" | "DELETE"))
    );
    target.verify().success();
}

/// The number that `cp` ends with.
fn error_of(mount: &Mounted, from: &str, to: &str) -> String {
    let program = "
os.makedirs(os.path.dirname(sys.argv[3]), exist_ok=True)
bytes = open(sys.argv[2], 'rb').read()
try:
    with open(sys.argv[3], 'wb') as f: f.write(bytes)
    print('OK')
except OSError as e: print(errno.errorcode[e.errno])
";
    python(mount, program, &[from, to]).success().text().trim().to_owned()
}

#[test]
fn a_push_that_fails_fails_the_call_that_completed_it() {
    require!(Mounts);
    let image = Image::new().layer(1, 100_000).build();
    let local = directory(&[("team/app:1", image)]);
    let from = tag(HOST, "team/app:1");
    let refusing = Hostile::with_access(Access::Bearer(Bearer {
        pull_only: true,
        anonymous: true,
        ..Bearer::new()
    }));
    let silent = Hostile::start();
    silent.on(Match::any().method("PUT")).fault(Fault::HangBefore);
    silent.on(Match::uploads()).fault(Fault::HangBefore);
    let broken = Hostile::start();
    broken.on(Match::any().method("PUT").path("/manifests/")).fault(Fault::Status(500, Vec::new()));
    let lacking = Hostile::start();
    lacking.on(Match::uploads()).fault(Fault::Refusal(404, "NAME_UNKNOWN"));
    let mount = through(local.images_dir(), &[]);
    for (hostile, expected) in
        [(&refusing, "EACCES"), (&silent, "ETIMEDOUT"), (&broken, "EIO"), (&lacking, "ENOENT")]
    {
        let to = tag(&hostile.host(), "team/app:1");
        assert_eq!(error_of(&mount, &from, &to), expected, "{:?}", mount.log());
        assert!(!mount.logged(&[&hostile.host()]).is_empty(), "{:?}", mount.log());
        assert!(pending(&mount).contains(&(to, "refused".into())), "{:?}", pending(&mount));
    }
    assert_eq!(pending(&mount).len(), 4);
    let sent = refusing.log().iter().filter(|r| matches!(&*r.method, "PATCH" | "PUT")).count();
    assert_eq!(sent, 0, "no blob is sent to who takes none");
    // Nothing of it is here under those names.
    assert_eq!(local.ls().images().len(), 1);
    assert_tree_sound(local.images_dir());
    broken.behave();
    let to = tag(&broken.host(), "team/app:1");
    assert_eq!(error_of(&mount, &from, &to), "OK", "{:?}", mount.log());
    assert_eq!(local.ls().images().len(), 2);
    assert_eq!(pending(&mount).len(), 3);
}

#[test]
fn tags_are_removed_at_registries_only_where_that_was_asked_for() {
    require!(Mounts);
    let registry = Registry::plain();
    let image = Image::new().layer(1, 100_000).build();
    let local = directory(&[("team/app:1", image)]);
    let to = tag(&registry.host(), "team/app:1");
    let from = tag(HOST, "team/app:1");
    let mut mount = through(local.images_dir(), &[]);
    copy_tag(&mount, &from, &to).success();
    mount.run("rm", &[mount.path(&to)]).fails_with("not permitted");
    assert!(registry.manifest("team/app", "1").is_some());
    assert_eq!(mount.stop().code(), Some(0));
    let mount = Mounted::start(local.images_dir(), &["--write", "through,delete"]);
    mount.run("rm", &[mount.path(&to)]).success();
    mount.run("stat", &[mount.path(&to)]).fails_with("No such file");
    assert_eq!(registry.manifest("team/app", "1"), None);
    assert_eq!(local.ls().images().len(), 1);
}

#[test]
fn a_hostile_registry_gets_it_right_or_not_at_all() {
    require!(Mounts);
    let seed = seed();
    let images: Vec<(&'static str, Built)> = written::zoo();
    let local = directory(&images);
    let hostile = Hostile::start();
    hostile.faults_random(seed, 150, Kinds::Retryable, 2);
    let mount = through(local.images_dir(), &[]);
    for (name, image) in &images {
        let to = tag(&hostile.host(), name);
        let mut tries = 0;
        while error_of(&mount, &tag(HOST, name), &to) != "OK" {
            tries += 1;
            assert!(tries < 10, "{:?}", mount.log());
        }
        let (repository, tag) = name.rsplit_once(':').expect("a tag");
        let found = hostile.manifest(repository, tag);
        assert_eq!(found.as_deref(), Some(&*image.root().bytes), "{name}");
    }
    assert_tree_sound(local.images_dir());
}
