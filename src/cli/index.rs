//! `imgfs index`

use imgfs::ops::{LayerState, MadeBy, Pulled, StoredIndex};
use serde_json::{Value, json};

use super::{
    Failure, Outcome,
    args::{IndexArgs, IndexCommand, IndexLsArgs, IndexPullArgs, IndexPushArgs, IndexRmArgs},
    describe::heading,
    inside::look_at,
    output::{Output, bytes, count, table},
    profile::{attached, attached_line, create, here, place},
};

pub(crate) fn run(args: &IndexArgs, output: &Output) -> Result<Outcome, Failure> {
    match &args.command {
        IndexCommand::Ls(args) => ls(args, output),
        IndexCommand::Push(args) => push(args, output),
        IndexCommand::Pull(args) => pull(args, output),
        IndexCommand::Rm(args) => rm(args, output),
    }
}

fn ls(args: &IndexLsArgs, output: &Output) -> Result<Outcome, Failure> {
    let Some(image) = &args.image else {
        let indexes = here(&args.look.tree, "index", async |opener| opener.indexes().await)??;
        let list: Vec<Value> = indexes.iter().map(index_json).collect();
        output.report("index ls", &json!({"indexes": list}));
        if !indexes.is_empty() {
            let columns = ["LAYER", "LAYER SIZE", "UNPACKED", "ENTRIES", "INDEX", "MADE BY"];
            let mut rows = vec![heading(&columns)];
            rows.extend(indexes.iter().map(|index| {
                vec![
                    index.layer.short(),
                    bytes(index.layer_bytes),
                    bytes(index.stream_bytes),
                    index.entries.to_string(),
                    bytes(index.index_bytes),
                    maker(index.made_by).to_owned(),
                ]
            }));
            output.line(&table(&rows));
        }
        return Ok(Outcome::Done);
    };
    let looks = !args.look.inside.offline;
    let states =
        look_at(image, &args.look.tree, &args.look.inside, output, async |opener, opened| {
            opener.layer_states(&opened, looks).await
        })??;
    let list: Vec<Value> = states.iter().map(|state| state_json(state, looks)).collect();
    output.report("index ls", &json!({"image": image, "layers": list}));
    let mut rows = vec![heading(&["LAYER", "LAYER SIZE", "INDEX", "MADE BY", "ATTACHED"])];
    rows.extend(states.iter().map(|state| {
        let (size, by) = match &state.stored {
            Some(index) => (bytes(index.index_bytes), maker(index.made_by)),
            None => ("-".to_owned(), "-"),
        };
        let attached = match (looks, state.is_attached) {
            (false, _) => "?",
            (true, true) => "yes",
            (true, false) => "no",
        };
        let layer = &state.layer;
        vec![layer.digest.short(), bytes(layer.size), size, by.to_owned(), attached.to_owned()]
    }));
    output.line(&table(&rows));
    Ok(Outcome::Done)
}

fn push(args: &IndexPushArgs, output: &Output) -> Result<Outcome, Failure> {
    let to = place(args.local);
    let pushed = look_at(
        &args.image,
        &args.look.tree,
        &args.look.inside,
        output,
        async |opener, opened| opener.push_indexes(&opened, to).await,
    )??;
    let mut report = match &pushed.attached {
        Some(report) => attached(&args.image, report),
        None => json!({"image": args.image, "artifact": null, "blobs": 0, "bytes": 0}),
    };
    let failed = pushed
        .failed
        .iter()
        .map(|(layer, error)| json!({"layer": layer.to_string(), "error": error.to_string()}));
    report["failed"] = failed.collect();
    output.report("index push", &report);
    if let Some(report) = &pushed.attached {
        let what = match report.blobs {
            1 => "the index of 1 layer".to_owned(),
            number => format!("the index of {number} layers"),
        };
        output.line(&attached_line(&args.image, &what, report));
    }
    for (layer, error) in &pushed.failed {
        let message = format!("{}: layer {}: {error}", args.image, layer.short());
        output.error(&message, error.hint());
    }
    Ok(if pushed.failed.is_empty() { Outcome::Done } else { Outcome::SomeFailed })
}

fn pull(args: &IndexPullArgs, output: &Output) -> Result<Outcome, Failure> {
    create(&args.look.tree, "index")?;
    let pulled = look_at(
        &args.image,
        &args.look.tree,
        &args.look.inside,
        output,
        async |opener, opened| opener.pull_indexes(&opened).await,
    )??;
    if pulled.is_empty() {
        let message = format!("{}: no indexes of its layers are attached to it", args.image);
        let hint = "`imgfs index push` attaches them; each platform has its own";
        return Err(Failure::new(message).of_image().hint(hint));
    }
    let list = pulled.iter().map(|index| {
        let (state, error) = match &index.outcome {
            Ok(Pulled::Stored) => ("stored", None),
            Ok(Pulled::HasOwn) => ("has own", None),
            Err(error) => ("failed", Some(error.to_string())),
        };
        json!({"layer": index.layer.to_string(), "bytes": index.bytes, "state": state, "error": error})
    });
    output.report("index pull", &json!({"image": args.image, "indexes": list.collect::<Vec<_>>()}));
    let number = |outcome: Pulled| {
        pulled.iter().filter(|index| index.outcome.as_ref().is_ok_and(|o| *o == outcome)).count()
    };
    let (stored, own) = (number(Pulled::Stored), number(Pulled::HasOwn));
    let mut line = format!("{}: {} pulled", args.image, count_indexes(stored));
    if own > 0 {
        line += &format!(", of {} there is an own one", count(own, "layer"));
    }
    output.line(&line);
    let mut outcome = Outcome::Done;
    for index in &pulled {
        if let Err(error) = &index.outcome {
            output.error(&format!("{}: {error}", args.image), error.hint());
            outcome = Outcome::SomeFailed;
        }
    }
    Ok(outcome)
}

fn rm(args: &IndexRmArgs, output: &Output) -> Result<Outcome, Failure> {
    let only_attached = args.attached;
    let removed = look_at(
        &args.image,
        &args.look.tree,
        &args.look.inside,
        output,
        async |opener, opened| opener.remove_indexes(&opened, only_attached).await,
    )??;
    output.report("index rm", &json!({"image": args.image, "removed": removed}));
    if removed == 0 {
        output.warning(&format!("{}: there are no such indexes here: nothing to do", args.image));
        return Ok(Outcome::NothingMatched);
    }
    output.line(&format!("{}: {} removed", args.image, count_indexes(removed)));
    Ok(Outcome::Done)
}

fn count_indexes(number: usize) -> String {
    if number == 1 { "1 index".to_owned() } else { format!("{number} indexes") }
}

fn maker(made_by: MadeBy) -> &'static str {
    match made_by {
        MadeBy::Pass => "pass",
        MadeBy::Author => "author",
        MadeBy::Attached => "attached",
    }
}

fn index_json(index: &StoredIndex) -> Value {
    json!({
        "layer": index.layer.to_string(),
        "layer_bytes": index.layer_bytes,
        "stream_bytes": index.stream_bytes,
        "entries": index.entries,
        "index_bytes": index.index_bytes,
        "made_by": maker(index.made_by),
    })
}

fn state_json(state: &LayerState, looks: bool) -> Value {
    json!({
        "layer": state.layer.digest.to_string(),
        "layer_bytes": state.layer.size,
        "index": state.stored.as_ref().map(index_json),
        "attached": looks.then_some(state.is_attached),
    })
}
