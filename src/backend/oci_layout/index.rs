//! `index.json`: reading it, and adding names to it so that everything else in it stays.

use serde_json::{Map, Value, json};

use crate::{
    backend::collection::{ATTACHMENT_NAME, CONTAINERD_NAME, Labels, Listed, MAX_IMAGES, REF_NAME},
    image::{Descriptor, Digest, Manifest, MediaType, Reference, is_attachment_tag},
};

/// The largest `index.json` that is read, in bytes: 100,000 images.
pub(in crate::backend) const MAX_INDEX: u64 = 64 << 20;

/// The images that an `index.json` lists. It need not have names, nor annotations at all.
pub(in crate::backend) fn listed_of(text: &[u8]) -> Result<Vec<Listed>, String> {
    let document = parse(text)?;
    let entries = document.get("manifests").and_then(Value::as_array);
    let entries = entries.map_or(&[][..], Vec::as_slice);
    if entries.len() > MAX_IMAGES {
        return Err(format!("index.json lists more than {MAX_IMAGES} images"));
    }
    let mut listed = Vec::with_capacity(entries.len());
    for entry in entries {
        let manifest: Descriptor = serde_json::from_value(entry.clone())
            .map_err(|e| format!("an entry of index.json is malformed: {e}"))?;
        let label = |key: &str| manifest.annotations.get(key).filter(|text| !text.is_empty());
        let full = label(ATTACHMENT_NAME).or(label(CONTAINERD_NAME)).cloned();
        let labels = Labels { full, short: label(REF_NAME).cloned() };
        listed.push(Listed { manifest, labels });
    }
    Ok(listed)
}

fn parse(text: &[u8]) -> Result<Value, String> {
    if text.len() as u64 > MAX_INDEX {
        return Err(format!("index.json is larger than {MAX_INDEX} bytes"));
    }
    let document: Value =
        serde_json::from_slice(text).map_err(|e| format!("index.json is malformed: {e}"))?;
    match document.is_object() {
        true => Ok(document),
        false => Err("index.json is no JSON object".to_owned()),
    }
}

/// An image that `index.json` is to list.
pub(in crate::backend) struct NewEntry<'a> {
    pub(in crate::backend) manifest: &'a Manifest,
    /// Its full name, with a tag or a digest; `None` if it is found by what it names.
    pub(in crate::backend) name: Option<&'a Reference>,
    /// What stands in `org.opencontainers.image.ref.name`, if not the full name.
    pub(in crate::backend) label: Option<&'a str>,
}

/// The label of what has this name: what is attached to an image is not called as the image is.
fn label_of<'a>(name: &Reference, label: Option<&'a str>) -> Option<&'a str> {
    label.filter(|_| !name.tag().is_some_and(is_attachment_tag))
}

/// The annotations that say what an entry is called.
struct Names {
    /// The one that has its full name.
    key: &'static str,
    full: String,
    /// `org.opencontainers.image.ref.name`, which has what tools know that look for a short one.
    short: Option<String>,
}

impl NewEntry<'_> {
    fn label(&self) -> Option<&str> {
        label_of(self.name?, self.label)
    }

    fn names(&self) -> Option<Names> {
        let name = self.name?;
        let (full, own) = (name.to_string(), self.label().map(str::to_owned));
        Some(match name.tag() {
            Some(tag) if is_attachment_tag(tag) => {
                Names { key: ATTACHMENT_NAME, full, short: None }
            }
            Some(_) => {
                Names { key: CONTAINERD_NAME, short: own.or_else(|| Some(full.clone())), full }
            }
            None => Names { key: CONTAINERD_NAME, full, short: own },
        })
    }

    /// Writes the descriptor into `entry`, and leaves there what else it has.
    fn write(&self, entry: &mut Map<String, Value>) {
        // What describes another manifest does not describe this one.
        for key in ["platform", "artifactType", "data", "urls"] {
            entry.shift_remove(key);
        }
        entry.insert("mediaType".to_owned(), self.manifest.media_type().into());
        entry.insert("digest".to_owned(), self.manifest.digest().to_string().into());
        entry.insert("size".to_owned(), self.manifest.bytes().len().into());
        if let Some(Names { key, full, short }) = self.names() {
            let before = entry.get_mut("annotations").and_then(Value::as_object_mut);
            let mut annotations = before.map(std::mem::take).unwrap_or_default();
            for key in [ATTACHMENT_NAME, CONTAINERD_NAME, REF_NAME] {
                annotations.shift_remove(key);
            }
            annotations.insert(key.to_owned(), full.into());
            annotations.extend(short.map(|short| (REF_NAME.to_owned(), short.into())));
            entry.insert("annotations".to_owned(), annotations.into());
        }
    }
}

/// A new `index.json`.
pub(in crate::backend) fn empty() -> Value {
    json!({"schemaVersion": 2, "mediaType": MediaType::OciIndex.as_str(), "manifests": []})
}

/// Adds `new` to the index in `text`, which may be empty for a new one. `None` if it is there already.
///
/// A name that is there leads to the new manifest then; its entry keeps its other annotations. What is to be
/// found by its digest is added only if nothing leads to it, so no name is ever lost to it.
pub(in crate::backend) fn merge(
    text: &[u8],
    new: &NewEntry<'_>,
) -> Result<Option<Vec<u8>>, String> {
    let mut document = if text.is_empty() { empty() } else { parse(text)? };
    if !document["manifests"].is_array() {
        document["manifests"] = Value::Array(Vec::new());
    }
    let Value::Array(entries) = &mut document["manifests"] else { return Ok(None) };
    let digest = new.manifest.digest().to_string();
    let leads_there = |entry: &Value| entry["digest"].as_str() == Some(&digest);
    if let Some(pinned) = new.name.filter(|name| name.tag().is_none() && new.label().is_none()) {
        // A tag of the repository may lead to it.
        let is_named_there = |entry: &Value| {
            let full = entry["annotations"][CONTAINERD_NAME].as_str();
            let name = full.and_then(|full| full.parse::<Reference>().ok());
            leads_there(entry) && name.is_some_and(|name| name.repository() == pinned.repository())
        };
        if entries.iter().any(is_named_there) {
            return Ok(None);
        }
    }
    let place = match new.names() {
        None if entries.iter().any(leads_there) => return Ok(None),
        None => None,
        Some(Names { full: name, short, .. }) => {
            let is_it = |entry: &Value| {
                let said = |key: &str| entry["annotations"][key].as_str();
                let is_called = |own: &str| short.as_deref().is_none_or(|short| own == short);
                match said(ATTACHMENT_NAME).or(said(CONTAINERD_NAME)) {
                    // Tags of several repositories may be the same.
                    Some(full) => full == name && said(REF_NAME).is_none_or(is_called),
                    None => said(REF_NAME)
                        .is_some_and(|own| own == name || short.as_deref() == Some(own)),
                }
            };
            let place = entries.iter().position(is_it);
            // Tools that know only this name take the first entry that has it.
            let mut is_changed = false;
            for (number, entry) in entries.iter_mut().enumerate() {
                if let Some(short) = short.as_deref().filter(|_| Some(number) != place) {
                    is_changed |= take_name(entry, short);
                }
            }
            if let Some(place) = place
                && leads_there(&entries[place])
                && new
                    .label()
                    .is_none_or(|own| entries[place]["annotations"][REF_NAME].as_str() == Some(own))
            {
                return match is_changed {
                    true => serde_json::to_vec(&document).map(Some).map_err(|e| e.to_string()),
                    false => Ok(None),
                };
            }
            place
        }
    };
    let entry = match place {
        Some(place) => &mut entries[place],
        None => {
            entries.push(json!({}));
            let last = entries.len() - 1;
            &mut entries[last]
        }
    };
    if let Value::Object(entry) = entry {
        new.write(entry);
    }
    serde_json::to_vec(&document).map(Some).map_err(|e| e.to_string())
}

/// Takes a name from an entry that has it in `org.opencontainers.image.ref.name`; what other names it has stay.
/// Whether it had it.
fn take_name(entry: &mut Value, label: &str) -> bool {
    let Some(annotations) = entry.get_mut("annotations").and_then(Value::as_object_mut) else {
        return false;
    };
    if annotations.get(REF_NAME).and_then(Value::as_str) != Some(label) {
        return false;
    }
    annotations.shift_remove(REF_NAME);
    // One that is the same name in full would lead there all the same.
    if annotations.get(CONTAINERD_NAME).and_then(Value::as_str) == Some(label) {
        annotations.shift_remove(CONTAINERD_NAME);
    }
    true
}

/// The digest that `name` leads to in an index, where it is called `label`, if that is not its full name.
pub(in crate::backend) fn find(
    text: &[u8],
    name: &Reference,
    label: Option<&str>,
) -> Option<Digest> {
    let listed = listed_of(text).ok()?;
    let (full, label) = (name.to_string(), label_of(name, label));
    let is_it = |one: &&Listed| {
        let (own, short) = (&one.labels.full, one.labels.short.as_deref());
        match (own, label) {
            (Some(own), Some(label)) => *own == full && short == Some(label),
            (Some(own), None) => *own == full,
            (None, _) => short.is_some_and(|own| own == full || Some(own) == label),
        }
    };
    listed.iter().find(is_it).map(|one| one.manifest.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(text: &str) -> Manifest {
        let text =
            format!(r#"{{"schemaVersion":2,"manifests":[],"annotations":{{"x":"{text}"}}}}"#);
        Manifest::parse(text.into_bytes().into(), None).unwrap()
    }

    fn put(text: &[u8], manifest: &Manifest, name: Option<&str>) -> Option<Vec<u8>> {
        let name: Option<Reference> = name.map(|name| name.parse().unwrap());
        merge(text, &NewEntry { manifest, name: name.as_ref(), label: None }).unwrap()
    }

    fn names(text: &[u8]) -> Vec<(Option<String>, Digest)> {
        let listed = listed_of(text).unwrap();
        listed.into_iter().map(|one| (one.labels.shown(), one.manifest.digest)).collect()
    }

    #[test]
    fn tagging_by_digest_drops_nothing() {
        let (a, b) = (manifest("a"), manifest("b"));
        let text = put(b"", &a, Some("quay.io/x/y:1")).unwrap();
        let text = put(&text, &a, Some("quay.io/x/y:2")).unwrap();
        assert_eq!(put(&text, &a, None), None, "two names lead to it");
        let text = put(&text, &b, None).unwrap();
        let text = put(&text, &b, Some("quay.io/x/y:3")).unwrap();
        let expected = [
            (Some("quay.io/x/y:1".to_owned()), a.digest()),
            (Some("quay.io/x/y:2".to_owned()), a.digest()),
            (None, b.digest()),
            (Some("quay.io/x/y:3".to_owned()), b.digest()),
        ];
        assert_eq!(names(&text), expected);
    }

    #[test]
    fn a_name_that_moves_keeps_its_annotations_and_the_rest_stays() {
        let (a, b) = (manifest("a"), manifest("b"));
        let text = format!(
            r#"{{"schemaVersion":2,"x-own":{{"z":1,"a":2}},"manifests":[
                {{"mediaType":"x/unknown","digest":"{}","size":3,"annotations":null,"x":"y"}},
                {{"mediaType":"m/t","digest":"{}","size":1,"platform":{{"os":"linux","architecture":"arm64"}},
                  "annotations":{{"{REF_NAME}":"quay.io/x/y:1","own":"kept"}}}}],"annotations":{{"k":"v"}}}}"#,
            Digest::sha256(b"other"),
            a.digest()
        );
        let merged = put(text.as_bytes(), &b, Some("quay.io/x/y:1")).unwrap();
        let mut expected: Value = serde_json::from_str(&text).unwrap();
        expected["manifests"][1] = json!({
            "mediaType": b.media_type(), "digest": b.digest().to_string(), "size": b.bytes().len(),
            "annotations": {REF_NAME: "quay.io/x/y:1", "own": "kept", CONTAINERD_NAME: "quay.io/x/y:1"},
        });
        assert_eq!(serde_json::from_slice::<Value>(&merged).unwrap(), expected);
        assert_eq!(put(&merged, &b, Some("quay.io/x/y:1")), None);
    }

    #[test]
    fn a_name_means_one_image() {
        let (a, b) = (manifest("a"), manifest("b"));
        let entry = |name: &str, m: &Manifest, text: &[u8]| {
            let name: Reference = name.parse().unwrap();
            merge(text, &NewEntry { manifest: m, name: Some(&name), label: Some("v1") }).unwrap()
        };
        let text = entry("quay.io/x/a:v1", &a, b"").unwrap();
        let text = entry("quay.io/x/b:v1", &b, &text).unwrap();
        // The first one has lost the name that the second one has, and keeps its full name.
        let labels = |text: &[u8]| -> Vec<_> {
            let listed = listed_of(text).unwrap().into_iter();
            listed.map(|one| (one.labels.full, one.labels.short, one.manifest.digest)).collect()
        };
        let of = |name: &str| Some(name.to_owned());
        let expected = [
            (of("quay.io/x/a:v1"), None, a.digest()),
            (of("quay.io/x/b:v1"), of("v1"), b.digest()),
        ];
        assert_eq!(labels(&text), expected);
        let (first, second) =
            ("quay.io/x/a:v1".parse().unwrap(), "quay.io/x/b:v1".parse().unwrap());
        assert_eq!(find(&text, &second, Some("v1")), Some(b.digest()));
        assert_eq!(find(&text, &first, None), Some(a.digest()));
        assert_eq!(find(&text, &first, Some("v1")), None, "it is not called so any more");
        // It gets it back, whether or not it is there already.
        let text = entry("quay.io/x/a:v1", &a, &text).unwrap();
        let expected = [
            (of("quay.io/x/a:v1"), of("v1"), a.digest()),
            (of("quay.io/x/b:v1"), None, b.digest()),
        ];
        assert_eq!(labels(&text), expected);
        let name = "quay.io/x/a:v1".parse().unwrap();
        let again = NewEntry { manifest: &a, name: Some(&name), label: Some("v1") };
        assert_eq!(merge(&text, &again).unwrap(), None);
        // Its signature is not called as it is.
        let signature = format!("quay.io/x/a:{}.sig", a.digest().to_string().replace(':', "-"));
        let signed = entry(&signature, &b, &text).unwrap();
        assert_eq!(labels(&signed)[..2], expected);
        assert_eq!(labels(&signed)[2], (of(&signature), None, b.digest()));
        assert_eq!(find(&signed, &signature.parse().unwrap(), Some("v1")), Some(b.digest()));
        // Two entries of one name, as others may have left them, become one.
        let twice = format!(
            r#"{{"manifests":[{{"mediaType":"m/t","digest":"{}","size":1,"annotations":{{"{REF_NAME}":"v1"}}}},
                {{"mediaType":"m/t","digest":"{}","size":1,"annotations":{{"{REF_NAME}":"v1","own":"kept"}}}}]}}"#,
            a.digest(),
            b.digest()
        );
        let text = entry("quay.io/x/a:v1", &a, twice.as_bytes()).unwrap();
        assert_eq!(labels(&text), [(None, of("v1"), a.digest()), (None, None, b.digest())]);
    }

    #[test]
    fn what_is_no_index_is_refused() {
        for text in [
            "",
            "[]",
            "{",
            r#"{"manifests":[{}]}"#,
            r#"{"manifests":[{"digest":"sha256:../x","size":1}]}"#,
        ] {
            assert!(listed_of(text.as_bytes()).is_err(), "{text}");
        }
        for text in ["{}", r#"{"manifests":null}"#] {
            assert!(listed_of(text.as_bytes()).unwrap().is_empty(), "{text}");
        }
    }
}
