//! Log output on stderr: who speaks (daemon and pid) stands in every line, the level can be changed while it runs.

use super::output::Output;
use mareedb_config::Log;
use std::fmt;
use std::io::IsTerminal;
use tracing::{Event, Subscriber};
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, layer};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, registry};

/// Changes the level of this process.
#[derive(Clone)]
pub struct Level {
    handle: reload::Handle<EnvFilter, Registry>,
}

impl Level {
    /// Sets a new filter.
    pub fn set(&self, text: &str) -> Result<(), String> {
        let filter = filter(text)?;
        self.handle
            .reload(filter)
            .map_err(|error| error.to_string())
    }
}

/// Libraries that say at `info` what only their authors want to know; a filter that names one decides about it.
const QUIET: [&str; 1] = ["openraft"];

/// Parses a level or filter.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let mut full = text.to_owned();
    for library in QUIET {
        if !text.contains(library) {
            full = format!("{full},{library}=warn");
        }
    }
    EnvFilter::builder().parse(full).map_err(|error| {
        format!("{text:?} is no filter such as info or info,mareedb_consensusd=debug: {error}")
    })
}

/// Installs the output of this process; `text` is the filter.
pub fn install(name: &'static str, settings: &Log, text: &str) -> Result<Level, String> {
    let (filter, handle) = reload::Layer::new(filter(text)?);
    let json = settings.format == "json";
    let pid = std::process::id();
    let output = layer()
        .with_writer(Output::stderr().map_err(|error| error.to_string())?)
        .with_ansi(!json && std::io::stderr().is_terminal());
    let output: Box<dyn Layer<_> + Send + Sync> = if json {
        Box::new(
            output
                .json()
                .flatten_event(true)
                .map_event_format(|inner| Named {
                    inner,
                    name,
                    pid,
                    json,
                }),
        )
    } else {
        Box::new(output.map_event_format(|inner| Named {
            inner,
            name,
            pid,
            json,
        }))
    };
    registry()
        .with(filter)
        .with(output)
        .try_init()
        .map_err(|error| error.to_string())?;
    Ok(Level { handle })
}

/// Puts the speaker before each line, or into each object.
struct Named<F> {
    inner: F,
    name: &'static str,
    pid: u32,
    json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Named<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if !self.json {
            write!(writer, "{}[{}] ", self.name, self.pid)?;
            return self.inner.format_event(context, writer, event);
        }
        let mut object = String::new();
        self.inner
            .format_event(context, Writer::new(&mut object), event)?;
        let fields = object.strip_prefix('{').unwrap_or(&object);
        write!(
            writer,
            r#"{{"daemon":"{}","pid":{},{fields}"#,
            self.name, self.pid
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "warn,mareedb_storaged=debug", "off"] {
            filter(good).unwrap();
        }
        let shown = filter("info").unwrap().to_string();
        assert!(shown.contains("openraft=warn"), "{shown}");
        let named = filter("info,openraft=debug").unwrap().to_string();
        assert!(!named.contains("openraft=warn"), "{named}");
        assert!(filter("loud=very").unwrap_err().contains("loud=very"));
    }
}
