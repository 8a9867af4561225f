//! Mount points by all their names, the mounts of others, and what a mount holds of whoever has started it.

use crate::mount_life::{Place, filled, mount};
use crate::support::hostile::Hostile;
use crate::support::mount::{Looking, is_mounted};
use crate::support::need::require;
use crate::support::text;

/// Reads all that a mount's caller would: standard output and error, and a pipe of its own.
const CALLER: &str = r#"
set -eu
said=$("$@" 3>&1 2>&1)
echo "ended:$said"
"#;

#[test]
fn a_mount_in_the_background_holds_nothing_of_its_caller() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, _, _) = filled(&hostile);
    let place = Place::new();
    let (program, images, at) = (env!("CARGO_BIN_EXE_imgfs"), imgfs.images_dir(), place.at());
    let words = [program, "mount", "--offline", "--images-dir", text(images), text(&at)];
    let args = [&["-c", CALLER, "-"][..], &words].concat();
    assert_eq!(Looking::start("sh", &args, None).wait().success().text(), "ended:\n");
    assert!(is_mounted(&at));
    // A lock is not held either, as it would be by whoever has inherited the file.
    imgfs.run(&["umount", text(&at)]).success();
    let lock = place.at().with_file_name("lock");
    let script = "exec 9>\"$1\"; shift; flock -n 9; exec \"$@\"";
    let args = [&["-c", script, "-", text(&lock)][..], &words].concat();
    Looking::start("sh", &args, None).wait().success();
    assert!(is_mounted(&at));
    Looking::start("flock", &["-n", text(&lock), "true"], None).wait().success();
    // What is wrong at the start is still told.
    let failed = [&["-c", CALLER, "-"][..], &words[..5], &["/nowhere"]].concat();
    assert!(!Looking::start("sh", &failed, None).wait().status.success());
    let failed = mount(&imgfs, std::path::Path::new("/nowhere"), &[]).expect_code(2);
    failed.stderr_has("does not exist");
}

#[test]
fn a_mount_is_ended_by_any_name_of_it() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, _, _) = filled(&hostile);
    let place = Place::new();
    let at = place.at();
    let root = at.parent().expect("a directory").to_owned();
    std::fs::create_dir(root.join("var")).expect("making a directory");
    for (to, link) in [("at", "link"), ("link", "chain"), ("..", "var/up")] {
        std::os::unix::fs::symlink(to, root.join(link)).expect("linking");
    }
    for by in ["at", "var/up/at", "chain"] {
        for end in ["at/", "var/up/at", "link", "chain/.", "at/../at"] {
            mount(&imgfs, &root.join(by), &[]).success();
            assert!(is_mounted(&at), "{by}");
            let again = mount(&imgfs, &root.join("link"), &[]);
            again.expect_code(2).stderr_has("mounted there already");
            imgfs.run(&["umount", text(&root.join(end))]).success();
            assert!(!is_mounted(&at), "mounted at {by}, ended as {end}");
        }
    }
    imgfs
        .run(&["umount", text(&root.join("chain"))])
        .expect_code(2)
        .stderr_has("not mounted there");
}

/// Mount points with odd names and of others, in a namespace of mounts of their own.
const ODD: &str = r#"
set -eu
place=$1 program=$2 images=$3
mount --make-rprivate /
odd=$(printf "$place/\377other")
mkdir "$odd"
mount -t tmpfs none "$odd"
for name in 'a b' 'tab	and
line' 'back\slash' '\040' '#' 'x,y=z' "$(printf '\376\377')"; do
    at=$place/$name
    mkdir "$at"
    "$program" mount --offline --images-dir "$images" "$at"
    test -d "$at/blobs"
    test "$("$program" mounts | grep -c "^$place/.* $images ")" = 1
    test "$("$program" mounts --json | grep -c "\"mountpoint\":\"$place/.*$images")" = 1
    if "$program" mount --offline --images-dir "$images" "$at"; then exit 1; fi
    "$program" umount "$at"
    if test -d "$at/blobs"; then exit 1; fi
done 2> "$place/errors"
# What lies on top is not ours to unmount, and what lies below is no obstacle.
at=$place/at
"$program" mount --offline --images-dir "$images" "$at"
mount -t tmpfs none "$at"
if "$program" umount "$at"; then exit 1; fi
"$program" mount --offline --images-dir "$images" "$at"
"$program" umount "$at"
sleep 0.5
umount "$at"
test -d "$at/blobs"
"$program" umount "$at"
# One that was killed below another one that was killed.
mount -t tmpfs none "$at"
"$program" mount --offline --images-dir "$images" "$at"
umount "$odd"
pkill -KILL -f -- "--images-dir $images $at"
ln -s at "$place/link"
sleep 0.2
"$program" umount "$place/link"
umount "$at"
"$program" mount --offline --images-dir "$images" "$place/link"
test -d "$at/blobs"
"$program" umount "$at/../link"
grep -c "$place/.* fuse.imgfs" /proc/self/mountinfo || true
"#;

#[test]
fn mount_points_with_odd_names_and_those_of_others() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, _, _) = filled(&hostile);
    let place = Place::new();
    let (root, program) = (place.at(), env!("CARGO_BIN_EXE_imgfs"));
    let root = text(root.parent().expect("a directory"));
    let args = ["-m", "--", "sh", "-c", ODD, "-", root, program, text(imgfs.images_dir())];
    let done = Looking::start("unshare", &args, None).wait();
    let errors = std::fs::read(place.at().with_file_name("errors")).unwrap_or_default();
    assert!(done.status.success(), "{}{}", done.stderr, String::from_utf8_lossy(&errors));
    assert!(done.stderr.contains("tmpfs is mounted there"), "{}", done.stderr);
    assert_eq!(done.text().lines().last(), Some("0"), "{}", done.text());
}
