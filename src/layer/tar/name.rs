//! What names of entries may be.

use super::Refusal;

/// The longest name, as in Linux (`PATH_MAX`).
pub(in crate::layer) const MAX_NAME_BYTES: usize = 4096;

/// The longest component of a name, as in Linux (`NAME_MAX`).
pub(in crate::layer) const MAX_COMPONENT_BYTES: usize = 255;

/// The path that `name` means below the root: without `/` at its ends, doubled or not, and without `.` and `..`.
/// Empty for the root itself.
///
/// `..` takes away what is written before it, whatever that is in the archive, as Go's `filepath.Clean` does, with
/// which others extract. What is above the root of an absolute name is the root.
pub(super) fn normalise(name: &[u8]) -> Result<Vec<u8>, Refusal> {
    if name.contains(&0) {
        return Err(Refusal::ZeroByte);
    }
    let mut path = Vec::with_capacity(name.len());
    for part in name.split(|b| *b == b'/') {
        match part {
            b"" | b"." => continue,
            b".." if path.is_empty() && name.starts_with(b"/") => continue,
            b".." if path.is_empty() => return Err(Refusal::DotDot),
            b".." => path.truncate(path.iter().rposition(|b| *b == b'/').unwrap_or(0)),
            part if part.len() > MAX_COMPONENT_BYTES => return Err(Refusal::LongComponent),
            part => {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(part);
            }
        }
    }
    if path.len() > MAX_NAME_BYTES { Err(Refusal::LongName) } else { Ok(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_or_refused() {
        let part = "p".repeat(255);
        let longest = [&part[..]; 16].join("/") + "/";
        assert_eq!(longest.len(), 4096);
        let table: [(&str, Result<&str, Refusal>); 29] = [
            ("a/b", Ok("a/b")),
            ("./a", Ok("a")),
            ("././a/./b/.", Ok("a/b")),
            ("a/", Ok("a")),
            ("a//b///", Ok("a/b")),
            ("/a", Ok("a")),
            ("//etc//passwd", Ok("etc/passwd")),
            ("", Ok("")),
            (".", Ok("")),
            ("./", Ok("")),
            ("/", Ok("")),
            ("a/...", Ok("a/...")),
            ("..a/b..", Ok("..a/b..")),
            ("..", Err(Refusal::DotDot)),
            ("../a", Err(Refusal::DotDot)),
            ("a/../../b", Err(Refusal::DotDot)),
            ("a/../..", Err(Refusal::DotDot)),
            ("a/../../a/b", Err(Refusal::DotDot)),
            ("./../a", Err(Refusal::DotDot)),
            ("a/../b", Ok("b")),
            ("a/b/..", Ok("a")),
            ("a/..", Ok("")),
            ("usr/lib/../tool", Ok("usr/tool")),
            ("a/b/c/.././/../d", Ok("a/d")),
            ("/../a", Ok("a")),
            ("a\0b", Err(Refusal::ZeroByte)),
            (&part, Ok(&part)),
            (&(part.clone() + "p"), Err(Refusal::LongComponent)),
            (&(longest.clone() + "pp"), Err(Refusal::LongName)),
        ];
        for (name, expected) in table {
            let expected = expected.map(|name| name.as_bytes().to_vec());
            assert_eq!(normalise(name.as_bytes()), expected, "{name:?}");
        }
        assert_eq!(normalise(longest.as_bytes()).unwrap().len(), 4095);
        assert_eq!(normalise(b"\xff\xfe/\x01").unwrap(), b"\xff\xfe/\x01");
    }
}
