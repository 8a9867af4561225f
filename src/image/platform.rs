//! Platforms, and which of an index's children a request for platforms means.
//!
//! Names are normalised as containerd does (`github.com/containerd/platforms`): `aarch64` is
//! `arm64`, `arm64/v8` is `arm64`, `arm` is `arm/v7`, `amd64/v1` is `amd64`.

use std::{fmt, str::FromStr};

use serde::Deserialize;

/// A platform in normal form.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Platform {
    /// Operating system, as in Go's `GOOS`.
    pub os: String,
    /// Processor architecture, as in Go's `GOARCH`.
    pub architecture: String,
    /// Variant of the architecture; empty for the usual one.
    pub variant: String,
    /// Version of the operating system (Windows); empty if not said.
    pub os_version: String,
}

/// Why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a platform: {reason}")]
pub struct PlatformError {
    text: String,
    reason: &'static str,
}

const ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64",
    "ppc64le", "riscv64", "s390x", "wasm",
];

impl Platform {
    /// Brings the parts into normal form.
    pub fn new(os: &str, architecture: &str, variant: &str, os_version: &str) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let (architecture, variant) =
            normalise(&architecture.to_ascii_lowercase(), &variant.to_ascii_lowercase());
        Self { os, architecture, variant, os_version: os_version.to_owned() }
    }

    /// Whether this is BuildKit's `unknown/unknown`, under which attestations stand in an index.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// What the configuration of an image says it runs on, if it says anything.
    pub fn of_config(config: &[u8]) -> Option<Self> {
        let platform: Self = serde_json::from_slice(config).ok()?;
        let says = !platform.os.is_empty() && !platform.architecture.is_empty();
        (says && !platform.is_unknown()).then_some(platform)
    }

    /// Whether `self`, as requested, means exactly `other`.
    ///
    /// A requested Windows version is compared up to its build number, as Windows does for
    /// compatibility; no requested version means any.
    fn means(&self, other: &Self) -> bool {
        self.os == other.os
            && self.architecture == other.architecture
            && self.variant == other.variant
            && (self.os_version.is_empty()
                || build_of(&self.os_version) == build_of(&other.os_version))
    }

    /// How far `other`'s variant lies below the requested one; `None` where it would not run.
    fn distance(&self, other: &Self) -> Option<u32> {
        let wanted = Self { variant: String::new(), ..self.clone() };
        let bare = Self { variant: String::new(), ..other.clone() };
        if !wanted.means(&bare) {
            return None;
        }
        self.level()?.checked_sub(other.level()?)
    }

    /// The variant as a number, for architectures whose variants include the lower ones.
    fn level(&self) -> Option<u32> {
        let default = match self.architecture.as_str() {
            "amd64" => 1,
            "arm64" => 8,
            "arm" => 7,
            _ => return None,
        };
        match self.variant.strip_prefix('v') {
            // `v9.2` counts as 9: imgfs does not rank minor versions.
            Some(level) => level.split('.').next()?.parse().ok(),
            None => self.variant.is_empty().then_some(default),
        }
    }
}

fn normalise(architecture: &str, variant: &str) -> (String, String) {
    let (architecture, variant) = match (architecture, variant) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
        ("x86_64" | "x86-64", v) => ("amd64", v),
        ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
        ("aarch64", v) => ("arm64", v),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        other => other,
    };
    (architecture.to_owned(), variant.to_owned())
}

/// `10.0.17763.1234` -> `10.0.17763`
fn build_of(version: &str) -> &str {
    version.match_indices('.').nth(2).map_or(version, |(dot, _)| &version[..dot])
}

impl FromStr for Platform {
    type Err = PlatformError;

    /// Reads `os/architecture`, `os/architecture/variant`, `os(version)/architecture` or a bare
    /// architecture, which means Linux.
    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let text = text.trim();
        let refuse = |reason| PlatformError { text: text.chars().take(100).collect(), reason };
        let parts: Vec<&str> = text.split('/').collect();
        let word = |part: &str| {
            !part.is_empty()
                && part.bytes().any(|b| b.is_ascii_alphanumeric())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
        };
        let (os, architecture, variant) = match parts[..] {
            [architecture] => {
                let known = normalise(&architecture.to_ascii_lowercase(), "").0;
                if !ARCHITECTURES.contains(&known.as_str()) {
                    return Err(refuse("expected os/architecture[/variant], such as linux/amd64"));
                }
                ("linux", architecture, "")
            }
            [os, architecture] => (os, architecture, ""),
            [os, architecture, variant] if !variant.is_empty() => (os, architecture, variant),
            _ => return Err(refuse("expected os/architecture[/variant], such as linux/amd64")),
        };
        let (os, os_version) = match os.split_once('(') {
            Some((os, version)) => {
                let version = version.strip_suffix(')').filter(|v| word(v));
                (os, version.ok_or_else(|| refuse("the version in parentheses is malformed"))?)
            }
            None => (os, ""),
        };
        if !word(os) || !word(architecture) || !(variant.is_empty() || word(variant)) {
            return Err(refuse("only letters, digits, `_`, `-` and `.` stand in its parts"));
        }
        Ok(Self::new(os, architecture, variant, os_version))
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.os)?;
        if !self.os_version.is_empty() {
            write!(f, "({})", self.os_version)?;
        }
        write!(f, "/{}", self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Platform {
    /// Reads the `platform` object of a descriptor, and the same keys of an image configuration.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Raw {
            #[serde(default)]
            os: Option<String>,
            #[serde(default)]
            architecture: Option<String>,
            #[serde(default)]
            variant: Option<String>,
            #[serde(default, rename = "os.version")]
            os_version: Option<String>,
        }
        let raw = Raw::deserialize(deserializer)?;
        // It is shown on terminals, and comes from anybody.
        let clean = |text: Option<String>| -> String {
            let text = text.unwrap_or_default();
            text.chars().take(64).map(|c| if c.is_ascii_graphic() { c } else { '?' }).collect()
        };
        Ok(Self::new(
            &clean(raw.os),
            &clean(raw.architecture),
            &clean(raw.variant),
            &clean(raw.os_version),
        ))
    }
}

/// Which platforms of an image are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlatformFilter {
    /// All that there are.
    #[default]
    All,
    /// Just these, in this order; never empty.
    Only(Vec<Platform>),
}

/// What a [`PlatformFilter`] chose from a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// Indices of the chosen entries, ascending.
    pub kept: Vec<usize>,
    /// Requested platforms that no entry serves.
    pub missing: Vec<Platform>,
}

impl PlatformFilter {
    /// Reads a list of platforms; none, `*` or `all` among them means all.
    pub fn parse<S: AsRef<str>>(platforms: &[S]) -> Result<Self, PlatformError> {
        let mut only = Vec::new();
        for text in platforms.iter().flat_map(|p| p.as_ref().split(',')).map(str::trim) {
            match text {
                "*" | "all" => return Ok(Self::All),
                _ => {
                    let platform = text.parse()?;
                    if !only.contains(&platform) {
                        only.push(platform);
                    }
                }
            }
        }
        Ok(if only.is_empty() { Self::All } else { Self::Only(only) })
    }

    /// Chooses from `available`; an entry without a platform is never chosen by name.
    ///
    /// A requested platform takes every entry that it means exactly; where there is none, the
    /// nearest lower variant of the same architecture, which runs there too.
    pub fn select(&self, available: &[Option<Platform>]) -> Selection {
        let Self::Only(wanted) = self else {
            return Selection { kept: (0..available.len()).collect(), missing: Vec::new() };
        };
        let entries = || available.iter().enumerate().filter_map(|(i, p)| Some((i, p.as_ref()?)));
        let mut selection = Selection::default();
        for platform in wanted {
            let mut hits: Vec<usize> =
                entries().filter(|(_, p)| platform.means(p)).map(|(i, _)| i).collect();
            if hits.is_empty() {
                hits = entries()
                    .filter_map(|(i, p)| Some((platform.distance(p)?, i)))
                    .min()
                    .map(|(_, i)| i)
                    .into_iter()
                    .collect();
            }
            if hits.is_empty() {
                selection.missing.push(platform.clone());
            }
            selection.kept.append(&mut hits);
        }
        selection.kept.sort_unstable();
        selection.kept.dedup();
        selection
    }
}

impl fmt::Display for PlatformFilter {
    /// The canonical text, the same for the same set of platforms.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Only(platforms) => {
                let mut names: Vec<String> = platforms.iter().map(Platform::to_string).collect();
                names.sort_unstable();
                f.write_str(&names.join(","))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_normalised() {
        for (text, normal) in [
            ("amd64", "linux/amd64"),
            (" linux/amd64\n", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6"),
            ("armhf", "linux/arm/v7"),
            ("macos/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ] {
            let parsed = platform(text);
            assert_eq!(parsed.to_string(), normal, "{text}");
            assert_eq!(platform(&parsed.to_string()), parsed);
        }
        for text in
            ["", "/", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64", "w(1/amd64", "l/../x"]
        {
            assert!(text.parse::<Platform>().is_err(), "{text}");
        }
    }

    #[test]
    fn selection_follows_containerd() {
        let available = [
            "linux/amd64",
            "linux/arm/v6",
            "linux/arm/v7",
            "linux/arm64",
            "linux/amd64/v3",
            "windows(10.0.17763.1)/amd64",
            "windows(10.0.20348.9)/amd64",
        ];
        let entries: Vec<_> = available.iter().map(|t| Some(platform(t))).chain([None]).collect();
        for (wanted, kept, missing) in [
            (&["amd64"][..], &[0][..], &[][..]),
            (&["linux/arm"], &[2], &[]),
            (&["linux/arm/v8"], &[2], &[]),
            (&["linux/arm/v5"], &[], &["linux/arm/v5"]),
            (&["linux/arm64/v9"], &[3], &[]),
            (&["linux/amd64/v2"], &[0], &[]),
            (&["linux/amd64/v4"], &[4], &[]),
            (&["linux/arm64", "amd64"], &[0, 3], &[]),
            (&["linux/s390x", "amd64"], &[0], &["linux/s390x"]),
            (&["windows/amd64"], &[5, 6], &[]),
            (&["windows(10.0.17763.5555)/amd64"], &[5], &[]),
            (&["windows(10.0.1)/amd64"], &[], &["windows(10.0.1)/amd64"]),
        ] {
            let chosen = PlatformFilter::parse(wanted).unwrap().select(&entries);
            let missing: Vec<_> = missing.iter().map(|t| platform(t)).collect();
            assert_eq!(chosen, Selection { kept: kept.to_vec(), missing }, "{wanted:?}");
        }
        let all = PlatformFilter::parse(&["amd64", "*"]).unwrap();
        assert_eq!(all.select(&entries).kept.len(), entries.len());
        assert_eq!(PlatformFilter::parse::<&str>(&[]).unwrap(), PlatformFilter::All);
        assert_eq!(
            PlatformFilter::parse(&["arm64,amd64"]).unwrap().to_string(),
            "linux/amd64,linux/arm64"
        );
    }
}
