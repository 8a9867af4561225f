//! What is logged, in which form, and where: the only place that installs a subscriber of `tracing`.
//! The library emits events and keeps no state of its own.

use std::{
    collections::HashMap,
    fmt::{self, Debug},
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::net::UnixDatagram,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum, ValueHint};
use imgfs::util::disturbs;
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    fmt::{
        FmtContext, FormatEvent, FormatFields, MakeWriter,
        format::Writer,
        time::{FormatTime, SystemTime},
    },
    layer::{Context, Filter, Layer, SubscriberExt},
    registry::LookupSpan,
};

use super::{Failure, output::Output};

/// The same failure is logged once within this time.
const REPEATED: Duration = Duration::from_secs(10);

/// Failures that are remembered. Further ones are not logged before one of them has been forgotten.
const REMEMBERED: usize = 256;

/// What is logged, and where.
#[derive(Args)]
#[command(next_help_heading = "Logging")]
pub(crate) struct LogArgs {
    /// Log what is at least this severe; by default warn for a mount, and off for everything else
    #[arg(long, global = true, value_name = "LEVEL", value_enum)]
    log_level: Option<LogLevel>,
    /// Form of the log
    #[arg(long, global = true, value_name = "FORMAT", value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// Append the log to this file instead of writing it to standard error, or, of a mount in the background, to
    /// the system's log
    #[arg(long, global = true, value_name = "FILE", value_hint = ValueHint::FilePath)]
    log_file: Option<std::path::PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogLevel {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// A line for people
    Text,
    /// A JSON object on each line
    Json,
}

impl LogArgs {
    /// Logs from now on, at `default` if no level was asked for.
    pub(crate) fn install(
        &self,
        default: LevelFilter,
        output: &Arc<Output>,
    ) -> Result<(), Failure> {
        let level = match self.log_level {
            None => default,
            Some(LogLevel::Off) => LevelFilter::OFF,
            Some(LogLevel::Error) => LevelFilter::ERROR,
            Some(LogLevel::Warn) => LevelFilter::WARN,
            Some(LogLevel::Info) => LevelFilter::INFO,
            Some(LogLevel::Debug) => LevelFilter::DEBUG,
            Some(LogLevel::Trace) => LevelFilter::TRACE,
        };
        let target = match &self.log_file {
            None => Target::Stderr(output.clone()),
            Some(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                let failed = |e| Failure::new(format!("--log-file {}: {e}", path.display()));
                Target::File(Mutex::new(file.map_err(failed)?))
            }
        };
        if level == LevelFilter::OFF {
            return Ok(());
        }
        let subscriber = subscriber(level, self.log_format, target);
        tracing::subscriber::set_global_default(subscriber)
            .map_err(|e| Failure::new(format!("cannot log: {e}")))
    }
}

/// What takes events and writes them.
fn subscriber(
    level: LevelFilter,
    format: LogFormat,
    target: Target,
) -> impl Subscriber + Send + Sync {
    // Where no file is written, somebody else notes the time: the journal, or whoever looks.
    let with_time = matches!(target, Target::File(_));
    let layer = tracing_subscriber::fmt::layer().with_writer(target).log_internal_errors(false);
    let layer = match format {
        LogFormat::Text => layer.event_format(Text { with_time }).boxed(),
        LogFormat::Json => layer.json().flatten_event(true).with_span_list(false).boxed(),
    };
    let chosen = Chosen { level, logged: Mutex::default() };
    tracing_subscriber::registry().with(layer.with_filter(chosen))
}

/// Where lines go. Each is written at once.
enum Target {
    Stderr(Arc<Output>),
    File(Mutex<File>),
}

/// Where the system's log takes messages (syslog(3)); with systemd, that is the journal.
const SYSTEM_LOG: &str = "/dev/log";

/// The facility `daemon`, as it stands in the priority of a message.
const DAEMON: u8 = 3 << 3;

/// Set when this process has let go of standard error.
static STDERR_IS_LEFT: AtomicBool = AtomicBool::new(false);

/// From now on what would be logged to standard error goes to the system's log.
pub(super) fn leave_stderr() {
    STDERR_IS_LEFT.store(true, Ordering::Relaxed);
}

/// Sends a line to the system's log that takes messages at `socket`. Nobody waits for that, and if there is no
/// such log, there is nowhere left to say so.
fn to_system_log(socket: &Path, level: Level, line: &[u8]) -> io::Result<()> {
    let severity = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    };
    let line = line.strip_prefix(b"imgfs: ").unwrap_or(line).trim_ascii_end();
    let head = format!("<{}>imgfs[{}]: ", DAEMON | severity, std::process::id());
    let log = UnixDatagram::unbound()?;
    log.set_nonblocking(true)?;
    log.send_to(&[head.as_bytes(), line].concat(), socket)?;
    Ok(())
}

/// What writes an event of a level.
struct Line<'a> {
    target: &'a Target,
    level: Level,
}

impl<'a> MakeWriter<'a> for Target {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { target: self, level: Level::INFO }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Line<'a> {
        Line { target: self, level: *event.level() }
    }
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.target {
            Target::Stderr(_) if STDERR_IS_LEFT.load(Ordering::Relaxed) => {
                to_system_log(Path::new(SYSTEM_LOG), self.level, line)?;
            }
            // Progress bars stay below it.
            Target::Stderr(output) => {
                output.bars.suspend(|| io::stderr().lock().write_all(line))?;
            }
            Target::File(file) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).write_all(line)?;
            }
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `imgfs: WARN message image=... digest=...`, after the time if it is not known otherwise. A field
/// that the message has already is not repeated.
struct Text {
    with_time: bool,
}

impl<S, F> FormatEvent<S, F> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    F: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, F>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.with_time {
            SystemTime.format_time(&mut writer)?;
            writer.write_char(' ')?;
        }
        write!(writer, "imgfs: {} ", event.metadata().level())?;
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = fields.message;
        for (name, value) in fields.others {
            if !line.contains(&value) {
                line += &format!(" {name}={value}");
            }
        }
        // Names and messages come from registries, and must not begin a line or move the cursor.
        let clean: String = line.chars().map(|c| if disturbs(c) { '?' } else { c }).collect();
        writeln!(writer, "{clean}")
    }
}

/// Chooses what is logged: events of imgfs at the level that was asked for, and each failure once
/// within [`REPEATED`]. Libraries below imgfs log requests with everything in them, so what they
/// have to say is left out.
struct Chosen {
    level: LevelFilter,
    /// When each failure was logged.
    logged: Mutex<HashMap<String, Instant>>,
}

impl<S> Filter<S> for Chosen {
    fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        let target = metadata.target();
        let is_own = target == "imgfs" || target.starts_with("imgfs::");
        is_own && *metadata.level() <= self.level
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::WARN {
            return true;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        logged.retain(|_, at| at.elapsed() < REPEATED);
        if logged.contains_key(&fields.message) || logged.len() >= REMEMBERED {
            return false;
        }
        logged.insert(fields.message, Instant::now());
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.others.push((name, format!("{value:?}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is logged at `level` while `work` runs.
    fn logged(level: LevelFilter, format: LogFormat, work: impl FnOnce()) -> Vec<String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        let target = Target::File(Mutex::new(file.reopen().unwrap()));
        tracing::subscriber::with_default(subscriber(level, format, target), work);
        std::fs::read_to_string(file.path()).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_failure_is_logged_once_for_a_while() {
        let lines = logged(LevelFilter::WARN, LogFormat::Text, || {
            for attempt in 0..3 {
                tracing::warn!(attempt, image = "r/a", "registry r: it fails");
                tracing::warn!(attempt, image = "s", "registry s: it fails");
                tracing::info!("not asked for");
            }
        });
        assert_eq!(lines.len(), 2, "{lines:?}");
        let expected = "Z imgfs: WARN registry r: it fails attempt=0 image=r/a";
        assert!(lines[0].ends_with(expected), "{lines:?}");
        assert!(lines[1].ends_with("registry s: it fails attempt=0"), "{lines:?}");
    }

    #[test]
    fn what_registries_say_stays_on_its_line() {
        let lines = logged(LevelFilter::WARN, LogFormat::Text, || {
            let image = "a\u{1b}[31m\nforged";
            tracing::warn!(image = %image, "{image}");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(!lines[0].contains('\u{1b}'), "{lines:?}");
    }

    #[test]
    fn the_system_log_is_told_how_severe_it_is() {
        let place = tempfile::tempdir().unwrap();
        let socket = place.path().join("log");
        let system = UnixDatagram::bind(&socket).unwrap();
        let own = std::process::id();
        for (level, line, expected) in [
            (
                Level::WARN,
                &b"imgfs: WARN it fails\n"[..],
                format!("<28>imgfs[{own}]: WARN it fails"),
            ),
            (Level::ERROR, b"{\"a\":1}\n", format!("<27>imgfs[{own}]: {{\"a\":1}}")),
            (Level::TRACE, b"", format!("<31>imgfs[{own}]: ")),
        ] {
            to_system_log(&socket, level, line).unwrap();
            let mut message = [0; 100];
            let length = system.recv(&mut message).unwrap();
            assert_eq!(String::from_utf8_lossy(&message[..length]), expected);
        }
        assert!(to_system_log(&place.path().join("none"), Level::WARN, b"x").is_err());
    }

    #[test]
    fn libraries_below_are_not_logged() {
        let lines = logged(LevelFilter::TRACE, LogFormat::Text, || {
            tracing::debug!(target: "h2::codec", authorization = "Basic x", "frame");
            tracing::debug!(target: "imgfsx", "no part of imgfs");
            tracing::debug!(target: "imgfs::backend", "request");
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
    }

    #[test]
    fn json_has_the_fields_and_the_mount() {
        let lines = logged(LevelFilter::WARN, LogFormat::Json, || {
            let span = tracing::error_span!("mount", mountpoint = "/mnt");
            span.in_scope(|| tracing::warn!(image = "a:1", "it \"fails\"\n"));
        });
        assert_eq!(lines.len(), 1, "{lines:?}");
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        for (field, expected) in [
            ("/level", "WARN"),
            ("/message", "it \"fails\"\n"),
            ("/image", "a:1"),
            ("/span/mountpoint", "/mnt"),
        ] {
            assert_eq!(line.pointer(field).and_then(|v| v.as_str()), Some(expected), "{line}");
        }
        assert!(line["timestamp"].is_string());
    }
}
