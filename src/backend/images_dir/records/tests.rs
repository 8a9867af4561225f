use std::fs;

use super::*;

fn open(path: PathBuf) -> io::Result<Records> {
    let root = ConfinedDir::open(path.parent().unwrap()).unwrap();
    Records::open(root, path, true, None, Flush::Now)
}

fn file(dir: &Path, name: &str, text: &str) -> (PathBuf, Metadata) {
    let path = dir.join(name);
    fs::write(&path, text).unwrap();
    let meta = fs::metadata(&path).unwrap();
    (path, meta)
}

#[test]
fn a_changed_file_is_not_verified() {
    let dir = tempfile::tempdir().unwrap();
    let records = open(dir.path().join("records")).unwrap();
    let digest = Digest::sha256(b"x");
    let (path, meta) = file(dir.path(), "x", "hello");
    assert!(!records.is_verified(&digest, &meta));
    records.verified(digest, &meta, Held::OnDisk).unwrap();
    assert!(records.is_verified(&digest, &meta));

    // Another process sees it, and what it adds is seen here.
    let other = open(dir.path().join("records")).unwrap();
    assert!(other.is_verified(&digest, &meta));
    let (_, second) = file(dir.path(), "y", "y");
    other.verified(Digest::sha256(b"y"), &second, Held::OnDisk).unwrap();
    assert!(records.is_verified(&Digest::sha256(b"y"), &second));

    // Same size, same inode, and the mtime put back: the ctime tells.
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(&path, "jello").unwrap();
    File::open(&path).unwrap().set_modified(meta.modified().unwrap()).unwrap();
    let changed = fs::metadata(&path).unwrap();
    assert_eq!(
        (changed.modified().unwrap(), changed.ino()),
        (meta.modified().unwrap(), meta.ino())
    );
    assert!(!records.is_verified(&digest, &changed));
}

#[test]
fn where_files_are_not_known_again_nothing_is_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let of_stick = || {
        let root = ConfinedDir::open(dir.path()).unwrap();
        Records::open(root, path.clone(), false, None, Flush::Now).unwrap()
    };
    let digest = Digest::sha256(b"x");
    let (_, meta) = file(dir.path(), "x", "hello");
    // By somebody who has taken it for another file system, or on one.
    open(path.clone()).unwrap().verified(digest, &meta, Held::OnDisk).unwrap();
    let records = of_stick();
    assert!(!records.is_verified(&digest, &meta));
    records.verified(digest, &meta, Held::OnDisk).unwrap();
    assert!(records.is_verified(&digest, &meta) && !of_stick().is_verified(&digest, &meta));
    records.distrust(digest).unwrap();
    assert!(!records.is_verified(&digest, &meta));
    // What cannot be found out again is kept.
    let reference: Reference = format!("quay.io/a/b@{digest}").parse().unwrap();
    records.pin(&reference).unwrap();
    assert!(of_stick().is_pinned(&reference));
}

#[test]
fn pins_and_sparse_indexes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let records = open(path.clone()).unwrap();
    let reference: Reference = format!("quay.io/a/b@{}", Digest::sha256(b"m")).parse().unwrap();
    records.pin(&reference).unwrap();
    records.pin(&reference).unwrap();
    records.set_sparse(Digest::sha256(b"i"), "linux/amd64").unwrap();
    let again = open(path.clone()).unwrap();
    assert!(again.is_pinned(&reference));
    assert_eq!(again.sparse(&Digest::sha256(b"i")).as_deref(), Some("linux/amd64"));
    again.unpin(&reference).unwrap();
    again.unpin(&reference).unwrap();
    assert!(!open(path.clone()).unwrap().is_pinned(&reference));
    again.set_sparse(Digest::sha256(b"i"), "all").unwrap();
    assert_eq!(again.sparse(&Digest::sha256(b"i")), None);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 5);
}

#[test]
fn times_of_tags_hold_as_long_as_the_tags_lead_to_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let records = open(path.clone()).unwrap();
    let tag: Reference = "quay.io/a/b:v1".parse().unwrap();
    let [one, two] = [b"1", b"2"].map(|content| Digest::sha256(content));
    records.set_tag_time(&tag, &one, (7, 8)).unwrap();
    records.set_tag_time(&tag, &one, (-1, 999_999_999)).unwrap();
    let again = open(path.clone()).unwrap();
    assert_eq!(again.tag_time(&tag, &one), Some((-1, 999_999_999)));
    assert_eq!(again.tag_time(&tag, &two), None);
    again.set_tag_time(&tag, &two, (3, 0)).unwrap();
    again.compact().unwrap();
    let times = |records: &Records| [one, two].map(|digest| records.tag_time(&tag, &digest));
    assert_eq!(times(&again), [None, Some((3, 0))]);
    assert_eq!(times(&open(path).unwrap()), [None, Some((3, 0))]);
}

#[test]
fn damage_costs_a_hash_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let (_, meta) = file(dir.path(), "x", "x");
    let digest = Digest::sha256(b"x");
    open(path.clone()).unwrap().verified(digest, &meta, Held::OnDisk).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{}\nblob sha256:zz 1\n\nnew thing\n{}", text.trim_end(), "blob sha"))
        .unwrap();
    let records = open(path.clone()).unwrap();
    assert!(records.is_verified(&digest, &meta));
    records.verified(Digest::sha256(b"y"), &meta, Held::OnDisk).unwrap();
    assert!(records.is_verified(&Digest::sha256(b"y"), &meta), "not swallowed by the torn line");
    fs::write(&path, "imgfs records 2\nblob x\n").unwrap();
    assert!(open(path.clone()).is_err());
    fs::write(&path, "\0\x01garbage\nblob x\n").unwrap();
    let afresh = open(path.clone()).unwrap();
    afresh.verified(digest, &meta, Held::OnDisk).unwrap();
    assert!(open(path).unwrap().is_verified(&digest, &meta));
}

#[test]
fn the_file_does_not_grow_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let records = open(path.clone()).unwrap();
    let (_, meta) = file(dir.path(), "x", "x");
    for _ in 0..COMPACT_LINES + 10 {
        records.verified(Digest::sha256(b"x"), &meta, Held::OnDisk).unwrap();
    }
    assert!(fs::read_to_string(&path).unwrap().lines().count() < 20);
    assert!(open(path).unwrap().is_verified(&Digest::sha256(b"x"), &meta));
}

const BOOT: &str = "0f6a2b4c-1d2e-4f50-8a9b-0c1d2e3f4a5b";

fn epoch(mount: u64, boot: &str) -> Option<Epoch> {
    Some(Epoch::new(mount, boot).unwrap())
}

fn open_in(path: &Path, epoch: Option<Epoch>) -> Records {
    let root = ConfinedDir::open(path.parent().unwrap()).unwrap();
    Records::open(root, path.to_owned(), true, epoch, Flush::Later).unwrap()
}

#[test]
fn what_is_not_on_the_disk_is_believed_in_its_own_epoch_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let digest = Digest::sha256(b"x");
    let (_, meta) = file(dir.path(), "x", "hello");
    let records = open_in(&path, epoch(7, BOOT));
    records.verified(digest, &meta, records.in_memory()).unwrap();
    assert!(records.is_verified(&digest, &meta));
    assert!(open_in(&path, epoch(7, BOOT)).is_verified(&digest, &meta));
    let other_boot = BOOT.replace('0', "1");
    let others = [epoch(7, &other_boot), epoch(8, BOOT), epoch(70, BOOT), None];
    for other in &others {
        assert!(!open_in(&path, other.clone()).is_verified(&digest, &meta), "{other:?}");
    }
    // Versions of imgfs that know nothing of this skip the line.
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().filter(|line| line.starts_with("blob ")).count(), 0, "{text}");

    // A line that was cut short is no line of another epoch, nor of this one.
    let whole = text.trim_end();
    let start = whole.find("unflushed").unwrap();
    for cut in start..whole.len() {
        fs::write(&path, format!("{}\n", &whole[..cut])).unwrap();
        for now in others.iter().cloned().chain([epoch(7, BOOT)]) {
            assert!(!open_in(&path, now).is_verified(&digest, &meta), "{}", &whole[start..cut]);
        }
    }

    // Somebody has hashed the file, and flushed it.
    fs::write(&path, &text).unwrap();
    let later = open_in(&path, epoch(8, &other_boot));
    later.verified(digest, &meta, Held::OnDisk).unwrap();
    for now in others {
        assert!(open_in(&path, now).is_verified(&digest, &meta));
    }
}

#[test]
fn what_has_been_flushed_is_believed_for_good() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let [x, y, z, old] = [b"x", b"y", b"z", b"o"].map(|text| Digest::sha256(text));
    let metas = ["x", "y", "z"].map(|name| file(dir.path(), name, name).1);
    open_in(&path, epoch(6, BOOT))
        .verified(old, &metas[0], Held::InMemory(epoch(6, BOOT).unwrap()))
        .unwrap();
    let records = open_in(&path, epoch(7, BOOT));
    assert!(records.unflushed().is_empty(), "of another mount");
    records.verified(x, &metas[0], records.in_memory()).unwrap();
    records.verified(y, &metas[1], records.in_memory()).unwrap();
    let unflushed = records.unflushed();
    assert!(!unflushed.are_older_than(Duration::from_secs(3600)));
    assert!(unflushed.are_older_than(Duration::ZERO));
    // Since then, one more has come, and another process has replaced one of them.
    records.verified(z, &metas[2], records.in_memory()).unwrap();
    open_in(&path, epoch(7, BOOT)).verified(y, &metas[2], records.in_memory()).unwrap();
    records.flushed(&unflushed).unwrap();
    let later = open_in(&path, epoch(9, BOOT));
    assert!(later.is_verified(&x, &metas[0]));
    assert!(!later.is_verified(&y, &metas[1]) && !later.is_verified(&y, &metas[2]));
    assert!(!later.is_verified(&z, &metas[2]) && !later.is_verified(&old, &metas[0]));
    assert_eq!(records.unflushed().digests().count(), 2);

    // The disk has not taken them.
    records.lost(&records.unflushed()).unwrap();
    assert!(records.unflushed().is_empty());
    assert!(records.is_verified(&x, &metas[0]) && !records.is_verified(&z, &metas[2]));
}

#[test]
fn what_holds_no_longer_is_not_written_anew() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records");
    let (_, meta) = file(dir.path(), "x", "x");
    let other_boot = BOOT.replace('0', "1");
    for (number, boot) in [(7, BOOT), (8, BOOT), (7, &other_boot)] {
        let records = open_in(&path, epoch(number, boot));
        let digest = Digest::sha256(format!("{number} {boot}").as_bytes());
        records.verified(digest, &meta, records.in_memory()).unwrap();
    }
    let records = open_in(&path, epoch(7, BOOT));
    for _ in 0..COMPACT_LINES + 10 {
        records.verified(Digest::sha256(b"x"), &meta, Held::OnDisk).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let kept = text.lines().filter(|line| line.starts_with("unflushed"));
    assert_eq!(kept.filter(|line| line.ends_with(BOOT)).count(), 2, "{text}");
    assert!(!text.contains(&other_boot));
}
