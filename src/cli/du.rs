//! `imgfs du`

use imgfs::ops::{self, Amount, ImageUsage, Usage};

use super::{
    Failure, Outcome,
    args::DuArgs,
    describe::{heading, step_line},
    inside::{look, on_one_line},
    output::{Output, bytes, count, table},
};

/// Characters of a step of the history that are shown.
const SHOWN_STEP: usize = 60;

pub(crate) fn run(args: &DuArgs, output: &Output) -> Result<Outcome, Failure> {
    let images: Vec<&str> = args.images.iter().map(String::as_str).collect();
    let looked = look(&images, &args.tree, &args.inside, output, async |opener, images| {
        Ok(ops::usage(opener, images).await)
    });
    let usage = looked??;
    output.report("du", &usage);
    for image in &usage.images {
        output.line(&describe(image, usize::from(args.top), args.images.len() > 1));
    }
    if usage.images.len() > 1 {
        output.line(&summary(&usage));
    }
    let mut outcome = Outcome::Done;
    for image in &usage.images {
        if let Some(damage) = &image.damage {
            let message = "this is not all that is in it, since a layer is damaged";
            output.error(&format!("{}: {message}: {damage}", image.image), None);
            outcome = Outcome::SomeFailed;
        }
    }
    for (_, error) in &usage.failed {
        output.error(&error.to_string(), error.hint().as_deref());
        outcome = Outcome::SomeFailed;
    }
    Ok(outcome)
}

fn describe(image: &ImageUsage, top: usize, is_one_of_many: bool) -> String {
    let columns =
        ["LAYER", "DIGEST", "COMPRESSED", "UNPACKED", "ENTRIES", "HIDDEN", "IMAGES", "CREATED BY"];
    let mut rows = vec![heading(&columns)];
    rows.extend(image.layers.iter().map(|layer| {
        let by = layer.created_by.as_ref().map_or("-".to_owned(), |by| step_line(by, SHOWN_STEP));
        let (number, digest) = (layer.number.to_string(), layer.digest.short());
        row(number, digest, &layer.amount, layer.images.to_string(), by)
    }));
    rows.push(row("total".into(), String::new(), &image.total, String::new(), String::new()));
    if !is_one_of_many {
        // All layers are those of one image.
        rows.iter_mut().for_each(|row| drop(row.remove(6)));
    }
    let mut text = format!("{} ({})\n{}", image.image, image.platform, table(&rows));
    let files = image.hidden_files.iter().take(top);
    if files.len() > 0 {
        let mut rows = vec![heading(&["  SIZE", "LAYER", "HIDDEN FILE"])];
        rows.extend(files.map(|file| {
            let by = match file.overwritten_by {
                Some(layer) if layer == file.layer => " (overwritten in the same layer)".to_owned(),
                Some(layer) => format!(" (overwritten in layer {layer})"),
                None => " (removed)".to_owned(),
            };
            let name = on_one_line(&format!("{}{by}", file.path));
            vec![format!("  {}", bytes(file.bytes)), file.layer.to_string(), name]
        }));
        text = format!("{text}\n{}", table(&rows));
    }
    text
}

fn row(layer: String, digest: String, of: &Amount, images: String, by: String) -> Vec<String> {
    let hidden = match of.hidden_entries {
        0 => "-".to_owned(),
        // A number of files fits into memory.
        files => format!("{} ({})", bytes(of.hidden_bytes), count(files as usize, "file")),
    };
    let (compressed, unpacked) = (bytes(of.compressed_bytes), bytes(of.unpacked_bytes));
    vec![layer, digest, compressed, unpacked, of.entries.to_string(), hidden, images, by]
}

fn summary(usage: &Usage) -> String {
    let mut rows = vec![heading(&["IMAGE", "COMPRESSED", "SHARED", "ITS OWN"])];
    rows.extend(usage.images.iter().map(|image| {
        let distinct = image.distinct_bytes();
        let own = bytes(distinct - image.shared_bytes);
        vec![on_one_line(&image.image), bytes(distinct), bytes(image.shared_bytes), own]
    }));
    let (all, shared) = (bytes(usage.distinct_bytes), bytes(usage.shared_bytes));
    let images = count(usage.images.len(), "image");
    format!("{}\n{images} with {all} of layers, {shared} of which several have", table(&rows))
}
