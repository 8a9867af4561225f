//! All that a kernel can do with a view, in random order, against plain maps of what it has to see.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::LazyLock,
};

use super::*;

const REPOSITORIES: [&str; 3] = ["r.io/a", "r.io/a/b", "s.io:5000/c"];
const TAGS: [&str; 2] = ["1", "x"];
const VERSIONS: usize = 4;

/// Directories, the root first; some lead to nothing that is known.
const DIRECTORIES: [&str; 9] = [
    "",
    "blobs",
    "r.io",
    "r.io/a",
    "r.io/a/manifests",
    "r.io/a/b",
    "r.io/a/b/manifests",
    "s.io:5000/c/manifests",
    "t.io/never",
];

/// What is not there, whatever happens.
const NOTHING: [&str; 6] =
    [".git", "blobs/x", "r.io/.git", "r.io/a/manifests/.swp", ".imgfs/cache", "autorun.inf"];

/// A layer of each version, from some bytes to some blocks.
static LAYERS: LazyLock<[&'static [u8]; VERSIONS]> = LazyLock::new(|| {
    [7, 131_072, 200_000, 300_001].map(|size: u32| {
        let bytes: Vec<u8> = (0..size).map(|at| (at.wrapping_mul(size) >> 5) as u8).collect();
        &*bytes.leak()
    })
});

/// A name: numbers of a repository and of a tag in it.
type Name = (usize, usize);

#[derive(Clone, Debug)]
enum Goal {
    Tag(Name),
    /// A manifest of this repository by its digest, by its version.
    Digest(usize, usize),
    /// The layer of a version.
    Layer(usize),
    Config,
    Directory(usize),
    Nothing(usize),
}

#[derive(Clone, Debug)]
enum Step {
    /// The tag leads to this version from now on, or nowhere.
    Move(Name, Option<usize>),
    /// The registry fails, or works again.
    Break(bool),
    /// Looks up all that leads to a file or directory.
    Walk(Goal),
    /// Lists a directory, and looks at some of what is in it: from an offset, so many.
    List(usize, usize, usize),
    Open(Goal),
    /// Reads of what is open: which, from where (in thousandths), how much.
    Read(usize, u64, usize),
    Close(usize),
    /// Forgets one of the inodes that are known, so many times.
    Forget(usize, u64),
    /// Looks at the attributes of one.
    Look(usize),
}

fn goal() -> impl Strategy<Value = Goal> {
    let name = (0..REPOSITORIES.len(), 0..TAGS.len());
    prop_oneof![
        6 => name.prop_map(Goal::Tag),
        2 => (0..REPOSITORIES.len(), 0..VERSIONS).prop_map(|(r, v)| Goal::Digest(r, v)),
        3 => (0..VERSIONS).prop_map(Goal::Layer),
        1 => Just(Goal::Config),
        2 => (0..DIRECTORIES.len()).prop_map(Goal::Directory),
        1 => (0..NOTHING.len()).prop_map(Goal::Nothing),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let name = (0..REPOSITORIES.len(), 0..TAGS.len());
    prop_oneof![
        3 => (name, proptest::option::weighted(0.8, 0..VERSIONS)).prop_map(|(n, v)| Step::Move(n, v)),
        1 => proptest::bool::weighted(0.3).prop_map(Step::Break),
        6 => goal().prop_map(Step::Walk),
        3 => (0..DIRECTORIES.len(), 0..6usize, 0..6usize).prop_map(|(d, o, n)| Step::List(d, o, n)),
        4 => goal().prop_map(Step::Open),
        6 => (any::<usize>(), 0..1100u64, 1..200_000usize).prop_map(|(h, o, l)| Step::Read(h, o, l)),
        2 => any::<usize>().prop_map(Step::Close),
        4 => (any::<usize>(), 1..4u64).prop_map(|(i, n)| Step::Forget(i, n)),
        2 => any::<usize>().prop_map(Step::Look),
    ]
}

/// What was told of an inode, and how often.
struct Told {
    path: String,
    attributes: Attributes,
    /// What is in the file.
    content: Option<Vec<u8>>,
    count: u64,
}

/// What a name leads to: the content of a file, or a directory.
type Meaning = Option<Vec<u8>>;

struct Model {
    scene: Scene,
    tag_ttl: Duration,
    broken: bool,
    versions: Vec<Manifest>,
    at_registry: HashMap<Name, usize>,
    /// Where tags led when they were asked for.
    seen: HashMap<Name, usize>,
    /// Manifests that have come, by repository.
    known: BTreeSet<(usize, usize)>,
    /// Blobs that have become known.
    blobs: BTreeSet<String>,
    listed: BTreeMap<String, BTreeSet<String>>,
    told: BTreeMap<u64, Told>,
    /// Number of each file that was ever told of, by path and content.
    numbers: HashMap<(String, Meaning), u64>,
    open: Vec<(Handle, Vec<u8>)>,
}

impl Model {
    fn new(tag_ttl: Duration, cache_bytes: u64) -> Self {
        let scene = scene_with_cache(tag_ttl, false, cache_bytes);
        let make = |version: usize| {
            scene.source.put_with("r.io/a:1", &version.to_string(), LAYERS[version])
        };
        let versions = (0..VERSIONS).map(make).collect();
        scene.source.remove("r.io/a:1");
        Self {
            scene,
            tag_ttl,
            broken: false,
            versions,
            at_registry: HashMap::new(),
            seen: HashMap::new(),
            known: BTreeSet::new(),
            blobs: BTreeSet::new(),
            listed: [(String::new(), ["blobs".to_owned()].into())].into(),
            told: BTreeMap::new(),
            numbers: HashMap::new(),
            open: Vec::new(),
        }
    }

    fn path(&self, goal: &Goal) -> String {
        match *goal {
            Goal::Tag((repository, tag)) => {
                format!("{}/manifests/{}", REPOSITORIES[repository], TAGS[tag])
            }
            Goal::Digest(repository, version) => {
                format!(
                    "{}/manifests/{}",
                    REPOSITORIES[repository],
                    self.versions[version].digest()
                )
            }
            Goal::Layer(version) => format!("blobs/{}", Digest::sha256(LAYERS[version])),
            Goal::Config => format!("blobs/{}", Digest::sha256(CONFIG)),
            Goal::Directory(at) => DIRECTORIES[at].to_owned(),
            Goal::Nothing(at) => NOTHING[at].to_owned(),
        }
    }

    /// What has come of an image that was asked for.
    fn learn(&mut self, repository: usize, name: &str, version: usize) {
        self.known.insert((repository, version));
        self.list(&format!("{}/manifests", REPOSITORIES[repository]), name);
        for blob in [LAYERS[version], CONFIG] {
            let digest = Digest::sha256(blob).to_string();
            self.list("blobs", &digest);
            self.blobs.insert(digest);
        }
    }

    fn list(&mut self, directory: &str, name: &str) {
        self.listed.entry(directory.to_owned()).or_default().insert(name.to_owned());
        let mut path = directory;
        while let Some((above, name)) = path.rsplit_once('/') {
            self.listed.entry(above.to_owned()).or_default().insert(name.to_owned());
            path = above;
        }
        self.listed.entry(String::new()).or_default().insert(path.to_owned());
    }

    /// What looking up has to give: a meaning, that it is not there, or a failure of the registry.
    fn expected(&mut self, goal: &Goal) -> std::result::Result<Option<Meaning>, ()> {
        let bytes = |manifest: &Manifest| Some(Some(manifest.bytes().to_vec()));
        match *goal {
            Goal::Tag(name) => {
                let seen = self.seen.get(&name).copied().filter(|_| self.tag_ttl > Duration::ZERO);
                if let Some(version) = seen {
                    return Ok(bytes(&self.versions[version]));
                }
                if self.broken {
                    return Err(());
                }
                let Some(version) = self.at_registry.get(&name).copied() else { return Ok(None) };
                self.seen.insert(name, version);
                self.learn(name.0, TAGS[name.1], version);
                Ok(bytes(&self.versions[version]))
            }
            Goal::Digest(repository, version) => {
                if !self.known.contains(&(repository, version)) {
                    if self.broken {
                        return Err(());
                    }
                    let mut there = self.at_registry.iter();
                    if !there.any(|((r, _), v)| (*r, *v) == (repository, version)) {
                        return Ok(None);
                    }
                    let digest = self.versions[version].digest().to_string();
                    self.learn(repository, &digest, version);
                }
                Ok(bytes(&self.versions[version]))
            }
            Goal::Layer(_) | Goal::Config => {
                let content = if let Goal::Layer(v) = *goal { LAYERS[v] } else { CONFIG };
                let is_known = self.blobs.contains(&Digest::sha256(content).to_string());
                Ok(is_known.then(|| Some(content.to_vec())))
            }
            Goal::Directory(_) => Ok(Some(None)),
            Goal::Nothing(_) => Ok(None),
        }
    }

    /// The kernel has been told of something.
    fn tell(&mut self, path: &str, entry: &Entry, meaning: &Meaning) {
        let attributes = entry.attributes;
        assert_eq!(is_directory(&attributes), meaning.is_none(), "{path}");
        if let Some(content) = meaning {
            assert_eq!(attributes.size, content.len() as u64, "{path}");
        }
        let number = self.numbers.entry((path.to_owned(), meaning.clone()));
        assert_eq!(*number.or_insert(attributes.ino), attributes.ino, "{path}: the same number");
        let told = self.told.entry(attributes.ino).or_insert(Told {
            path: path.to_owned(),
            attributes,
            content: meaning.clone(),
            count: 0,
        });
        assert!(told.path == path && told.content == *meaning, "{path}: a number of its own");
        told.count += 1;
    }

    /// Looks up every name on the way; the last inode, if it is there.
    async fn walk(&mut self, goal: &Goal) -> Option<u64> {
        let path = self.path(goal);
        let mut at = (ROOT, String::new());
        let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
        for (number, name) in names.iter().enumerate() {
            let is_last = number + 1 == names.len();
            let found = match self.scene.view.lookup(at.0, OsStr::new(name)) {
                Ok(Found::Ask(question)) => self.scene.view.find_out(&question).await,
                found => found,
            };
            let below =
                if at.1.is_empty() { (*name).to_owned() } else { format!("{}/{name}", at.1) };
            let expected = if is_last { self.expected(goal) } else { Ok(Some(None)) };
            match (found, expected) {
                (Ok(Found::Entry(entry)), Ok(Some(meaning))) => {
                    self.tell(&below, &entry, &meaning);
                    at = (entry.attributes.ino, below);
                }
                (Ok(Found::Absent(_)), Ok(None)) | (Err(ViewError::Tree(_)), Err(())) => {
                    return None;
                }
                // Above what is not there, nothing need be there either.
                (Ok(Found::Absent(_)), _) if !is_last && matches!(goal, Goal::Nothing(_)) => {
                    return None;
                }
                (found, expected) => panic!("{below}: {found:?}, not {expected:?}"),
            }
        }
        Some(at.0)
    }

    fn list_directory(&mut self, ino: u64, path: &str, offset: usize, count: usize) {
        let is_as_listed = self.scene.view.is_as_listed(ino);
        let listing = self.scene.view.list_now(ino).unwrap().unwrap();
        assert_eq!((listing.ino, listing.unchanged), (ino, is_as_listed));
        assert!(self.scene.view.is_as_listed(ino));
        let entries = names(&listing);
        let names: Vec<String> = entries.iter().map(|(name, _)| name.clone()).collect();
        let expected: Vec<String> = self.listed.get(path).into_iter().flatten().cloned().collect();
        assert_eq!(names, expected, "in {path:?}");
        for (at, (name, is_directory)) in entries.iter().enumerate().skip(offset).take(count) {
            let below = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
            let entry = self.scene.view.listed(&listing, at).unwrap().unwrap();
            let number = self.scene.view.number_of(&listing, at);
            let meaning = if *is_directory { None } else { Some(self.content_of(&below)) };
            let is_tag = TAGS.iter().any(|tag| name == tag);
            assert!(is_tag || number == entry.attributes.ino, "{below}");
            self.tell(&below, &entry, &meaning);
        }
    }

    /// What is in a file that is listed: nobody is asked, so it is what was known last.
    fn content_of(&self, path: &str) -> Vec<u8> {
        let (directory, name) = path.rsplit_once('/').unwrap();
        if let Some(repository) = directory.strip_suffix("/manifests") {
            let repository = REPOSITORIES.iter().position(|known| *known == repository).unwrap();
            let version = match TAGS.iter().position(|tag| *tag == name) {
                Some(tag) => self.seen[&(repository, tag)],
                None => self.versions.iter().position(|m| m.digest().to_string() == name).unwrap(),
            };
            return self.versions[version].bytes().to_vec();
        }
        let mut blobs = LAYERS.iter().copied().chain([CONFIG]);
        blobs.find(|blob| Digest::sha256(blob).to_string() == name).unwrap().to_vec()
    }

    fn known_inode(&self, at: usize) -> Option<u64> {
        let known: Vec<u64> =
            self.told.iter().filter(|(_, told)| told.count > 0).map(|(ino, _)| *ino).collect();
        (!known.is_empty()).then(|| known[at % known.len()])
    }

    fn forget(&mut self, ino: u64, times: u64) {
        let told = self.told.get_mut(&ino).unwrap();
        let times = times.min(told.count);
        told.count -= times;
        self.scene.view.forget(ino, times);
        if told.count == 0 {
            assert!(matches!(self.scene.view.attributes_now(ino), Err(ViewError::Stale)));
        }
    }

    fn look(&self, ino: u64) {
        let told = &self.told[&ino];
        let now = self.scene.view.attributes_now(ino).unwrap().unwrap().attributes;
        assert_eq!((now.ino, is_directory(&now)), (ino, told.content.is_none()), "{}", told.path);
        if told.content.is_some() {
            assert_eq!(now, told.attributes, "{}", told.path);
        }
    }

    async fn step(&mut self, step: &Step) {
        match step {
            Step::Move((repository, tag), version) => {
                let name = format!("{}:{}", REPOSITORIES[*repository], TAGS[*tag]);
                match version {
                    Some(v) => {
                        self.scene.source.put_with(&name, &v.to_string(), LAYERS[*v]);
                        self.at_registry.insert((*repository, *tag), *v);
                    }
                    None => {
                        self.scene.source.remove(&name);
                        self.at_registry.remove(&(*repository, *tag));
                    }
                }
            }
            Step::Break(broken) => {
                self.broken = *broken;
                *self.scene.source.broken.lock().unwrap() = *broken;
            }
            Step::Walk(goal) => drop(self.walk(goal).await),
            Step::List(directory, offset, count) => {
                if let Some(ino) = self.walk(&Goal::Directory(*directory)).await {
                    self.list_directory(ino, DIRECTORIES[*directory], *offset, *count);
                }
            }
            Step::Open(goal) => {
                let Some(ino) = self.walk(goal).await else { return };
                if ino == ROOT {
                    return;
                }
                match (self.scene.view.open(ino).await, self.told[&ino].content.clone()) {
                    (Ok(handle), Some(content)) => self.open.push((handle, content)),
                    (Err(ViewError::Wrong(_)), None) => {}
                    (opened, _) => panic!("{goal:?}: {}", opened.is_ok()),
                }
            }
            Step::Read(which, thousandths, length) => {
                if self.open.is_empty() {
                    return;
                }
                let (handle, content) = &self.open[which % self.open.len()];
                let offset = content.len() as u64 * thousandths / 1000;
                let got = match handle.read_now(offset, *length) {
                    Some(got) => got.unwrap(),
                    None => handle.read(offset, *length).await.unwrap(),
                };
                let from = (offset as usize).min(content.len());
                let to = (from + length).min(content.len());
                assert!(got == content[from..to], "{} at {offset}", handle.reading());
            }
            Step::Close(which) => {
                if !self.open.is_empty() {
                    let at = which % self.open.len();
                    drop(self.open.swap_remove(at));
                }
            }
            Step::Forget(at, times) => {
                if let Some(ino) = self.known_inode(*at) {
                    self.forget(ino, *times);
                }
            }
            Step::Look(at) => {
                if let Some(ino) = self.known_inode(*at) {
                    self.look(ino);
                }
            }
        }
        let known = self.told.values().filter(|told| told.count > 0).count();
        assert_eq!(self.scene.view.known_inodes(), known, "after {step:?}");
    }

    /// Numbers are the same after a remount, and all is forgotten in the end.
    async fn end(mut self) {
        self.step(&Step::Break(false)).await;
        let settings = settings(self.tag_ttl);
        let dir = ImagesDir::open(self.scene.view.dir().root()).unwrap();
        let source = self.scene.source.clone();
        let next = Scene {
            view: View::new(dir, Some(source.clone()), None, &settings),
            source,
            _home: tempfile::tempdir().unwrap(),
        };
        for ((repository, tag), version) in &self.at_registry {
            let path = self.path(&Goal::Tag((*repository, *tag)));
            let entry = next.walk(&path).await.unwrap().unwrap();
            let content = self.versions[*version].bytes().to_vec();
            if let Some(before) = self.numbers.get(&(path, Some(content))) {
                assert_eq!(entry.attributes.ino, *before);
            }
        }
        for ino in self.told.keys().copied().collect::<Vec<_>>() {
            self.forget(ino, u64::MAX);
        }
        assert_eq!(self.scene.view.known_inodes(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn whatever_a_kernel_does_it_sees_what_it_has_to(
        moves_at_once in any::<bool>(),
        small_cache in any::<bool>(),
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let tag_ttl = if moves_at_once { Duration::ZERO } else { LONG };
            let cache_bytes = if small_cache { 200 << 10 } else { 1 << 20 };
            let mut model = Model::new(tag_ttl, cache_bytes);
            for step in &steps {
                model.step(step).await;
            }
            model.end().await;
        });
    }
}
