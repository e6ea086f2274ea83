use std::io::{Read, Seek, SeekFrom, Write};
use std::time::Duration;

use tempfile::TempDir;

use super::*;

/// Something done to a template in this directory.
type Change = fn(&Path);

/// A store in memory, and a kernel.
struct Place {
    dir: TempDir,
    store: Store,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory in memory");
        std::fs::write(dir.path().join("kernel"), "kernel").expect("kernel");
        let store = Store::at(&dir.path().join("templates"));
        Self { dir, store }
    }

    fn recipe(&self, machine: &str) -> Recipe {
        Recipe::new("test", vec![machine.to_owned()], &[self.dir.path().join("kernel")]).expect("recipe")
    }

    fn half_made(&self, machine: &str) -> HalfMade {
        let half_made = self.store.lock().expect("lock").begin().expect("room");
        let files = half_made.files();
        let mut memory = File::create(&files.memory).expect("memory");
        memory.set_len(1 << 20).expect("size");
        memory.write_all(machine.as_bytes()).expect("memory");
        std::fs::write(files.state, "state").expect("state");
        half_made
    }

    fn make(&self, machine: &str) -> Recipe {
        let recipe = self.recipe(machine);
        self.half_made(machine).finish(&recipe).expect("finished");
        recipe
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.store.0).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    }
}

#[test]
fn a_whole_template_is_found_by_its_recipe() {
    let place = Place::new();
    assert!(place.store.open(&place.recipe("a")).expect("no store yet").is_none());
    assert_eq!(place.store.list().expect("no store yet"), []);
    let recipe = place.make("a");
    let mut template = place.store.open(&recipe).expect("usable").expect("there");
    let mut text = String::new();
    template.state.read_to_string(&mut text).expect("readable");
    assert_eq!(text, "state", "from its beginning");
    assert!(place.store.open(&place.recipe("b")).expect("usable").is_none());
    let [entry] = &place.store.list().expect("list")[..] else {
        panic!("one")
    };
    assert_eq!((entry.trust, entry.memory_bytes), (Trust::Current, 4096));

    place.store.discard(&recipe).expect("discarded");
    assert!(place.store.open(&recipe).expect("usable").is_none());
    let mut byte = [0];
    template.memory.read_exact(&mut byte).expect("who has it open goes on");
    assert_eq!(&byte, b"a");
    place.store.discard(&recipe).expect("discarded twice");
}

#[test]
fn whatever_is_changed_is_noticed() {
    let place = Place::new();
    let changes: [(&str, Change); 6] = [
        ("its state was changed", |at| {
            std::fs::write(at.join(STATE), "stat3").expect("write")
        }),
        ("its memory was changed", |at| {
            let mut memory = File::options().write(true).open(at.join(MEMORY)).expect("open");
            memory.seek(SeekFrom::Start(4)).expect("seek");
            memory.write_all(b"x").expect("write");
        }),
        ("its memory was changed", |at| {
            File::options()
                .write(true)
                .open(at.join(MEMORY))
                .expect("open")
                .set_len(1 << 19)
                .expect("shorter");
        }),
        ("it cannot be read", |at| {
            std::fs::remove_file(at.join(STATE)).expect("remove")
        }),
        ("manifest.json", |at| {
            std::fs::write(at.join(MANIFEST), "{}").expect("write")
        }),
        ("it cannot be read", |at| {
            std::fs::remove_file(at.join(MANIFEST)).expect("remove")
        }),
    ];
    for (expected, change) in changes {
        let recipe = place.make("a");
        change(&place.store.0.join(recipe.name()));
        let error = place.store.open(&recipe).expect_err(expected).to_string();
        assert!(error.contains(expected) && error.contains(&recipe.name()), "{error}");
        assert_eq!(place.store.list().expect("list")[0].trust, Trust::Damaged, "{expected}");
    }
    let (one, other) = (place.make("a"), place.recipe("b"));
    let moved = place.store.0.join(other.name());
    std::fs::rename(place.store.0.join(one.name()), moved).expect("rename");
    let error = place.store.open(&other).expect_err("another's").to_string();
    assert!(error.contains("made of something else"), "{error}");
}

#[test]
fn what_is_half_made_is_never_used_and_goes() {
    let place = Place::new();
    let half_made = place.half_made("a");
    assert!(place.store.open(&place.recipe("a")).expect("usable").is_none());
    assert_eq!(place.store.list().expect("list"), []);
    drop(half_made);
    assert_eq!(place.names(), Vec::<String>::new());
    // As after a kill.
    std::mem::forget(place.half_made("a"));
    assert_eq!(place.names(), [HALF_MADE]);
    let recipe = place.make("b");
    assert_eq!(place.names(), [recipe.name()]);
}

#[test]
fn the_outdated_and_the_longest_unused_go() {
    let place = Place::new();
    let recipes: Vec<Recipe> = (0..KEPT + 2).map(|n| place.make(&n.to_string())).collect();
    for (age, recipe) in recipes.iter().enumerate() {
        let file = File::open(place.store.0.join(recipe.name()).join(MANIFEST)).expect("manifest");
        let used = SystemTime::now() - Duration::from_secs(60 * age as u64);
        file.set_modified(used).expect("times");
    }
    // The one that has just been made stays, however its times are.
    let newest = recipes.last().expect("some");
    place.store.lock().expect("lock").sweep(newest).expect("swept");
    let mut expected: Vec<String> = recipes[..KEPT - 1].iter().chain([newest]).map(Recipe::name).collect();
    expected.sort();
    assert_eq!(place.store.names().expect("names"), expected);

    std::fs::write(place.dir.path().join("kernel"), "another").expect("kernel");
    assert!(
        place
            .store
            .list()
            .expect("list")
            .iter()
            .all(|entry| entry.trust == Trust::Outdated)
    );
    let fresh = place.make("a");
    place.store.lock().expect("lock").sweep(&fresh).expect("swept");
    assert_eq!(place.store.names().expect("names"), [fresh.name()]);
}

#[test]
fn one_maker_at_a_time() {
    let place = Place::new();
    let held = place.store.lock().expect("lock");
    let store = place.store.clone();
    let (sender, got) = std::sync::mpsc::channel();
    let waiting = std::thread::spawn(move || {
        let locked = store.lock();
        sender.send(()).expect("heard");
        drop(locked);
    });
    assert!(got.recv_timeout(Duration::from_millis(100)).is_err(), "it waits");
    drop(held);
    got.recv_timeout(Duration::from_secs(10)).expect("its turn");
    waiting.join().expect("thread");
}

#[test]
fn all_is_destroyed_that_is_ours() {
    let place = Place::new();
    place.make("a");
    std::mem::forget(place.half_made("b"));
    place.store.lock().expect("lock").destroy().expect("destroyed");
    assert!(!place.store.0.exists());
    place.store.lock().expect("lock").destroy().expect("destroyed twice");

    place.make("a");
    std::fs::write(place.store.0.join("somebody's"), "").expect("file");
    let error = place
        .store
        .lock()
        .expect("lock")
        .destroy()
        .expect_err("not empty")
        .to_string();
    assert!(error.starts_with("cannot remove /dev/shm/"), "{error}");
    assert_eq!(place.names(), ["somebody's"]);
}

#[test]
fn a_store_of_others_is_not_trusted() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let recipe = place.make("a");
    std::fs::set_permissions(&place.store.0, std::fs::Permissions::from_mode(0o777)).expect("mode");
    assert!(matches!(place.store.open(&recipe), Err(FactoryError::Open { .. })));
    assert!(matches!(
        place.store.lock().expect("lock").begin(),
        Err(FactoryError::Open { .. })
    ));
    assert!(matches!(
        place.store.note_failure(&recipe, "?"),
        Err(FactoryError::Open { .. })
    ));
}

#[test]
fn a_failure_is_remembered_for_a_while() {
    let place = Place::new();
    let (recipe, other) = (place.recipe("a"), place.recipe("b"));
    assert_eq!(place.store.failure(&recipe), None);
    assert_eq!(place.store.failures().expect("no store yet"), []);
    // The room in which it was to be made is what is left of a failure.
    drop(place.half_made("a"));
    place.store.note_failure(&recipe, "it\nfell\u{1b}[2J").expect("noted");
    let failure = place.store.failure(&recipe).expect("remembered");
    assert_eq!(failure.why, "it fell [2J");
    assert!(failure.retry_in > Duration::from_secs(290), "{failure:?}");
    assert_eq!(failure.path, place.store.0.join(recipe.name()));
    assert_eq!(place.store.failure(&other), None);
    assert_eq!(place.store.failures().expect("list").len(), 1);
    assert_eq!(place.store.list().expect("list"), [], "it is no template");

    let note = place.store.0.join(format!("{}.failed", recipe.name()));
    for (seconds, expected) in [(-290i64, true), (-301, false), (60, false)] {
        let ago = Duration::from_secs(seconds.unsigned_abs());
        let now = SystemTime::now();
        let at = if seconds < 0 { now - ago } else { now + ago };
        let file = File::options().write(true).open(&note).expect("note");
        file.set_modified(at).expect("times");
        assert_eq!(place.store.failure(&recipe).is_some(), expected, "{seconds} s");
    }
    place.store.note_failure(&other, &"é".repeat(4000)).expect("noted");
    assert!(!note.exists(), "what does not hold any more goes with the next");
    assert_eq!(place.store.failure(&other).expect("remembered").why, "é".repeat(1024));

    // Success ends it, and so does the end of the store.
    place.make("b");
    assert_eq!(place.store.failure(&other), None);
    place.store.note_failure(&recipe, "again").expect("noted");
    place.store.lock().expect("lock").destroy().expect("destroyed");
    assert!(!place.store.0.exists());
}
