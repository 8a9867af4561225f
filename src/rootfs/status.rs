//! What is known of an image, for those who look after it: `status.json` in a mount.

use std::{sync::atomic::Ordering, time::UNIX_EPOCH};

use serde_json::{Value, json};

use super::{Image, Images, layer::Layer};
use crate::util::locked;

impl Images {
    /// What is known of an image: its layers, as far as they are indexed, what has been fetched,
    /// and what has gone wrong lately.
    pub fn status(&self, image: &Image) -> Value {
        let platforms = image.platforms().map(|name| {
            let layers = self.known_variant(image, name).map(|variant| {
                let layers = self.layers(&variant).into_iter();
                layers.map(|layer| layer_status(&layer)).collect::<Vec<_>>()
            });
            let store = image.manifest_of(name).and_then(|digest| self.store_note(&digest));
            let mut status = json!({ "platform": name, "layers": layers });
            if let Some(note) = store {
                status["store"] = note;
            }
            status
        });
        let stats = self.store().sources.cache.stats();
        let memory = self.store().sources.memory.stats();
        let errors = locked(&self.store().errors);
        let errors = errors.iter().map(|(time, text)| {
            let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            json!({ "time": seconds, "error": text })
        });
        json!({
            "image": image.name().to_string(),
            "platforms": platforms.collect::<Vec<_>>(),
            "fetched_bytes": stats.fetched_bytes,
            "requests": stats.requests,
            "inflated_bytes": self.store().decoded.inflated.load(Ordering::Relaxed),
            "hashed_bytes": self.store().decoded.hashed.load(Ordering::Relaxed),
            "cache": { "held_bytes": stats.held_bytes, "limit_bytes": stats.limit_bytes },
            "memory": {
                "used_bytes": memory.used_bytes,
                "peak_bytes": memory.peak_bytes,
                "limit_bytes": memory.limit_bytes,
            },
            "errors": errors.collect::<Vec<_>>(),
        })
    }
}

fn layer_status(layer: &Layer) -> Value {
    let fetched = layer.at.store.sources.cache.fetched_bytes(&layer.at.blob.digest);
    let mut status = json!({
        "digest": layer.at.blob.digest.to_string(),
        "size": layer.at.blob.size,
        "fetched_bytes": fetched,
    });
    let Some(index) = layer.known_index() else {
        status["indexed"] = json!(false);
        if let Some(scan) = layer.scan() {
            status["passed_bytes"] = json!(*scan.scanned().borrow());
        }
        return status;
    };
    status["indexed"] = json!(true);
    status["entries"] = json!(index.table().len());
    status["uncompressed_bytes"] = json!(index.stream_bytes());
    status["compression"] = json!(index.compression().as_str());
    if let Some(damage) = index.damage() {
        status["damage"] = json!(damage.kind.to_string());
    }
    let notes: Vec<Value> = index
        .notes()
        .iter()
        .map(|note| {
            json!({
                "entry": note.entry,
                "name": String::from_utf8_lossy(&note.name),
                "note": note.kind.to_string(),
            })
        })
        .collect();
    if !notes.is_empty() {
        status["notes"] = json!(notes);
        status["more_notes"] = json!(index.more_notes());
    }
    status
}
