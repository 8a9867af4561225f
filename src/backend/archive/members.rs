//! The members of an archive by their names, and where links among them lead.
//!
//! A name is a key of a map and nothing else, so `..`, absolute paths and links lead to another member or nowhere.

use std::collections::BTreeMap;

use crate::layer::{Kind, Member, Refusal};

/// Links that are followed one after another.
const MAX_LINKS: usize = 8;

/// Warnings of one kind that are told in full.
const MAX_WARNINGS: usize = 4;

/// The members of an archive.
pub(super) struct Members {
    by_name: BTreeMap<String, Member>,
    warnings: Vec<String>,
}

impl Members {
    /// Takes the members of an archive in their order: of those of one name the last one counts.
    pub(super) fn new(
        members: impl IntoIterator<Item = Member>,
        refused: impl IntoIterator<Item = (Vec<u8>, Refusal)>,
    ) -> Self {
        let mut by_name = BTreeMap::new();
        let (mut warnings, mut doubled) = (Vec::new(), Vec::new());
        for member in members {
            // Directories say nothing, and a name that is no text is none that anything leads to.
            let Ok(name) = String::from_utf8(member.name.clone()) else { continue };
            if !matches!(member.kind, Kind::File | Kind::Link | Kind::Symlink) {
                continue;
            }
            if by_name.insert(name.clone(), member).is_some() {
                doubled.push(name);
            }
        }
        doubled.dedup();
        for name in doubled.iter().take(MAX_WARNINGS) {
            warnings.push(format!(
                "it has `{}` more than once; the last one counts",
                name.escape_debug()
            ));
        }
        if doubled.len() > MAX_WARNINGS {
            let more = doubled.len() - MAX_WARNINGS;
            warnings.push(format!("it has {more} other members more than once"));
        }
        let refused = refused.into_iter().map(|(name, why)| (name, why.to_string()));
        Self { by_name, warnings }.with_notes(refused)
    }

    /// The same, with members that are ignored, and why.
    pub(super) fn with_notes(mut self, notes: impl IntoIterator<Item = (Vec<u8>, String)>) -> Self {
        for (name, why) in notes.into_iter().take(MAX_WARNINGS) {
            let name = String::from_utf8_lossy(&name).escape_debug().to_string();
            self.warnings.push(format!("its member `{name}` is ignored: {why}"));
        }
        self
    }

    /// What the user should know.
    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The file that `name` leads to, through at most 8 links. A link is looked for beside itself, then at the root
    /// of the archive.
    pub(super) fn find(&self, name: &str) -> Result<&Member, String> {
        let mut at =
            normalise("", name).ok_or_else(|| format!("`{name}` leads out of the archive"))?;
        for _ in 0..=MAX_LINKS {
            let member = self.by_name.get(&at).ok_or_else(|| format!("it has no `{at}`"))?;
            let target = || String::from_utf8_lossy(&member.target).into_owned();
            at = match member.kind {
                Kind::File if member.is_sparse => {
                    return Err(format!(
                        "`{at}` is stored as a file with holes, which is not supported"
                    ));
                }
                Kind::File => return Ok(member),
                // That of a hard link is a path from the root already.
                Kind::Link => target(),
                _ => {
                    let dir = at.rsplit_once('/').map_or("", |(dir, _)| dir);
                    let beside = normalise(dir, &target());
                    let beside = beside.filter(|name| self.by_name.contains_key(name));
                    let at_root = || normalise("", &target());
                    let next = beside.or_else(at_root);
                    next.ok_or_else(|| format!("the link `{at}` leads out of the archive"))?
                }
            };
        }
        Err(format!("`{name}` leads through more than {MAX_LINKS} links"))
    }
}

/// The name that `path` means in the directory `dir`; `None` if it leads out of the archive. An absolute one is
/// one from the root of the archive.
fn normalise(dir: &str, path: &str) -> Option<String> {
    let dir = if path.starts_with('/') { "" } else { dir };
    let mut parts: Vec<&str> = dir.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, kind: Kind, target: &str, data_offset: u64) -> Member {
        let (name, target) = (name.as_bytes().to_vec(), target.as_bytes().to_vec());
        Member { name, kind, target, size: 1, data_offset, is_sparse: false }
    }

    fn members(list: &[(&str, Kind, &str)]) -> Members {
        let list = list.iter().enumerate();
        let list = list.map(|(at, (name, kind, target))| member(name, *kind, target, at as u64));
        Members::new(list, [])
    }

    #[test]
    fn a_link_of_layer_tar_to_the_archives_root() {
        let members = members(&[
            ("a.tar", Kind::File, ""),
            ("one/layer.tar", Kind::Symlink, "../two/layer.tar"),
            ("two/layer.tar", Kind::Symlink, "a.tar"),
            ("three/layer.tar", Kind::Symlink, "/a.tar"),
            ("three/a.tar", Kind::File, ""),
            ("four/layer.tar", Kind::Link, "one/layer.tar"),
            ("five/layer.tar", Kind::Symlink, "../../../a.tar"),
            ("six/layer.tar", Kind::Symlink, "../../etc/passwd"),
        ]);
        for (name, expected) in [
            ("a.tar", Ok(0)),
            ("./a.tar", Ok(0)),
            ("/a.tar", Ok(0)),
            ("one/../a.tar", Ok(0)),
            ("one/layer.tar", Ok(0)),
            ("two/layer.tar", Ok(0)),
            ("three/layer.tar", Ok(0)),
            ("four/layer.tar", Ok(0)),
            ("five/layer.tar", Err("leads out of the archive")),
            ("six/layer.tar", Err("leads out of the archive")),
            ("../a.tar", Err("leads out of the archive")),
            ("no", Err("it has no `no`")),
        ] {
            match (members.find(name), expected) {
                (Ok(found), Ok(at)) => assert_eq!(found.data_offset, at, "{name}"),
                (Err(reason), Err(part)) => assert!(reason.contains(part), "{name}: {reason}"),
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn link_loops_end() {
        let mut list = vec![("x".to_owned(), "y".to_owned()), ("y".to_owned(), "x".to_owned())];
        list.push(("self".to_owned(), "self".to_owned()));
        list.extend((0..20).map(|at| (format!("chain{at}"), format!("chain{}", at + 1))));
        list.push(("chain20".to_owned(), "file".to_owned()));
        let mut all: Vec<Member> =
            list.iter().map(|(name, target)| member(name, Kind::Symlink, target, 0)).collect();
        all.push(member("file", Kind::File, "", 7));
        let members = Members::new(all, []);
        for name in ["x", "self", "chain0", "chain12"] {
            let reason = members.find(name).unwrap_err();
            assert!(reason.contains("more than 8 links"), "{name}: {reason}");
        }
        assert_eq!(members.find("chain13").unwrap().data_offset, 7);
    }

    #[test]
    fn of_doubled_members_the_last_one_counts() {
        let found = members(&[("a", Kind::File, ""), ("b", Kind::File, ""), ("a", Kind::File, "")]);
        assert_eq!(found.find("a").unwrap().data_offset, 2);
        assert_eq!(found.warnings().len(), 1);
        assert!(found.warnings()[0].contains("`a` more than once"));
        let dirs = [("blobs/sha256", Kind::Dir, ""), ("blobs/sha256", Kind::Dir, "")];
        assert!(members(&dirs).warnings().is_empty());
        let many: Vec<String> =
            (0..10).flat_map(|at| [format!("m{at}"), format!("m{at}")]).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), Kind::File, "")).collect();
        assert_eq!(members(&many).warnings().len(), MAX_WARNINGS + 1);
    }

    #[test]
    fn what_is_refused_is_told() {
        let found = Members::new([], [(b"../x".to_vec(), Refusal::DotDot)]);
        assert!(found.warnings()[0].contains("`../x` is ignored"), "{:?}", found.warnings());
    }
}
