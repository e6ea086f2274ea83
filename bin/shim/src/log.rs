//! Messages of the sandbox process: to its log file, and to the fifo `log` that containerd reads beside the bundle.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Starts logging. The level is `info`, or `debug`, or what `KATA_LOG` says.
pub fn start(bundle: &Path, debug: bool) {
    let default = if debug { "debug" } else { "info" };
    let filter = EnvFilter::try_from_env("KATA_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let sink = Sink(Arc::new(fifo(&bundle.join("log"))));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .with_writer(sink)
        .init();
}

fn fifo(path: &Path) -> Option<File> {
    if !std::fs::symlink_metadata(path).is_ok_and(|data| data.file_type().is_fifo()) {
        return None;
    }
    // Not waiting, neither now nor later: containerd may not read, and a pod must not stop for that.
    OpenOptions::new()
        .write(true)
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)
        .ok()
}

#[derive(Clone)]
struct Sink(Arc<Option<File>>);

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(mut fifo) = self.0.as_ref().as_ref() {
            // A full fifo loses the line; the file has it.
            let _ = fifo.write(line);
        }
        io::stderr().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Sink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}
