//! Tera's dialect, by the crate `tera`.
//!
//! Nothing is escaped, an undefined variable is an error, and the variables are the same as in the
//! Go dialect. Tera bounds a `range()` itself; here the length of the text is bounded, and with it
//! the loops that print. Loops that print nothing can nest: each of them goes over a list that
//! the template or its variables hold.

use std::io;

use tera::{Context, ErrorKind, Tera};

use super::{
    MAX_OUTPUT_BYTES, Value,
    error::{Cause, TemplateError},
};

/// A template that has been read.
pub(super) struct TeraTemplate {
    tera: Tera,
}

const NAME: &str = "template";

/// Reads a template.
pub(super) fn parse(text: &str) -> Result<TeraTemplate, TemplateError> {
    let mut tera = Tera::new();
    tera.autoescape_on(Vec::<&str>::new());
    tera.add_raw_template(NAME, text).map_err(|error| described(&error, text))?;
    Ok(TeraTemplate { tera })
}

impl TeraTemplate {
    /// Renders it with `vars`, which must be a map.
    pub(super) fn render(&self, text: &str, vars: &Value) -> Result<String, TemplateError> {
        let fail = |error: &tera::Error| described(error, text);
        let mut context = Context::new();
        if let Value::Map(map) = vars {
            for (key, value) in map.iter() {
                context.insert(key.clone(), &serde_json::Value::from(value));
            }
        }
        let mut output = Bounded { bytes: Vec::new(), is_full: false };
        let rendered = self.tera.render_to(NAME, &context, &mut output);
        if output.is_full {
            let mib = MAX_OUTPUT_BYTES >> 20;
            let cause = Cause::Limit(format!("the text becomes longer than {mib} MiB"));
            return Err(TemplateError::placed(1, 1, cause));
        }
        rendered.map_err(|error| fail(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|_| TemplateError::placed(1, 1, Cause::Tera("not UTF-8".into())))
    }
}

/// Takes text up to a bound.
struct Bounded {
    bytes: Vec<u8>,
    is_full: bool,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT_BYTES {
            self.is_full = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Some errors have their place in the text of a report only: `error: ...`, `--> name:line:column`.
fn reported(report: &str) -> TemplateError {
    let message = report.lines().next().unwrap_or_default();
    let message = message.strip_prefix("error: ").unwrap_or(message);
    let place = report.lines().find_map(|line| line.trim().strip_prefix("--> "));
    let mut numbers = place.unwrap_or_default().rsplit(':').map(str::parse);
    let (column, line) = match (numbers.next(), numbers.next()) {
        (Some(Ok(column)), Some(Ok(line))) => (column, line),
        _ => (1, 1),
    };
    TemplateError::placed(line, column, Cause::Tera(message.to_owned()))
}

/// Where and what, on one line.
fn described(error: &tera::Error, text: &str) -> TemplateError {
    match error.kind() {
        ErrorKind::SyntaxError(report) | ErrorKind::RenderingError(report) => {
            let span = report.span();
            let cause = Cause::Tera(report.message().to_owned());
            match text.get(span.range.start..) {
                Some(_) => TemplateError::new(text, span.range.start, cause),
                None => TemplateError::placed(span.start_line, span.start_col + 1, cause),
            }
        }
        other => reported(&other.to_string()),
    }
}
