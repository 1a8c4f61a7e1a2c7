//! Logs: which lines there are, and how they look. Standard output takes them all.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::config::LogFormat;

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in `RUST_LOG`'s syntax.
    #[error("RUST_LOG {0}")]
    Filter(String),
    /// Somebody else in this process already did it.
    #[error("logs are already set up: {0}")]
    AlreadySet(#[from] tracing::subscriber::SetGlobalDefaultError),
}

/// Sets up this process's logs, once, on standard output.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    let filter = parse_filter(filter)
        .map_err(TelemetryError::Filter)?
        .and(filter_fn(is_ours_or_harmless));
    let lines = lines(format, std::io::stdout).with_filter(filter);
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines))?;
    Ok(())
}

/// Whether `text` is in `RUST_LOG`'s syntax, and what is wrong if not.
///
/// # Errors
/// The problem, to be read after the setting's name.
pub fn check_filter(text: &str) -> Result<(), String> {
    parse_filter(text).map(drop)
}

fn parse_filter(text: &str) -> Result<EnvFilter, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    for directive in text.split(',').map(str::trim) {
        // A lone word that is no level means "everything of the crate of that name, and nothing else".
        let word = directive.to_ascii_lowercase();
        let typo = |level: &&str| strsim::damerau_levenshtein(level, &word) == 1;
        if let Some(level) = LEVELS.into_iter().find(typo)
            && !LEVELS.contains(&word.as_str())
        {
            return Err(format!(
                "has {directive:?}, which is no level; did you mean {level}?"
            ));
        }
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(text)
        .map_err(|error| {
            format!("must be levels such as info,duorelay=debug, but is {text:?} ({error})")
        })
}

/// Below `info`, WebSocket, HTTP and Redis libraries print what they carry: tokens and payloads.
/// No setting may bring those lines back.
fn is_ours_or_harmless(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ours = target == "duorelay" || target.starts_with("duorelay::");
    ours || *metadata.level() <= Level::INFO
}

type Lines = Box<dyn Layer<Registry> + Send + Sync>;

fn lines<W>(format: LogFormat, writer: W) -> Lines
where
    W: for<'w> tracing_subscriber::fmt::MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Pretty => layer
            .with_ansi(std::env::var_os("NO_COLOR").is_none())
            .boxed(),
        LogFormat::Json => layer
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
        LogFormat::Gcp => layer
            .fmt_fields(JsonFields::new())
            .event_format(CloudLogging)
            .boxed(),
    }
}

/// One JSON object a line with the fields that Cloud Logging's agents look for
/// (<https://cloud.google.com/logging/docs/structured-logging#structured_logging_special_fields>).
struct CloudLogging;

impl<S> FormatEvent<S, JsonFields> for CloudLogging
where
    S: Subscriber + for<'s> LookupSpan<'s>,
{
    fn format_event(
        &self,
        ctx: &FmtContext<'_, S, JsonFields>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields(Map::new());
        for span in ctx
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            let extensions = span.extensions();
            let text = extensions
                .get::<FormattedFields<JsonFields>>()
                .map_or("{}", |fields| fields.as_str());
            if let Ok(Value::Object(of_span)) = serde_json::from_str(text) {
                of_span
                    .into_iter()
                    .for_each(|(name, value)| fields.put(&name, value));
            }
        }
        event.record(&mut fields);

        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let Fields(mut line) = fields;
        line.insert(
            "severity".to_owned(),
            severity(*event.metadata().level()).into(),
        );
        line.insert("time".to_owned(), time.into());
        line.insert("target".to_owned(), event.metadata().target().into());
        writeln!(writer, "{}", Value::Object(line))
    }
}

/// <https://cloud.google.com/logging/docs/reference/v2/rest/v2/LogEntry#LogSeverity>
const fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "INFO",
        Level::DEBUG | Level::TRACE => "DEBUG",
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    fn put(&mut self, name: &str, value: Value) {
        let name = match name {
            "trace" => "logging.googleapis.com/trace",
            "span_id" | "spanId" => "logging.googleapis.com/spanId",
            "trace_sampled" => "logging.googleapis.com/trace_sampled",
            other => other,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // The `log` crate's records carry their own target and place under these names.
        if !field.name().starts_with("log.") {
            self.put(field.name(), format!("{value:?}").into());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if !field.name().starts_with("log.") {
            self.put(field.name(), value.into());
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !field.name().starts_with("log.") {
            self.put(field.name(), value.into());
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }
}
