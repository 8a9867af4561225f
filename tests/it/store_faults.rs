//! A store that is killed, damaged, or on a full disk: it is valid at any moment, and what is in it can be read.

use crate::support::content::Random;
use crate::support::disk::SmallDisk;
use crate::support::hostile::{Access, Fault, Hostile, Match, PASSWORD, USER};
use crate::support::image::{Built, Image};
use crate::support::layers::Archive;
use crate::support::need::require;
use crate::support::store::{StoreBed, chains, runnable};
use crate::support::{scale, seed, wait_for};
use rustix::process::Signal;
use std::time::Duration;

/// An image with a layer of its own above one that all have, which takes a while to pass through.
fn image(variant: usize) -> Built {
    let base = Archive::new().dir("etc").file("etc/a", "lower\n").noise("noise", 1, 300_000);
    let text = format!("{variant}\n");
    let top = Archive::new().file("etc/v", &text).file("v", &text);
    Image::new().step("ADD base", &base.gzip()).step("RUN", &top.gzip()).build()
}

#[test]
fn the_store_is_valid_whenever_the_daemon_is_killed() {
    require!(Mounts);
    let hostile = Hostile::start();
    let images: Vec<Built> = (0..4).map(image).collect();
    for (number, image) in images.iter().enumerate() {
        image.push_to(&hostile, &format!("team/app{number}"), "1");
    }
    let name = |number: usize| format!("{}/team/app{number}:1", hostile.host());
    let mut bed = StoreBed::start(&[]);
    let mut random = Random::new(seed());
    for round in 0..scale(8, 50) {
        if round % 4 == 0 {
            bed.mount.kill9();
            std::fs::remove_dir_all(bed.store()).unwrap();
            bed.mount.restart();
        }
        let helper = bed.begin_prepare(&name(round % images.len()));
        std::thread::sleep(Duration::from_millis(random.below(60)));
        bed.mount.kill9();
        drop(helper.wait());
        // Others can read it though nothing runs.
        for layer in bed.layers() {
            let dir = bed.store().join("overlay").join(layer["id"].as_str().unwrap());
            assert!(dir.join("link").exists() && dir.join("diff").is_symlink(), "round {round}");
        }
        bed.mount.restart();
        for layer in bed.layers() {
            let chain = layer["id"].as_str().unwrap();
            bed.mount.cat(&format!(".imgfs/.trees/{chain}/etc/a")).success();
        }
    }
    for (number, image) in images.iter().enumerate() {
        bed.prepare(&name(number)).success();
        let tree = format!(".imgfs/.trees/{}/etc/v", chains(image)[1]);
        assert_eq!(bed.mount.cat(&tree).success().text(), format!("{number}\n"));
    }
}

#[test]
fn podman_may_be_killed_while_it_pulls() {
    require!(Podman);
    let hostile = Hostile::start();
    runnable("killed").push_to(&hostile, "team/app", "1");
    let host = hostile.host();
    let name = format!("{host}/team/app:1");
    let bed = StoreBed::start(&[]);
    bed.prepare(&name).success();
    let mut random = Random::new(seed());
    for _ in 0..scale(3, 50) {
        let mut pull = bed.begin_tool("podman", &host, &["pull", &name]);
        std::thread::sleep(Duration::from_millis(random.below(400)));
        pull.kill(Signal::KILL);
        drop(pull.wait());
        bed.podman(&host, &["pull", &name]).success();
        bed.podman(&host, &["rmi", "-f", &name]).success();
    }
    bed.podman(&host, &["pull", &name]).success();
    let text = bed.podman(&host, &["run", "--rm", &name, "cat", "etc/variant"]).success().text();
    assert_eq!(text, "killed\n");
}

#[test]
fn a_container_starts_while_its_layers_are_on_their_way() {
    require!(Podman);
    let hostile = Hostile::start();
    runnable("slow").push_to(&hostile, "team/app", "1");
    let host = hostile.host();
    let name = format!("{host}/team/app:1");
    let bed = StoreBed::start(&[]);
    hostile.set_pace(64 << 10, Duration::from_millis(20));
    bed.prepare(&name).success();
    bed.podman(&host, &["pull", &name]).success();
    let run = ["run", "--rm", &name, "sh", "-c", "cat doc/a etc/variant; ls opq; ls | wc -l"];
    assert_eq!(bed.podman(&host, &run).success().text(), "upper\nslow\nupper\n12\n");
}

#[test]
fn a_full_disk_means_an_ordinary_pull_and_a_larger_one_a_cure() {
    require!(Mounts);
    let hostile = Hostile::start();
    image(1).push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let disk = SmallDisk::mount(1).expect("mounting a tmpfs, which takes root");
    let bed = StoreBed::start_with(Some(&disk.path().join("store")), &[]);
    let full = disk.path().join("full");
    std::fs::write(&full, vec![1; 2 << 20]).expect_err("the disk is small");
    let names = |below: &str| -> Vec<_> {
        let entries = std::fs::read_dir(bed.store().join(below)).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    // Wherever it fails, podman finds nothing that it would unpack its own layers into.
    let mut failed = 0;
    loop {
        let prepared = bed.prepare(&name);
        if prepared.status.success() {
            break;
        }
        prepared.fails_with("No space left");
        failed += 1;
        assert!(bed.layers().is_empty(), "the store is what it was");
        assert_eq!(names("overlay"), ["l"]);
        assert!(names("overlay/l").is_empty());
        assert_eq!(names(".imgfs"), ["lock"]);
        let file = std::fs::File::options().write(true).open(&full).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.checked_sub(4096).expect("there is room for so little")).unwrap();
    }
    assert!(failed > 3, "it was to fail in several places: {failed}");
    assert_eq!(bed.mount.logged(&[&name, "ordinary way"]).len(), failed);
    assert_eq!(bed.layers().len(), 2);
}

/// What a process leaves that is killed while it records an image, and what podman makes of it.
#[test]
fn what_no_list_names_goes_unless_it_is_podmans() {
    require!(Mounts);
    let mut bed = StoreBed::start(&[]);
    let [begun, theirs] =
        ["1", "2"].map(|digit| bed.store().join("overlay").join(digit.repeat(64)));
    let leave = || {
        for name in ["als", "empty", "merged"] {
            std::fs::create_dir_all(begun.join(name)).unwrap();
        }
        std::fs::create_dir_all(theirs.join("diff/etc")).unwrap();
    };
    leave();
    let pruned = bed.imgfs_store(&["prune", "--dry-run"]).success().text();
    assert!(pruned.contains("would remove 1 directory") && begun.exists(), "{pruned}");
    let pruned = bed.imgfs_store(&["prune"]).success().text();
    assert!(pruned.contains("removed 1 directory that an interrupted"), "{pruned}");
    assert!(!begun.exists() && theirs.exists());
    leave();
    bed.mount.kill9();
    bed.mount.restart();
    assert!(!begun.exists() && theirs.exists());
}

#[test]
fn podman_starts_an_image_that_could_not_be_recorded() {
    require!(Podman);
    let hostile = Hostile::start();
    runnable("full").push_to(&hostile, "team/app", "1");
    let host = hostile.host();
    let name = format!("{host}/team/app:1");
    let disk = SmallDisk::mount(1).expect("mounting a tmpfs, which takes root");
    let bed = StoreBed::start_with(Some(&disk.path().join("store")), &[]);
    let full = disk.path().join("full");
    std::fs::write(&full, vec![1; 2 << 20]).expect_err("the disk is small");
    // Enough for the record and a part of the directories.
    let file = std::fs::File::options().write(true).open(&full).unwrap();
    file.set_len(file.metadata().unwrap().len() - 24 * 1024).unwrap();
    bed.prepare(&name).fails_with("No space left");
    std::fs::remove_file(&full).unwrap();
    bed.podman(&host, &["pull", "-q", &name]).success();
    let text = bed.podman(&host, &["run", "--rm", &name, "cat", "etc/variant"]).success().text();
    assert_eq!(text, "full\n");
}

/// Without the note of the last error there is only the log: podman says no more than `EIO`.
#[test]
fn the_last_error_of_reading_is_told() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image(1);
    image.push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    let mut bed =
        StoreBed::start(&["--stall-timeout", "1s", "--connect-timeout", "1s", "--max-wait", "1s"]);
    bed.prepare(&name).success();
    wait_for("the passes", Duration::from_secs(20), || bed.listed(&name)["indexed"] == true);
    assert!(bed.listed(&name)["last_error"].is_null());
    bed.mount.kill9();
    // Nothing is cached.
    for entry in std::fs::read_dir(bed.imgfs.images_dir()).unwrap() {
        std::fs::remove_dir_all(entry.unwrap().path()).unwrap();
    }
    drop(hostile);
    bed.mount.restart();
    let tree = format!(".imgfs/.trees/{}/etc/v", chains(&image)[1]);
    assert!(!bed.mount.cat(&tree).status.success());
    let listed = bed.listed(&name);
    assert!(listed["last_error"].as_str().unwrap().contains("cannot connect"), "{listed}");
    let table = bed.imgfs_store(&["ls"]).success().text();
    assert!(table.contains("cannot connect"), "{table}");
}

#[test]
fn what_is_not_cached_is_an_error_while_the_registry_is_down_and_comes_when_it_is_back() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image(1);
    image.push_to(&hostile, "team/app", "1");
    let name = format!("{}/team/app:1", hostile.host());
    hostile.on(Match::blobs().about(&image.layers()[0])).fault(Fault::Status(503, Vec::new()));
    let bed =
        StoreBed::start(&["--stall-timeout", "1s", "--connect-timeout", "1s", "--max-wait", "1s"]);
    bed.prepare(&name).success();
    let tree = format!(".imgfs/.trees/{}", chains(&image)[1]);
    let down = bed.mount.cat(&format!("{tree}/etc/a"));
    assert!(!down.status.success(), "{}", down.text());
    let is_known =
        ["Input/output error", "timed out"].iter().any(|text| down.stderr.contains(text));
    assert!(is_known, "{}", down.stderr);
    assert!(!bed.mount.logged(&["reading layer"]).is_empty(), "{:?}", bed.mount.log());
    // The upper layer is there.
    assert_eq!(bed.mount.cat(&format!("{tree}/v")).success().text(), "1\n");
    assert_eq!(bed.listed(&name)["state"], "lazy", "that is no reason to withdraw it");
    hostile.behave();
    assert_eq!(bed.mount.cat(&format!("{tree}/etc/a")).success().text(), "lower\n");
}

#[test]
fn credentials_that_have_changed_are_those_that_came_last() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image = image(1);
    image.push_to(&hostile, "team/app", "1");
    hostile.set_access(Access::basic());
    let name = format!("{}/team/app:1", hostile.host());
    let auths = tempfile::NamedTempFile::new().unwrap();
    let entry = format!("- repo: {}\n  username: {USER}\n  password: {PASSWORD}\n", hostile.host());
    std::fs::write(auths.path(), entry).unwrap();
    let bed = StoreBed::start(&["--auths", crate::support::text(auths.path())]);
    let login = |password: &str| {
        bed.prepare_with(&format!(
            r#"{{"{name}":{{"username":"{USER}","password":"{password}"}}}}"#
        ))
    };
    // What came with the image is refused: then those of the file.
    login("wrong").success();
    wait_for("the passes", Duration::from_secs(20), || bed.listed(&name)["indexed"] == true);
    // Now the file is out of date.
    let changed = Access::Basic { user: USER.to_owned(), password: "changed".to_owned() };
    hostile.set_access(changed);
    login("wrong").fails_with("not authorised");
    login("changed").success();
    let tree = format!(".imgfs/.trees/{}/etc/v", chains(&image)[1]);
    assert_eq!(bed.mount.cat(&tree).success().text(), "1\n");
}
