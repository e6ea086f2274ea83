//! File systems in the guest's memory that containers share, and huge pages that are set aside for them.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use kata_wire::names::MEMORY_DIR;
use kata_wire::proto::{HugePages, Memory};
use nix::mount::{MsFlags, mount};

use super::refusal::Refusal;

/// Has a directory for each container that huge pages are set aside for; in it a file for each size, with their number.
const HUGE_PAGES_DIR: &str = "/run/kata/huge-pages";

/// Mounts those that are not there yet.
///
/// # Errors
/// [`Refusal`]
pub fn mount_all(memories: &[Memory]) -> Result<(), Refusal> {
    memories.iter().try_for_each(mount_one)
}

fn mount_one(memory: &Memory) -> Result<(), Refusal> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if memory.name.starts_with('.') || memory.name.is_empty() || !memory.name.chars().all(plain) {
        return Err(Refusal::Invalid(format!(
            "{:?} is no name for a file system",
            memory.name
        )));
    }
    if !matches!(memory.fs_type.as_str(), "tmpfs" | "hugetlbfs") {
        return Err(Refusal::Invalid(format!(
            "{:?} is no file system in memory",
            memory.fs_type
        )));
    }
    let place = Path::new(MEMORY_DIR).join(&memory.name);
    if place.exists() {
        return Ok(());
    }
    let failed = |error: io::Error| Refusal::Internal(format!("{} {}: {error}", memory.fs_type, place.display()));
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&place)
        .map_err(failed)?;
    let fs_type = memory.fs_type.as_str();
    let options = memory.options.join(",");
    mount(
        Some(fs_type),
        &place,
        Some(fs_type),
        MsFlags::empty(),
        Some(options.as_str()),
    )
    .map_err(|errno| {
        let _ = fs::remove_dir(&place);
        failed(errno.into())
    })
}

/// Sets huge pages aside for container `id`.
///
/// # Errors
/// [`Refusal`] when there is no memory for them; what was set aside is to be given back by [`give_back`] then.
pub fn set_aside(id: &str, huge_pages: &[HugePages]) -> Result<(), Refusal> {
    for HugePages { page_kib, pages, .. } in huge_pages {
        let failed = |error: io::Error| Refusal::Internal(format!("huge pages of {page_kib} KiB: {error}"));
        let too_many = |has: u64| {
            Refusal::Internal(format!(
                "container {id} wants {pages} huge pages of {page_kib} KiB, and the guest's memory has {has} of them"
            ))
        };
        // The kernel looks for pages for long, and this process with it, before it gives up.
        let room = memory_kib().map_err(failed)? / (*page_kib).max(1);
        if *pages > room {
            return Err(too_many(room));
        }
        let (pool, note) = (pool(*page_kib), note(id, *page_kib));
        let before = read(&pool).map_err(failed)?;
        let wanted = before.saturating_add(*pages);
        fs::write(&pool, wanted.to_string()).map_err(failed)?;
        let now = read(&pool).map_err(failed)?;
        let directory = note.parent().unwrap_or(Path::new(HUGE_PAGES_DIR));
        DirBuilder::new().recursive(true).create(directory).map_err(failed)?;
        fs::write(&note, now.saturating_sub(before).to_string()).map_err(failed)?;
        if now < wanted {
            return Err(too_many(now.saturating_sub(before)));
        }
    }
    Ok(())
}

/// Gives back what was set aside for container `id`.
pub fn give_back(id: &str) {
    let directory = Path::new(HUGE_PAGES_DIR).join(id);
    for file in fs::read_dir(&directory).into_iter().flatten().flatten() {
        let size = file.file_name().to_string_lossy().parse().unwrap_or(0);
        let (pool, note) = (pool(size), file.path());
        if let (Ok(now), Ok(its)) = (read(&pool), read(&note))
            && let Err(error) = fs::write(&pool, now.saturating_sub(its).to_string())
        {
            tracing::warn!(id, "give back huge pages: {error}");
        }
    }
    let _ = fs::remove_dir_all(directory);
}

/// All of the guest's memory, KiB.
fn memory_kib() -> io::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let total = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let number = total.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn pool(page_kib: u64) -> PathBuf {
    PathBuf::from(format!("/sys/kernel/mm/hugepages/hugepages-{page_kib}kB/nr_hugepages"))
}

fn note(id: &str, page_kib: u64) -> PathBuf {
    Path::new(HUGE_PAGES_DIR).join(id).join(page_kib.to_string())
}

fn read(file: &Path) -> io::Result<u64> {
    fs::read_to_string(file)?
        .trim()
        .parse()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}
