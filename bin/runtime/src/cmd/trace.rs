//! `kata-runtime trace`: where the time of a sandbox's start went.

use std::process::ExitCode;

use anyhow::Context;
use clap::ValueEnum;
use kata_sandbox::record::Home;
use kata_sandbox::timeline::{Span, Trace};
use kata_sys::random;
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::container::client;
use crate::report;

/// Which sandbox, and how it is shown.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Id of a container, or of a sandbox that containerd has made
    id: String,
    /// How it is shown
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    format: Format,
}

/// How phases are shown.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// One a line: when it began, how long it took, what it was.
    Table,
    /// As the sandbox process has noted them; times in microseconds.
    Json,
    /// An OpenTelemetry trace (OTLP, JSON encoding), as collectors take it at `/v1/traces`.
    Otlp,
}

/// Prints the phases of the start.
///
/// # Errors
/// An unknown id; a sandbox that has noted nothing yet.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let home = home(globals, &args.id)?;
    let trace = Trace::read(&home).with_context(|| format!("sandbox {:?} has noted no start yet", args.id))?;
    let text = match args.format {
        Format::Table => table(&trace.spans),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(&trace)?),
        Format::Otlp => format!("{}\n", otlp(&args.id, &trace, &mut random::bytes)),
    };
    report::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The directory of the sandbox of the command line's container `id`, else of any engine's sandbox of this name.
fn home(globals: &Globals, id: &str) -> anyhow::Result<Home> {
    if let Some(found) = client::find(globals, id)? {
        return Ok(found.sandbox_home());
    }
    let mut homes = Home::all().context("cannot list the sandboxes")?.into_iter();
    let named = homes.find_map(|home| {
        let record = home.read().ok().filter(|record| record.id == id)?;
        Some(record.sandbox_home(&home))
    });
    named.with_context(|| format!("no container and no sandbox has the id {id:?}"))
}

/// Phases of a start, one a line: when it began and how long it took, in milliseconds.
pub fn table(spans: &[Span]) -> String {
    spans
        .iter()
        .map(|span| {
            let millis = |usecs: u64| format!("{}.{} ms", usecs / 1000, usecs % 1000 / 100);
            format!(
                "{:>12}  {:>12}  {}\n",
                millis(span.from_usecs),
                millis(span.took_usecs),
                span.name
            )
        })
        .collect()
}

/// One trace: a span for each phase below one for all of them. Ids are random, as the specification wants them.
fn otlp(id: &str, trace: &Trace, random: &mut dyn FnMut(usize) -> Vec<u8>) -> Value {
    let mut name = |bytes| -> String { random(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let (trace_id, root) = (name(16), name(8));
    // Numbers of 64 bits are texts in this encoding.
    let at = |usecs: u64| (trace.began_unix_nanos.saturating_add(usecs.saturating_mul(1000))).to_string();
    let span = |name: &str, own: &str, parent: &str, from: u64, to: u64| {
        json!({
            "traceId": trace_id, "spanId": own, "parentSpanId": parent, "name": name, "kind": 1,
            "startTimeUnixNano": at(from), "endTimeUnixNano": at(to),
        })
    };
    let end = |span: &Span| span.from_usecs.saturating_add(span.took_usecs);
    let last = trace.spans.iter().map(end).max().unwrap_or_default();
    let mut spans = vec![span("start", &root, "", 0, last)];
    for phase in &trace.spans {
        spans.push(span(&phase.name, &name(8), &root, phase.from_usecs, end(phase)));
    }
    let attribute = |key: &str, value: &str| json!({"key": key, "value": {"stringValue": value}});
    json!({"resourceSpans": [{
        "resource": {"attributes": [attribute("service.name", "kata"), attribute("kata.sandbox.id", id)]},
        "scopeSpans": [{"scope": {"name": "kata-sandbox", "version": env!("CARGO_PKG_VERSION")}, "spans": spans}],
    }]})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let span = |name: &str, from_usecs, took_usecs| Span {
            name: name.into(),
            from_usecs,
            took_usecs,
        };
        Trace {
            began_unix_nanos: 1_700_000_000_000_000_000,
            spans: vec![span("boot", 1_500, 2_000_049), span("create", 2_002_000, 900)],
        }
    }

    #[test]
    fn a_table_has_a_line_for_each_phase() {
        let expected = "      1.5 ms     2000.0 ms  boot\n   2002.0 ms        0.9 ms  create\n";
        assert_eq!(table(&trace().spans), expected);
    }

    #[test]
    fn a_trace_is_one_tree() {
        let mut next = 0;
        let mut ids = |count: usize| {
            next += 1;
            vec![next; count]
        };
        let told = otlp("pod1", &trace(), &mut ids);
        let spans = told["resourceSpans"][0]["scopeSpans"][0]["spans"]
            .as_array()
            .expect("spans");
        let of = |index: usize, key: &str| spans[index][key].as_str().expect("text").to_owned();
        assert_eq!(spans.len(), 3);
        assert_eq!((of(0, "traceId"), of(0, "spanId")), ("01".repeat(16), "02".repeat(8)));
        assert_eq!(
            (of(1, "parentSpanId"), of(2, "parentSpanId")),
            (of(0, "spanId"), of(0, "spanId"))
        );
        assert_eq!(of(1, "startTimeUnixNano"), "1700000000001500000");
        assert_eq!(of(2, "endTimeUnixNano"), of(0, "endTimeUnixNano"));
        assert_eq!(
            told["resourceSpans"][0]["resource"]["attributes"][1]["value"]["stringValue"],
            "pod1"
        );
    }
}
