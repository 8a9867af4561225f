//! Who may look at a mount, how mount(8) makes one, and what a registry that changes its passwords does to it.

use crate::support::cli::Imgfs;
use crate::support::content;
use crate::support::hostile::{Access, Bearer, Hostile, PASSWORD, USER};
use crate::support::image::{Built, Image};
use crate::support::mount::{Looking, Mounted, require_fuse};
use crate::support::need::require;
use crate::support::text;
use serde_json::json;
use std::os::unix::fs::PermissionsExt as _;

/// A directory with an image in it, another image that is only at the registry, and the names of both.
fn scene(hostile: &Hostile) -> (Imgfs, [Built; 2], [String; 2]) {
    let images = [1, 2].map(|seed| Image::new().layer(seed, 300_000).build());
    images[0].push_to(hostile, "local", "1");
    images[1].push_to(hostile, "remote", "1");
    let names = ["local", "remote"].map(|name| format!("{}/{name}:1", hostile.host()));
    let imgfs = Imgfs::scratch();
    imgfs.pull(&names[..1]).success();
    (imgfs, images, names)
}

fn layer(image: &Built) -> String {
    format!("blobs/{}", image.layers()[0])
}

#[test]
fn other_users_may_look_where_they_are_let() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (imgfs, images, names) = scene(&hostile);
    let host = hostile.host();
    let others = ["--allow-other", "--registries", &host];
    for (further, allowed) in [(&[][..], false), (&others[..], true)] {
        let args = [&["--manifests", &names[1]], further].concat();
        let mount = Mounted::start(imgfs.images_dir(), &args);
        // The mount point itself is in a directory that only root may enter.
        let place = mount.at().parent().expect("a directory").to_owned();
        let open = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&place, open).expect("setting a mode");
        let as_nobody = |program: &str, path: &str| {
            let user = ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"];
            mount.run("setpriv", &[&user[..], &[program, path]].concat())
        };
        for image in &images {
            let path = mount.path(&layer(image));
            mount.run("cat", &[&path]).success();
            let read = as_nobody("cat", &path);
            match allowed {
                true => {
                    let read = read.success();
                    assert_eq!(content::digest(&read.stdout), image.layers()[0]);
                    as_nobody("touch", &path).fails_with("Read-only file system");
                }
                false => drop(read.fails_with("Permission denied")),
            }
        }
        let listed = as_nobody("ls", &mount.path(""));
        match allowed {
            true => assert!(listed.success().text().contains("blobs")),
            false => drop(listed.fails_with("Permission denied")),
        }
    }
}

/// What root does with mount(8) and umount(8), in a namespace of mounts where `/sbin/mount.imgfs` and
/// `/etc/fstab` are ours.
const WITH_MOUNT: &str = r#"
set -eu
place=$1 program=$2 layer=$3 images=$4
mount --make-rprivate /
is_mounted() { grep "^$images $place/at fuse.imgfs ro" /proc/self/mounts; }
sbin=$(realpath /sbin)
mkdir "$place/old" "$place/new"
mount --bind "$sbin" "$place/old"
ln -s "$place"/old/* "$place/new"
ln -s "$program" "$place/new/mount.imgfs"
mount --bind "$place/new" "$sbin"
options="ro,nofail,_netdev,offline,allow_other,cache_size=20M,uid=77,gid=78,log_file=$place/log"
mount -t imgfs -o "$options" "$images" "$place/at"
is_mounted
sha256sum "$place/at/$layer"
umount "$place/at"
echo "$images  $place/at  imgfs  $options  0  0" > "$place/fstab"
mount --bind "$place/fstab" /etc/fstab
mount "$place/at"
is_mounted
stat -c '%u %g' "$place/at/$layer"
sha256sum "$place/at/$layer"
umount "$place/at"
if is_mounted; then exit 1; fi
mount --all
is_mounted
mount --all
"$program" mounts | grep "$place/at"
"$program" umount "$place/at"
echo "$images  $place/missing  imgfs  offline  0  0" > /etc/fstab
if mount "$place/missing" 2>&1; then echo "it is there"; fi
"#;

#[test]
fn mount_8_knows_how_to_mount_it() {
    require!(Mounts);
    require_fuse();
    let hostile = Hostile::start();
    let (imgfs, images, _) = scene(&hostile);
    let place = tempfile::tempdir().expect("making a temporary directory");
    std::fs::create_dir(place.path().join("at")).expect("making a directory");
    // All that is mounted in there ends with it.
    let namespace =
        ["--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", "sh", "-c"];
    let program = env!("CARGO_BIN_EXE_imgfs");
    let layer = layer(&images[0]);
    let given = [WITH_MOUNT, "-", text(place.path()), program, &layer, text(imgfs.images_dir())];
    let args = [&namespace[..], &given].concat();
    let done = Looking::start("unshare", &args, None).wait().success();
    let said = done.text();
    let digest = layer.trim_start_matches("blobs/sha256:");
    assert_eq!(said.matches(digest).count(), 4, "twice, with path and sum\n{said}");
    assert_eq!(said.matches(" fuse.imgfs ro").count(), 3, "{said}");
    assert!(said.contains("\n77 78\n"), "{said}");
    assert!(said.contains("does not exist") && !said.contains("it is there"), "{said}");
}

#[test]
fn a_password_may_change_while_it_is_mounted() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (_, images, names) = scene(&hostile);
    let imgfs = Imgfs::scratch();
    let auths = imgfs.home().join("auths.json");
    let write = |password: &str| {
        let auth = json!({"username": USER, "password": password});
        let all = json!({"auths": {hostile.host(): auth}});
        std::fs::write(&auths, all.to_string()).expect("writing");
    };
    write(PASSWORD);
    hostile.set_access(Access::basic());
    let args = ["--auths", text(&auths), "--manifests", &names[0], "--manifests", &names[1]];
    let mount = Mounted::start(imgfs.images_dir(), &args);
    let [first, second] = [&images[0], &images[1]].map(layer);
    mount.cat(&first).success();

    // The registry has a new one; whoever looks after the mount does not know it yet.
    hostile.set_access(Access::Basic { user: USER.to_owned(), password: "new".to_owned() });
    mount.cat(&second).fails_with("Permission denied");
    assert_eq!(mount.logged(&[&images[1].layers()[0], "not authorised"]).len(), 1);
    mount.cat(&first).success();

    write("new");
    let read = mount.cat(&second).success();
    assert_eq!(content::digest(&read.stdout), images[1].layers()[0]);
    // Names, too.
    images[0].push_to(&hostile, "later", "1");
    let later = mount.cat(&format!("{}/later/manifests/1", hostile.host())).success();
    assert_eq!(later.stdout, images[0].root().bytes);
    assert_eq!(mount.log().len(), 1, "{:?}", mount.log());
}

#[test]
fn tokens_may_be_revoked_while_it_is_mounted() {
    require!(Mounts);
    let hostile = Hostile::start();
    let (_, images, names) = scene(&hostile);
    let imgfs = Imgfs::scratch();
    hostile.set_access(Access::Bearer(Bearer::new()));
    let auths = imgfs.home().join("auths.json");
    let auth = json!({"username": USER, "password": PASSWORD});
    std::fs::write(&auths, json!({"auths": {hostile.host(): auth}}).to_string()).expect("writing");
    let args = ["--auths", text(&auths), "--manifests", &names[0], "--manifests", &names[1]];
    let mount = Mounted::start(imgfs.images_dir(), &args);
    for image in &images {
        hostile.revoke_tokens();
        let read = mount.cat(&layer(image)).success();
        assert_eq!(content::digest(&read.stdout), image.layers()[0]);
    }
    assert_eq!(mount.log(), Vec::<String>::new());
}
