//! Carrying out a plan in one pass, for a target that is written from its beginning to its end.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    content::SourceBlob,
    plan::{BlobPlan, ImagePlan, Plan},
    report::{Event, ImageReport, Observer, Report, Status},
};
use crate::{
    backend::{Backend, Content, Error, Kind, ManifestName, PackedImage, Packer},
    image::{Descriptor, Digest, Manifest, Platform, PlatformFilter, View},
};

/// What is written next.
enum Object {
    Blob(Arc<BlobPlan>),
    Manifest(Box<Manifest>),
}

/// Writes what `plan` says from `source` into `packer`, in the order of digests, and ends it. An image that
/// lacks something is not named there. `platform` is what a target gets that has no indexes.
pub async fn pack(
    source: &Arc<dyn Backend>,
    plan: Plan,
    packer: &mut dyn Packer,
    platform: &Platform,
    observer: &Arc<dyn Observer>,
) -> Report {
    let Plan { images, blobs } = plan;
    let mut report = Report {
        images: images.iter().map(|image| image.report.clone()).collect(),
        ..Report::default()
    };
    let mut singles: Vec<Option<Manifest>> = Vec::with_capacity(images.len());
    for (number, image) in images.iter().enumerate() {
        let single = single(image, platform);
        if let (Some(single), false) = (&single, packer.keeps_manifests()) {
            single.tell(&mut report.images[number]);
        }
        singles.push(single.map(|single| single.manifest.clone()));
    }
    if !packer.keeps_manifests() {
        for (number, single) in singles.iter().enumerate() {
            if single.is_none() {
                let root = images[number].manifests.last().map(|root| root.manifest.view());
                let message = match root {
                    Some(View::Image { .. }) => {
                        "it is no container image; nothing else has a place there"
                    }
                    _ => "there, an image is for one platform; say with --platform for which",
                };
                let message = message.to_owned();
                let name = &images[number].report.route.from;
                let error = Error::new("planning", name, Kind::Unfit(message));
                fail(&mut report, &[number], &error, observer);
            }
        }
    }
    let objects = objects(&images, blobs, &singles, packer.keeps_manifests());
    let open =
        |report: &Report| -> usize { report.images.iter().filter(|i| is_open(&i.status)).count() };
    let sizes = objects.values().filter_map(|(object, _)| match object {
        Object::Blob(blob) => Some(blob.descriptor.size),
        Object::Manifest(_) => None,
    });
    let sizes: Vec<u64> = sizes.collect();
    let (blobs, bytes) = (sizes.len(), sizes.iter().sum());
    observer.event(Event::Planned { images: open(&report), blobs, bytes });
    for image in report.images.iter().filter(|image| !is_open(&image.status)) {
        observer.event(Event::ImageDone(image));
    }
    for (object, users) in objects.into_values() {
        if !users.iter().any(|&image| is_open(&report.images[image].status)) {
            continue;
        }
        let done = match object {
            Object::Manifest(manifest) => packer.manifest(&manifest).await,
            Object::Blob(blob) => {
                let Descriptor { digest, size, .. } = blob.descriptor;
                observer.event(Event::BlobStarted { digest, size, offset: 0 });
                let content: Arc<dyn Content> = Arc::new(SourceBlob::new(source, &blob, observer));
                let packed = packer.blob(&blob.descriptor, &content).await;
                observer.event(Event::BlobDone { digest, size, ok: packed.is_ok() });
                packed.map(|received| {
                    report.moved_blobs += 1;
                    report.moved_bytes += received.bytes;
                })
            }
        };
        if let Err(error) = done {
            fail(&mut report, &users, &error, observer);
        }
    }
    let is_left = |(number, _): &(usize, &ImagePlan)| is_open(&report.images[*number].status);
    let left: Vec<(usize, &ImagePlan)> = images.iter().enumerate().filter(is_left).collect();
    let packed: Vec<PackedImage> =
        left.iter().flat_map(|(number, image)| named(image, singles[*number].as_ref())).collect();
    let left: Vec<usize> = left.into_iter().map(|(number, _)| number).collect();
    if left.is_empty() {
        packer.abandon().await;
        return report;
    }
    match packer.finish(&packed).await {
        Ok(()) => {
            for image in left {
                report.images[image].status = Status::Copied;
                observer.event(Event::ImageDone(&report.images[image]));
            }
        }
        Err(error) => {
            packer.abandon().await;
            fail(&mut report, &left, &error, observer);
        }
    }
    report
}

fn is_open(status: &Status) -> bool {
    matches!(status, Status::Planned)
}

fn fail(report: &mut Report, images: &[usize], error: &Error, observer: &Arc<dyn Observer>) {
    for &image in images {
        let image = &mut report.images[image];
        if is_open(&image.status) {
            image.status = Status::Failed(error.clone());
            observer.event(Event::ImageDone(image));
        }
    }
}

/// All that is to be written, each once, with the images that need it.
fn objects(
    images: &[ImagePlan],
    blobs: Vec<BlobPlan>,
    singles: &[Option<Manifest>],
    keeps_manifests: bool,
) -> BTreeMap<Digest, (Object, Vec<usize>)> {
    let mut objects: BTreeMap<Digest, (Object, Vec<usize>)> = BTreeMap::new();
    let mut wanted: HashMap<Digest, Vec<usize>> = HashMap::new();
    if !keeps_manifests {
        for (number, single) in singles.iter().enumerate() {
            for blob in single.iter().flat_map(Manifest::blobs) {
                let users = wanted.entry(blob.digest).or_default();
                if users.last() != Some(&number) {
                    users.push(number);
                }
            }
        }
    }
    for blob in blobs {
        let users = match keeps_manifests {
            true => blob.images().collect(),
            false => wanted.remove(&blob.descriptor.digest).unwrap_or_default(),
        };
        if !users.is_empty() {
            objects.insert(blob.descriptor.digest, (Object::Blob(Arc::new(blob)), users));
        }
    }
    for (number, image) in images.iter().enumerate().filter(|_| keeps_manifests) {
        for planned in &image.manifests {
            let new = || (Object::Manifest(Box::new(planned.manifest.clone())), Vec::new());
            objects.entry(planned.manifest.digest()).or_insert_with(new).1.push(number);
        }
    }
    objects
}

/// The manifests of an image that are found by a name, or as a referrer.
fn named<'a>(
    image: &'a ImagePlan,
    single: Option<&'a Manifest>,
) -> impl Iterator<Item = PackedImage> + 'a {
    let root = image.manifests.last().map(|root| root.manifest.digest());
    image.manifests.iter().flat_map(move |planned| {
        planned.names.iter().filter_map(move |name| {
            let name = match name {
                ManifestName::Tag(tag) => Some(planned.repository.tagged(tag)),
                ManifestName::Pinned => Some(planned.repository.pinned(planned.manifest.digest())),
                ManifestName::Digest if planned.manifest.subject().is_some() => None,
                ManifestName::Digest => return None,
            };
            let is_root = root == Some(planned.manifest.digest());
            let single = single.filter(|_| is_root).cloned();
            Some(PackedImage { name, manifest: planned.manifest.clone(), single })
        })
    })
}

/// An image for one platform.
struct Single<'a> {
    manifest: &'a Manifest,
    /// The platform, where there are several, or an index says it.
    platform: Option<Platform>,
    /// Whether it is one of several.
    is_chosen: bool,
}

impl Single<'_> {
    /// Makes a report that of this image, and not that of the index that it was chosen from.
    fn tell(&self, report: &mut ImageReport) {
        if !self.is_chosen {
            return;
        }
        let blobs: BTreeMap<Digest, u64> =
            self.manifest.blobs().map(|blob| (blob.digest, blob.size)).collect();
        report.bytes = self.manifest.bytes().len() as u64 + blobs.values().sum::<u64>();
        let written = self.platform.iter().map(ToString::to_string).collect();
        let all = std::mem::replace(&mut report.platforms, written);
        // There may be several images for one platform, which are compressed differently.
        if all == report.platforms {
            return;
        }
        report.warnings.push(format!(
            "of {} only {} is written: there, an image is for one platform; --platform says for which",
            all.join(", "),
            report.platforms.join(", "),
        ));
    }
}

/// The manifest of the image for one platform: the only one there is, or that for `platform`.
fn single<'a>(image: &'a ImagePlan, platform: &Platform) -> Option<Single<'a>> {
    let root = &image.manifests.last()?.manifest;
    if let View::Image { config, .. } = root.view() {
        let single = Single { manifest: root, platform: None, is_chosen: false };
        return config.is_image_config().then_some(single);
    }
    let by_digest: HashMap<Digest, &Manifest> =
        image.manifests.iter().map(|m| (m.manifest.digest(), &m.manifest)).collect();
    let mut found: Vec<(Option<Platform>, &Manifest)> = Vec::new();
    let mut open: Vec<(&Manifest, usize)> = vec![(root, 0)];
    while let Some((index, depth)) = open.pop() {
        for child in index.children() {
            let Some(manifest) = by_digest.get(&child.digest) else { continue };
            match manifest.view() {
                View::Index { .. } if depth < 8 => open.push((manifest, depth + 1)),
                View::Image { config, .. }
                    if config.is_image_config()
                        && child.attests().is_none()
                        && !child.platform.as_ref().is_some_and(Platform::is_unknown) =>
                {
                    found.push((child.platform.clone(), manifest));
                }
                _ => {}
            }
        }
    }
    if let [(_, only)] = found.as_slice() {
        return Some(Single { manifest: only, platform: None, is_chosen: false });
    }
    let platforms: Vec<_> = found.iter().map(|(platform, _)| platform.clone()).collect();
    let selection = PlatformFilter::Only(vec![platform.clone()]).select(&platforms);
    let (platform, manifest) = found.get(*selection.kept.first()?)?;
    Some(Single { manifest, platform: platform.clone(), is_chosen: true })
}
