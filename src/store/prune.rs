//! Removing what nobody needs.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use serde_json::{Value, json};

use super::{LayerEntry, Needed, StoreDir, StoredRecord, YOUNG, needed_by, now};
use crate::{
    backend::Result,
    image::{ChainId, Digest, Reference},
};

/// What has been removed from a store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Layers.
    pub chains: Vec<ChainId>,
    /// Images that nothing is recorded of any more, by the digests of their manifests.
    pub records: Vec<Digest>,
}

/// How images were removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RemoveReport {
    /// Images that nothing is recorded of any more, by the digests of their manifests.
    pub gone: Vec<Digest>,
    /// What was asked for and is not there.
    pub missing: Vec<String>,
    /// What was asked for and has to stay, since somebody needs its layers.
    pub in_use: Vec<String>,
}

/// How a store was pruned.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PruneReport {
    /// The graphroots that were read.
    pub graphroots: Vec<PathBuf>,
    /// Layers that are kept.
    pub kept: usize,
    /// What has been removed, or would be.
    pub removed: Removed,
}

impl PruneReport {
    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let roots = self.graphroots.iter().map(|root| root.display().to_string());
        json!({
            "graphroots": roots.collect::<Vec<_>>(),
            "kept_layers": self.kept,
            "removed_layers": self.removed.chains,
            "removed_images": self.removed.records,
        })
    }
}

impl StoreDir {
    /// Removes images by their names or by the digests of their manifests, but for those that are in use, as far
    /// as `needed` tells. An image that has been added by several names stays as long as it has one. Layers go
    /// that no other image has.
    pub fn forget_images(&self, wanted: &[String], needed: &Needed) -> Result<RemoveReport> {
        let (mut records, _) = self.records()?;
        let mut report = RemoveReport::default();
        let mut names = Vec::new();
        for text in wanted {
            let name = text.parse::<Reference>().map_or_else(|_| text.clone(), |n| n.to_string());
            let is_it = |record: &StoredRecord| {
                let digest = record.digest();
                let is_digest = *text == digest.to_string() || *text == digest.to_hex();
                is_digest || record.source.reference == name || record.source.added.contains(&name)
            };
            let mut found = false;
            for record in records.iter_mut().filter(|record| is_it(record)) {
                found = true;
                let others = record.source.added.iter().any(|added| *added != name);
                if others && record.source.added.contains(&name) {
                    record.source.added.retain(|added| *added != name);
                    names.push(name.clone());
                    self.write_source(&record.digest(), &record.source)?;
                } else if record.chains.iter().any(|chain| needed.has(chain)) {
                    report.in_use.push(text.clone());
                } else {
                    names.append(&mut record.source.added);
                    report.gone.push(record.digest());
                }
            }
            if !found {
                report.missing.push(text.clone());
            }
        }
        self.remove_names(&names)?;
        let is_gone = |record: &&StoredRecord| report.gone.contains(&record.digest());
        let others: HashSet<ChainId> = records
            .iter()
            .filter(|record| !is_gone(record) && record.is_lazy())
            .flat_map(|record| record.chains.iter().copied())
            .collect();
        let own: HashSet<ChainId> =
            records.iter().filter(is_gone).flat_map(|r| r.chains.iter().copied()).collect();
        self.remove_layers(|layer| !own.contains(&layer.id) || others.contains(&layer.id))?;
        report.gone.iter().try_for_each(|digest| self.remove_record(digest))?;
        Ok(report)
    }

    /// Removes layers that no image or container in `graphroots` needs, that no image needs which has been
    /// added, and that have been there for a day; and what is recorded of images without layers. Nothing at all
    /// if a graphroot cannot be read, and nothing if it is only to be told (`is_dry`).
    pub fn prune(&self, graphroots: &[PathBuf], is_dry: bool) -> Result<PruneReport> {
        let mut needed = Needed::default();
        for root in graphroots {
            let of_root = needed_by(root)?;
            needed.add(of_root);
        }
        let (records, _) = self.records()?;
        let pinned = records.iter().filter(|record| !record.source.added.is_empty());
        needed.chains.extend(pinned.flat_map(|record| record.chains.iter().copied()));
        needed.chains.extend(self.images()?.iter().map(|image| image.layer));

        let layers = self.layers()?;
        let kept = kept(&layers, &needed, now());
        let gone = layers.iter().map(|layer| layer.id).filter(|id| !kept.contains(id));
        let mut removed = Removed { chains: gone.collect(), records: Vec::new() };
        let listed: HashSet<ChainId> = layers.iter().map(|layer| layer.id).collect();
        let is_kept = |chain: &ChainId| listed.contains(chain) && kept.contains(chain);
        let mut served: HashSet<ChainId> = HashSet::new();
        // First those that are needed for all of their layers: others may not be needed besides.
        let (whole, others) = records
            .iter()
            .partition::<Vec<_>, _>(|record| record.chains.last().is_some_and(is_kept));
        for record in whole.into_iter().chain(others) {
            let age = now().saturating_sub(record.source.recorded);
            let is_young = age < YOUNG.as_secs().cast_signed();
            let serves =
                record.chains.iter().any(|chain| is_kept(chain) && !served.contains(chain));
            match serves || is_young || !record.source.added.is_empty() {
                true => served.extend(&record.chains),
                false => removed.records.push(record.digest()),
            }
        }
        if !is_dry {
            self.remove_layers(|layer| kept.contains(&layer.id))?;
            removed.records.iter().try_for_each(|digest| self.remove_record(digest))?;
        }
        let graphroots = graphroots.to_vec();
        Ok(PruneReport { graphroots, kept: listed.len() - removed.chains.len(), removed })
    }
}

/// The layers that are to be kept, with those below them.
fn kept(layers: &[LayerEntry], needed: &Needed, now: i64) -> HashSet<ChainId> {
    let parents: HashMap<ChainId, Option<ChainId>> =
        layers.iter().map(|layer| (layer.id, layer.parent)).collect();
    let mut kept = HashSet::new();
    for layer in layers {
        let is_young = now.saturating_sub(layer.created_at()) < YOUNG.as_secs().cast_signed();
        let is_needed = is_young || needed.has(&layer.id);
        let mut next = is_needed.then_some(layer.id);
        while let Some(chain) = next
            && kept.insert(chain)
        {
            next = parents.get(&chain).copied().flatten();
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::super::{dirs, entries, records::tests::record};
    use super::*;

    /// A store with three images, of which all is as old as `age` seconds.
    fn store(age: i64) -> (tempfile::TempDir, StoreDir, [StoredRecord; 3]) {
        let dir = tempfile::tempdir().unwrap();
        let store = StoreDir::create(&dir.path().join("store")).unwrap();
        let images = ["a", "b", "c"].map(|name| {
            let mut record = record(name, &["base", "middle", name]);
            record.source.recorded = now() - age;
            for layer in &mut record.layers {
                layer.created = entries::time(now() - age);
            }
            store.write_record(&record).unwrap();
            store.add_layers(Path::new("/mnt"), &record.layers).unwrap();
            record
        });
        (dir, store, images)
    }

    fn graphroot(dir: &Path, layers: &str, images: &str) -> PathBuf {
        fs::create_dir_all(dir.join("overlay-layers")).unwrap();
        fs::create_dir_all(dir.join("overlay-images")).unwrap();
        fs::create_dir_all(dir.join("overlay/l")).unwrap();
        fs::write(dir.join("overlay-layers/layers.json"), layers).unwrap();
        fs::write(dir.join("overlay-images/images.json"), images).unwrap();
        dir.to_owned()
    }

    #[test]
    fn what_is_needed_stays() {
        let (dir, store, [a, b, c]) = store(100_000);
        // One has it as the parent of a container's layer, one as an image, one in a file of a container.
        let one = graphroot(
            &dir.path().join("one"),
            &format!(r#"[{{"id":"x","parent":"{}"}}]"#, a.chains[2]),
            "[]",
        );
        let other = graphroot(&dir.path().join("other"), "null", "");
        let report = store.prune(&[one.clone(), other.clone()], true).unwrap();
        assert_eq!(
            (report.kept, report.removed.chains.len(), report.removed.records.len()),
            (3, 2, 2)
        );
        assert_eq!(store.layers().unwrap().len(), 5, "it was only asked");

        let images = format!(r#"[{{"id":"i","layer":"{}"}}]"#, b.chains[2]);
        graphroot(&dir.path().join("other"), "[]", &images);
        let layer = dir.path().join("other/overlay/x");
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("lower"), format!("l/AAAA:l/{}", dirs::link(&c.chains[1]))).unwrap();
        let report = store.prune(&[one, other], false).unwrap();
        assert_eq!(report.removed.chains, [c.chains[2]]);
        assert_eq!(report.removed.records, [c.digest()], "others have its lower layers");
        assert_eq!(store.layers().unwrap().len(), 4);

        let report = store.prune(&[], false).unwrap();
        assert_eq!(
            (report.kept, report.removed.chains.len(), report.removed.records.len()),
            (0, 4, 2)
        );
        assert!(store.records().unwrap().0.is_empty());
        assert!(store.root().join("overlay-layers/layers.json").exists());
    }

    #[test]
    fn what_was_added_and_what_is_young_stays() {
        let (_dir, young, _) = store(80_000);
        assert_eq!(young.prune(&[], false).unwrap().kept, 5);
        let (_dir, old, [a, ..]) = store(90_000);
        let mut source = a.source.clone();
        source.added = vec!["quay.io/team/a:1".into()];
        old.write_source(&a.digest(), &source).unwrap();
        let report = old.prune(&[], false).unwrap();
        assert_eq!((report.kept, report.removed.records.len()), (3, 2));
    }

    #[test]
    fn images_are_removed_by_name_unless_somebody_needs_them() {
        let (_dir, store, [a, b, c]) = store(0);
        let texts = |texts: &[&str]| texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>();
        let needed = Needed { chains: [b.chains[2]].into(), ..Needed::default() };
        let wanted = texts(&["quay.io/team/a:1", "quay.io/team/b:1", "quay.io/none:1"]);
        let report = store.forget_images(&wanted, &needed).unwrap();
        assert_eq!(report.gone, [a.digest()]);
        assert_eq!(report.missing, ["quay.io/none:1"]);
        assert_eq!(report.in_use, ["quay.io/team/b:1"]);
        assert_eq!(store.layers().unwrap().len(), 4, "what others have stays");
        let report =
            store.forget_images(&[c.digest().to_hex(), b.digest().to_string()], &Needed::default());
        assert_eq!(report.unwrap().gone.len(), 2);
        assert!(store.layers().unwrap().is_empty() && store.records().unwrap().0.is_empty());
    }

    #[test]
    fn a_graphroot_that_cannot_be_read_stops_it() {
        let (dir, store, _) = store(100_000);
        let whole = graphroot(&dir.path().join("whole"), "[]", "[]");
        let absent = dir.path().join("absent");
        assert!(store.prune(&[whole.clone(), absent], false).is_err());
        let broken = graphroot(&dir.path().join("broken"), "[{", "[]");
        let error = store.prune(&[whole, broken], false).unwrap_err();
        assert!(error.to_string().contains("broken/overlay-layers/layers.json"), "{error}");
        assert_eq!(store.layers().unwrap().len(), 5);
    }
}
