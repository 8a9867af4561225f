//! `imgfs cat`, and `imgfs ls` of what is inside an image.

use std::{
    io,
    time::{Duration, UNIX_EPOCH},
};

use imgfs::{
    image::{PlatformFilter, Reference},
    layer::{Broken, Kind},
    ops::{self, FileEntry, OpenImage, OpenRequest},
    transfer::Options,
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::{
    Failure, Outcome,
    args::{CatArgs, InsideArgs, LsArgs, TreeArgs},
    mount::shown_platform,
    output::{Output, table},
    registries, runtime,
};

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

pub(crate) fn ls(
    args: &LsArgs,
    (image, path): (&str, &str),
    output: &Output,
) -> Result<Outcome, Failure> {
    let runtime = runtime()?;
    let entered = runtime.enter();
    let opened = runtime.block_on(open(image, &args.tree, &args.inside, output))?;
    let listing = runtime.block_on(opened.list(path, args.recursive));
    drop(entered);
    close(opened, runtime);
    let missing = |reason: &str| Failure::new(format!("{image}:{path}: {reason}")).of_image();
    let listing = match listing {
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
    let runtime = runtime()?;
    let entered = runtime.enter();
    let mut outcome = Outcome::Done;
    let opened = runtime.block_on(open(&args.image, &args.tree, &args.inside, output))?;
    for path in &args.paths {
        let failure = match runtime.block_on(opened.read(path, &mut io::stdout().lock())) {
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
    drop(entered);
    close(opened, runtime);
    Ok(outcome)
}

async fn open(
    image: &str,
    tree: &TreeArgs,
    args: &InsideArgs,
    output: &Output,
) -> Result<OpenImage, Failure> {
    let name: Reference = image.parse()?;
    let registry = name.repository().registry().to_owned();
    let config = registries::config(&args.registries, &[registry], output)?;
    let platforms: Vec<&str> = args.platform.as_deref().into_iter().collect();
    let platforms =
        PlatformFilter::parse(&platforms).map_err(|e| Failure::new(format!("--platform: {e}")))?;
    let request = OpenRequest {
        image: name,
        shown: image.to_owned(),
        images_dir: tree.images_dir.clone(),
        platform: shown_platform(&Options { platforms, ..Options::default() })?,
        any_single_platform: args.platform.is_none(),
        offline: args.offline,
    };
    Ok(OpenImage::open(&request, config).await?)
}

/// Ends what is still under way, and then removes what was for this process only.
fn close(opened: OpenImage, runtime: Runtime) {
    let scratch = opened.close();
    runtime.shutdown_timeout(GRACE);
    drop(scratch);
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
        vec![mode(a.kind, a.mode), format!("{}:{}", a.uid, a.gid), size, self.time(), name]
    }

    fn json(&self) -> Value {
        let a = &self.attributes;
        let mut line = json!({
            "path": self.path,
            "type": type_name(a.kind),
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

fn type_name(kind: Kind) -> &'static str {
    match kind {
        Kind::File | Kind::Link => "file",
        Kind::Dir => "directory",
        Kind::Symlink => "symlink",
        Kind::Char => "char",
        Kind::Block => "block",
        Kind::Fifo => "fifo",
    }
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
