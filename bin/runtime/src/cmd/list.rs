//! `kata-runtime list`: the containers of a root.

use std::process::ExitCode;

use clap::ValueEnum;
use kata_sandbox::record::Home;

use crate::cli::Globals;
use crate::container::client::{Found, block_on};
use crate::container::view::{self, View};
use crate::report;

/// What is listed, and how.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// table or json
    #[arg(long, short = 'f', default_value = "table")]
    format: Format,
    /// Print ids only
    #[arg(long, short = 'q')]
    quiet: bool,
    /// Those of other roots and of containerd, too
    #[arg(long)]
    kata_all: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// Prints the list.
///
/// # Errors
/// Sandbox directories that cannot be read.
pub fn run(args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let root = globals.root.display().to_string();
    let mut found = Vec::new();
    for home in Home::all()? {
        // A directory without a record is being made or removed.
        let Ok(record) = home.read() else { continue };
        if args.kata_all || record.namespace == root {
            let id = record.id.clone();
            found.push(Found { home, record, id });
        }
    }
    found.sort_by(|a, b| a.id.cmp(&b.id));
    if args.quiet {
        let ids: String = found.iter().map(|found| format!("{}\n", found.id)).collect();
        report::print(&ids)?;
        return Ok(ExitCode::SUCCESS);
    }
    let views = block_on(async {
        let mut views = Vec::new();
        for found in &found {
            views.push(view::look(found).await?);
        }
        Ok(views)
    })?;
    match args.format {
        Format::Json => report::print(&format!("{}\n", serde_json::to_string(&views)?))?,
        Format::Table => report::print(&table(&views))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn table(views: &[View]) -> String {
    let head = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned);
    let rows = views.iter().map(|view| {
        [
            view.id.clone(),
            view.pid.to_string(),
            view.status.clone(),
            view.bundle.clone(),
            view.created.clone(),
            view.owner.clone(),
        ]
    });
    columns(std::iter::once(head).chain(rows).collect())
}

/// Aligns columns, three spaces apart.
pub fn columns<const N: usize>(rows: Vec<[String; N]>) -> String {
    let mut widths = [0; N];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in &rows {
        let line: String = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}   "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = vec![
            ["ID".to_owned(), "PID".to_owned()],
            ["long-id".to_owned(), "1".to_owned()],
        ];
        assert_eq!(columns(rows), "ID        PID\nlong-id   1\n");
    }
}
