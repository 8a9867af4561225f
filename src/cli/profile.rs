//! `imgfs profile`

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use imgfs::{
    backend::images_dir::{ImagesDir, Linking},
    image::Digest,
    layer::Profile,
    ops::{self, AttachReport, AttachTo, OpenOptions, Opener},
};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{
        InsideArgs, ProfileArgs, ProfileCommand, ProfileExportArgs, ProfileImportArgs,
        ProfileLsArgs, ProfilePullArgs, ProfilePushArgs, ProfileRmArgs, ProfileShowArgs, TreeArgs,
    },
    describe::heading,
    inside::look_at,
    output::{Output, bytes, count, table},
    runtime,
};

pub(crate) fn run(args: &ProfileArgs, output: &Output) -> Result<Outcome, Failure> {
    match &args.command {
        ProfileCommand::Ls(args) => ls(args, output),
        ProfileCommand::Show(args) => show(args, output),
        ProfileCommand::Export(args) => export(args, output),
        ProfileCommand::Import(args) => import(args, output),
        ProfileCommand::Push(args) => push(args, output),
        ProfileCommand::Pull(args) => pull(args, output),
        ProfileCommand::Rm(args) => rm(args, output),
    }
}

fn ls(args: &ProfileLsArgs, output: &Output) -> Result<Outcome, Failure> {
    let profiles = here(&args.tree, "profile", async |opener| opener.profiles().await)??;
    let list: Vec<Value> = profiles.iter().map(summary).collect();
    output.report("profile ls", &json!({"profiles": list}));
    if profiles.is_empty() {
        return Ok(Outcome::Done);
    }
    let mut rows = vec![heading(&["IMAGE", "PLATFORM", "READS", "BYTES", "LAYERS"])];
    rows.extend(profiles.iter().map(|profile| {
        let image = profile.image().short();
        let image = match profile.repository() {
            Some(repository) => format!("{repository}@{image}"),
            None => image,
        };
        vec![
            image,
            profile.platform().unwrap_or("-").to_owned(),
            profile.reads().len().to_string(),
            bytes(profile.read_bytes()),
            profile.streams().len().to_string(),
        ]
    }));
    output.line(&table(&rows));
    Ok(Outcome::Done)
}

fn show(args: &ProfileShowArgs, output: &Output) -> Result<Outcome, Failure> {
    let profile = find(&args.image, &args.look.tree, &args.look.inside, output)?;
    let mut report = summary(&profile);
    let layer = |number: u16| profile.streams().get(usize::from(number)).map(|of| of.layer);
    let reads = profile.reads().iter().map(|read| {
        json!({
            "layer": layer(read.stream).map(|layer| layer.to_string()),
            "offset": read.range.start,
            "bytes": read.range.end - read.range.start,
            "missed": read.missed,
        })
    });
    report["reads"] = reads.collect();
    output.report("profile show", &report);
    let platform = profile.platform().map(|platform| format!(" ({platform})")).unwrap_or_default();
    let (reads, layers) = (profile.reads().len(), profile.streams().len());
    let size = bytes(profile.read_bytes());
    let (reads, layers) = (count(reads, "read"), count(layers, "layer"));
    output.line(&format!("{}{platform}: {reads} with {size} of {layers}", profile.image()));
    let mut rows = vec![heading(&["LAYER", "OFFSET", "BYTES", "MISSED"])];
    rows.extend(profile.reads().iter().map(|read| {
        let layer = layer(read.stream).map(|layer| layer.short()).unwrap_or_default();
        let (offset, length) = (read.range.start, read.range.end - read.range.start);
        vec![layer, offset.to_string(), length.to_string(), read.missed.to_string()]
    }));
    output.line(&table(&rows));
    Ok(Outcome::Done)
}

fn export(args: &ProfileExportArgs, output: &Output) -> Result<Outcome, Failure> {
    let profile = find(&args.image, &args.tree, &args.inside, output)?;
    let written = profile.for_others().to_bytes();
    let Some(path) = &args.output else {
        let mut stdout = io::stdout().lock();
        return match stdout.write_all(&written).and_then(|()| stdout.flush()) {
            // Whoever closes it early wants no more of it.
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                Err(Failure::new(format!("standard output: {e}")))
            }
            _ => Ok(Outcome::Done),
        };
    };
    let failed = |e: io::Error| Failure::new(format!("--output {}: {e}", path.display()));
    fs::write(path, written).map_err(failed)?;
    output.line(&format!("{}: written to {}", args.image, path.display()));
    Ok(Outcome::Done)
}

fn import(args: &ProfileImportArgs, output: &Output) -> Result<Outcome, Failure> {
    let name = match args.file == Path::new("-") {
        true => "standard input".to_owned(),
        false => args.file.display().to_string(),
    };
    let failed = |e: io::Error| Failure::new(format!("{name}: {e}"));
    let mut written = Vec::new();
    // One byte more tells that there are too many.
    let limit = Profile::MAX_BYTES + 1;
    match args.file == Path::new("-") {
        true => io::stdin().take(limit).read_to_end(&mut written),
        false => File::open(&args.file).and_then(|file| file.take(limit).read_to_end(&mut written)),
    }
    .map_err(failed)?;
    // What is wrong with it is known before a directory is made for it.
    Profile::parse(&written).map_err(|e| Failure::new(format!("{name}: {e}")))?;
    create(&args.tree, "profile")?;
    let profile =
        here(&args.tree, "profile", async |opener| opener.import_profile(&written).await)??;
    output.report("profile import", &summary(&profile));
    output.line(&format!(
        "{}: imported, {}",
        profile.image(),
        count(profile.reads().len(), "read")
    ));
    Ok(Outcome::Done)
}

fn push(args: &ProfilePushArgs, output: &Output) -> Result<Outcome, Failure> {
    let to = place(args.local);
    let pushed =
        look_at(&args.image, &args.look.tree, &args.look.inside, output, async |opener, opened| {
            opener.push_profile(&opened, to).await
        });
    let Some(report) = pushed?? else { return Err(none_of(&args.image)) };
    output.report("profile push", &attached(&args.image, &report));
    output.line(&attached_line(&args.image, "the profile", &report));
    Ok(Outcome::Done)
}

fn pull(args: &ProfilePullArgs, output: &Output) -> Result<Outcome, Failure> {
    create(&args.look.tree, "profile")?;
    let pulled =
        look_at(&args.image, &args.look.tree, &args.look.inside, output, async |opener, opened| {
            opener.pull_profile(&opened).await
        });
    let Some(profile) = pulled?? else {
        let message = format!("{}: no profile is attached to it", args.image);
        let hint = "`imgfs profile push` attaches one; each platform has its own";
        return Err(Failure::new(message).of_image().hint(hint));
    };
    output.report("profile pull", &summary(&profile));
    let reads = count(profile.reads().len(), "read");
    output.line(&format!("{}: pulled, {reads} with {}", args.image, bytes(profile.read_bytes())));
    Ok(Outcome::Done)
}

fn rm(args: &ProfileRmArgs, output: &Output) -> Result<Outcome, Failure> {
    let image = manifest(&args.image, &args.look.tree, &args.look.inside, output)?;
    if !here(&args.look.tree, "profile", async |opener| opener.remove_profile(image).await)?? {
        return Err(none_of(&args.image));
    }
    output.report("profile rm", &json!({"image": image.to_string()}));
    output.line(&format!("{}: the profile is removed", args.image));
    Ok(Outcome::Done)
}

/// The profile of an image, or of a manifest by its digest, that is kept here.
fn find(
    image: &str,
    tree: &TreeArgs,
    inside: &InsideArgs,
    output: &Output,
) -> Result<Profile, Failure> {
    let digest = manifest(image, tree, inside, output)?;
    let found = here(tree, "profile", async |opener| opener.profile(digest).await)??;
    found.ok_or_else(|| none_of(image))
}

/// The digest of the manifest of the platform that is meant.
fn manifest(
    image: &str,
    tree: &TreeArgs,
    inside: &InsideArgs,
    output: &Output,
) -> Result<Digest, Failure> {
    if let Ok(digest) = image.parse() {
        return Ok(digest);
    }
    Ok(look_at(image, tree, inside, output, async |_, opened| Ok(opened.manifest()))??)
}

fn none_of(image: &str) -> Failure {
    let message = format!("{image}: there is no profile of it here");
    let hint = "a mount records one when the image starts; `imgfs profile pull` and `imgfs profile import` take those of others";
    Failure::new(message).of_image().hint(hint)
}

/// Where something is to be attached.
pub(super) fn place(is_local: bool) -> AttachTo {
    if is_local { AttachTo::Directory } else { AttachTo::Registry }
}

/// Creates the directory of images, which a mount would create, too.
pub(super) fn create(tree: &TreeArgs, command: &str) -> Result<(), Failure> {
    let dir = tree.directory(command)?;
    if !dir.exists() {
        ImagesDir::create(&dir, None, Linking::Auto)?;
    }
    Ok(())
}

/// Does what takes only what is kept here.
pub(super) fn here<T>(
    tree: &TreeArgs,
    command: &str,
    work: impl AsyncFnOnce(&Opener) -> ops::Result<T>,
) -> Result<ops::Result<T>, Failure> {
    let images_dir = tree.directory(command)?;
    let index_cache = match images_dir.exists() {
        true => None,
        // That of the user, as it is.
        false => ops::user_index_cache(1 << 30),
    };
    let options = OpenOptions {
        images_dir,
        index_cache,
        platform: ops::this_machine().map_err(|e| Failure::new(e.to_string()))?,
        any_single_platform: true,
        offline: true,
    };
    let runtime = runtime()?;
    let entered = runtime.enter();
    let opener = Opener::new(options, imgfs::backend::registry::RegistryConfig::default())?;
    let done = runtime.block_on(work(&opener));
    drop(entered);
    let scratch = opener.close();
    drop(runtime);
    drop(scratch);
    Ok(done)
}

fn summary(profile: &Profile) -> Value {
    let streams = profile.streams().iter().map(|stream| stream.layer.to_string());
    json!({
        "image": profile.image().to_string(),
        "platform": profile.platform(),
        "repository": profile.repository(),
        "read_count": profile.reads().len(),
        "read_bytes": profile.read_bytes(),
        "layers": streams.collect::<Vec<_>>(),
    })
}

/// What has been attached, as JSON.
pub(super) fn attached(image: &str, report: &AttachReport) -> Value {
    json!({
        "image": image,
        "subject": report.subject.to_string(),
        "artifact": report.artifact.map(|digest| digest.to_string()),
        "blobs": report.blobs,
        "bytes": report.bytes,
    })
}

/// The same as a line.
pub(super) fn attached_line(image: &str, what: &str, report: &AttachReport) -> String {
    let (subject, size) = (report.subject.short(), bytes(report.bytes));
    match report.artifact {
        Some(artifact) => {
            format!("{image}: {what} is attached to {subject} as {}, {size}", artifact.short())
        }
        None => format!("{image}: {what} is attached to {subject} already"),
    }
}
