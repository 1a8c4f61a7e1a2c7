//! Logs: which lines there are, and how they look. Standard output takes them all.

use std::fmt;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, filter_fn};
use tracing_subscriber::fmt::format::{JsonFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::{SubscriberInitExt as _, TryInitError};
use tracing_subscriber::{EnvFilter, Layer, Registry};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people at a terminal.
    Pretty,
    /// One JSON object a line.
    Json,
    /// One JSON object a line, with the fields of Google's Cloud Logging.
    Gcp,
}

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in `RUST_LOG`'s syntax.
    #[error("RUST_LOG {0}")]
    Filter(String),
    /// Somebody else in this process already did it.
    #[error("logs are already set up: {0}")]
    AlreadySet(#[from] TryInitError),
}

/// Sets up this process's logs, once, on standard output.
///
/// # Errors
/// See [`TelemetryError`].
pub fn start(format: LogFormat, filter: &str) -> Result<(), TelemetryError> {
    subscriber(format, filter, std::io::stdout)?.try_init()?;
    Ok(())
}

fn subscriber<W>(
    format: LogFormat,
    filter: &str,
    writer: W,
) -> Result<impl Subscriber + Send + Sync, TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let filter = parse_filter(filter).map_err(TelemetryError::Filter)?;
    let lines = tracing_subscriber::fmt::layer().with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match format {
        LogFormat::Pretty => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).boxed(),
        LogFormat::Gcp => lines.fmt_fields(JsonFields::new()).event_format(CloudLogging).boxed(),
    };
    let lines = lines.with_filter(filter.and(filter_fn(is_ours_or_harmless)));
    Ok(tracing_subscriber::registry().with(lines))
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
            return Err(format!("has {directive:?}, which is no level; did you mean {level}?"));
        }
    }
    EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse(text)
        .map_err(|error| format!("must be levels such as info,duorelay=debug, but is {text:?} ({error})"))
}

/// Below `info`, WebSocket, HTTP and Redis libraries print what they carry: tokens and payloads.
/// No setting may bring those lines back.
fn is_ours_or_harmless(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    let ours = target == "duorelay" || target.starts_with("duorelay::");
    ours || *metadata.level() <= Level::INFO
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
        for span in ctx.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
            let extensions = span.extensions();
            let text = extensions.get::<FormattedFields<JsonFields>>().map_or("{}", |fields| fields.as_str());
            if let Ok(Value::Object(of_span)) = serde_json::from_str(text) {
                of_span.into_iter().for_each(|(name, value)| fields.put(&name, value));
            }
        }
        event.record(&mut fields);

        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let Fields(mut line) = fields;
        line.insert("severity".to_owned(), severity(*event.metadata().level()).into());
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
            // Records of the `log` crate bring their place along as fields.
            "log.target" => "target",
            "log.module_path" | "log.file" | "log.line" => return,
            other => other,
        };
        self.0.insert(name.to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field.name(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field.name(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field.name(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field.name(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field.name(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field.name(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    use tracing::{debug, error, info, info_span, subscriber::with_default, trace, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, log: impl FnOnce()) -> Vec<String> {
        let sink = Sink::default();
        let writer = sink.clone();
        with_default(subscriber(format, filter, move || writer.clone()).unwrap(), log);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap().lines().map(str::to_owned).collect()
    }

    fn json(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    #[test]
    fn cloud_logging_gets_its_fields_and_those_of_the_spans() {
        let lines = logged(LogFormat::Gcp, "trace", || {
            let outer = info_span!("handshake", trace = "projects/p/traces/7", spanId = "9", user.id = "u");
            let _outer = outer.enter();
            info!(connections = 3, ready = true, share = 0.5, "moved {} sockets", 2);
            warn!("w");
            error!("e");
            debug!("d");
            trace!("t");
        });
        let mut first = json(&lines[0]);
        let time = first.as_object_mut().unwrap().remove("time").unwrap();
        assert!(time.as_str().unwrap().ends_with('Z'));
        assert_eq!(
            first,
            serde_json::json!({
                "severity": "INFO",
                "message": "moved 2 sockets",
                "target": "duorelay::telemetry::tests",
                "logging.googleapis.com/trace": "projects/p/traces/7",
                "logging.googleapis.com/spanId": "9",
                "user.id": "u",
                "connections": 3,
                "ready": true,
                "share": 0.5,
            })
        );
        let severities: Vec<_> = lines.iter().map(|line| json(line)["severity"].clone()).collect();
        assert_eq!(severities, ["INFO", "WARNING", "ERROR", "DEBUG", "DEBUG"]);
    }

    #[test]
    fn json_lines_have_time_level_message_and_fields() {
        let lines = logged(LogFormat::Json, "info", || info!(connections = 3, "moved"));
        let line = json(&lines[0]);
        assert_eq!(
            (&line["level"], &line["message"], &line["connections"]),
            (&"INFO".into(), &"moved".into(), &3.into())
        );
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn pretty_lines_are_for_people() {
        let lines = logged(LogFormat::Pretty, "info", || info!(connections = 3, "moved"));
        assert!(lines.len() == 1 && lines[0].contains("moved"), "{lines:?}");
    }

    #[test]
    fn the_filter_decides() {
        let all = || {
            debug!("d");
            info!("i");
            warn!("w");
        };
        assert_eq!(logged(LogFormat::Json, "info", all).len(), 2);
        assert_eq!(logged(LogFormat::Json, "info,duorelay::telemetry=debug", all).len(), 3);
        assert_eq!(logged(LogFormat::Json, "off", all).len(), 0);
    }

    #[test]
    fn no_filter_brings_back_what_libraries_print_below_info() {
        let lines = logged(LogFormat::Json, "trace,tungstenite=trace", || {
            trace!(target: "tungstenite::protocol", "Received message PAYLOAD");
            debug!(target: "hyper::proto", "authorization: TOKEN");
            debug!(target: "duorelayed", "TOKEN");
            info!(target: "fred", "connected");
        });
        assert!(lines.len() == 1 && lines[0].contains("connected"), "{lines:?}");
    }

    #[test]
    fn a_bad_filter_is_told() {
        for good in
            ["info", "INFO", "warn,duorelay=debug", "duorelay::edge=trace,off", "error,hyper", "", "3"]
        {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for (bad, part) in [
            ("duorelay=loud", "duorelay=loud"),
            ("inof", "mean info"),
            ("warn,debgu", "mean debug"),
            ("=", "must be"),
        ] {
            let problem = check_filter(bad).unwrap_err();
            assert!(problem.contains(part), "{bad}: {problem}");
        }
    }
}
