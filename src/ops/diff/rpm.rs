//! Reads databases of rpm. There are three, of which the first bytes tell which one a file is:
//!
//! | file | database | where |
//! |---|---|---|
//! | `rpmdb.sqlite` | SQLite (`sqlite.rs`) | Fedora, RHEL 9, Amazon Linux 2023 |
//! | `Packages.db` | rpm's own, ndb (`ndb.rs`) | SUSE |
//! | `Packages` | a hash of Berkeley DB (`bdb.rs`) | RHEL up to 8, Amazon Linux 2 |
//!
//! In each of them an installed package is one record: its header (rpm's manual, "Package format",
//! section "Header"). What is read was made by whoever made the image, so every number in it is checked:
//! no offset leads out of the file, and no chain of pages is longer than the file has pages.

mod bdb;
mod ndb;
mod sqlite;

/// An installed package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    pub(super) name: String,
    /// `[epoch:]version-release`.
    pub(super) version: String,
    /// Empty for keys, which rpm keeps as packages called `gpg-pubkey`.
    pub(super) architecture: String,
}

/// What is wrong with a database.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum Damage {
    #[error("it is no database of rpm that is known here")]
    Unknown,
    #[error("it ends in the middle of {0}")]
    Short(&'static str),
    #[error("{0} is damaged")]
    Damaged(&'static str),
    #[error("{0} is not supported")]
    Unsupported(&'static str),
}

type Result<T> = std::result::Result<T, Damage>;

/// The packages of a database, which has been read as a whole.
pub(super) fn packages(file: &[u8]) -> Result<Vec<Package>> {
    let mut found = Vec::new();
    // Each header has its place in the file, so that all of them are no larger than it is.
    let mut left = file.len();
    let mut each = |header: &[u8]| {
        left =
            left.checked_sub(header.len().max(1)).ok_or(Damage::Damaged("the list of packages"))?;
        found.push(package(header)?);
        Ok(())
    };
    if sqlite::is_one(file) {
        sqlite::headers(file, &mut each)?;
    } else if ndb::is_one(file) {
        ndb::headers(file, &mut each)?;
    } else if bdb::is_one(file) {
        bdb::headers(file, &mut each)?;
    } else if !file.is_empty() {
        return Err(Damage::Unknown);
    }
    Ok(found)
}

/// Tags of a header.
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const ARCHITECTURE: u32 = 1022;

/// Types of a header's entries.
const INT32: u32 = 4;
const STRING: u32 = 6;

/// Reads a header: the number of its entries, the size of its data, the entries, and the data.
fn package(header: &[u8]) -> Result<Package> {
    const WHAT: &str = "a package's header";
    const ENTRY: usize = 16;
    let number = |at: usize| be32(header, at, WHAT);
    let (entries, size) = (number(0)? as usize, number(4)? as usize);
    let start =
        entries.checked_mul(ENTRY).and_then(|n| n.checked_add(8)).ok_or(Damage::Damaged(WHAT))?;
    let data = slice(header, start, size, WHAT)?;

    let (mut name, mut version, mut release) = (None, None, None);
    let (mut epoch, mut architecture) = (None, String::new());
    for entry in 0..entries {
        let at = 8 + entry * ENTRY;
        let (tag, kind, offset) = (number(at)?, number(at + 4)?, number(at + 8)? as usize);
        let text = || {
            let rest =
                data.get(offset..).filter(|_| kind == STRING).ok_or(Damage::Damaged(WHAT))?;
            let end = rest.iter().position(|&byte| byte == 0).ok_or(Damage::Damaged(WHAT))?;
            Ok(String::from_utf8_lossy(&rest[..end]).into_owned())
        };
        match tag {
            NAME => name = Some(text()?),
            VERSION => version = Some(text()?),
            RELEASE => release = Some(text()?),
            ARCHITECTURE => architecture = text()?,
            EPOCH if kind == INT32 => epoch = Some(be32(data, offset, WHAT)?),
            _ => {}
        }
    }
    let (Some(name), Some(version), Some(release)) = (name, version, release) else {
        return Err(Damage::Damaged(WHAT));
    };
    let version = match epoch {
        Some(epoch) => format!("{epoch}:{version}-{release}"),
        None => format!("{version}-{release}"),
    };
    Ok(Package { name, version, architecture })
}

/// `size` bytes from `at` on, of what is called `what`.
fn slice<'a>(bytes: &'a [u8], at: usize, size: usize, what: &'static str) -> Result<&'a [u8]> {
    let end = at.checked_add(size).ok_or(Damage::Damaged(what))?;
    bytes.get(at..end).ok_or(Damage::Short(what))
}

fn be16(bytes: &[u8], at: usize, what: &'static str) -> Result<u16> {
    let bytes = slice(bytes, at, 2, what)?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn be32(bytes: &[u8], at: usize, what: &'static str) -> Result<u32> {
    let bytes = slice(bytes, at, 4, what)?;
    Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

fn le32(bytes: &[u8], at: usize, what: &'static str) -> Result<u32> {
    Ok(be32(bytes, at, what)?.swap_bytes())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use proptest::prelude::*;

    use super::*;

    /// Databases that SQLite and Berkeley DB have made of headers by rpm 4.18, and one of rpm's own
    /// format with the same headers. One package has a description of 9 KB, so that it spans pages.
    fn fixture(name: &str) -> Vec<u8> {
        let packed: &[u8] = match name {
            "rpmdb.sqlite" => include_bytes!("rpm/fixtures/rpmdb.sqlite.gz"),
            "Packages.db" => include_bytes!("rpm/fixtures/Packages.db.gz"),
            _ => include_bytes!("rpm/fixtures/Packages.gz"),
        };
        let mut file = Vec::new();
        flate2::read::GzDecoder::new(packed).read_to_end(&mut file).unwrap();
        file
    }

    const ALL: [&str; 3] = ["rpmdb.sqlite", "Packages.db", "Packages"];

    #[test]
    fn what_rpm_has_noted_in_each_kind_of_database() {
        for (name, count) in ALL.into_iter().zip([42, 5, 6]) {
            let found = packages(&fixture(name)).unwrap();
            assert_eq!(found.len(), count, "{name}");
            let package = |wanted: &str| {
                let package = found.iter().find(|package| package.name == wanted);
                package.unwrap_or_else(|| panic!("{name} has no {wanted}: {found:?}")).clone()
            };
            let (alpha, beta) = (package("alpha"), package("beta"));
            assert_eq!((&*alpha.version, &*alpha.architecture), ("1.2-3.el9", "x86_64"), "{name}");
            assert_eq!((&*beta.version, &*beta.architecture), ("2:2.0~rc1-1", "noarch"), "{name}");
        }
    }

    #[test]
    fn a_database_that_is_cut_off_is_an_error() {
        for name in ALL {
            let file = fixture(name);
            for part in [3, 40, 99] {
                let error = packages(&file[..file.len() * part / 100]).unwrap_err();
                assert!(matches!(error, Damage::Short(_) | Damage::Damaged(_)), "{name}: {error}");
            }
        }
        assert_eq!(packages(b"something else").unwrap_err(), Damage::Unknown);
        assert_eq!(packages(b"").unwrap(), []);
    }

    #[test]
    fn a_later_version_of_sqlite_is_not_guessed_at() {
        let mut file = fixture("rpmdb.sqlite");
        file[18] = 3;
        assert!(matches!(packages(&file).unwrap_err(), Damage::Unsupported(_)));
    }

    proptest! {
        #[test]
        fn damaged_bytes_never_hurt(
            which in 0..3usize,
            edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        ) {
            let mut file = fixture(ALL[which]);
            for (at, byte) in edits {
                // Half of the edits hit the beginning, where what leads to the rest is.
                let bound = if byte & 1 == 0 { 512 } else { file.len() };
                let at = at.index(bound);
                file[at] = byte;
            }
            if let Ok(found) = packages(&file) {
                prop_assert!(found.len() <= file.len() / 16);
            }
        }
    }
}
