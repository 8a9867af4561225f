//! Publishing an image whose blobs are all at the target: its manifests, and what is attached to it.

use super::plan::{ImagePlan, left_out};
use crate::{
    backend::{Error, Kind, Result, Sink},
    image::{Platform, View},
};

/// How an image was published.
pub(super) struct Published {
    /// Whether there was anything to do.
    pub changed: bool,
    /// What it runs on, if only its configuration says that.
    pub platform: Option<String>,
    /// Names of what is attached to it and has been refused.
    pub left_out: Vec<String>,
    /// What the user is to know of that.
    pub losses: Vec<String>,
}

/// Whether an image will be published once more if the other side says that it lacks a part of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Attempt {
    First,
    Last,
}

/// Puts the manifests of an image in their places. What is attached to it and is refused there does not hold up
/// the image.
pub(super) async fn publish(
    sink: &dyn Sink,
    image: &ImagePlan,
    attempt: Attempt,
) -> Result<Published> {
    // Before the tag: whoever finds the index must know what of it is wanted.
    for (index, platforms) in &image.sparse {
        sink.keep_sparse(*index, platforms).await?;
    }
    let is_lost =
        |error: &Error| is_refused(error) && !(error.is_incomplete() && attempt == Attempt::First);
    let (mut changed, mut lost) = (false, Vec::new());
    for planned in &image.manifests {
        let attached = planned.attached.as_ref();
        for name in &planned.names {
            // Without one of its parts the rest of it is nothing.
            if attached.is_some_and(|name| lost.iter().any(|(lost, _)| lost == name)) {
                break;
            }
            match (sink.put(&planned.repository, &planned.manifest, name).await, attached) {
                (Ok(()), _) => changed = true,
                (Err(error), Some(attached)) if is_lost(&error) => {
                    lost.push((attached.clone(), error));
                }
                (Err(error), _) => return Err(error),
            }
        }
    }
    let told = |(name, error): &(String, Error)| {
        format!("{}; --referrers=false takes nothing along that is attached", left_out(name, error))
    };
    let mut losses: Vec<String> = lost.iter().map(told).collect();
    match sink.settle(image.report.route.to.repository()).await {
        Err(error) if is_lost(&error) => {
            losses.push(format!("what is attached to it is not all listed: {error}"));
        }
        settled => settled?,
    }
    let left_out = lost.into_iter().map(|(name, _)| name).collect();
    Ok(Published { changed, platform: known_platform(sink, image).await, left_out, losses })
}

/// Whether an error is about what was to be stored, and not about the way there or the place itself: other
/// things can be stored all the same.
fn is_refused(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::Status { .. }
            | Kind::NotFound(_)
            | Kind::Unauthorized(_)
            | Kind::Denied(_)
            | Kind::Incomplete(_)
            | Kind::Protocol(_)
            | Kind::Digest { .. }
            | Kind::Unfit(_)
    )
}

/// What a single image runs on, as its configuration says, which is at the target now.
async fn known_platform(sink: &dyn Sink, image: &ImagePlan) -> Option<String> {
    if !image.report.platforms.is_empty() {
        return None;
    }
    let root = image.manifests.last()?;
    let View::Image { config, .. } = root.manifest.view() else { return None };
    let text = sink.content(&root.repository, config).await.ok()??;
    Platform::of_config(&text).map(|platform| platform.to_string())
}
