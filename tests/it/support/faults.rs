//! What tests of faults share: what must come of one, many cases side by side, and something to transfer.

use super::cli::Output;
use super::content::Random;
use super::image::{Built, Image, Index};

/// What must come of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The run succeeds all the same.
    Success,
    /// The run fails, and says why.
    Failure,
    /// Either.
    Any,
}

impl Outcome {
    #[track_caller]
    pub(crate) fn check(self, what: &str, output: &Output) {
        let code = output.code();
        assert!(code == 0 || code == 1, "{what}\n{output}");
        match self {
            Self::Success => assert_eq!(code, 0, "{what}\n{output}"),
            Self::Failure => assert_eq!(code, 1, "{what}\n{output}"),
            Self::Any => {}
        }
    }
}

/// Checks all cases, several at a time: most of the time is waiting.
pub(crate) fn side_by_side<C: Sync>(cases: &[C], check: impl Fn(&C) + Sync) {
    std::thread::scope(|scope| {
        let handles: Vec<_> = cases
            .chunks(cases.len().div_ceil(4).max(1))
            .map(|part| scope.spawn(|| part.iter().for_each(&check)))
            .collect();
        for handle in handles {
            if let Err(panic) = handle.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
}

/// Small images that share layers, as a mirror's list would have them, and the repositories for them. `layer`
/// says of which seed and size the next layer is; layers of one seed have to be of one size.
pub(crate) fn small_images(
    random: &mut Random,
    layer: impl Fn(&mut Random) -> (u64, u64),
) -> Vec<(String, Built)> {
    (0..6)
        .map(|number| {
            let mut image = Image::new().layer(1, 30_000);
            for _ in 0..=random.below(3) {
                let (seed, size) = layer(random);
                image = image.layer(seed, size);
            }
            let built = if random.chance(500) {
                let other = image.clone().platform("linux/arm64").layer(77, 500).build();
                Index::new().child(&image.build()).child(&other).attest().build()
            } else {
                image.build()
            };
            (format!("app{number}"), built)
        })
        .collect()
}
