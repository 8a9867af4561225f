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
    util::{Budget, Reservation, locked},
};

/// A start is over when nothing has been read for so long.
const PAUSE: Duration = Duration::from_secs(5);

/// It is over after so long in any case.
const LONGEST: Duration = Duration::from_secs(120);

/// A profile that has none of the first reads is not that of this start.
const FIRST_READS: usize = 64;

/// Memory that is taken for a start while it lasts, in bytes: at first, and for each read that has been recorded or
/// is in the profile that is offered.
const MEMORY_BYTES: u64 = 16 << 10;
const READ_BYTES: u64 = 160;

/// It is counted anew when there are so many reads more.
const COUNT_EACH: u64 = 256;

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
    budget: Budget,
    known: Mutex<HashMap<Digest, Arc<Start>>>,
}

/// The start of one image.
pub(super) struct Start {
    runtime: Handle,
    budget: Budget,
    store: Arc<IndexStore>,
    image: Digest,
    platform: Option<String>,
    repository: String,
    is_over: AtomicBool,
    /// Reads that are under way.
    reading: AtomicUsize,
    state: Mutex<State>,
}

/// What a start needs of the image.
pub(super) struct Ways {
    /// Finds the profile of earlier starts, and offers it.
    pub find: Box<dyn FnOnce(Arc<Start>) + Send>,
    /// Is called with the profile if that is to be followed.
    pub follow: Box<dyn FnOnce(Profile) + Send>,
}

enum State {
    /// Nothing has been read.
    Waiting(Ways),
    Recording(Box<Recording>),
    Over,
}

struct Recording {
    recorder: ProfileRecorder,
    reads: usize,
    /// When something was read last.
    last: Instant,
    follow: Option<Box<dyn FnOnce(Profile) + Send>>,
    /// What is to be followed as soon as something is read that is in it.
    profile: Option<Profile>,
    memory: Reservation,
    /// Reads that `memory` is for.
    counted: u64,
}

impl Recording {
    /// Counts the memory that it takes by now. Whether there is room for it.
    fn count(&mut self) -> bool {
        let profile = self.profile.as_ref().map_or(0, |profile| profile.reads().len());
        let reads = self.recorder.len() as u64 + profile as u64;
        if (self.counted..=self.counted + COUNT_EACH).contains(&(reads + COUNT_EACH)) {
            return true;
        }
        self.counted = reads + COUNT_EACH;
        self.memory.resize(MEMORY_BYTES + self.counted * READ_BYTES).is_ok()
    }
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
    pub(super) fn new(profiles: Profiles, budget: &Budget) -> Self {
        let (runtime, budget) = (Handle::try_current().ok(), budget.clone());
        Self { profiles, runtime, budget, known: Mutex::default() }
    }

    /// Where what a start needs is done.
    pub(super) fn runtime(&self) -> Option<&Handle> {
        self.runtime.as_ref()
    }

    /// Whether what is attached to images is looked for.
    pub(super) fn finds(&self) -> bool {
        self.profiles == Profiles::Find
    }

    /// The start of the manifest `image`, which may be over; `None` if starts are of no interest. `ways` is called if
    /// nobody has asked for it before.
    pub(super) fn of(
        &self,
        image: Digest,
        platform: Option<String>,
        repository: String,
        store: &Arc<IndexStore>,
        ways: impl FnOnce() -> Ways,
    ) -> Option<Arc<Start>> {
        let runtime = self.runtime.clone().filter(|_| self.profiles != Profiles::Off)?;
        let mut known = locked(&self.known);
        if let Some(start) = known.get(&image) {
            return Some(start.clone());
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let start = Arc::new(Start {
            runtime,
            budget: self.budget.clone(),
            store: store.clone(),
            image,
            platform,
            repository,
            is_over: AtomicBool::new(false),
            reading: AtomicUsize::new(0),
            state: Mutex::new(State::Waiting(ways())),
        });
        known.insert(image, start.clone());
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
        let follow = match &mut *locked(&self.state) {
            State::Recording(recording) if recording.recorder.meets(&profile) => {
                recording.follow.take()
            }
            State::Recording(recording) => {
                recording.profile = Some(profile);
                if !recording.count() {
                    recording.profile = None;
                }
                return;
            }
            State::Waiting(_) | State::Over => return,
        };
        if let Some(follow) = follow {
            follow(profile);
        }
    }

    fn note(self: &Arc<Self>, stream: &ProfiledStream, range: Range<u64>) {
        let mut state = locked(&self.state);
        if matches!(*state, State::Waiting(_)) {
            self.begin(&mut state);
        }
        let State::Recording(recording) = &mut *state else { return };
        recording.last = Instant::now();
        recording.reads += 1;
        if !recording.recorder.note(stream, range) || !recording.count() {
            drop(state);
            let start = self.clone();
            // Nobody who reads waits for the disk.
            self.runtime.spawn_blocking(move || start.finish());
            return;
        }
        let Some(profile) = recording.profile.take() else { return };
        if recording.recorder.meets(&profile) {
            let follow = recording.follow.take();
            drop(state);
            if let Some(follow) = follow {
                follow(profile);
            }
        } else if recording.reads < FIRST_READS {
            recording.profile = Some(profile);
        }
    }

    /// The first read.
    fn begin(self: &Arc<Self>, state: &mut State) {
        let State::Waiting(ways) = std::mem::replace(state, State::Over) else { return };
        // Where there is no room, everything is as it would be without profiles.
        let Ok(memory) = self.budget.reserve(MEMORY_BYTES) else {
            self.is_over.store(true, Ordering::Relaxed);
            return;
        };
        let recorder = ProfileRecorder::new(self.image, self.platform.clone());
        *state = State::Recording(Box::new(Recording {
            recorder,
            reads: 0,
            last: Instant::now(),
            follow: Some(ways.follow),
            profile: None,
            memory,
            counted: 0,
        }));
        (ways.find)(self.clone());
        self.runtime.spawn(self.clone().watch());
    }

    /// For how long nothing has been read; `None` if nothing is recorded.
    fn quiet(&self) -> Option<Duration> {
        match &*locked(&self.state) {
            State::Recording(recording) => Some(recording.last.elapsed()),
            State::Waiting(_) | State::Over => None,
        }
    }

    /// Waits for the pause.
    async fn watch(self: Arc<Self>) {
        let began = Instant::now();
        while let Some(quiet) = self.quiet() {
            let is_reading = self.reading.load(Ordering::Relaxed) > 0;
            if (quiet >= PAUSE && !is_reading) || began.elapsed() >= LONGEST {
                // Its only failure is that nothing is kept.
                let _ = tokio::task::spawn_blocking(move || self.finish()).await;
                return;
            }
            tokio::time::sleep(PAUSE.saturating_sub(quiet).max(PAUSE / 10)).await;
        }
    }

    /// Ends it, and keeps what was read. Blocks.
    fn finish(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = std::mem::replace(&mut *locked(&self.state), State::Over);
        let State::Recording(recording) = ended else { return };
        if recording.recorder.is_empty() {
            return;
        }
        let profile = recording.recorder.profile();
        let profile = match self.store.profile(&self.image) {
            Some(earlier) => profile.with_earlier(&earlier),
            None => profile,
        };
        // Without it the next start is as slow as this one.
        if let Err(error) = self.store.put_profile(&profile.seen_in(self.repository.clone())) {
            tracing::debug!("a profile has not been kept: {error}");
        }
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
            if let State::Recording(recording) = &mut *locked(&start.state) {
                recording.last = Instant::now();
            }
            start.reading.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
