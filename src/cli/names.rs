//! `imgfs rm` and `imgfs tag`

use std::sync::Arc;

use imgfs::{
    image::Reference,
    ops::{self, Images, RemoveRequest, Request, TransferOptions, TreeSpec, bare_name},
    template::Template,
};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{RmArgs, TagArgs},
    block_on,
    output::{Output, bytes, count},
    registries,
    request::{Setting, carry_out},
    words::Verb,
};

/// An image as it is named here.
struct Named {
    reference: Reference,
    /// It was written with `registry://`.
    in_registry: bool,
}

fn named(text: &str) -> Result<Named, Failure> {
    let bare = bare_name(text);
    // KubeKey's tasks may write `name:` for `name:latest`. Who names what is to be removed or moved may as well have
    // forgotten the tag, or have none in a variable.
    if bare.trim_end().ends_with(':') {
        return Err(Failure::new(format!("{text}: the tag is empty"))
            .hint("write it out, as in nginx:latest"));
    }
    let reference = bare.parse()?;
    Ok(Named { reference, in_registry: bare.len() != text.trim().len() })
}

pub(crate) fn rm(args: &RmArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let images = args.images.iter().map(|text| named(text));
    let images = images.collect::<Result<Vec<Named>, Failure>>()?;
    let (remote, local): (Vec<Named>, Vec<Named>) =
        images.into_iter().partition(|image| image.in_registry);
    if args.prune && local.is_empty() {
        let message =
            "--prune is about a directory; a registry removes by itself what nothing needs";
        return Err(Failure::new(message));
    }
    let is_allowed = args.yes || args.dry_run || remote.is_empty();
    let references = |images: Vec<Named>| images.into_iter().map(|i| i.reference).collect();
    let mut requests = Vec::new();
    if !local.is_empty() {
        requests.push(RemoveRequest {
            from: args.tree.place()?,
            images: references(local),
            prune: args.prune,
            dry_run: args.dry_run || !is_allowed,
        });
    }
    if !remote.is_empty() {
        requests.push(RemoveRequest {
            from: TreeSpec::Registry { prefix: String::new() },
            images: references(remote),
            prune: false,
            dry_run: args.dry_run || !is_allowed,
        });
    }
    let (mut images, mut failed, mut freed) = (Vec::new(), false, 0);
    for request in &requests {
        let hosts = match request.from {
            TreeSpec::Directory(_) | TreeSpec::Medium(_) => Vec::new(),
            TreeSpec::Registry { .. } => registries_of(&request.images),
        };
        let config = match hosts.is_empty() {
            true => Default::default(),
            false => registries::config(&args.registries, &hosts, output)?,
        };
        let report = block_on(ops::remove(request, config))??;
        failed |= report.has_failures();
        for image in &report.images {
            images.push(tell(image, request.dry_run, output));
        }
        if let Some(pruned) = &report.pruned {
            freed += pruned.bytes();
            let files = count(pruned.removed.len(), "file");
            output.line(&format!("removed {files} with {}", bytes(pruned.bytes())));
        }
    }
    if args.prune && (failed || args.dry_run) {
        output.warning("nothing was pruned");
    }
    output.event(&json!({
        "event": "report", "command": "rm", "dry_run": args.dry_run, "images": images, "removed_bytes": freed,
    }));
    if !is_allowed && !failed {
        let message = "a registry removes a manifest with all tags that lead to it, for everybody; nothing was removed";
        return Err(Failure::new(message).hint("give --yes if that is what you want"));
    }
    if !args.prune && !args.dry_run && !failed && requests.iter().any(is_local) {
        output.line("what they consisted of stays until `imgfs prune`");
    }
    Ok(if failed { Outcome::SomeFailed } else { Outcome::Done })
}

fn is_local(request: &RemoveRequest) -> bool {
    matches!(request.from, TreeSpec::Directory(_))
}

fn registries_of(images: &[Reference]) -> Vec<String> {
    let mut hosts: Vec<String> =
        images.iter().map(|image| image.repository().registry().to_owned()).collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// Tells what became of an image.
fn tell(removed: &ops::RemovedImage, dry_run: bool, output: &Output) -> Value {
    let image = removed.image.to_string();
    match &removed.outcome {
        Ok(removal) => {
            let verb = if dry_run { "would remove" } else { "removed" };
            let names: Vec<String> = removal.names.iter().map(ToString::to_string).collect();
            for name in &names {
                output.line(&format!("{verb} {name}"));
            }
            if removal.may_be_more {
                output.warning(&format!(
                    "{image}: not all tags of its repository could be looked at; others that lead to the same manifest go, too"
                ));
            }
            json!({"image": image, "digest": removal.digest.map(|d| d.to_string()), "names": names, "removed": !dry_run})
        }
        Err(error) => {
            output.error(&format!("{image}: {error}"), error.hint());
            json!({"image": image, "digest": null, "names": [], "removed": false, "error": error.to_string()})
        }
    }
}

pub(crate) fn tag(args: &TagArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    let (source, target) = (named(&args.source)?, named(&args.target)?);
    if target.reference.digest().is_some() || target.reference.tag().is_none() {
        return Err(Failure::new(format!("{}: a new name has a tag and no digest", args.target)));
    }
    let local = args.tree.place()?;
    let place = || match source.in_registry {
        true => TreeSpec::Registry { prefix: String::new() },
        false => local.clone(),
    };
    let registry = |named: &Named| named.reference.repository().registry().to_owned();
    if source.in_registry != target.in_registry
        || (source.in_registry && registry(&source) != registry(&target))
    {
        let message = "source and target have to be in the same directory, or with registry:// in the same registry";
        return Err(Failure::new(message)
            .hint("from one to the other goes `imgfs pull`, `imgfs push` or `imgfs copy`"));
    }
    if source.reference == target.reference {
        return Err(Failure::new("source and target are the same name"));
    }
    if source.in_registry && !args.yes && !args.dry_run {
        let message = format!("this changes {} for everybody; nothing was done", target.reference);
        return Err(Failure::new(message).hint("give --yes if that is what you want"));
    }
    let dest = Template::parse(&target.reference.to_string(), None)
        .map_err(|e| Failure::new(format!("{}: {e}", args.target)))?;
    let request = Request {
        dest: Some(dest),
        ..Request::new(place(), place(), Images::Listed(vec![source.reference.to_string()]))
    };
    let setting = Setting {
        verb: Verb::Tag,
        task: None,
        registries: &args.registries,
        options: TransferOptions { dry_run: args.dry_run, ..TransferOptions::default() },
        output,
    };
    Ok(carry_out(&request, &setting)?.into())
}
