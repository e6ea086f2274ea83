//! `kata-runtime ps`: the processes of a container, with their pids in the guest.

use std::process::ExitCode;

use anyhow::bail;
use clap::ValueEnum;
use kata_wire::proto::{ContainerRef, ProcessInfo};

use crate::cli::Globals;
use crate::cmd::list::columns;
use crate::container::client::{self, block_on, said, short};
use crate::report;

/// Which container, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// table or json
    #[arg(long, short = 'f', default_value = "table")]
    format: Format,
    /// Container id
    id: String,
    /// Accepted as ps(1) has them; the table is always that of `-ef`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    ps_options: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Prints the processes: as the table of `ps -ef`, or as a JSON list of pids.
///
/// # Errors
/// An unknown container, or one that does not run.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let found = client::expect(globals, &args.id)?;
    let request = ContainerRef {
        container_id: args.id.clone(),
        ..Default::default()
    };
    let answer = block_on(async {
        let connection = found.connect_live().await?;
        connection.guest.processes(short(), &request).await.map_err(said)
    })?;
    if answer.processes.is_empty() {
        bail!("container \"{}\" has no processes", args.id);
    }
    if !args.ps_options.is_empty() && args.ps_options != ["-ef"] {
        tracing::debug!(options = ?args.ps_options, "shown as ps -ef does");
    }
    match args.format {
        Format::Json => {
            let pids: Vec<u32> = answer.processes.iter().map(|process| process.pid).collect();
            report::print(&format!("{}\n", serde_json::to_string(&pids)?))?;
        }
        Format::Table => report::print(&table(&answer.processes))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(processes: &[ProcessInfo]) -> String {
    let head = ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"].map(str::to_owned);
    let rows = processes.iter().map(|process| {
        let seconds = process.cpu_msecs / 1000;
        let of_day = process.started_unix_secs % 86_400;
        [
            process.uid.to_string(),
            process.pid.to_string(),
            process.ppid.to_string(),
            "0".to_owned(),
            format!("{:02}:{:02}", of_day / 3600, of_day / 60 % 60),
            process.terminal.clone(),
            format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60),
            command_line(process),
        ]
    });
    columns(std::iter::once(head).chain(rows).collect())
}

/// The guest's words: control characters must not reach somebody's terminal.
fn command_line(process: &ProcessInfo) -> String {
    let words = match process.arguments.as_slice() {
        [] => format!("[{}]", process.command),
        words => words.join(" "),
    };
    words.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_that_of_ps_and_harmless() {
        let process = ProcessInfo {
            pid: 70,
            ppid: 1,
            terminal: "?".into(),
            started_unix_secs: 86_400 + 3 * 3600 + 4 * 60,
            cpu_msecs: 61_000,
            arguments: vec!["sh".into(), "\u{1b}[2J".into()],
            ..Default::default()
        };
        assert_eq!(
            table(&[process]),
            "UID   PID   PPID   C   STIME   TTY   TIME       CMD\n0     70    1      0   03:04   ?     00:01:01   sh ?[2J\n"
        );
    }
}
