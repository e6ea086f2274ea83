//! `kata-runtime update`: changes the limits of a container.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use containerd_shim_protos::api::UpdateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::{Map, Value, json};

use crate::cli::Globals;
use crate::container::client::{self, block_on, said, short};

/// Which container, which limits.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// File with the limits as JSON (the `linux.resources` object of a config.json), `-` for stdin; the flags below have
    /// no effect then
    #[arg(long, short = 'r', value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Relative weight of block I/O, 10-1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// Length of a CPU period, microseconds
    #[arg(long, value_name = "USECS")]
    cpu_period: Option<u64>,
    /// CPU time in a period, microseconds; -1 for no limit
    #[arg(long, value_name = "USECS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Relative weight of CPU time
    #[arg(long, visible_alias = "cpu-shares", value_name = "N")]
    cpu_share: Option<u64>,
    /// Accepted for compatibility: the guest has no real-time limits
    #[arg(long, value_name = "USECS", hide = true)]
    cpu_rt_period: Option<u64>,
    /// Accepted for compatibility: the guest has no real-time limits
    #[arg(long, value_name = "USECS", hide = true, allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// CPUs to run on
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Memory, bytes; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Memory that is kept as long as possible, bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Memory and swap together, bytes; -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Accepted for compatibility: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory: Option<i64>,
    /// Accepted for compatibility: cgroup v2 has no such limit
    #[arg(long, value_name = "BYTES", hide = true, allow_hyphen_values = true)]
    kernel_memory_tcp: Option<i64>,
    /// Accepted for compatibility: there is no cache allocation in the guest
    #[arg(long, value_name = "SCHEMA", hide = true)]
    l3_cache_schema: Option<String>,
    /// Processes; -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
    /// Container id
    id: String,
}

/// Changes the limits.
///
/// # Errors
/// An unknown container or one that does not run, limits that are none or that the guest cannot set.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let resources = match &args.resources {
        Some(file) => read(file)?,
        None => from_flags(&args),
    };
    if resources.as_object().is_none_or(Map::is_empty) {
        bail!("no limits given");
    }
    let found = client::expect(globals, &args.id)?;
    let request = UpdateTaskRequest {
        id: args.id,
        resources: MessageField::some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: serde_json::to_vec(&resources)?,
            ..Default::default()
        }),
        ..Default::default()
    };
    block_on(async {
        let connection = found.connect_live().await?;
        connection.task.update(short(), &request).await.map_err(said)
    })?;
    Ok(ExitCode::SUCCESS)
}

fn read(file: &PathBuf) -> anyhow::Result<Value> {
    let mut text = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin()
            .read_to_end(&mut text)
            .context("cannot read the limits from stdin")?;
    } else {
        text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    }
    serde_json::from_slice(&text).with_context(|| format!("the limits in {} are no JSON", file.display()))
}

fn from_flags(args: &Args) -> Value {
    let group = |members: [(&str, Value); 5]| -> Option<Value> {
        let given: Map<String, Value> = members
            .into_iter()
            .filter(|(name, value)| !name.is_empty() && !value.is_null())
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        (!given.is_empty()).then_some(Value::Object(given))
    };
    let none = || ("", Value::Null);
    let groups = [
        (
            "cpu",
            group([
                ("period", json!(args.cpu_period)),
                ("quota", json!(args.cpu_quota)),
                ("shares", json!(args.cpu_share)),
                ("cpus", json!(args.cpuset_cpus)),
                ("mems", json!(args.cpuset_mems)),
            ]),
        ),
        (
            "memory",
            group([
                ("limit", json!(args.memory)),
                ("reservation", json!(args.memory_reservation)),
                ("swap", json!(args.memory_swap)),
                none(),
                none(),
            ]),
        ),
        (
            "pids",
            group([("limit", json!(args.pids_limit)), none(), none(), none(), none()]),
        ),
        (
            "blockIO",
            group([("weight", json!(args.blkio_weight)), none(), none(), none(), none()]),
        ),
    ];
    let given = groups
        .into_iter()
        .filter_map(|(name, members)| Some((name.to_owned(), members?)));
    Value::Object(given.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn flags_become_the_resources_of_the_spec() {
        let line = "update --cpu-quota -1 --cpu-share 512 --memory 1048576 --pids-limit 7 c1";
        let args = Line::parse_from(line.split(' ')).args;
        let expected = json!({
            "cpu": { "quota": -1, "shares": 512 },
            "memory": { "limit": 1048576 },
            "pids": { "limit": 7 },
        });
        assert_eq!(from_flags(&args), expected);
        assert_eq!(from_flags(&Line::parse_from(["update", "c1"]).args), json!({}));
    }
}
