//! Where the log lines go: a worker's and the coordinator's to standard error, which is a file of the run; the
//! launcher's to `logs/launch.log`, so that they never cross the progress bar. And in which form: text, or
//! JSON with run, generation, step and worker on every line.

use std::fmt;
use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use anyhow::Context;
use serde_json::{Map, Value, json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::LogFormat;
use crate::clock::unix_time;
use crate::run_dir::RunDir;

/// The form that the launcher was asked for: its workers get the same.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Generation and step of the launcher's lines.
static STANDS_AT: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));

/// For the launcher.
pub(crate) fn to_run(run_dir: &RunDir, format: LogFormat) -> anyhow::Result<()> {
    let path = run_dir.logs().join("launch.log");
    let file = OpenOptions::new().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("opening {}", path.display()))?;
    let format = *FORMAT.get_or_init(|| format);
    let stands_at = || (STANDS_AT.0.load(Ordering::Relaxed), STANDS_AT.1.load(Ordering::Relaxed));
    let origin = Origin::new(run_dir.path(), None, stands_at);
    begin(format, origin, Mutex::new(file));
    Ok(())
}

/// For a worker, or for the coordinator, which has no number; `stands_at` tells its generation and step.
pub(crate) fn to_standard_error(
    format: LogFormat,
    (run_dir, worker): (&Path, Option<u32>),
    stands_at: impl Fn() -> (u64, u64) + Send + Sync + 'static,
) {
    begin(format, Origin::new(run_dir, worker, stands_at), std::io::stderr);
}

/// Arguments that make a process write what the launcher writes.
pub(crate) fn arguments() -> [&'static str; 2] {
    let format = FORMAT.get().copied().unwrap_or_default();
    ["--log-format", format.name()]
}

/// Of the launcher's lines to come.
pub(crate) fn generation_is(generation: u64) {
    STANDS_AT.0.store(generation, Ordering::Relaxed);
}

/// Of the launcher's lines to come.
pub(crate) fn step_is(step: u64) {
    STANDS_AT.1.store(step, Ordering::Relaxed);
}

fn begin<W>(format: LogFormat, origin: Origin, writer: W)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // What cannot be written is dropped. Told of such errors, it would panic where standard error is the file of a
    // disk that is full, and take the thread that had something to say with it.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_ansi(false)
        .log_internal_errors(false)
        .with_writer(writer);
    // Only fails when there is a subscriber already, which then has the lines.
    let _ = match format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.event_format(origin).try_init(),
    };
}

/// `RUST_LOG`, or `info`.
fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"))
}

/// Who writes the lines, and where it stands. Formats them as JSON, one object a line.
struct Origin {
    /// The run directory's own name, as Prometheus has it.
    run: String,
    worker: Option<u32>,
    stands_at: Box<dyn Fn() -> (u64, u64) + Send + Sync>,
}

impl Origin {
    fn new(
        run_dir: &Path,
        worker: Option<u32>,
        stands_at: impl Fn() -> (u64, u64) + Send + Sync + 'static,
    ) -> Self {
        Self { run: RunDir::name_of(run_dir), worker, stands_at: Box::new(stands_at) }
    }

    fn line(&self, event: &Event<'_>) -> Value {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let (generation, step) = (self.stands_at)();
        json!({
            "time": (unix_time() * 1e3).round() / 1e3,
            "level": event.metadata().level().as_str(),
            "run": self.run,
            "worker": self.worker,
            "generation": generation,
            "step": step,
            "target": event.metadata().target(),
            "message": fields.message,
            // Apart: an event's own step or worker may be another one.
            "fields": fields.others,
        })
    }
}

impl<S, N> FormatEvent<S, N> for Origin
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writeln!(writer, "{}", self.line(event))
    }
}

/// What an event says.
#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            _ => self.add(field, text.into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.add(field, value.into()),
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, json!(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_json_line_says_who_and_where_beside_what() {
        let kept = Kept::default();
        let writer = kept.clone();
        let origin = Origin::new(&std::env::temp_dir(), Some(3), || (2, 41));
        let lines = tracing_subscriber::fmt().with_writer(move || writer.clone());
        let lines = lines.event_format(origin).finish();
        tracing::subscriber::with_default(lines, || {
            let who = "a \"worker\"\n\u{1b}[31m";
            tracing::warn!(step = 40_u64, %who, share = 0.5, late = true, "an event of step {}", 40);
        });
        let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&line["worker"], &line["generation"], &line["step"]),
            (&json!(3), &json!(2), &json!(41))
        );
        assert_eq!(
            (&line["level"], &line["message"]),
            (&json!("WARN"), &json!("an event of step 40"))
        );
        assert_eq!(line["fields"]["step"], 40);
        assert_eq!(line["fields"]["who"], "a \"worker\"\n\u{1b}[31m");
        assert_eq!(
            (&line["fields"]["share"], &line["fields"]["late"]),
            (&json!(0.5), &json!(true))
        );
        assert!(line["run"].as_str().unwrap().len() > 1 && line["time"].as_f64().unwrap() > 1e9);
        assert!(!text.contains('\u{1b}'), "control bytes are escaped");
    }
}
