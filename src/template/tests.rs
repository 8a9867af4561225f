//! Tables of templates and what they give. The expected texts come from the documents of Go's
//! `text/template` and `fmt` and of sprig, not from what this implementation prints.

mod errors;
mod functions;
mod hostile;
mod kubekey;
mod language;
mod printf;
mod sprig;
mod tera;

use serde_json::json;

use super::{Missing, Template, Value};

/// What the tables work on.
fn vars() -> Value {
    json!({
        "a": 1, "b": 2, "f": 1.5, "s": "text", "t": true, "no": false, "zero": 0, "empty": "",
        "nil": null, "list": ["x", "y", "z"], "nums": [3, 1, 2], "none": [], "nils": [null, 1],
        "map": {"b": 2, "a": 1}, "nomap": {}, "deep": {"x": {"y": "z"}}, "nilmap": {"k": null},
        "html": "<a href=\"x\">&'", "pod": [{"name": "p", "tags": ["1", "2"]}, {"name": "q"}],
    })
    .into()
}

fn render(text: &str, missing: Missing) -> Result<String, String> {
    let rendered = Template::parse(text, None).and_then(|t| t.render(&vars(), missing));
    rendered.map_err(|e| e.to_string())
}

/// Each template gives its text, or where that starts with `ERROR `, an error that has the rest.
#[track_caller]
fn check(table: &[(&str, &str)]) {
    let mut wrong = Vec::new();
    for (text, expected) in table {
        let found = render(text, Missing::NoValue);
        let is_right = match (&found, expected.strip_prefix("ERROR ")) {
            (Err(message), Some(part)) => message.contains(part),
            (Ok(rendered), None) => rendered == expected,
            _ => false,
        };
        if !is_right {
            wrong.push(format!("{text}\n  expected {expected:?}\n  found    {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
}
