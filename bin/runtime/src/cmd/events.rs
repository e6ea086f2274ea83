//! `kata-runtime events`: what a container uses, once or again and again.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use kata_wire::proto::{ContainerRef, StatsResponse};
use serde_json::{Value, json};

use crate::cli::Globals;
use crate::container::client::{self, block_on, said, short};
use crate::report;

/// Which container, how often.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Time between two reports: seconds, or a number with s, m or h
    #[arg(long, value_name = "TIME", default_value = "5s")]
    interval: String,
    /// Report once, and leave
    #[arg(long)]
    stats: bool,
    /// Container id
    id: String,
}

/// Prints reports, one JSON object a line, until the container has ended.
///
/// # Errors
/// An unknown container, or one that does not run.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let interval = parse_interval(&args.interval)
        .with_context(|| format!("--interval {:?} is no time (5s, 1m, 2h)", args.interval))?;
    let found = client::expect(globals, &args.id)?;
    let request = ContainerRef {
        container_id: args.id.clone(),
        ..Default::default()
    };
    block_on(async {
        let connection = found.connect_live().await?;
        let mut reports = 0;
        loop {
            match connection.guest.stats(short(), &request).await {
                Ok(stats) => report::print(&format!("{}\n", describe(&args.id, &stats)))?,
                // It has ended between two reports.
                Err(_) if reports > 0 => return Ok(()),
                Err(error) => return Err(said(error)),
            }
            if args.stats {
                return Ok(());
            }
            reports += 1;
            tokio::time::sleep(interval).await;
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

fn parse_interval(text: &str) -> anyhow::Result<Duration> {
    let (number, unit) = match text.find(|c: char| !c.is_ascii_digit()) {
        Some(end) => text.split_at(end),
        None => (text, "s"),
    };
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("unknown unit {unit:?}"),
    };
    let count: u64 = number.parse()?;
    if count == 0 {
        bail!("must be more than nothing");
    }
    Ok(Duration::from_secs(count.saturating_mul(seconds)))
}

/// The report in runc's shape.
fn describe(id: &str, stats: &StatsResponse) -> Value {
    let nanos = |usecs: u64| usecs.saturating_mul(1000);
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {
                "usage": {
                    "total": nanos(stats.cpu_usage_usecs),
                    "kernel": nanos(stats.cpu_system_usecs),
                    "user": nanos(stats.cpu_user_usecs),
                },
                "throttling": {
                    "periods": stats.cpu_periods,
                    "throttledPeriods": stats.cpu_throttled_periods,
                    "throttledTime": nanos(stats.cpu_throttled_usecs),
                },
            },
            "memory": {
                "cache": stats.memory_stat.get("file").copied().unwrap_or(0),
                "usage": {
                    "limit": stats.memory_limit_bytes,
                    "usage": stats.memory_bytes,
                    "max": stats.memory_peak_bytes,
                    "failcnt": stats.memory_max_events,
                },
                "swap": { "limit": stats.swap_limit_bytes, "usage": stats.swap_bytes },
                "raw": stats.memory_stat,
            },
            "pids": { "current": stats.pids, "limit": stats.pids_limit },
            "blkio": {
                "ioServiceBytesRecursive": stats.io.iter().flat_map(|io| [
                    json!({ "major": io.major, "minor": io.minor, "op": "Read", "value": io.read_bytes }),
                    json!({ "major": io.major, "minor": io.minor, "op": "Write", "value": io.write_bytes }),
                ]).collect::<Vec<_>>(),
            },
            "network_interfaces": stats.interfaces.iter().map(|interface| json!({
                "Name": interface.name,
                "RxBytes": interface.rx_bytes,
                "RxPackets": interface.rx_packets,
                "RxErrors": interface.rx_errors,
                "RxDropped": interface.rx_dropped,
                "TxBytes": interface.tx_bytes,
                "TxPackets": interface.tx_packets,
                "TxErrors": interface.tx_errors,
                "TxDropped": interface.tx_dropped,
            })).collect::<Vec<_>>(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_have_units() {
        assert_eq!(parse_interval("5s").expect("seconds"), Duration::from_secs(5));
        assert_eq!(parse_interval("2m").expect("minutes"), Duration::from_secs(120));
        assert_eq!(parse_interval("7").expect("plain"), Duration::from_secs(7));
        for text in ["", "0s", "5x", "s", "-1s"] {
            assert!(parse_interval(text).is_err(), "{text}");
        }
    }
}
