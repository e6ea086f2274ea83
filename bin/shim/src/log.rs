//! Messages of the sandbox process: to its log file, and to the fifo `log` that containerd reads beside the bundle.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// The messages of this process.
pub struct Log {
    fifo: Arc<OnceLock<File>>,
    select: Box<dyn Fn(EnvFilter)>,
}

/// Which messages are wanted: `info` and above, or `debug`, or what `KATA_LOG` says.
pub fn filter(debug: bool) -> String {
    let named = std::env::var("KATA_LOG").ok();
    let named = named.filter(|text| EnvFilter::try_new(text).is_ok());
    named.unwrap_or_else(|| if debug { "debug" } else { "info" }.to_owned())
}

/// Starts logging to stderr, which is the log file.
pub fn start(filter: &str) -> Log {
    let fifo = Arc::new(OnceLock::new());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(filter))
        .with_ansi(false)
        .with_writer(Sink(fifo.clone()))
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    Log {
        fifo,
        // Fails only when there is no logging.
        select: Box::new(move |filter| drop(handle.reload(filter))),
    }
}

impl Log {
    /// Writes to the fifo in the directory of this bundle, too, if there is one.
    pub fn follow(&self, bundle: &Path) {
        if let Some(fifo) = fifo(&bundle.join("log")) {
            let _ = self.fifo.set(fifo);
        }
    }

    /// Logs other messages than before.
    pub fn select(&self, filter: &str) {
        (self.select)(EnvFilter::new(filter));
    }
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
struct Sink(Arc<OnceLock<File>>);

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if let Some(mut fifo) = self.0.get() {
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
