//! A store of imgfs under podman, buildah and skopeo as they are, with runc: images that are not pulled.

use crate::support::hostile::Hostile;
use crate::support::image::Built;
use crate::support::need::require;
use crate::support::store::{StoreBed, chains, podman_calls_the_helper, runnable};
use crate::support::wait_for;
use std::time::Duration;

/// A registry with an image, a store, and the image pulled by podman without its layers: it calls the helper, or,
/// where it is too old for that, has it called before.
fn pulled(variant: &str) -> (Hostile, StoreBed, Built, String) {
    let hostile = Hostile::start();
    let image = runnable(variant);
    image.push_to(&hostile, "team/app", "1");
    let bed = StoreBed::start(&[]);
    let name = format!("{}/team/app:1", hostile.host());
    if !podman_calls_the_helper() {
        bed.prepare(&name).success();
    }
    bed.podman(&hostile.host(), &["pull", &name]).success();
    wait_for("the passes", Duration::from_secs(20), || bed.listed(&name)["indexed"] == true);
    (hostile, bed, image, name)
}

#[test]
fn podman_pulls_manifest_and_configuration_only_and_runs() {
    require!(Podman);
    let (hostile, bed, image, name) = pulled("run");
    let layers = image.layers();
    let log = hostile.log();
    let is_own = |agent: &str| agent.starts_with("imgfs/");
    let mut others = log.iter().filter(|s| !s.user_agent.as_deref().is_some_and(is_own));
    assert!(others.all(|s| !layers.iter().any(|layer| s.path.contains(layer.as_str()))), "{log:?}");
    let host = hostile.host();
    let run = |args: &[&str], command: &str| {
        let all = [&["run", "--rm"], args, &[&name, "sh", "-c", command]].concat();
        bed.podman(&host, &all)
    };
    let text = run(&[], "cat doc/a etc/variant; ls opq; ls etc/gone; true").success().text();
    assert_eq!(text, "upper\nrun\nupper\n");
    let text = run(&[], "stat -c '%a %u %h' /bin/su /data/big").success().text();
    assert_eq!(text, "4755 0 1\n640 1000 2\n");
    assert_eq!(run(&["--user", "1000"], "wc -c < /data/hard").success().text(), "150000\n");
    // Capabilities of a file in a layer are obeyed, as set-uid is.
    let text = run(&["--user", "1000"], "/able/cat /proc/self/status").success().text();
    assert!(text.contains("CapEff:\t0000000000000001\n"), "{text}");
    assert_eq!(run(&[], "exit 7").status.code(), Some(7));
    // What a container writes is its own.
    run(&[], "echo x >> /etc/variant; rm -r /doc; echo new > /doc2").success();
    assert_eq!(run(&[], "cat etc/variant; ls -d doc").success().text(), "run\ndoc\n");

    bed.podman(&host, &["run", "-d", "--name", "c", "--memory", "64m", &name, "sleep", "100"])
        .success();
    let text = bed.podman(&host, &["exec", "c", "cat", "/etc/variant"]).success().text();
    assert_eq!(text, "run\n");
    bed.podman(&host, &["kill", "--signal", "KILL", "c"]).success();
    let code = bed.podman(&host, &["wait", "c"]).success().text();
    assert_eq!(code.trim(), "137");
    bed.podman(&host, &["rm", "-f", "-t", "0", "c"]).success();
    // It is podman's own image: it can be removed, and pulled again.
    bed.podman(&host, &["rmi", &name]).success();
    bed.podman(&host, &["pull", &name]).success();
    assert_eq!(bed.layers().len(), 3);
}

#[test]
fn a_lazy_image_is_built_upon_saved_and_pushed() {
    require!(Podman);
    let (hostile, bed, image, name) = pulled("build");
    let host = hostile.host();
    let file = bed.path("Containerfile");
    let text =
        format!("FROM {name}\nRUN echo built > /built && rm /doc/a && echo more >> /etc/passwd\n");
    std::fs::write(&file, text).unwrap();
    let file = crate::support::text(&file).to_owned();
    let context = bed.path("context");
    std::fs::create_dir(&context).unwrap();
    let context = crate::support::text(&context).to_owned();
    let build = ["bud", "--isolation", "chroot", "-t", "localhost/built:1", "-f", &file, &context];
    bed.tool("buildah", &host, &build).success();
    let run =
        ["run", "--rm", "localhost/built:1", "sh", "-c", "cat built; ls doc; wc -l < etc/passwd"];
    assert_eq!(bed.podman(&host, &run).success().text(), "built\n3\n");

    // Its layers are what they were, by their digests, however podman compresses them.
    bed.podman(&host, &["push", "--tls-verify=false", &name, &format!("{host}/copy/app:1")])
        .success();
    let pushed: serde_json::Value =
        serde_json::from_slice(&hostile.manifest("copy/app", "1").unwrap()).unwrap();
    assert_eq!(pushed["config"]["digest"], image.json()["config"]["digest"]);
    let archive = bed.path("saved.tar");
    let archive = crate::support::text(&archive).to_owned();
    bed.podman(&host, &["save", "--format", "docker-archive", "-o", &archive, &name]).success();
    let listed = bed.mount.run("tar", &["-xOf", &archive, "manifest.json"]).success().text();
    let config = image.json()["config"]["digest"].as_str().unwrap().to_owned();
    assert!(listed.contains(config.trim_start_matches("sha256:")), "{listed}");

    // An image that podman has compressed is pushed with the digest that it had.
    let other = format!("{host}/copy/app:1");
    let before = hostile.manifest("copy/app", "1").unwrap();
    bed.prepare(&other).success();
    bed.podman(&host, &["rmi", "-f", &name, &other, "localhost/built:1"]);
    bed.podman(&host, &["pull", &other]).success();
    bed.podman(&host, &["push", "--tls-verify=false", &other, &format!("{host}/again/app:1")])
        .success();
    assert_eq!(hostile.manifest("again/app", "1").unwrap(), before);
}

#[test]
fn after_a_kill_of_the_daemon_containers_start_though_the_registry_is_down() {
    require!(Podman);
    let (hostile, mut bed, _, name) = pulled("kill");
    let host = hostile.host();
    bed.podman(&host, &["run", "-d", "--name", "c", &name, "sleep", "100"]).success();
    bed.podman(&host, &["exec", "c", "sh", "-c", "echo own > /own"]).success();
    drop(hostile);
    bed.mount.kill9();
    // The daemon is down at the run: the image is there, its layers are not.
    let down = bed.podman(&host, &["run", "--rm", &name, "true"]);
    assert!(!down.status.success());
    assert!(bed.podman(&host, &["images", "-q"]).success().text().lines().count() == 1);
    bed.mount.restart();
    let text = bed.podman(&host, &["run", "--rm", &name, "cat", "/etc/variant"]).success().text();
    assert_eq!(text, "kill\n");
    // One that was running has to be stopped and started, and has what it has written.
    bed.podman(&host, &["stop", "-t", "0", "c"]).success();
    bed.podman(&host, &["start", "c"]).success();
    let text = bed.podman(&host, &["exec", "c", "cat", "/own", "/etc/variant"]).success().text();
    assert_eq!(text, "own\nkill\n");
    bed.podman(&host, &["rm", "-f", "-t", "0", "c"]).success();
}

#[test]
fn a_mount_that_containers_keep_leaves_its_place_to_the_next_one() {
    require!(Podman);
    let (hostile, mut bed, _, name) = pulled("next");
    let host = hostile.host();
    bed.podman(&host, &["run", "-d", "--name", "c", &name, "sleep", "100"]).success();
    let mut old = bed.mount.leave();
    bed.mount.restart();
    let text = bed.podman(&host, &["run", "--rm", &name, "cat", "/etc/variant"]).success().text();
    assert_eq!(text, "next\n");
    // The container has its files from the old one, as long as it runs.
    let text = bed.podman(&host, &["exec", "c", "cat", "/etc/variant"]).success().text();
    assert_eq!((text.as_str(), old.has_ended()), ("next\n", false));
    bed.podman(&host, &["rm", "-f", "-t", "0", "c"]).success();
    wait_for("the old one to end", Duration::from_secs(20), || old.has_ended());
}

#[test]
fn nothing_goes_that_a_container_needs_and_everything_else_does() {
    require!(Podman);
    let (hostile, bed, image, name) = pulled("prune");
    let host = hostile.host();
    let other = runnable("other");
    other.push_to(&hostile, "team/other", "1");
    bed.prepare(&format!("{host}/team/other:1")).success();
    let age = |bed: &StoreBed| {
        let path = bed.store().join("overlay-layers/layers.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let year = text.split("\"created\":\"").nth(1).unwrap()[..4].to_owned();
        std::fs::write(&path, text.replace(&format!("\"created\":\"{year}"), "\"created\":\"2020"))
            .unwrap();
    };
    age(&bed);
    let listed = |bed: &StoreBed| -> Vec<String> {
        bed.layers().iter().map(|layer| layer["id"].as_str().unwrap().to_owned()).collect()
    };
    bed.podman(&host, &["run", "-d", "--name", "c", &name, "sleep", "100"]).success();
    bed.imgfs_store(&["prune"]).success();
    assert_eq!(listed(&bed), chains(&image), "the image that nobody has pulled is gone");
    // The image goes, the container stays: running, and stopped.
    bed.podman(&host, &["untag", &name]).success();
    for command in [&["stop", "-t", "0", "c"][..], &["start", "c"]] {
        bed.imgfs_store(&["prune"]).success();
        assert_eq!(listed(&bed), chains(&image));
        bed.podman(&host, command).success();
    }
    bed.podman(&host, &["rm", "-f", "-t", "0", "c"]).success();
    bed.podman(&host, &["rmi", "-af"]).success();
    bed.imgfs_store(&["prune"]).success();
    assert!(listed(&bed).is_empty());
    bed.podman(&host, &["images"]).success();
}
