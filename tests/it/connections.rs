//! One large blob over several connections, from a registry that is slow on each of them.

use std::time::Duration;

use crate::support::{
    cli::{Imgfs, Output},
    hostile::{Fault, Hostile, Match, Served},
    image::{Built, Image},
    mount::Mounted,
    need::require,
    tree::assert_tree_sound,
};

const SIZE: u64 = 48 << 20;
/// What a connection may receive beyond what is read from it: the buffers of both ends.
const BUFFERED: u64 = 12 << 20;

/// At most 16 MB a second, on each connection.
fn slow() -> Fault {
    Fault::Drip { bytes: 64 << 10, interval: Duration::from_millis(4) }
}

/// Pulls an image with one large layer from a registry that `prepare` has made slow, and gives the
/// requests for that layer.
fn pull(options: &[&str], prepare: impl FnOnce(&Hostile, &str)) -> (Output, Vec<Served>) {
    let hostile = Hostile::start();
    let image: Built = Image::new().layer(1, SIZE).build();
    image.push_to(&hostile, "app", "1");
    let layer = image.layers()[0].clone();
    prepare(&hostile, &layer);
    let imgfs = Imgfs::scratch();
    let name = format!("{}/app:1", hostile.host());
    let output = imgfs.pull(&[options, &[name.as_str()]].concat()).success();
    assert_tree_sound(imgfs.images_dir());
    let mut gets = hostile.log();
    gets.retain(|served| served.is_blob_get() && served.path.contains(&layer));
    (output, gets)
}

fn ranges(gets: &[Served]) -> Vec<&str> {
    gets.iter().filter_map(|get| get.range.as_deref()).collect()
}

#[test]
fn connections_are_added_where_each_is_slow() {
    let (_, gets) = pull(&[], |hostile, layer| hostile.on(Match::get(layer)).fault(slow()));
    let mut ranges = ranges(&gets);
    assert!(ranges.len() >= 5, "{ranges:?}");
    ranges.sort_unstable();
    ranges.dedup();
    assert_eq!(ranges.len() + 1, gets.len(), "no part is asked for twice: {gets:?}");
    let connections: std::collections::BTreeSet<u64> =
        gets.iter().map(|get| get.connection).collect();
    assert!((3..=9).contains(&connections.len()), "{connections:?}");
    let sent: u64 = gets.iter().map(|get| get.sent).sum();
    assert!(sent <= SIZE + BUFFERED, "{sent}");
}

#[test]
fn one_connection_is_enough_for_who_says_so() {
    let options = ["--connections-per-blob", "1"];
    let (_, gets) = pull(&options, |hostile, layer| hostile.on(Match::get(layer)).fault(slow()));
    assert_eq!((gets.len(), ranges(&gets).len()), (1, 0), "{gets:?}");
}

#[test]
fn a_registry_without_ranges_is_asked_for_one_in_vain() {
    let (_, gets) = pull(&[], |hostile, layer| {
        hostile.on(Match::get(layer).ranged(true)).fault(Fault::IgnoreRange);
        hostile.on(Match::get(layer)).fault(slow());
    });
    assert_eq!((gets.len(), ranges(&gets).len()), (2, 1), "{gets:?}");
}

#[test]
fn a_registry_that_wants_no_second_connection_has_one() {
    for refusal in [403, 416, 429, 500, 503] {
        let (_, gets) = pull(&["--max-wait", "1s"], |hostile, layer| {
            hostile.on(Match::get(layer).ranged(true)).fault(Fault::status(refusal));
            hostile.on(Match::get(layer)).fault(slow());
        });
        let sent: Vec<u64> =
            gets.iter().filter(|get| get.status == 200).map(|get| get.sent).collect();
        assert!(sent.contains(&SIZE), "{refusal}: {gets:?}");
        assert!(sent.iter().sum::<u64>() <= SIZE + BUFFERED, "{refusal}: {gets:?}");
    }
}

#[test]
fn parts_that_break_off_are_taken_up_where_they_did() {
    for fault in [Fault::TruncateAt(3 << 20), Fault::ResetAfter(1 << 20), Fault::LostConnection] {
        let (output, gets) = pull(&[], |hostile, layer| {
            hostile.on(Match::get(layer).ranged(true).every(3)).fault(fault.clone());
            hostile.on(Match::get(layer)).fault(slow());
        });
        assert!(ranges(&gets).len() >= 5, "{output}");
    }
}

#[test]
fn a_part_with_other_bytes_is_found_out() {
    let (output, gets) = pull(&[], |hostile, layer| {
        hostile.on(Match::get(layer).ranged(true).nth(3)).fault(Fault::FlipByte(1000));
        hostile.on(Match::get(layer)).fault(slow());
    });
    let whole = gets.iter().filter(|get| get.range.is_none()).count();
    assert_eq!(whole, 2, "it is fetched once more, from the start: {output}");
}

/// Somebody who reads a mount from the beginning to the end has more connections, too, and what is fetched for
/// them at a time becomes smaller.
#[test]
fn a_reader_of_a_mount_has_more_connections_where_each_is_slow() {
    require!(Mounts);
    let hostile = Hostile::start();
    let image: Built = Image::new().layer(1, 3 * SIZE).build();
    image.push_to(&hostile, "app", "1");
    let layer = image.layers()[0].clone();
    hostile.on(Match::get(&layer)).fault(slow());
    let name = format!("{}/app:1", hostile.host());
    let read = |options: &[&str]| {
        hostile.clear_log();
        let imgfs = Imgfs::scratch();
        let mount =
            Mounted::start(imgfs.images_dir(), &[options, &["--manifests", &name]].concat());
        let sum = mount.begin("sha256sum", &[mount.path(&format!("blobs/{layer}"))]);
        let sum = sum.wait().success().text();
        assert_eq!(sum.split(' ').next(), Some(&layer["sha256:".len()..]));
        let mut gets = hostile.log();
        gets.retain(|served| served.is_blob_get() && served.path.contains(&layer));
        assert!(gets.iter().map(|get| get.sent).sum::<u64>() <= 3 * SIZE + BUFFERED, "{gets:?}");
        let connections = gets.iter().map(|get| get.connection);
        connections.collect::<std::collections::BTreeSet<u64>>().len()
    };
    assert!(read(&[]) >= 4);
    assert!(read(&["--connections-per-blob", "1"]) <= 3);
}
