//! `imgfs cat`, and `imgfs ls` of what is inside an image.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write},
    os::unix::fs::DirBuilderExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use imgfs::{
    backend::{Backend, images_dir::ImagesDir, registry::Registry},
    cache::{Cache, CacheConfig},
    catalogue::{self, Catalogue},
    image::{PlatformFilter, Reference},
    layer::{Kind, Node},
    rootfs::{Files, Images, Sources, Tree},
    transfer::Options,
    util::Budget,
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

/// What is read of a file at a time, in bytes.
const STEP: usize = 1 << 20;

/// What may be kept of blobs while a command runs that has no images_dir, in bytes.
const SCRATCH_BYTES: u64 = 4 << 30;

/// What may be kept in the cache of an images_dir, as by `imgfs mount`.
const CACHE_BYTES: u64 = 10 << 30;

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
    let opened = runtime.block_on(Opened::new(image, &args.tree, &args.inside, output))?;
    let of_image = |error| Failure::from(error).of_image();
    let entries = runtime.block_on(async {
        let node = match opened.files.resolve(path.as_bytes(), true).await.map_err(of_image)? {
            // What is in a directory is told by all layers.
            Ok((tree, node)) if is_directory(&tree, node) => {
                let place = tree.rootfs().path(node);
                let tree = opened.files.tree().await.map_err(of_image)?;
                tree.rootfs().find(&place).map(|node| (tree, node))
            }
            Ok(found) => Some(found),
            Err(error) => {
                return Err(Failure::new(format!("{image}:{path}: {error}")).of_image());
            }
        };
        let Some((tree, node)) = node else {
            return Err(Failure::new(format!("{image}:{path}: it is not there")).of_image());
        };
        let mut entries = Vec::new();
        match is_directory(&tree, node) {
            true => list(&tree, node, &mut Vec::new(), args.recursive, &mut entries),
            false => entries.push(Line::new(&tree, node, tree.rootfs().name(node))),
        }
        Ok(entries)
    });
    drop(entered);
    let entries = match entries {
        Ok(entries) => entries,
        Err(failure) => {
            opened.close(runtime);
            return Err(failure);
        }
    };
    let report: Vec<Value> = entries.iter().map(Line::json).collect();
    output.event(&json!({"event": "report", "command": "ls", "image": image, "entries": report}));
    let rows: Vec<Vec<String>> = entries.iter().map(Line::row).collect();
    if !rows.is_empty() {
        output.line(&table(&rows));
    }
    opened.close(runtime);
    Ok(Outcome::Done)
}

pub(crate) fn cat(args: &CatArgs, output: &Output) -> Result<Outcome, Failure> {
    let runtime = runtime()?;
    let entered = runtime.enter();
    let mut outcome = Outcome::Done;
    let opened = runtime.block_on(Opened::new(&args.image, &args.tree, &args.inside, output))?;
    for path in &args.paths {
        if let Err(failure) = runtime.block_on(print(&opened, path)) {
            let message = format!("{}:{path}: {}", args.image, failure.message);
            output.error(&message, failure.hint.as_deref());
            outcome = Outcome::SomeFailed;
        }
    }
    drop(entered);
    opened.close(runtime);
    Ok(outcome)
}

async fn print(opened: &Opened, path: &str) -> Result<(), Failure> {
    let (tree, node) = opened
        .files
        .resolve(path.as_bytes(), true)
        .await?
        .map_err(|error| Failure::new(error.to_string()))?;
    let Some(file) = tree.open(node)? else {
        let what = if is_directory(&tree, node) { "a directory" } else { "no regular file" };
        return Err(Failure::new(format!("it is {what}")));
    };
    let mut at = 0;
    while at < file.size() {
        let bytes = file.read(at, STEP).await?;
        at += bytes.len() as u64;
        match io::stdout().lock().write_all(&bytes) {
            Ok(()) => {}
            // Whoever closes it early wants no more of it.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(e) => return Err(Failure::new(format!("standard output: {e}"))),
        }
    }
    // What has been printed is only now known to be right.
    file.verified().await?;
    io::stdout().flush().map_err(|e| Failure::new(format!("standard output: {e}")))
}

/// An image that is being looked into.
struct Opened {
    files: Files,
    scratch: Option<Scratch>,
}

impl Opened {
    async fn new(
        image: &str,
        tree: &TreeArgs,
        args: &InsideArgs,
        output: &Output,
    ) -> Result<Self, Failure> {
        let name: Reference = image.parse()?;
        let registry = name.repository().registry().to_owned();
        let config = registries::config(&args.registries, &[registry], output)?;
        let patience = config.patience();
        let platforms: Vec<&str> = args.platform.as_deref().into_iter().collect();
        let platforms = PlatformFilter::parse(&platforms)
            .map_err(|e| Failure::new(format!("--platform: {e}")))?;
        let options = Options { platforms, ..Options::default() };
        let wanted = shown_platform(&options)?;
        let (dir, cache, scratch) = cache(tree)?;
        let remote: Option<Arc<dyn Backend>> = match args.offline {
            true => None,
            false => Some(Arc::new(Registry::new(config))),
        };
        // One name is looked up, once. A command ends, and gives all memory back.
        let names = catalogue::Settings { options, tag_ttl: patience, absent_ttl: patience };
        let memory = Budget::unlimited();
        let catalogue = Catalogue::new(dir, remote, names, &memory);
        let verify_first = false;
        let images = Images::new(Sources { catalogue, cache, patience, verify_first, memory });
        let of_image = |error| Failure::from(error).of_image();
        let digest = images.manifest(&name).await.map_err(of_image)?.digest();
        let opened = images.image(name.repository(), digest).await.map_err(of_image)?;
        let only = || {
            let mut all = opened.platforms();
            all.next().filter(|_| all.next().is_none() && args.platform.is_none())
        };
        let Some(platform) = opened.platform_for(&wanted).or_else(only) else {
            let all: Vec<&str> = opened.platforms().collect();
            return Err(Failure::new(format!("{image} is not for {wanted}"))
                .of_image()
                .hint(format!("give --platform; it is for {}", all.join(", "))));
        };
        let variant = images.variant(&opened, platform).await.map_err(of_image)?;
        let variant = variant.ok_or_else(|| Failure::new(format!("{image} has no {platform}")))?;
        Ok(Self { files: images.files(&variant, None), scratch })
    }
}

impl Opened {
    /// Ends what is still under way, and then removes what was for this process only.
    fn close(self, runtime: Runtime) {
        let Self { files, scratch } = self;
        drop(files);
        runtime.shutdown_timeout(GRACE);
        drop(scratch);
    }
}

/// The images_dir, and where to keep what is fetched: in its cache, or in a directory that goes with
/// the process if there is no images_dir, or somebody else has its cache open.
fn cache(tree: &TreeArgs) -> Result<(ImagesDir, Cache, Option<Scratch>), Failure> {
    let root = &tree.images_dir;
    let dir = if root.exists() { ImagesDir::open(root)? } else { ImagesDir::absent(root) };
    if root.exists()
        && let Ok(cache) = Cache::open(CacheConfig::in_images_dir(&dir, CACHE_BYTES))
    {
        return Ok((dir, cache, None));
    }
    let scratch = Scratch::new()?;
    let cache = Cache::open(CacheConfig::new(scratch.0.clone(), SCRATCH_BYTES))?;
    let dir = if root.exists() { dir } else { scratch.images_dir()? };
    Ok((dir, cache, Some(scratch)))
}

/// A directory that goes with the process.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, Failure> {
        let base = std::env::temp_dir();
        for number in 0..100 {
            let path = base.join(format!("imgfs-{}-{number}", std::process::id()));
            // Nobody else can have made it before, or look into it.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(Failure::new(format!("{}: {e}", path.display()))),
            }
        }
        Err(Failure::new(format!("{}: it is full of what imgfs has left", base.display())))
    }
}

impl Scratch {
    /// An empty images_dir in it, where what has been found inside images can be kept.
    fn images_dir(&self) -> Result<ImagesDir, Failure> {
        let path = self.0.join("images");
        fs::create_dir(&path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
        Ok(ImagesDir::open(&path)?)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is a matter for whoever tidies up temporary files.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn is_directory(tree: &Tree, node: Node) -> bool {
    tree.rootfs().attributes(node).kind == Kind::Dir
}

fn list(tree: &Tree, dir: Node, path: &mut Vec<u8>, recursive: bool, into: &mut Vec<Line>) {
    for (name, node) in tree.rootfs().entries(dir) {
        let length = path.len();
        path.extend_from_slice(name);
        into.push(Line::new(tree, node, path));
        if recursive && is_directory(tree, node) {
            path.push(b'/');
            list(tree, node, path, recursive, into);
        }
        path.truncate(length);
    }
}

/// A file as it is listed.
struct Line {
    path: String,
    target: Option<String>,
    attributes: imgfs::layer::Attributes,
}

impl Line {
    fn new(tree: &Tree, node: Node, path: &[u8]) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            path: text(path),
            target: tree.rootfs().symlink_target(node).map(text),
            attributes: tree.rootfs().attributes(node),
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
        let name = match &self.target {
            Some(target) => format!("{} -> {target}", self.path),
            None => self.path.clone(),
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
