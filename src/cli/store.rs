//! `imgfs store`, and `imgfs-store-helper`

use std::{
    io::{self, Read},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use imgfs::store::{
    Claim, Needed, StoreDir, default_graphroots, needed_by, setup,
    wire::{Answer, Order, ask, helper_request},
};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{GraphrootArgs, StoreArgs, StoreCommand, StoreHelperArgs, StorePlaceArgs},
    mount::absolute,
    output::{Output, bytes, count, table},
};

/// The name under which containers/image calls for this binary.
pub(super) const HELPER: &str = "imgfs-store-helper";

/// How long whoever pulls an image is made to wait.
const HELPER_PATIENCE: Duration = Duration::from_secs(10);

/// Digits of digests in tables.
const SHORT_DIGEST: usize = 12;

/// The longest request to the helper, in bytes.
const MAX_REQUEST: u64 = 1 << 20;

pub(crate) fn run(args: &StoreArgs, output: &Arc<Output>) -> Result<Outcome, Failure> {
    match &args.command {
        StoreCommand::Add { images, place, .. } => add(images, place, output),
        StoreCommand::Ls { place, .. } => list(place, output),
        StoreCommand::Rm { images, place, graphroots, .. } => {
            remove(images, place, graphroots, output)
        }
        StoreCommand::Prune { place, graphroots, dry_run, .. } => {
            prune(place, graphroots, *dry_run, output)
        }
        StoreCommand::Setup { place, helper } => {
            output.line(setup(&absolute(&place.store)?, helper).trim_end());
            Ok(Outcome::Done)
        }
    }
}

/// Asks the mount that serves the store; `None` if there is none.
fn ask_daemon(place: &StorePlaceArgs, order: &Order) -> Result<Option<Answer>, Failure> {
    let socket = &place.store_socket;
    match ask(socket, order, None) {
        Ok(answer) => Ok(Some(answer)),
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(e) => Err(Failure::new(format!("{}: {e}", socket.display()))),
    }
}

fn done(answer: Answer) -> Result<Value, Failure> {
    match answer {
        Answer::Done(value) => Ok(value),
        Answer::Failed(reason) => Err(Failure::new(reason)),
    }
}

/// Nobody serves the store.
fn nobody(place: &StorePlaceArgs) -> Failure {
    let (socket, store) = (place.store_socket.display(), place.store.display());
    Failure::new(format!("no mount with --store answers at {socket}"))
        .hint(format!("start one: imgfs mount --store {store} --images-dir DIR MOUNTPOINT"))
}

fn open(place: &StorePlaceArgs) -> Result<StoreDir, Failure> {
    Ok(StoreDir::open(&place.store)?)
}

/// Opens a store that nobody serves, and keeps others from changing it for a while.
fn open_to_change(place: &StorePlaceArgs, command: &str) -> Result<(StoreDir, Claim), Failure> {
    let store = open(place)?;
    let claim = store.claim(&format!("`{command}`")).map_err(|error| {
        let is_served = error.is_in_use();
        let failure = Failure::from(error);
        let socket = place.store_socket.display();
        match is_served {
            true => failure.hint(format!(
                "nobody answers at {socket}: give the socket of the mount with --store-socket"
            )),
            false => failure,
        }
    })?;
    Ok((store, claim))
}

fn graphroots_of(args: &GraphrootArgs) -> Result<Vec<PathBuf>, Failure> {
    let mut graphroots = default_graphroots()?;
    for root in &args.graphroot {
        let root = absolute(root)?;
        if !graphroots.contains(&root) {
            graphroots.push(root);
        }
    }
    Ok(graphroots)
}

fn add(images: &[String], place: &StorePlaceArgs, output: &Output) -> Result<Outcome, Failure> {
    let mut reports = Vec::new();
    let mut outcome = Outcome::Done;
    for image in images {
        let order = Order::Add { image: image.clone() };
        let answer = ask_daemon(place, &order)?.ok_or_else(|| nobody(place))?;
        match answer {
            Answer::Done(value) => {
                output.line(&format!("{image}: added"));
                reports.push(json!({ "image": image, "digest": value["digest"] }));
            }
            Answer::Failed(reason) => {
                outcome = Outcome::SomeFailed;
                output.error(&reason, None);
                reports.push(json!({ "image": image, "error": reason }));
            }
        }
    }
    output.report("store add", &json!({ "images": reports }));
    Ok(outcome)
}

fn list(place: &StorePlaceArgs, output: &Output) -> Result<Outcome, Failure> {
    let listed = match ask_daemon(place, &Order::List)? {
        Some(answer) => done(answer)?,
        None => list_directory(&open(place)?)?,
    };
    if output.json {
        output.event(&listed);
        return Ok(Outcome::Done);
    }
    let mut rows = vec![
        ["IMAGE", "DIGEST", "STATE", "LAYERS", "INDEXED", "SIZE", "FETCHED", "NOTE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let number = |value: &Value| value.as_u64().map_or_else(String::new, |n| n.to_string());
    let size = |value: &Value| value.as_u64().map_or_else(String::new, bytes);
    for image in listed["images"].as_array().into_iter().flatten() {
        let note = [&image["reason"], &image["last_error"]].map(text);
        let note = note.into_iter().find(|note| !note.is_empty()).unwrap_or_default();
        let digest = text(&image["digest"]);
        let digest = digest.trim_start_matches("sha256:").chars().take(SHORT_DIGEST).collect();
        let rest = [
            digest,
            text(&image["state"]),
            number(&image["layers"]),
            number(&image["indexed_layers"]),
            size(&image["size_bytes"]),
            size(&image["fetched_bytes"]),
            note,
        ];
        // One row for each name, as `podman images` has it.
        let names: Vec<String> = match image["names"].as_array() {
            Some(names) => names.iter().map(text).collect(),
            None => vec![text(&image["image"])],
        };
        rows.extend(names.into_iter().map(|name| [&[name], &rest[..]].concat()));
    }
    output.line(&table(&rows));
    Ok(Outcome::Done)
}

/// What can be told of a store that nobody serves.
fn list_directory(store: &StoreDir) -> Result<Value, Failure> {
    let (records, _) = store.records()?;
    let images = records.iter().filter(|record| !record.source.forgotten).map(|record| {
        let state = if record.is_lazy() { "lazy" } else { "ordinary" };
        json!({
            "image": record.source.reference,
            "names": record.source.names().collect::<Vec<_>>(),
            "digest": record.digest().to_string(),
            "platform": record.source.platform,
            "state": state,
            "reason": record.source.withdrawn,
            "added": record.source.added,
            "layers": record.layers.len(),
            "size_bytes": record.layers.iter().map(|layer| layer.compressed_size).sum::<u64>(),
            "recorded": record.source.recorded,
            "last_error": "no mount serves the store",
        })
    });
    let images: Vec<Value> = images.collect();
    Ok(json!({ "store": store.root().display().to_string(), "images": images }))
}

fn remove(
    images: &[String],
    place: &StorePlaceArgs,
    graphroots: &GraphrootArgs,
    output: &Output,
) -> Result<Outcome, Failure> {
    let graphroots = graphroots_of(graphroots)?;
    let order = Order::Remove { images: images.to_vec(), graphroots: graphroots.clone() };
    let removed = match ask_daemon(place, &order)? {
        Some(answer) => done(answer)?,
        None => {
            let mut needed = Needed::default();
            for root in &graphroots {
                needed.add(needed_by(root)?);
            }
            let (store, _claim) = open_to_change(place, "imgfs store rm")?;
            store.forget_images(images, &needed)?.to_json()
        }
    };
    let texts = |key: &str| -> Vec<String> {
        let all = removed[key].as_array().into_iter().flatten();
        all.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let (missing, in_use, names) = (texts("missing"), texts("in_use"), texts("names"));
    for image in &missing {
        output.error(&format!("{image} is not in the store"), None);
    }
    for image in &in_use {
        let needed = removed["needed"].as_array().into_iter().flatten();
        let by = needed.filter(|of| of["image"] == **image).find_map(|of| {
            Some(format!(
                "{} needs its layers, the uppermost of which is {}",
                of["by"].as_str()?,
                of["layer"].as_str()?
            ))
        });
        // A mount of an older version does not tell.
        let by = by.unwrap_or_else(|| "an image or a container needs its layers".to_owned());
        let hint = "remove that first: podman rm, podman rmi";
        output.error(&format!("{image} stays: {by}"), Some(hint));
    }
    let images = count(texts("removed").len(), "image");
    output.line(&match names.len() {
        0 => format!("{images} removed"),
        number if texts("removed").is_empty() => format!("{} removed", count(number, "name")),
        number => format!("{images} and {} removed", count(number, "name")),
    });
    output.report("store rm", &removed);
    let is_all = missing.is_empty() && in_use.is_empty();
    Ok(if is_all { Outcome::Done } else { Outcome::SomeFailed })
}

fn prune(
    place: &StorePlaceArgs,
    graphroots: &GraphrootArgs,
    is_dry: bool,
    output: &Output,
) -> Result<Outcome, Failure> {
    let graphroots = graphroots_of(graphroots)?;
    let order = Order::Prune { graphroots: graphroots.clone(), is_dry };
    let pruned = match ask_daemon(place, &order)? {
        Some(answer) => done(answer)?,
        None if is_dry => open(place)?.prune(&graphroots, is_dry)?.to_json(),
        None => {
            let (store, _claim) = open_to_change(place, "imgfs store prune")?;
            store.prune(&graphroots, is_dry)?.to_json()
        }
    };
    let length = |key: &str| pruned[key].as_array().map_or(0, Vec::len);
    let verb = if is_dry { "would remove" } else { "removed" };
    let kept = pruned["kept_layers"].as_u64().unwrap_or_default();
    output.line(&format!(
        "{verb} {} and {}; {kept} kept",
        count(length("removed_layers"), "layer"),
        count(length("removed_images"), "record"),
    ));
    let begun = length("removed_begun");
    if begun > 0 {
        let what = if begun == 1 { "directory" } else { "directories" };
        output.line(&format!("{verb} {begun} {what} that an interrupted recording had left"));
    }
    output.report("store prune", &pruned);
    Ok(Outcome::Done)
}

/// What containers/image runs before it pulls an image: whatever fails here means an ordinary pull.
pub(crate) fn helper(args: &StoreHelperArgs, output: &Output) -> Result<Outcome, Failure> {
    let mut text = Vec::new();
    let read = io::stdin().take(MAX_REQUEST).read_to_end(&mut text);
    read.map_err(|e| Failure::new(format!("standard input: {e}")))?;
    let images = helper_request(&text).map_err(Failure::new)?;
    let mut outcome = Outcome::Done;
    for (image, login) in images {
        let order = Order::Prepare { image: image.clone(), login };
        let socket = &args.store_socket;
        let answer = ask(socket, &order, Some(HELPER_PATIENCE)).map_err(|e| {
            Failure::new(format!(
                "{image}: {}: {e}; it is pulled in the ordinary way",
                socket.display()
            ))
            .of_image()
        })?;
        match answer {
            Answer::Done(value) => {
                if let Some(reason) = value["reason"].as_str() {
                    output.warning(&format!("{image} is pulled in the ordinary way: {reason}"));
                }
            }
            Answer::Failed(reason) => {
                outcome = Outcome::SomeFailed;
                output.error(&format!("{image} is pulled in the ordinary way: {reason}"), None);
            }
        }
    }
    Ok(outcome)
}
