//! What users see: lines, tables and JSON on standard output, errors and warnings on standard
//! error.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use imgfs::util::disturbs;
use indicatif::{DecimalBytes, MultiProgress};
use serde::Serialize;
use serde_json::{Value, json};

use super::args::OutputArgs;

/// Where everything is printed. While progress bars are shown, lines appear above them.
pub(crate) struct Output {
    pub(crate) json: bool,
    pub(crate) quiet: bool,
    pub(crate) bars: MultiProgress,
    /// Whether standard output is for something else, so that everything goes to standard error.
    is_taken: AtomicBool,
    /// Why something could not be printed.
    lost: Mutex<Option<io::Error>>,
}

impl Output {
    pub(crate) fn new(args: OutputArgs) -> Self {
        Self {
            json: args.json,
            quiet: args.quiet,
            bars: MultiProgress::new(),
            is_taken: AtomicBool::new(false),
            lost: Mutex::default(),
        }
    }

    /// Whether to show progress bars.
    pub(crate) fn is_interactive(&self) -> bool {
        !self.json && !self.quiet && io::stderr().is_terminal()
    }

    /// A line for people; not with `--json` or `--quiet`.
    pub(crate) fn line(&self, text: &str) {
        if !self.json && !self.quiet {
            self.stdout(text);
        }
    }

    /// One JSON object; only with `--json`.
    pub(crate) fn event(&self, event: &Value) {
        if self.json {
            self.stdout(&event.to_string());
        }
    }

    /// The report of `command`; only with `--json`.
    pub(crate) fn report(&self, command: &str, report: &impl Serialize) {
        if !self.json {
            return;
        }
        let mut event = json!({"event": "report", "command": command});
        // What is made of text, numbers, lists and maps with such names can always be written.
        if let (Some(event), Ok(Value::Object(report))) =
            (event.as_object_mut(), serde_json::to_value(report))
        {
            event.extend(report);
        }
        self.event(&event);
    }

    pub(crate) fn warning(&self, text: &str) {
        self.stderr(&format!("warning: {text}"));
    }

    pub(crate) fn error(&self, text: &str, hint: Option<&str>) {
        self.stderr(&format!("error: {text}"));
        if let Some(hint) = hint {
            self.stderr(&format!("hint: {hint}"));
        }
    }

    /// Why standard output did not take everything, if it did not. Whoever closes it early
    /// (`| head`) wants no more of it, which is no trouble.
    pub(crate) fn trouble(&self) -> Option<io::Error> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Leaves standard output to what is being written there.
    pub(crate) fn leave_stdout(&self) {
        self.is_taken.store(true, Ordering::Relaxed);
    }

    fn stdout(&self, text: &str) {
        if self.is_taken.load(Ordering::Relaxed) {
            return self.stderr(text);
        }
        let mut stdout = io::stdout().lock();
        let printed = self
            .bars
            .suspend(|| writeln!(stdout, "{}", printable(text)).and_then(|()| stdout.flush()));
        match printed {
            Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
                *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = Some(e);
            }
            _ => {}
        }
    }

    fn stderr(&self, text: &str) {
        self.bars.suspend(|| {
            // There is nowhere left to tell it.
            let _ = writeln!(io::stderr().lock(), "{}", printable(text));
        });
    }
}

/// Names and messages come from registries, and must not move the cursor or look like others.
fn printable(text: &str) -> String {
    text.chars().map(|c| if disturbs(c) && c != '\n' { '?' } else { c }).collect()
}

/// `1.25 GB`
pub(crate) fn bytes(count: u64) -> String {
    DecimalBytes(count).to_string()
}

/// `1 image`, `2 images`
pub(crate) fn count(number: usize, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// Lays rows out in columns; the first row is the heading.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column| {
        rows.iter().filter_map(|row| row.get(column)).map(|c: &String| c.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let lines = rows.iter().map(|row| {
        let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = table(&[row(["NAME", "SIZE"]), row(["a", "1"]), row(["longer", "22"])]);
        assert_eq!(text, "NAME    SIZE\na       1\nlonger  22");
        assert_eq!(table(&[]), "");
        assert_eq!(printable("a\u{1b}[31mb\nc\u{202e}d"), "a?[31mb\nc?d");
        assert_eq!(count(1, "image") + &count(2, "blob"), "1 image2 blobs");
    }
}
