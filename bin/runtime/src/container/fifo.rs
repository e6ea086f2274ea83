//! The fifos between a client of the Task API and the sandbox process. The client opens its ends before the sandbox
//! process opens its own, so nothing is lost however early the process ends, and removes the names right after.

use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

/// The names, for the sandbox process to open; `None` is `/dev/null`.
#[derive(Debug, Default)]
pub struct Fifos {
    directory: PathBuf,
    stdin: Option<PathBuf>,
    stdout: Option<(PathBuf, File)>,
    stderr: Option<(PathBuf, File)>,
}

/// A client's ends.
#[derive(Debug, Default)]
pub struct Ends {
    /// Writes to the process.
    pub stdin: Option<File>,
    /// Reads what it prints.
    pub stdout: Option<File>,
    /// Reads its errors.
    pub stderr: Option<File>,
}

impl Fifos {
    /// Makes fifos in `directory` (which is made too), their names beginning with `name`.
    ///
    /// # Errors
    /// What making or opening them failed with.
    pub fn make(directory: &Path, name: &str, terminal: bool) -> Result<Self> {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        let make = |stream: &str| -> Result<PathBuf> {
            let path = directory.join(format!("{name}-{stream}"));
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
                .with_context(|| format!("cannot make the fifo {}", path.display()))?;
            Ok(path)
        };
        let make_read = |stream: &str| -> Result<(PathBuf, File)> {
            let path = make(stream)?;
            let file = open(OpenOptions::new().read(true), &path)?;
            Ok((path, file))
        };
        Ok(Self {
            directory: directory.to_owned(),
            stdin: Some(make("in")?),
            stdout: Some(make_read("out")?),
            stderr: if terminal { None } else { Some(make_read("err")?) },
        })
    }

    /// Paths of stdin, stdout and stderr as the Task API wants them.
    pub fn paths(&self) -> [String; 3] {
        let text = |path: Option<&PathBuf>| path.map(|path| path.display().to_string()).unwrap_or_default();
        [
            text(self.stdin.as_ref()),
            text(self.stdout.as_ref().map(|(path, _)| path)),
            text(self.stderr.as_ref().map(|(path, _)| path)),
        ]
    }

    /// The client's ends, once the sandbox process has opened its own. The names are gone then.
    ///
    /// # Errors
    /// When the sandbox process has not opened its end of stdin.
    pub fn into_ends(self) -> Result<Ends> {
        let stdin = self
            .stdin
            .as_deref()
            .map(|path| open(OpenOptions::new().write(true), path))
            .transpose()?;
        let mut ends = Ends {
            stdin,
            ..Ends::default()
        };
        for (from, to) in [(&self.stdout, &mut ends.stdout), (&self.stderr, &mut ends.stderr)] {
            if let Some((_, file)) = from {
                *to = Some(file.try_clone()?);
            }
        }
        for file in [&ends.stdin, &ends.stdout, &ends.stderr].into_iter().flatten() {
            block(file)?;
        }
        Ok(ends)
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        let outputs = [&self.stdout, &self.stderr].into_iter().flatten().map(|(path, _)| path);
        for path in self.stdin.iter().chain(outputs) {
            // Whatever stays is removed with the sandbox's directory.
            let _ = std::fs::remove_file(path);
        }
        let _ = std::fs::remove_dir(&self.directory);
    }
}

/// Opens without waiting for the other end.
fn open(options: &mut OpenOptions, path: &Path) -> Result<File> {
    options
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)
        .with_context(|| format!("cannot open the fifo {}", path.display()))
}

fn block(file: &File) -> Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(file.as_fd(), FcntlArg::F_GETFL)?);
    fcntl(file.as_fd(), FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn what_was_written_before_the_client_reads_is_not_lost_and_no_name_stays() {
        let dir = tempfile::tempdir().expect("tempdir");
        let place = dir.path().join("stdio");
        let fifos = Fifos::make(&place, "x", false).expect("make");
        let [input, output, errors] = fifos.paths();
        // The sandbox process's side.
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(input)
            .expect("stdin");
        let mut writer = OpenOptions::new().read(true).write(true).open(output).expect("stdout");
        let other = OpenOptions::new().read(true).write(true).open(errors).expect("stderr");
        writer.write_all(b"early").expect("write");
        drop((writer, other));
        let mut ends = fifos.into_ends().expect("ends");
        let mut text = String::new();
        ends.stdout
            .take()
            .expect("stdout")
            .read_to_string(&mut text)
            .expect("read to the end");
        assert_eq!(text, "early");
        ends.stdin.take().expect("stdin").write_all(b"in").expect("write");
        block(&reader).expect("block");
        let mut text = String::new();
        (&reader).read_to_string(&mut text).expect("read");
        assert_eq!(text, "in");
        assert!(!place.exists());
    }
}
