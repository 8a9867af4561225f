//! Configurations of images (OCI image specification, `config.md`): what imgfs needs of them.

use serde::Deserialize;
use serde_json::Value;

use super::{Digest, Platform, nulls};

/// What the configuration of an image says of its layers and its platform.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// The digests of the decompressed layers, the lowest first; empty if it does not say.
    pub diff_ids: Vec<Digest>,
    /// How it was made, step by step; empty if it does not say, or not in a form that can be read.
    pub history: Vec<HistoryLine>,
    /// What it runs on, if it says so.
    pub platform: Option<Platform>,
}

/// A step in the making of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct HistoryLine {
    /// The command.
    #[serde(default)]
    pub created_by: Option<String>,
    /// Whether it has made no layer.
    #[serde(default, deserialize_with = "nulls::absent")]
    pub empty_layer: bool,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    rootfs: Option<RootFs>,
    /// It only informs: what is wrong in it must not hide the layers.
    #[serde(default)]
    history: Value,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "nulls::absent")]
    diff_ids: Vec<Digest>,
}

impl ImageConfig {
    /// Reads a configuration. `null` stands for what is not there. An error if it is no JSON object, or
    /// if what it says of its layers cannot be read.
    pub fn parse(text: &[u8]) -> Result<Self, serde_json::Error> {
        let document: Document = serde_json::from_slice(text)?;
        let lines = serde_json::from_value::<Option<Vec<Option<HistoryLine>>>>(document.history);
        let lines = lines.ok().flatten().unwrap_or_default();
        Ok(Self {
            diff_ids: document.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default(),
            // In Go, a null in a list is a step of which nothing is known.
            history: lines.into_iter().map(Option::unwrap_or_default).collect(),
            platform: Platform::of_config(text),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_hide_nothing_of_a_configuration() {
        let digest = Digest::sha256(b"layer");
        let text = format!(
            r#"{{"os":"linux","architecture":"arm64","variant":null,"config":null,
                "rootfs":{{"type":"layers","diff_ids":["{digest}"]}},
                "history":[null,{{"created_by":null,"empty_layer":null}},{{"created_by":"RUN x","empty_layer":true}}]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.diff_ids, [digest]);
        assert_eq!(config.platform, Some("linux/arm64".parse().unwrap()));
        let created_by = Some("RUN x".to_owned());
        let last = HistoryLine { created_by, empty_layer: true };
        assert_eq!(config.history, [HistoryLine::default(), HistoryLine::default(), last]);
    }

    #[test]
    fn what_is_absent_or_null_says_nothing() {
        for text in [
            "{}",
            r#"{"rootfs":null,"history":null,"os":null,"architecture":null}"#,
            r#"{"rootfs":{"diff_ids":null},"history":"none"}"#,
            r#"{"rootfs":{},"history":[{"created_by":5}]}"#,
        ] {
            assert_eq!(
                ImageConfig::parse(text.as_bytes()).unwrap(),
                ImageConfig::default(),
                "{text}"
            );
        }
    }

    #[test]
    fn layers_that_cannot_be_read_are_an_error() {
        for text in [
            "",
            "[1]",
            "null",
            r#"{"rootfs":{"diff_ids":[null]}}"#,
            r#"{"rootfs":{"diff_ids":["x"]}}"#,
            r#"{"rootfs":{"diff_ids":{}}}"#,
        ] {
            assert!(ImageConfig::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
