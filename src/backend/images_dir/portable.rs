//! Names for file systems that take few: FAT, exFAT, NTFS as Windows uses it, and what serves them.
//!
//! The portable layout has the files of the documented one under other names, and each name can be told
//! from the other one, so nothing else has to know of it:
//!
//! | documented | portable | since |
//! |---|---|---|
//! | `sha256:<hex>` | `sha256-<hex>` | no name may have `<>:"/\|?*` or control characters |
//! | `host:5000`, `[::1]:5000` | `host_5000`, `[__1]_5000` | the same; no host's name has `_` |
//! | tag `v1-RC` | `v1-!r!c` | `A` and `a` are one name there |
//! | tag `v1.` | `v1.!` | no name may end in a dot |
//! | `aux`, `con.example.com` | `aux!`, `con!.example.com` | names of devices |
//! | tag `sha256-<hex>` | `sha256-<hex>!` | that is the name of a digest already |
//!
//! So `!` before a lower-case letter makes that a capital, and anywhere else it means nothing. A name that is
//! not written just like this is none.

use std::borrow::Cow;

use crate::image::Digest;

/// Names that Windows keeps for devices, whatever their endings.
const DEVICES: [&str; 4] = ["con", "prn", "aux", "nul"];

/// The same, with a digit behind them.
const NUMBERED_DEVICES: [&str; 2] = ["com", "lpt"];

/// What stands for a colon in the name of a digest.
const AFTER_ALGORITHM: &str = "-";

/// The portable form of the name of a file or directory; `is_registry` says that it is that of a registry.
pub(super) fn encode(name: &str, is_registry: bool) -> Cow<'_, str> {
    if name.parse::<Digest>().is_ok() {
        return name.replacen(':', AFTER_ALGORITHM, 1).into();
    }
    let is_plain = !name.bytes().any(|b| b.is_ascii_uppercase() || b == b':');
    if is_plain && !name.ends_with('.') && !is_device(name) && digest(name).is_none() {
        return name.into();
    }
    let mut encoded = String::with_capacity(name.len() + 4);
    for letter in name.chars() {
        match letter {
            'A'..='Z' => encoded.extend(['!', letter.to_ascii_lowercase()]),
            ':' if is_registry => encoded.push('_'),
            _ => encoded.push(letter),
        }
    }
    if is_device(&encoded) {
        let base = encoded.find('.').unwrap_or(encoded.len());
        encoded.insert(base, '!');
    }
    if encoded.ends_with('.') || digest(&encoded).is_some() {
        encoded.push('!');
    }
    encoded.into()
}

/// The name that has this portable form. `None` if it is not the portable form of any.
pub(super) fn decode(encoded: &str, is_registry: bool) -> Option<Cow<'_, str>> {
    if encoded.contains(':') {
        return None;
    }
    let name: Cow<'_, str> = match digest(encoded) {
        Some(digest) => digest.to_string().into(),
        None if encoded.contains('!') || (is_registry && encoded.contains('_')) => {
            let mut name = String::with_capacity(encoded.len());
            let mut letters = encoded.chars().peekable();
            while let Some(letter) = letters.next() {
                match letter {
                    '!' => {
                        let capital = letters.next_if(char::is_ascii_lowercase);
                        name.extend(capital.map(|letter| letter.to_ascii_uppercase()));
                    }
                    '_' if is_registry => name.push(':'),
                    _ => name.push(letter),
                }
            }
            name.into()
        }
        None => encoded.into(),
    };
    (encode(&name, is_registry) == encoded).then_some(name)
}

/// The digest that has this portable form.
pub(super) fn digest(encoded: &str) -> Option<Digest> {
    let digest: Digest = encoded.replacen(AFTER_ALGORITHM, ":", 1).parse().ok()?;
    // One digest has one name: no capital letters, and no colon.
    (digest.to_string().replacen(':', AFTER_ALGORITHM, 1) == encoded).then_some(digest)
}

/// Whether a path below the root, seen as one of the documented layout, has names that only the portable one has. The
/// name of a digest is also that of a tag, so it is not taken for one here in a directory of manifests.
pub fn is_portable_path(path: &str) -> bool {
    path.split('/').enumerate().any(|(number, name)| match digest(name) {
        Some(_) => path.strip_prefix("blobs/") == Some(name),
        None => decode(name, number == 0).is_some_and(|decoded| decoded != name),
    })
}

/// Whether `name` is that of `digest` in the portable layout.
pub fn is_portable_name_of(name: &str, of: &Digest) -> bool {
    digest(name).as_ref() == Some(of)
}

/// Whether a name in lower case is that of a device, or becomes one by an ending.
fn is_device(name: &str) -> bool {
    let base = name.split('.').next().unwrap_or_default();
    let numbered = base.strip_suffix(|last: char| last.is_ascii_digit());
    DEVICES.contains(&base) || numbered.is_some_and(|base| NUMBERED_DEVICES.contains(&base))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn names_are_told_from_each_other() {
        for (name, is_registry, encoded) in [
            (&*format!("sha256:{HEX}"), false, &*format!("sha256-{HEX}")),
            (&format!("sha256-{HEX}"), false, &format!("sha256-{HEX}!")),
            (&format!("sha256-{HEX}.sig"), false, &format!("sha256-{HEX}.sig")),
            (&format!("sha256-{}", HEX.to_uppercase()), false, &sha_of_capitals()),
            ("host:5000", true, "host_5000"),
            ("[::1]:5000", true, "[__1]_5000"),
            ("docker.io", true, "docker.io"),
            ("con.example.com", true, "con!.example.com"),
            ("nul:80", true, "nul_80"),
            ("library", false, "library"),
            ("a_b", false, "a_b"),
            ("v1.0-RC1", false, "v1.0-!r!c1"),
            ("A", false, "!a"),
            ("a", false, "a"),
            ("v1.", false, "v1.!"),
            ("V1..", false, "!v1..!"),
            ("aux", false, "aux!"),
            ("aux.", false, "aux!.!"),
            ("com1.x", false, "com1!.x"),
            ("com", false, "com"),
            ("com10", false, "com10"),
            ("console", false, "console"),
            ("CON", false, "!c!o!n"),
        ] {
            assert_eq!(encode(name, is_registry), encoded, "{name}");
            assert_eq!(decode(encoded, is_registry).as_deref(), Some(name), "{encoded}");
        }
    }

    fn sha_of_capitals() -> String {
        encode(&format!("sha256-{}", HEX.to_uppercase()), false).into_owned()
    }

    #[test]
    fn other_names_are_none() {
        for name in ["A", "a!", "!1", "!", "a!b!", "v1.", "con", "aux.x", "!!a", "a:b", "host:5000"]
        {
            assert_eq!(decode(name, false), None, "{name}");
        }
        for digest in [format!("sha256:{HEX}"), format!("sha256-{}", HEX.to_uppercase())] {
            assert_eq!(decode(&digest, false), None, "{digest}");
        }
    }

    #[test]
    fn paths_of_a_portable_directory_are_told() {
        for path in [
            &*format!("blobs/sha256-{HEX}"),
            "host_5000",
            "host_5000/a/manifests/1",
            "quay.io/a/manifests/v1-!r!c",
            "quay.io/aux!",
        ] {
            assert!(is_portable_path(path), "{path}");
        }
        for path in [
            &*format!("blobs/sha256:{HEX}"),
            &format!("quay.io/a/manifests/sha256-{HEX}"),
            "quay.io/a_b/manifests/v1_2",
            "README",
            "blobs/x",
            "host:5000",
        ] {
            assert!(!is_portable_path(path), "{path}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            rng_seed: proptest::test_runner::RngSeed::Fixed(20_260_111),
            failure_persistence: None,
            cases: 4000,
            ..ProptestConfig::default()
        })]

        #[test]
        fn tags_have_names_that_any_file_system_takes(
            tags in proptest::collection::vec("([aA]|[cC][oO][nN]|[.]|[_-]|1|NUL|sha256-|x){1,5}", 2..20)
        ) {
            let tags: HashSet<String> = tags.into_iter().collect();
            let mut seen = HashSet::new();
            for tag in &tags {
                let encoded = encode(tag, false);
                let decoded = decode(&encoded, false);
                prop_assert_eq!(decoded.as_deref(), Some(tag.as_str()));
                prop_assert!(!encoded.contains(['<', '>', ':', '"', '/', '\\', '|', '?', '*']));
                prop_assert!(!encoded.ends_with(['.', ' ']) && !is_device(&encoded.to_lowercase()));
                // Also where capitals make no difference.
                prop_assert!(seen.insert(encoded.to_lowercase()), "{} {}", tag, encoded);
            }
        }
    }
}
