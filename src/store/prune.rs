//! Removing what nobody needs.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    path::PathBuf,
};

use serde_json::{Value, json};

use super::{
    LayerEntry, Needed, Source, StoreDir, StoredRecord, YOUNG, dirs::link, needed_by, now,
};
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
    /// Images that are gone but for lower layers, which somebody needs.
    pub forgotten: Vec<Digest>,
    /// Names that were taken away from images that have others.
    pub names: Vec<String>,
    /// What was asked for and is not there.
    pub missing: Vec<String>,
    /// What was asked for and has to stay, since somebody needs its layers.
    pub in_use: Vec<InUse>,
    /// What is known from now on of images of which something has changed.
    pub changed: Vec<(Digest, Source)>,
}

/// An image that could not be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InUse {
    /// What was asked for.
    pub image: String,
    /// Its uppermost layer.
    pub layer: ChainId,
    /// Who needs it.
    pub by: String,
}

impl RemoveReport {
    /// The same for programs.
    pub fn to_json(&self) -> Value {
        let needed = self
            .in_use
            .iter()
            .map(|of| json!({ "image": of.image, "layer": of.layer, "by": of.by }));
        json!({
            "removed": self.gone.iter().chain(&self.forgotten).collect::<Vec<_>>(),
            "names": self.names,
            "missing": self.missing,
            "in_use": self.in_use.iter().map(|of| &of.image).collect::<Vec<_>>(),
            "needed": needed.collect::<Vec<_>>(),
        })
    }
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
    /// What recordings had begun and not brought to their end, which has been removed, or would be.
    pub begun: Vec<PathBuf>,
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
            "removed_begun": self.begun.iter().map(|path| path.display().to_string()).collect::<Vec<_>>(),
        })
    }
}

impl StoreDir {
    /// Removes images by their names or by the digests of their manifests, but for those whose uppermost layer
    /// somebody needs, as far as `needed` tells. An image with several names stays as long as it has one. Layers
    /// go that no other image has; lower ones that somebody needs stay, and so does what it takes to show them.
    pub fn forget_images(&self, wanted: &[String], needed: &Needed) -> Result<RemoveReport> {
        let (mut records, _) = self.records()?;
        let listed: HashSet<ChainId> = self.layers()?.iter().map(|layer| layer.id).collect();
        let mut report = RemoveReport::default();
        let mut names = Vec::new();
        // What goes leaves `records`; what stays of it for the sake of others is kept here.
        let (mut leaving, mut kept) = (Vec::<StoredRecord>::new(), HashSet::<ChainId>::new());
        for text in wanted {
            let name = text.parse::<Reference>().map_or_else(|_| text.clone(), |n| n.to_string());
            let is_digest =
                |digest: Digest| *text == digest.to_string() || *text == digest.to_hex();
            let is_it = |record: &StoredRecord| {
                let is_named = || record.source.names().any(|other| other == name);
                !record.source.forgotten && (is_digest(record.digest()) || is_named())
            };
            let (meant, others) = records.into_iter().partition::<Vec<_>, _>(is_it);
            records = others;
            if meant.is_empty() {
                report.missing.push(text.clone());
            }
            let mut meant = VecDeque::from(meant);
            while let Some(mut record) = meant.pop_front() {
                let digest = record.digest();
                if !is_digest(digest) && record.source.remove_name(&name) {
                    self.write_source(&digest, &record.source)?;
                    report.changed.push((digest, record.source.clone()));
                    report.names.push(name.clone());
                    names.push(name.clone());
                    records.push(record);
                    continue;
                }
                let others = shown_by(records.iter().chain(&meant));
                let is_own = |chain: &ChainId| {
                    listed.contains(chain) && !others.contains(chain) && !kept.contains(chain)
                };
                let needed_at = record.chains.iter().rposition(|c| is_own(c) && needed.has(c));
                match needed_at.filter(|_| record.is_lazy()) {
                    // Layers of an image that was withdrawn are shown no more: who needs them has others.
                    None => report.gone.push(digest),
                    Some(at) if at + 1 == record.chains.len() => {
                        let (layer, image) = (record.chains[at], text.clone());
                        let by = needed.by(&layer).unwrap_or_default().to_owned();
                        report.in_use.push(InUse { image, layer, by });
                        records.push(record);
                        continue;
                    }
                    Some(at) => {
                        kept.extend(&record.chains[..=at]);
                        report.forgotten.push(digest);
                    }
                }
                names.append(&mut record.source.added);
                leaving.push(record);
            }
        }
        self.remove_names(&names)?;
        for record in &mut leaving {
            if report.forgotten.contains(&record.digest()) {
                record.source.forgotten = true;
                self.write_source(&record.digest(), &record.source)?;
                report.changed.push((record.digest(), record.source.clone()));
            }
        }
        kept.extend(shown_by(&records));
        let own: HashSet<ChainId> =
            leaving.iter().flat_map(|record| record.chains.iter().copied()).collect();
        self.remove_layers(|layer| !own.contains(&layer.id) || kept.contains(&layer.id))?;
        report.gone.iter().try_for_each(|digest| self.remove_record(digest))?;
        Ok(report)
    }

    /// Removes layers that no image or container in `graphroots` needs, that no image needs which has been
    /// added, and that have been there for a day; what is recorded of images without layers; and what recordings
    /// have begun and not brought to their end. Nothing at all if a graphroot cannot be read, and nothing if it is
    /// only to be told (`is_dry`).
    pub fn prune(&self, graphroots: &[PathBuf], is_dry: bool) -> Result<PruneReport> {
        let mut needed = Needed::default();
        for root in graphroots {
            let of_root = needed_by(root)?;
            needed.add(of_root);
        }
        // What podman has unpacked itself counts for others than these.
        let is_linked = |chain: &ChainId| needed.links.contains_key(&link(chain));
        let begun = self.remove_begun(is_linked, is_dry)?;
        let (records, _) = self.records()?;
        let pinned = records.iter().filter(|record| !record.source.added.is_empty());
        let here = || self.root().display().to_string();
        let pinned = pinned.flat_map(|record| record.chains.iter().copied());
        needed.chains.extend(pinned.map(|chain| (chain, here())));
        needed.chains.extend(self.images()?.iter().map(|image| (image.layer, here())));

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
            let is_young = age < YOUNG.as_secs().cast_signed() && !record.source.forgotten;
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
        Ok(PruneReport { graphroots, kept: listed.len() - removed.chains.len(), removed, begun })
    }
}

/// The chains of images that are shown.
fn shown_by<'a>(records: impl IntoIterator<Item = &'a StoredRecord>) -> HashSet<ChainId> {
    let lazy = records.into_iter().filter(|record| record.is_lazy());
    lazy.flat_map(|record| record.chains.iter().copied()).collect()
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

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    fn needing(chain: ChainId) -> Needed {
        Needed { chains: [(chain, "the image x in /graph".to_owned())].into(), ..Needed::default() }
    }

    #[test]
    fn images_are_removed_by_name_unless_somebody_needs_them() {
        let (_dir, store, [a, b, c]) = store(0);
        let needed = needing(b.chains[2]);
        let wanted = texts(&["quay.io/team/a:1", "quay.io/team/b:1", "quay.io/none:1"]);
        let report = store.forget_images(&wanted, &needed).unwrap();
        assert_eq!(report.gone, [a.digest()]);
        assert_eq!(report.missing, ["quay.io/none:1"]);
        let (image, by) = ("quay.io/team/b:1".to_owned(), "the image x in /graph".to_owned());
        assert_eq!(report.in_use, [InUse { image, layer: b.chains[2], by }]);
        assert_eq!(store.layers().unwrap().len(), 4, "what others have stays");
        let report =
            store.forget_images(&[c.digest().to_hex(), b.digest().to_string()], &Needed::default());
        assert_eq!(report.unwrap().gone.len(), 2);
        assert!(store.layers().unwrap().is_empty() && store.records().unwrap().0.is_empty());
    }

    #[test]
    fn a_lower_layer_that_somebody_needs_stays_and_can_be_shown() {
        let (_dir, store, [a, b, c]) = store(100_000);
        let needed = needing(a.chains[1]);
        let wanted = texts(&["quay.io/team/a:1", "quay.io/team/b:1"]);
        let report = store.forget_images(&wanted, &needed).unwrap();
        assert_eq!(report.gone, [a.digest(), b.digest()], "c has these layers, too");
        let report = store.forget_images(&[c.digest().to_hex()], &needed).unwrap();
        assert_eq!((report.forgotten, report.gone), (vec![c.digest()], Vec::new()));
        let listed: HashSet<ChainId> = store.layers().unwrap().iter().map(|l| l.id).collect();
        assert_eq!(listed, c.chains[..2].iter().copied().collect());
        let (records, _) = store.records().unwrap();
        assert!(records[0].source.forgotten && records.len() == 1);
        let report = store.forget_images(&[c.digest().to_hex()], &needed).unwrap();
        assert_eq!(report.missing.len(), 1, "it is not there any more for whoever asks");

        // All at once: one of them has to stay.
        for record in [&a, &b] {
            store.write_record(record).unwrap();
            store.add_layers(Path::new("/mnt"), &record.layers).unwrap();
        }
        store.remove_record(&c.digest()).unwrap();
        let report = store.forget_images(&wanted, &needed).unwrap();
        assert_eq!((report.gone.len(), report.forgotten.len()), (1, 1));
        assert_eq!(store.layers().unwrap().len(), 2);
        // Nobody needs it any more.
        let report = store.prune(&[], false).unwrap();
        assert_eq!((report.kept, report.removed.records.len()), (0, 1));
    }

    #[test]
    fn an_image_that_was_withdrawn_can_be_removed_whatever_podman_has() {
        let (_dir, store, [a, ..]) = store(0);
        let mut source = a.source.clone();
        source.withdrawn = Some("wrong".into());
        store.write_source(&a.digest(), &source).unwrap();
        store.remove_layers(|layer| layer.id != a.chains[2]).unwrap();
        let report = store.forget_images(&[source.reference], &needing(a.chains[2])).unwrap();
        assert_eq!(report.gone, [a.digest()]);
        assert_eq!(store.layers().unwrap().len(), 4);
    }

    #[test]
    fn an_image_stays_as_long_as_it_has_a_name() {
        let (_dir, store, [a, ..]) = store(0);
        let mut source = a.source.clone();
        source.added = texts(&["quay.io/team/a:1", "quay.io/team/a:2"]);
        store.write_source(&a.digest(), &source).unwrap();
        store.add_image(&a, &source.added).unwrap();
        let remove = |name: &str| store.forget_images(&texts(&[name]), &needing(a.chains[2]));
        let report = remove("quay.io/team/a:1").unwrap();
        assert_eq!(report.names, ["quay.io/team/a:1"]);
        assert_eq!(store.images().unwrap()[0].names, ["quay.io/team/a:2"]);
        let source = &report.changed[0].1;
        assert_eq!(source.names().collect::<Vec<_>>(), ["quay.io/team/a:2"]);
        assert_eq!(remove("quay.io/team/a:1").unwrap().missing.len(), 1);
        assert_eq!(remove("quay.io/team/a:2").unwrap().in_use.len(), 1);
        assert_eq!(store.images().unwrap().len(), 1);
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
