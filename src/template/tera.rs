//! Tera's dialect, by the crate `tera`.
//!
//! Nothing is escaped, an undefined variable is an error, and the variables are the same as in the
//! Go dialect.
//!
//! The crate has no budget of steps. What is bounded here is how deep loops nest, what `range()`
//! gives, and the text that comes out; so rendering ends, if not always soon. What a template puts
//! together on its way (`{% set s = s ~ s %}`) is not bounded.

use std::io;

use tera::{Context, ErrorKind, Kwargs, State, Tera, TeraResult};

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
    tera.register_function("range", range);
    check_loops(text)?;
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

/// How deep loops may nest.
const MAX_LOOPS: usize = 3;

/// How many numbers `range()` may give.
const MAX_RANGE: usize = 1000;

fn check_loops(text: &str) -> Result<(), TemplateError> {
    let mut depth = 0_usize;
    for (at, _) in text.match_indices("{%") {
        let tag = text[at + 2..].trim_start_matches('-').trim_start();
        match tag.split(|c: char| !c.is_alphanumeric()).next() {
            Some("for") => depth += 1,
            Some("endfor") => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_LOOPS {
            let cause = Cause::Limit(format!("loops nest more than {MAX_LOOPS} deep"));
            return Err(TemplateError::new(text, at, cause));
        }
    }
    Ok(())
}

/// As Tera's own, which gives up to 100000.
#[allow(clippy::needless_pass_by_value, reason = "Tera wants it so")]
fn range(kwargs: Kwargs, _: &State) -> TeraResult<Vec<i64>> {
    let start = kwargs.get::<i64>("start")?.unwrap_or(0);
    let end = kwargs.must_get::<i64>("end")?;
    let step = kwargs.get::<i64>("step_by")?.unwrap_or(1);
    let mut numbers = Vec::new();
    let mut number = start;
    while (step > 0 && number < end) || (step < 0 && number > end) {
        if numbers.len() == MAX_RANGE {
            let message = format!("range() gives more than {MAX_RANGE} numbers");
            return Err(tera::Error::message(message));
        }
        numbers.push(number);
        match number.checked_add(step) {
            Some(next) => number = next,
            None => break,
        }
    }
    Ok(numbers)
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
