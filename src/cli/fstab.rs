//! `mount.imgfs`, the name under which mount(8) calls for a line of fstab:
//!
//! ```text
//! /var/lib/images  /mnt/images  imgfs  ro,nofail,_netdev,cache_size=20G,platform=amd64  0  0
//! ```
//!
//! The source is the directory of images. Options of `imgfs mount` stand there without their dashes,
//! with `_` for `-`, and several registries with `+` between them, as a comma ends an option:
//! `registries=quay.io+docker.io/library`, `write=through+delete`. Options that are for mount(8) or systemd are passed over.

use std::ffi::OsString;

/// Options of `imgfs mount` that may stand in fstab.
const OPTIONS: [&str; 44] = [
    "allow-other",
    "auths",
    "ca-file",
    "cache-dir",
    "cache-size",
    "concurrency",
    "connect-timeout",
    "connections-per-blob",
    "dest",
    "gid",
    "image",
    "index",
    "insecure",
    "log-file",
    "log-format",
    "log-level",
    "manifests",
    "max-wait",
    "memory",
    "metrics",
    "no-keep",
    "no-passthrough",
    "offline",
    "plain-http",
    "platform",
    "policy",
    "profiles",
    "referrers",
    "registries",
    "resolve",
    "stall-timeout",
    "store",
    "store-images",
    "store-min-size",
    "store-socket",
    "strict",
    "tag-ttl",
    "threads",
    "trust-indexes",
    "uid",
    "umask",
    "username",
    "verify-first",
    "write",
];

/// Options that mount(8) knows for all file systems, and that are its matter or the kernel's.
const GENERIC: [&str; 50] = [
    "_netdev",
    "async",
    "atime",
    "auto",
    "comment",
    "context",
    "defaults",
    "defcontext",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "fscontext",
    "group",
    "helper",
    "iversion",
    "lazytime",
    "loud",
    "mand",
    "noatime",
    "noauto",
    "nodev",
    "nodiratime",
    "noexec",
    "nofail",
    "noiversion",
    "nolazytime",
    "nomand",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "nouser",
    "nousers",
    "owner",
    "relatime",
    "remount",
    "ro",
    "rootcontext",
    "rw",
    "silent",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "uhelper",
    "user",
    "users",
    "allow_root",
    "default_permissions",
];

/// The arguments of `mount.imgfs SOURCE MOUNTPOINT [-sfnv] [-o OPTIONS]` as those of `imgfs mount`. An option that
/// nobody knows becomes an argument, too, and is refused as such: a misspelt `verify_first` would otherwise guard
/// nothing. With `-s` it is passed over, as mount(8) has it.
pub(super) fn arguments(given: &[OsString]) -> Vec<OsString> {
    let mut places = Vec::new();
    let mut all: Vec<OsString> = vec!["mount".into()];
    let is_sloppy = given.iter().any(|argument| argument == "-s");
    let mut given = given.iter();
    while let Some(argument) = given.next() {
        match argument.to_str() {
            Some("-o") => {
                let list = given.next().and_then(|list| list.to_str()).unwrap_or_default();
                let options = list.split(',').filter(|option| !option.is_empty());
                all.extend(options.filter_map(|text| option(text, is_sloppy)).map(OsString::from));
            }
            // Sloppy, fake, no mtab, verbose; and what imgfs adds when it goes into the background.
            Some("-s" | "-f" | "-n" | "-v") => {}
            Some(flag) if flag.starts_with('-') => all.push(flag.into()),
            _ => places.push(argument.clone()),
        }
    }
    let mut places = places.into_iter();
    if let Some(source) = places.next() {
        all.push("--images-dir".into());
        all.push(source);
    }
    all.extend(places);
    all
}

/// One option of fstab as an argument, if it is for us.
fn option(option: &str, is_sloppy: bool) -> Option<String> {
    let (name, value) = match option.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (option, None),
    };
    let is_generic = GENERIC.contains(&name) || name.starts_with("x-") || name.starts_with("X-");
    let name = name.replace('_', "-");
    let known = OPTIONS.contains(&name.as_str());
    match value {
        Some(value)
            if matches!(
                name.as_str(),
                "registries" | "trust-indexes" | "store-images" | "write"
            ) =>
        {
            Some(format!("--{name}={}", value.replace('+', ",")))
        }
        Some(value) if known => Some(format!("--{name}={value}")),
        None if known => Some(format!("--{name}")),
        // What is inside an image may be obeyed then.
        None if matches!(option, "suid" | "dev") => Some(format!("-o{option}")),
        _ if is_generic || is_sloppy => None,
        Some(value) => Some(format!("--{name}={value}")),
        None => Some(format!("--{name}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_fstab() {
        let given = [
            "/var/lib/images",
            "/mnt/images",
            "-n",
            "-o",
            "rw,nofail,_netdev,x-systemd.automount,cache_size=20G,plain_http,image=a:1,suid,registries=quay.io+*.a.io,write=through+delete",
        ];
        let given: Vec<OsString> = given.iter().map(OsString::from).collect();
        let expected = "mount --cache-size=20G --plain-http --image=a:1 -osuid --registries=quay.io,*.a.io --write=through,delete --images-dir /var/lib/images /mnt/images";
        let expected: Vec<OsString> = expected.split(' ').map(OsString::from).collect();
        assert_eq!(arguments(&given), expected);
    }

    #[test]
    fn what_nobody_knows_is_not_passed_over() {
        let arguments = |given: &[&str]| {
            let given: Vec<OsString> = given.iter().map(OsString::from).collect();
            arguments(&given)
        };
        let given = [
            "/i",
            "/m",
            "-o",
            "ro,,verify_frist,cachesize=1G,x-y=1,_netdev,comment=a,user=b,noatime",
        ];
        let expected = ["mount", "--verify-frist", "--cachesize=1G", "--images-dir", "/i", "/m"];
        assert_eq!(arguments(&given), expected);
        let expected = ["mount", "--images-dir", "/i", "/m"];
        assert_eq!(arguments(&["-s", given[0], given[1], given[2], given[3]]), expected);
    }
}
