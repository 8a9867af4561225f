//! Texts with values in them: names of images that are made of other names.
//!
//! Two dialects. [`Dialect::Go`] is what KubeKey has: Go's `text/template` with the functions of
//! sprig and some of KubeKey's. It is read into a tree (`lexer`, `parser`, `tree`) that is evaluated
//! as it is (`eval`), so that results, truthiness and errors are Go's, and every error knows its
//! line and column. [`Dialect::Tera`] is the crate `tera`.
//!
//! Nothing here does I/O or knows anything of images, and a rendering does not change what it is
//! given. Whatever the template says, the work is bounded: the length of the text, nesting, steps,
//! bytes that are moved, and the length of what comes out.
//!
//! ```
//! use imgfs::template::{Missing, Template, Value};
//!
//! let vars: Value = serde_json::json!({"registry": "r.io", "tags": ["1", "2"]}).into();
//! let template = Template::parse("{{ .registry }}/x:{{ .tags | last }}", None)?;
//! assert_eq!(template.render(&vars, Missing::Error)?, "r.io/x:2");
//! # Ok::<(), imgfs::template::TemplateError>(())
//! ```

mod error;
mod eval;
mod float;
mod functions;
mod lexer;
mod literal;
mod parser;
mod print;
mod run;
mod tera;
mod time;
mod tree;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;

pub use error::{Cause, TemplateError};
pub use time::Time;
pub use value::{List, Map, PathError, Value};

/// The longest template, in bytes.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// The longest text that a template may give or make on its way, in bytes.
pub const MAX_OUTPUT_BYTES: usize = 16 << 20;

/// How deep blocks and parentheses may nest.
const MAX_NESTING: usize = 100;

/// How many variables may be in scope; each use of one looks through them.
const MAX_VARIABLES: usize = 1000;

/// How deep evaluation may nest, with templates that call templates. What it takes of the stack
/// must fit into the 2 MiB of a thread, also where nothing is optimised: there it is 10 KiB a level.
const MAX_DEPTH: usize = 150;

/// How deep values may nest.
const MAX_VALUE_DEPTH: usize = 200;

/// Commands, calls, rounds of loops, and values looked at.
const MAX_STEPS: u64 = 1_000_000;

/// Bytes that are copied, made or searched, which bounds memory, too.
const MAX_WORK_BYTES: u64 = 256 << 20;

/// The language of a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Go's `text/template` with sprig's functions, as in KubeKey
    Go,
    /// Tera 2, which is much like Jinja
    Tera,
}

/// What a missing variable or field does in the Go dialect; in Tera's it is always an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Missing {
    /// It prints `<no value>`, and so does a field of it. This is Go's default.
    #[default]
    NoValue,
    /// It is an error, and so is printing `nil`: nothing else may become part of a name. Go's
    /// `missingkey=error`, except that `default`, `coalesce` and `empty`, which are there for it,
    /// get a missing value as `nil`.
    Error,
}

/// A template that has been read.
pub struct Template {
    text: String,
    parsed: Parsed,
}

enum Parsed {
    Go(tree::Tree),
    Tera(Box<tera::TeraTemplate>),
}

impl Template {
    /// Reads a template. Without a dialect, a text with `{%` is Tera's and all others are Go's.
    ///
    /// Fails if the text is longer than [`MAX_TEMPLATE_BYTES`] or no template, and names the place.
    pub fn parse(text: &str, dialect: Option<Dialect>) -> Result<Self, TemplateError> {
        let guessed = if text.contains("{%") { Dialect::Tera } else { Dialect::Go };
        let parsed = match dialect.unwrap_or(guessed) {
            Dialect::Go => Parsed::Go(read_go(text)?),
            Dialect::Tera => {
                check_length(text)?;
                Parsed::Tera(Box::new(tera::parse(text)?))
            }
        };
        Ok(Self { text: text.to_owned(), parsed })
    }

    /// Whether KubeKey would take the text for a template (it has `{{` and `}}`), or Tera's `{%`
    /// is in it. All else stands for itself.
    pub fn is_template(text: &str) -> bool {
        (text.contains("{{") && text.contains("}}")) || text.contains("{%")
    }

    /// The dialect.
    pub fn dialect(&self) -> Dialect {
        match self.parsed {
            Parsed::Go(_) => Dialect::Go,
            Parsed::Tera(_) => Dialect::Tera,
        }
    }

    /// What the template gives with these variables, which should be a map.
    pub fn render(&self, vars: &Value, missing: Missing) -> Result<String, TemplateError> {
        match &self.parsed {
            Parsed::Go(tree) => eval::render(tree, vars, missing),
            Parsed::Tera(template) => template.render(&self.text, vars),
        }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("dialect", &self.dialect())
            .field("text", &self.text)
            .finish()
    }
}

fn check_length(text: &str) -> Result<(), TemplateError> {
    if text.len() > MAX_TEMPLATE_BYTES {
        let mib = MAX_TEMPLATE_BYTES >> 20;
        let cause = Cause::Limit(format!("the template is longer than {mib} MiB"));
        return Err(TemplateError::placed(1, 1, cause));
    }
    Ok(())
}

fn read_go(text: &str) -> Result<tree::Tree, TemplateError> {
    check_length(text)?;
    parser::parse(text)
}

/// The variables that describe one image, under both names that KubeKey's versions use:
/// `.module.image.src.reference` and `.module.image.reference`, each with `registry`,
/// `repository`, `reference` (the tag, or the digest where there is none), `tag` and `digest`. What
/// is absent is the empty string.
pub fn image_vars(
    registry: &str,
    repository: &str,
    reference: &str,
    tag: Option<&str>,
    digest: Option<&str>,
) -> Value {
    let fields = [
        ("registry", registry),
        ("repository", repository),
        ("reference", reference),
        ("tag", tag.unwrap_or_default()),
        ("digest", digest.unwrap_or_default()),
    ];
    let described: Value =
        fields.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect();
    let under = |key: &str, value: Value| [(key.to_owned(), value)].into_iter().collect::<Value>();
    let mut image = under("reference", described.clone());
    image.merge(under("src", under("reference", described)));
    under("module", under("image", image))
}

/// What the fuzz target needs.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    use super::Value;

    /// Variables of every type.
    pub fn vars() -> Value {
        serde_json::json!({
            "a": 1, "f": 1.5, "s": "text", "t": true, "n": null, "l": ["x", 2, null], "e": [],
            "m": {"a": 1, "b": {"c": "d"}}, "v": "v1.2.3-rc.1", "j": "{\"a\": [1]}",
        })
        .into()
    }
}
