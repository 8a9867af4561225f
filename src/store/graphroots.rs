//! What the stores of podman and others need of this one.

use std::{
    collections::HashMap,
    env, fs, io,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use super::dirs::link;
use crate::{
    backend::{Error, Kind, Result},
    image::ChainId,
};

/// Where podman keeps its images as root, unless something else is said.
const DEFAULT_GRAPHROOT: &str = "/var/lib/containers/storage";

/// Where a graphroot may be configured; the first that exists counts.
const CONFIGURATIONS: [&str; 2] =
    ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];

/// What of a store somebody needs, and who that is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needed {
    /// Layers that are named by their chains.
    pub chains: HashMap<ChainId, String>,
    /// Layers that containers name by their short names.
    pub links: HashMap<String, String>,
}

impl Needed {
    /// Whether somebody needs this layer.
    pub fn has(&self, chain: &ChainId) -> bool {
        self.by(chain).is_some()
    }

    /// Who needs this layer: an image, a container, or else a layer, and in which graphroot.
    pub fn by(&self, chain: &ChainId) -> Option<&str> {
        let by = self.chains.get(chain).or_else(|| self.links.get(&link(chain)));
        by.map(String::as_str)
    }

    /// Adds what others need.
    pub fn add(&mut self, other: Self) {
        self.chains.extend(other.chains);
        self.links.extend(other.links);
    }
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Configuration {
    storage: Storage,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Storage {
    graphroot: String,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[derive(Default)]
struct Layer {
    id: String,
    parent: String,
}

#[derive(Deserialize)]
#[serde(default, rename_all = "kebab-case")]
#[derive(Default)]
struct Image {
    id: String,
    names: Vec<String>,
    layer: String,
    mapped_layers: Vec<String>,
}

/// The lists of containers have the same keys.
type Container = Image;

impl Image {
    /// What a person knows it by.
    fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

fn failed(doing: &str, path: &Path, error: impl Into<Kind>) -> Error {
    Error::new("graphroot", format_args!("{doing} {}", path.display()), error)
}

/// The graphroots of this machine: what `$CONTAINERS_STORAGE_CONF`, or else the first configuration that exists,
/// says, or the usual one. None if there is no such directory: then nothing has been kept there. An error if the
/// variable names a file that cannot be read, as in podman.
pub fn default_graphroots() -> Result<Vec<PathBuf>> {
    let given = env::var_os("CONTAINERS_STORAGE_CONF").filter(|path| !path.is_empty());
    let graphroot = match given {
        Some(file) => {
            let file = PathBuf::from(file);
            graphroot_of(&file, "reading what $CONTAINERS_STORAGE_CONF names,")?
        }
        None => usual_graphroot(&CONFIGURATIONS.map(PathBuf::from))?,
    };
    Ok(existing(graphroot.unwrap_or_else(|| PathBuf::from(DEFAULT_GRAPHROOT))))
}

/// What the first of these files that exists says.
fn usual_graphroot(files: &[PathBuf]) -> Result<Option<PathBuf>> {
    for file in files {
        match graphroot_of(file, "reading") {
            Err(error) if is_missing(&error) => {}
            read => return read,
        }
    }
    Ok(None)
}

fn is_missing(error: &Error) -> bool {
    matches!(error.kind(), Kind::Io(e) if e.kind() == io::ErrorKind::NotFound)
}

/// What a file of configuration says, which is read for what `doing` tells.
fn graphroot_of(file: &Path, doing: &str) -> Result<Option<PathBuf>> {
    let text = fs::read_to_string(file).map_err(|e| failed(doing, file, e))?;
    let parsed: Configuration = toml::from_str(&text).map_err(|e| {
        failed(doing, file, Kind::Config(format!("it is malformed: {}", e.message())))
    })?;
    let graphroot = parsed.storage.graphroot;
    Ok((!graphroot.is_empty()).then(|| graphroot.into()))
}

fn existing(root: PathBuf) -> Vec<PathBuf> {
    match fs::metadata(&root) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        // Whatever else is wrong with it is told when it is read.
        _ => vec![root],
    }
}

/// What the images and containers of the graphroot `root` need. An error if any part of it cannot be read: what
/// is not known may be needed.
pub fn needed_by(root: &Path) -> Result<Needed> {
    let mut needed = Needed::default();
    fs::read_dir(root).map_err(|e| failed("reading", root, e))?;
    let mut add = |text: &str, by: &str| {
        if let Ok(chain) = text.parse() {
            needed.chains.insert(chain, format!("{by} in {}", root.display()));
        }
    };
    let images: Vec<Image> = read_list(&root.join("overlay-images/images.json"))?;
    let containers = containers(root);
    let user_of = |layer: &str| {
        let is_it = |image: &&Image| image.layer == layer;
        match (containers.get(layer), images.iter().find(is_it)) {
            (Some(name), _) => format!("the container {name}"),
            (None, Some(image)) => format!("the image {}", image.name()),
            (None, None) => format!("the layer {layer}"),
        }
    };
    // Layers of containers that end with them are in a list of their own.
    for name in ["layers.json", "volatile-layers.json"] {
        let layers: Vec<Layer> = read_list(&root.join("overlay-layers").join(name))?;
        for layer in &layers {
            let by = user_of(&layer.id);
            add(&layer.id, &by);
            add(&layer.parent, &by);
        }
    }
    // Last, since an image is what a person knows.
    for image in &images {
        let by = format!("the image {}", image.name());
        add(&image.layer, &by);
        image.mapped_layers.iter().for_each(|layer| add(layer, &by));
    }
    let overlay = root.join("overlay");
    let entries = match fs::read_dir(&overlay) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(needed),
        entries => entries.map_err(|e| failed("reading", &overlay, e))?,
    };
    for entry in entries {
        let dir = entry.map_err(|e| failed("reading", &overlay, e))?.path();
        let path = dir.join("lower");
        let text = match fs::read_to_string(&path) {
            // A layer without others below it; or a file beside the layers.
            Err(e)
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            text => text.map_err(|e| failed("reading", &path, e))?,
        };
        let layer = dir.file_name().unwrap_or_default().to_string_lossy();
        let by = format!("{} in {}", user_of(&layer), root.display());
        let links = text.trim().split(':').filter_map(|lower| lower.strip_prefix("l/"));
        needed.links.extend(links.map(|link| (link.to_owned(), by.clone())));
    }
    Ok(needed)
}

/// The names of containers by their layers, as far as they can be told: they are only for people.
fn containers(root: &Path) -> HashMap<String, String> {
    let lists = ["containers.json", "volatile-containers.json"];
    let lists = lists.map(|name| root.join("overlay-containers").join(name));
    let all = lists.iter().flat_map(|list| read_list::<Container>(list).unwrap_or_default());
    all.map(|container| (container.layer.clone(), container.name().to_owned())).collect()
}

fn read_list<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Vec<T>> {
    let text = match fs::read(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text.map_err(|e| failed("reading", path, e))?,
    };
    if text.iter().all(u8::is_ascii_whitespace) {
        return Ok(Vec::new());
    }
    let malformed = |e: serde_json::Error| {
        failed("reading", path, Kind::Config(format!("it is malformed: {e}")))
    };
    // Go writes an empty list as null.
    Ok(serde_json::from_slice::<Option<Vec<T>>>(&text).map_err(malformed)?.unwrap_or_default())
}

/// Reads a list of layers as one that somebody else has written.
#[cfg(feature = "fuzzing")]
pub fn fuzz_graphroot(text: &[u8]) {
    let _ = serde_json::from_slice::<Option<Vec<Layer>>>(text);
    let _ = serde_json::from_slice::<Option<Vec<Image>>>(text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_configuration_that_is_missing_is_the_usual_one_unless_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let [missing, empty, whole, broken] =
            ["missing", "empty", "whole", "broken"].map(|name| dir.path().join(name));
        fs::write(&empty, "").unwrap();
        fs::write(&whole, "[storage]\ngraphroot = \"/srv/graph\"\n").unwrap();
        fs::write(&broken, "[storage").unwrap();
        for file in [&*missing, dir.path(), &*broken] {
            let error = graphroot_of(file, "reading").unwrap_err().to_string();
            assert!(error.contains(&file.display().to_string()), "{error}");
        }
        assert_eq!(graphroot_of(&empty, "reading").unwrap(), None);
        let graph = Some(PathBuf::from("/srv/graph"));
        assert_eq!(usual_graphroot(&[missing.clone(), whole.clone()]).unwrap(), graph);
        assert_eq!(usual_graphroot(&[empty, whole.clone()]).unwrap(), None, "the first counts");
        assert_eq!(usual_graphroot(&[missing]).unwrap(), None);
        let error = usual_graphroot(&[broken, whole]).unwrap_err().to_string();
        assert!(error.contains("broken") && error.contains("malformed"), "{error}");
    }

    #[test]
    fn whoever_needs_a_layer_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let chain = |digit: &str| digit.repeat(64).parse::<ChainId>().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let layers = format!(
            r#"[{{"id":"own","parent":"{}"}},{{"id":"x","parent":"{}"}}]"#,
            chain("1"),
            chain("2")
        );
        write("overlay-layers/layers.json", &layers);
        write(
            "overlay-containers/containers.json",
            r#"[{"id":"c","names":["keep"],"layer":"own"}]"#,
        );
        let image = format!(r#"[{{"id":"i","names":["quay.io/a:1"],"layer":"{}"}}]"#, chain("3"));
        write("overlay-images/images.json", &image);
        write("overlay/own/lower", &format!("l/{}", link(&chain("4"))));
        let needed = needed_by(dir.path()).unwrap();
        for (digit, by) in [
            ("1", "the container keep"),
            ("2", "the layer x"),
            ("3", "the image quay.io/a:1"),
            ("4", "the container keep"),
        ] {
            let expected = format!("{by} in {}", dir.path().display());
            assert_eq!(needed.by(&chain(digit)), Some(&*expected));
        }
        assert!(!needed.has(&chain("5")));
    }
}
