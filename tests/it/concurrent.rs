//! Several processes in one `images_dir`.

use crate::support::cli::Imgfs;
use crate::support::hostile::Hostile;
use crate::support::image::Image;
use crate::support::tree::{self, assert_tree_sound};
use crate::support::wait_for;
use std::time::Duration;

/// Eight images; neighbours share a layer, all share one.
fn fill(hostile: &Hostile) -> Vec<String> {
    (0..8)
        .map(|number| {
            let image = Image::new()
                .layer(1, 1_500_000)
                .layer(10 + number, 400_000)
                .layer(11 + number, 400_000)
                .annotation("number", &number.to_string());
            let repository = format!("app{number}");
            image.build().push_to(hostile, &repository, "1");
            format!("{}/{repository}:1", hostile.host())
        })
        .collect()
}

#[test]
fn two_pulls_of_overlapping_sets_share_the_work() {
    let hostile = Hostile::start();
    let names = fill(&hostile);
    hostile.set_pace(64 * 1024, Duration::from_millis(4));
    let imgfs = Imgfs::scratch();
    let left = imgfs.spawn_pull(&names[..6]);
    let right = imgfs.spawn_pull(&names[2..]);
    let (left, right) = (left.wait().success(), right.wait().success());
    assert_tree_sound(imgfs.images_dir());
    let mut total = 0;
    for (digest, sent) in hostile.blob_bytes_sent() {
        let path = imgfs.images_dir().join("blobs").join(&digest);
        let size = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        assert_eq!(sent, size, "{digest} was fetched once");
        total += sent;
    }
    assert_eq!(left.number("fetched_bytes") + right.number("fetched_bytes"), total);
    for (output, names) in [(&left, &names[..6]), (&right, &names[2..])] {
        for name in names {
            assert_ne!(output.image(name)["status"], "failed");
        }
    }
    let locks = tree::snapshot(imgfs.images_dir());
    assert_eq!(tree::blobs(imgfs.images_dir()), tree::referenced_blobs(imgfs.images_dir()));
    assert!(!locks.is_empty());
    imgfs.verify().success();
}

#[test]
fn who_waits_for_another_process_says_so() {
    let hostile = Hostile::start();
    Image::new().layer(1, 3_000_000).build().push_to(&hostile, "app", "1");
    hostile.set_pace(16 * 1024, Duration::from_millis(10));
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let first = imgfs.spawn_pull(&[&name]);
    wait_for("the first to download", Duration::from_secs(20), || {
        hostile.blob_gets_now().iter().any(|get| get.sent > 100_000)
    });
    let second = imgfs.spawn_pull(&[&name]);
    std::thread::sleep(Duration::from_millis(700));
    hostile.no_pace();
    first.wait().success();
    let output = second.wait().success();
    let said = format!("{}{}", output.stdout, output.stderr).to_lowercase();
    assert!(said.contains("wait"), "{output}");
    assert_eq!(output.number("fetched_bytes"), 0, "{output}");
}

#[test]
fn when_one_of_two_is_killed_the_other_takes_over() {
    let hostile = Hostile::start();
    Image::new().layer(1, 3_000_000).build().push_to(&hostile, "app", "1");
    hostile.set_pace(16 * 1024, Duration::from_millis(4));
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let first = imgfs.spawn_pull(&[&name]);
    wait_for("the first to download", Duration::from_secs(20), || {
        hostile.blob_gets_now().iter().any(|get| get.sent > 1_000_000)
    });
    let second = imgfs.spawn_pull(&[&name]);
    std::thread::sleep(Duration::from_millis(100));
    first.kill9();
    let output = second.wait().success();
    assert_tree_sound(imgfs.images_dir());
    assert!(
        output.number("fetched_bytes") < 3_000_000,
        "it goes on where the other stopped\n{output}"
    );
}

#[test]
fn different_tags_of_one_repository_do_not_get_lost() {
    // The newest generation keeps all tags of a repository in one file.
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 1000).build();
    let tags: Vec<String> = (0..12).map(|number| format!("v{number}")).collect();
    for tag in &tags {
        image.push_to(&hostile, "app", tag);
    }
    let imgfs = Imgfs::scratch();
    let runs: Vec<_> = tags
        .chunks(3)
        .map(|part| {
            let mut args = vec!["--layout".to_owned(), "kubekey".to_owned()];
            args.extend(part.iter().map(|tag| format!("{}/app:{tag}", hostile.host())));
            imgfs.spawn_pull(&args)
        })
        .collect();
    for run in runs {
        run.wait().success();
    }
    let map = tree::layout(&imgfs.images_dir().join(hostile.host()).join("app/manifests"));
    assert_eq!(map.len(), tags.len(), "{map:?}");
    assert_tree_sound(imgfs.images_dir());
}

#[test]
fn prune_keeps_its_hands_off_while_a_pull_runs() {
    // Until the tag is written nothing refers to the blobs that are there already.
    let hostile = Hostile::start();
    let image = Image::new().layer(1, 2_000_000).layer(2, 10_000).build();
    image.push_to(&hostile, "app", "1");
    hostile.set_pace(16 * 1024, Duration::from_millis(4));
    let name = format!("{}/app:1", hostile.host());
    let imgfs = Imgfs::scratch();
    let mut pull = imgfs.spawn_pull(&[&name]);
    wait_for("the download", Duration::from_secs(20), || {
        hostile.blob_gets_now().iter().any(|get| get.sent > 200_000)
    });
    let output = imgfs.prune();
    // It refuses and says why, or it waits for its turn.
    if pull.is_running() {
        assert_ne!(output.code(), 0, "{output}");
        assert!(output.stderr.contains("another imgfs"), "{output}");
    }
    pull.wait().success();
    assert_tree_sound(imgfs.images_dir());
    let sent = hostile.blob_bytes_sent();
    assert_eq!(sent.values().sum::<u64>(), image.blob_bytes());
}
