//! `imgfs cat`, and `imgfs ls` of what is inside an image.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    time::{Duration, UNIX_EPOCH},
};

use super::{
    Failure, Outcome,
    args::{CatArgs, InsideArgs, LsArgs, TreeArgs},
    block_on,
    mount::shown_platform,
    output::{Output, table},
    pull::name_below,
    registries, runtime,
};
use imgfs::{
    image::{PlatformFilter, Reference},
    layer::{Broken, Kind},
    ops::{self, FileEntry, NamedImage, OpenImage, OpenOptions, Opener, Source, TreeSpec},
    transfer::Options,
};
use serde_json::{Value, json};

/// How long what is under way in the end may take.
const GRACE: Duration = Duration::from_secs(2);

/// Reasons that are printed of what cannot be shown.
const MAX_NOTES: usize = 10;

/// Seconds of 400 years.
const CYCLE: i64 = 146_097 * 86_400;

/// `image:/path`, if `text` is that: an image and a path in it.
pub(crate) fn split(text: &str) -> Option<(&str, &str)> {
    let at = text.find(":/")?;
    Some((&text[..at], &text[at + 1..]))
}

/// Whether `text` can be nothing but the name of one image: it has a tag or a digest.
pub(crate) fn is_image(text: &str) -> bool {
    let last = text.rsplit('/').next().unwrap_or_default();
    (text.contains('@') || last.contains(':')) && text.parse::<Reference>().is_ok()
}

pub(crate) fn ls(
    args: &LsArgs,
    (image, path): (&str, &str),
    output: &Output,
) -> Result<Outcome, Failure> {
    let looked = look_at(image, &args.tree, &args.inside, output, async |_, opened| {
        opened.list(path, args.recursive).await
    });
    let missing = |reason: &str| Failure::new(format!("{image}:{path}: {reason}")).of_image();
    let listing = match looked? {
        Ok(Some(listing)) => listing,
        Ok(None) => return Err(missing("it is not there")),
        Err(ops::Error::Path(error)) => return Err(missing(&error.to_string())),
        Err(error) => return Err(error.into()),
    };
    let entries: Vec<Line> = listing.entries.iter().map(Line::new).collect();
    let report: Vec<Value> = entries.iter().map(Line::json).collect();
    let damage = listing.damage.as_ref().map(ToString::to_string);
    output.event(&json!({
        "event": "report",
        "command": "ls",
        "image": image,
        "entries": report,
        "damage": damage,
        "notes": listing.notes,
    }));
    let rows: Vec<Vec<String>> = entries.iter().map(Line::row).collect();
    if !rows.is_empty() {
        output.line(&table(&rows));
    }
    for note in listing.notes.iter().take(MAX_NOTES) {
        output.warning(note);
    }
    if let Some(more @ 1..) = listing.notes.len().checked_sub(MAX_NOTES) {
        output.warning(&format!("{more} more such entries; --json has them all"));
    }
    let Some(damage) = damage else { return Ok(Outcome::Done) };
    let message = format!("{image}:{path}: these are not all files, since a layer is damaged");
    output.error(&format!("{message}: {damage}"), None);
    Ok(Outcome::SomeFailed)
}

pub(crate) fn cat(args: &CatArgs, output: &Output) -> Result<Outcome, Failure> {
    let looked = look_at(&args.image, &args.tree, &args.inside, output, async |_, opened| {
        let mut outcome = Outcome::Done;
        for path in &args.paths {
            let failure = match opened.read(path, &mut io::stdout().lock()).await {
                Ok(()) => continue,
                // Whoever closes it early wants no more of it.
                Err(ops::Error::Output(e)) if e.kind() == io::ErrorKind::BrokenPipe => continue,
                Err(ops::Error::Output(e)) => Failure::new(format!("standard output: {e}")),
                Err(error) => error.into(),
            };
            let message = format!("{}:{path}: {}", args.image, failure.message);
            output.error(&message, failure.hint.as_deref());
            outcome = Outcome::SomeFailed;
        }
        Ok(outcome)
    });
    Ok(looked??)
}

/// Looks into images: opens what opens them, does `work` with it, and ends what is still under way. The
/// result of `work` is inside.
pub(crate) fn look<T>(
    images: &[&str],
    tree: &TreeArgs,
    args: &InsideArgs,
    output: &Output,
    work: impl AsyncFnOnce(&Opener, &[NamedImage]) -> ops::Result<T>,
) -> Result<ops::Result<T>, Failure> {
    let source = source(tree, args)?;
    let images: Vec<NamedImage> = match &source {
        Some(source) => images.iter().map(|image| source.image(image)).collect::<Result<_, _>>()?,
        None => images.iter().map(|image| image.parse()).collect::<Result<_, _>>()?,
    };
    let registries: BTreeSet<&str> = match &source {
        Some(_) => BTreeSet::new(),
        None => images.iter().map(|image| image.reference.repository().registry()).collect(),
    };
    let registries: Vec<String> = registries.into_iter().map(str::to_owned).collect();
    let config = registries::config(&args.registries, &registries, output)?;
    let platforms: Vec<&str> = args.platform.as_deref().into_iter().collect();
    let platforms =
        PlatformFilter::parse(&platforms).map_err(|e| Failure::new(format!("--platform: {e}")))?;
    let images_dir = match (&source, tree.place()?) {
        (None, TreeSpec::Directory(dir)) => dir,
        _ => PathBuf::new(),
    };
    let has_dir = images_dir.exists();
    let index_cache = match (args.index_cache_size, has_dir) {
        (0, _) | (_, true) => None,
        (bytes, false) => ops::user_index_cache(bytes),
    };
    let options = OpenOptions {
        images_dir,
        index_cache,
        platform: shown_platform(&Options { platforms, ..Options::default() })?,
        any_single_platform: args.platform.is_none(),
        offline: args.offline,
    };
    let runtime = runtime()?;
    let entered = runtime.enter();
    let opener = match &source {
        Some(source) => Opener::of_source(options, source, config.patience())?,
        None => Opener::new(options, config)?,
    };
    let done = runtime.block_on(work(&opener, &images));
    drop(entered);
    let scratch = opener.close();
    runtime.shutdown_timeout(GRACE);
    // It was for this process only.
    drop(scratch);
    Ok(done)
}

/// The same with one image, which is opened.
pub(crate) fn look_at<T>(
    image: &str,
    tree: &TreeArgs,
    args: &InsideArgs,
    output: &Output,
    work: impl AsyncFnOnce(&Opener, OpenImage) -> ops::Result<T>,
) -> Result<ops::Result<T>, Failure> {
    look(&[image], tree, args, output, async |opener: &Opener, images: &[NamedImage]| {
        let opened = opener.open(&images[0]).await?;
        work(opener, opened).await
    })
}

/// The place whose images are looked into, if it is neither a directory of images nor registries.
pub(crate) fn source(tree: &TreeArgs, args: &InsideArgs) -> Result<Option<Source>, Failure> {
    let place = match &args.from {
        Some(text) => text.parse().map_err(|e| Failure::new(format!("--from: {e}")))?,
        None => tree.place()?,
    };
    open_source(&place, args.from.is_some(), args.name.as_deref())
}

/// Opens a place; `None` if it is a directory of images, or registries, which `--from` is not for.
pub(crate) fn open_source(
    place: &TreeSpec,
    is_from: bool,
    name: Option<&str>,
) -> Result<Option<Source>, Failure> {
    let Some(medium) = place.medium() else {
        return match (is_from, name) {
            (true, _) => Err(Failure::new(format!(
                "--from {place}: this is for other places than these"
            ))
            .hint(
                "a directory of images is given with --images-dir, and registries need no option",
            )),
            (false, Some(_)) => {
                Err(Failure::new("--name is for places that do not name their images in full"))
            }
            (false, None) => Ok(None),
        };
    };
    let below = name_below(name)?;
    let source = block_on(Source::open(&medium, below.as_ref()))??;
    Ok(Some(source))
}

/// A file as it is listed.
struct Line {
    path: String,
    target: Option<String>,
    broken: Option<Broken>,
    attributes: imgfs::layer::Attributes,
}

impl Line {
    fn new(entry: &FileEntry) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            path: text(&entry.path),
            target: entry.target.as_deref().map(text),
            broken: entry.broken,
            attributes: entry.attributes,
        }
    }

    fn time(&self) -> String {
        time(self.attributes.mtime.secs)
    }

    fn row(&self) -> Vec<String> {
        let a = &self.attributes;
        let size = match a.kind {
            Kind::Char | Kind::Block => format!("{}, {}", a.device.0, a.device.1),
            _ => a.size.to_string(),
        };
        let name = match (&self.target, self.broken) {
            (Some(target), _) => format!("{} -> {target}", self.path),
            (None, Some(broken)) => format!("{} ({broken})", self.path),
            (None, None) => self.path.clone(),
        };
        let name = on_one_line(&name);
        vec![mode(a.kind, a.mode), format!("{}:{}", a.uid, a.gid), size, self.time(), name]
    }

    fn json(&self) -> Value {
        let a = &self.attributes;
        let mut line = json!({
            "path": self.path,
            "type": ops::type_name(a.kind),
            "mode": format!("{:04o}", a.mode),
            "uid": a.uid,
            "gid": a.gid,
            "size": a.size,
            "links": a.links,
            "mtime": self.time(),
        });
        if let Some(target) = &self.target {
            line["target"] = json!(target);
        }
        if let Some(broken) = self.broken {
            line["error"] = json!(broken.to_string());
        }
        line
    }
}

/// A name in a table: a line break in it must not look like another line.
pub(crate) fn on_one_line(name: &str) -> String {
    name.replace('\n', "?")
}

/// A time in seconds since 1970, which need not be one that anybody has lived to see.
fn time(seconds: i64) -> String {
    // The calendar is the same again after 400 years, and the library knows those after 1970.
    let (cycles, rest) = (seconds.div_euclid(CYCLE), seconds.rem_euclid(CYCLE).unsigned_abs());
    let time =
        humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(rest)).to_string();
    match time.split_once('-').and_then(|(year, rest)| Some((year.parse::<i64>().ok()?, rest))) {
        Some((year, rest)) => format!("{:04}-{rest}", year + 400 * cycles),
        None => time,
    }
}

/// `drwxr-xr-t`, as ls(1) has it.
fn mode(kind: Kind, mode: u16) -> String {
    let kind = match kind {
        Kind::File | Kind::Link => '-',
        Kind::Dir => 'd',
        Kind::Symlink => 'l',
        Kind::Char => 'c',
        Kind::Block => 'b',
        Kind::Fifo => 'p',
    };
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_and_a_path_in_it() {
        assert_eq!(split("nginx:1.25:/etc"), Some(("nginx:1.25", "/etc")));
        assert_eq!(split("host:5000/a/b:/"), Some(("host:5000/a/b", "/")));
        assert_eq!(split("nginx:1.25"), None);
        assert_eq!(split("host:5000/a"), None);
    }

    #[test]
    fn what_can_only_be_an_image() {
        for text in ["nginx:1.25", "a/b:1", "host:5000/a/b:1", "host:5000/a@sha256:0"] {
            let is_valid = !text.ends_with(":0");
            assert_eq!(is_image(text), is_valid, "{text}");
        }
        let digest = format!("a/b@sha256:{}", "0".repeat(64));
        assert!(is_image(&digest));
        for text in ["nginx", "quay.io/a", "host:5000/a/b", ":1.25", "a/:1", ""] {
            assert!(!is_image(text), "{text}");
        }
    }

    #[test]
    fn times_of_any_age() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (-62_135_596_800, "0001-01-01T00:00:00Z"),
            (253_402_300_800, "10000-01-01T00:00:00Z"),
        ] {
            assert_eq!(time(seconds), expected);
        }
        assert!(time(i64::MAX).ends_with('Z') && time(i64::MIN).starts_with('-'));
    }

    #[test]
    fn modes_are_written_as_ls_does() {
        for (kind, bits, expected) in [
            (Kind::Dir, 0o1777, "drwxrwxrwt"),
            (Kind::File, 0o4755, "-rwsr-xr-x"),
            (Kind::File, 0o6644, "-rwSr-Sr--"),
            (Kind::Symlink, 0o777, "lrwxrwxrwx"),
        ] {
            assert_eq!(mode(kind, bits), expected);
        }
    }
}
