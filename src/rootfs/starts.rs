//! Starts of images: what is read in the first seconds is recorded, and where that is known already, it is
//! fetched before somebody asks for it (`follow.rs`).
//!
//! A start begins with the first read of a file of an image in this process, and ends when nothing has been read
//! for [`PAUSE`], or after [`LONGEST`]. Later reads are nobody's start: the kernel remembers what it has read.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::index_store::IndexStore;
use crate::{
    image::Digest,
    layer::{Profile, ProfileRecorder, ProfiledStream},
    util::locked,
};

/// A start is over when nothing has been read for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// It is over after so long in any case.
const LONGEST: Duration = Duration::from_secs(120);

/// A profile that has none of the first reads is not that of this start.
const FIRST_READS: usize = 64;

/// Images of which is remembered that they have started.
const REMEMBERED: usize = 4096;

/// What is done with profiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profiles {
    /// Nothing.
    #[default]
    Off,
    /// What is read is recorded, and what has been recorded or imported here is followed.
    Local,
    /// The same, and what is attached to an image of which nothing is here.
    Find,
}

/// The starts of all images.
pub(super) struct Starts {
    profiles: Profiles,
    /// Where a start waits for its end.
    runtime: Option<Handle>,
    known: Mutex<HashMap<Digest, Arc<Start>>>,
}

/// The start of one image.
pub(super) struct Start {
    runtime: Handle,
    store: Arc<IndexStore>,
    repository: String,
    is_over: AtomicBool,
    /// Reads that are under way.
    reading: AtomicUsize,
    state: Mutex<State>,
}

/// Is called with the profile that is to be followed.
type Follow = Box<dyn FnOnce(Profile) + Send>;

struct State {
    recorder: ProfileRecorder,
    reads: usize,
    /// The first read and the last.
    began: Option<Instant>,
    last: Instant,
    /// Reads that have begun, among them those of what has been noted already.
    follow: Option<Follow>,
    /// What is to be followed as soon as something is read that is in it.
    profile: Option<Profile>,
}

/// What notes the reads of a stream.
#[derive(Clone)]
pub(super) struct Noting {
    start: Arc<Start>,
    stream: ProfiledStream,
}

/// A read that is under way.
pub(super) struct Reading<'a>(Option<&'a Start>);

impl Starts {
    /// Has to be called in the runtime that images are read in.
    pub(super) fn new(profiles: Profiles) -> Self {
        Self { profiles, runtime: Handle::try_current().ok(), known: Mutex::default() }
    }

    /// Where what a start needs is done.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref()
    }

    /// Whether what is attached to images is looked for.
    pub(super) fn finds(&self) -> bool {
        self.profiles == Profiles::Find
    }

    /// The start of the manifest `image`, which may be over; `None` if starts are of no interest. `new` makes what
    /// is called when it is to be followed, if it has just begun.
    pub(super) fn of(
        &self,
        image: Digest,
        platform: Option<String>,
        repository: String,
        store: &Arc<IndexStore>,
        new: impl FnOnce(&Arc<Start>) -> Follow,
    ) -> Option<Arc<Start>> {
        let runtime = self.runtime.clone().filter(|_| self.profiles != Profiles::Off)?;
        let start = {
            let mut known = locked(&self.known);
            if let Some(start) = known.get(&image) {
                return Some(start.clone());
            }
            if known.len() >= REMEMBERED {
                known.retain(|_, start| !start.is_over());
            }
            let state = State {
                recorder: ProfileRecorder::new(image, platform),
                reads: 0,
                began: None,
                last: Instant::now(),
                follow: None,
                profile: None,
            };
            let start = Arc::new(Start {
                runtime,
                store: store.clone(),
                repository,
                is_over: AtomicBool::new(false),
                reading: AtomicUsize::new(0),
                state: Mutex::new(state),
            });
            known.insert(image, start.clone());
            start
        };
        let follow = new(&start);
        locked(&start.state).follow = Some(follow);
        Some(start)
    }

    /// Ends all starts and keeps what was read in them. Blocks.
    pub(super) fn finish(&self) {
        let all: Vec<Arc<Start>> = locked(&self.known).values().cloned().collect();
        all.iter().for_each(|start| start.finish());
    }
}

impl Start {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// What notes the reads of `stream` in it.
    pub(super) fn noting(self: &Arc<Self>, stream: ProfiledStream) -> Option<Noting> {
        (!self.is_over()).then(|| Noting { start: self.clone(), stream })
    }

    /// What was read in earlier starts.
    pub(super) fn offer(&self, profile: Profile) {
        let mut state = locked(&self.state);
        match state.recorder.meets(&profile) {
            true => follow(state, profile),
            false => state.profile = Some(profile),
        }
    }

    fn note(self: &Arc<Self>, stream: &ProfiledStream, range: Range<u64>) {
        let mut state = locked(&self.state);
        state.last = Instant::now();
        state.reads += 1;
        if state.began.is_none() {
            state.began = Some(state.last);
            self.runtime.spawn(self.clone().watch());
        }
        if !state.recorder.note(stream, range) {
            drop(state);
            let start = self.clone();
            // Nobody who reads waits for the disk.
            self.runtime.spawn_blocking(move || start.finish());
            return;
        }
        if let Some(profile) = state.profile.take() {
            if state.recorder.meets(&profile) {
                return follow(state, profile);
            }
            if state.reads < FIRST_READS {
                state.profile = Some(profile);
            }
        }
    }

    /// Waits for the pause.
    async fn watch(self: Arc<Self>) {
        let began = Instant::now();
        while !self.is_over() {
            let last = locked(&self.state).last;
            let is_reading = self.reading.load(Ordering::Relaxed) > 0;
            if (last.elapsed() >= PAUSE && !is_reading) || began.elapsed() >= LONGEST {
                // Its only failure is that nothing is kept.
                let _ = tokio::task::spawn_blocking(move || self.finish()).await;
                return;
            }
            let left = PAUSE.saturating_sub(last.elapsed());
            tokio::time::sleep(left.max(PAUSE / 10)).await;
        }
    }

    /// Ends it, and keeps what was read. Blocks.
    fn finish(&self) {
        if self.is_over.swap(true, Ordering::Relaxed) {
            return;
        }
        let recorded = {
            let mut state = locked(&self.state);
            (state.follow, state.profile) = (None, None);
            (!state.recorder.is_empty()).then(|| state.recorder.profile())
        };
        let Some(profile) = recorded else { return };
        let profile = match self.store.profile(&profile.image()) {
            Some(earlier) => profile.with_earlier(&earlier),
            None => profile,
        };
        // Without it the next start is as slow as this one.
        if let Err(error) = self.store.put_profile(&profile.seen_in(self.repository.clone())) {
            tracing::debug!("a profile has not been kept: {error}");
        }
    }
}

fn follow(mut state: std::sync::MutexGuard<'_, State>, profile: Profile) {
    let follow = state.follow.take();
    drop(state);
    if let Some(follow) = follow {
        follow(profile);
    }
}

impl Noting {
    /// Notes a read of the bytes `range`.
    pub(super) fn note(&self, range: Range<u64>) {
        if !self.start.is_over() {
            self.start.note(&self.stream, range);
        }
    }

    /// Is to be held as long as a read waits: it is no pause.
    pub(super) fn reading(&self) -> Reading<'_> {
        if self.start.is_over() {
            return Reading(None);
        }
        self.start.reading.fetch_add(1, Ordering::Relaxed);
        Reading(Some(&self.start))
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if let Some(start) = self.0 {
            locked(&start.state).last = Instant::now();
            start.reading.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
