//! Bundles, good and bad.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::{Path, PathBuf};

use kata_bundle::{Bundle, BundleError, Role, default_spec, load_process};
use serde_json::{Value, json};
use tempfile::TempDir;

fn good() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", "true"], "cwd": "/", "terminal": true},
        "root": {"path": "rootfs"},
        "hostname": "h",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/data", "type": "bind", "source": "data"},
        ],
        "linux": {"namespaces": [{"type": "uts"}, {"type": "mount"}]}
    })
}

fn parse(spec: &Value) -> Result<Bundle, BundleError> {
    Bundle::from_json(Path::new("/b"), &serde_json::to_vec(spec).unwrap())
}

#[test]
fn a_bundle_is_read_from_its_directory_with_absolute_paths() {
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("config.json"), good().to_string()).unwrap();
    let bundle = Bundle::load(dir.path()).unwrap();
    assert_eq!(bundle.dir(), dir.path());
    assert_eq!(bundle.rootfs(), dir.path().join("rootfs"));
    assert_eq!(
        bundle.spec().root().as_ref().unwrap().path(),
        &dir.path().join("rootfs")
    );
    let mounts = bundle.spec().mounts().as_ref().unwrap();
    assert_eq!(mounts[0].source().as_deref(), Some(Path::new("proc")));
    assert_eq!(mounts[1].source().as_deref(), Some(dir.path().join("data").as_path()));
    assert!(bundle.terminal());
    assert_eq!(bundle.role(), &Role::Single);

    let error = bundle.check_rootfs().unwrap_err().to_string();
    assert!(error.ends_with("no such directory"), "{error}");
    std::fs::write(dir.path().join("rootfs"), "").unwrap();
    let error = bundle.check_rootfs().unwrap_err().to_string();
    assert!(error.ends_with("not a directory"), "{error}");
    std::fs::remove_file(dir.path().join("rootfs")).unwrap();
    std::fs::create_dir(dir.path().join("rootfs")).unwrap();
    bundle.check_rootfs().unwrap();
}

#[test]
fn missing_and_strange_files_are_told_apart() {
    let dir = TempDir::new().unwrap();
    let config = dir.path().join("config.json");
    let load = || Bundle::load(dir.path()).unwrap_err();

    assert!(matches!(
        Bundle::load(&dir.path().join("none")),
        Err(BundleError::NoDirectory { .. })
    ));
    assert!(
        load()
            .to_string()
            .starts_with("JSON specification file config.json not found")
    );

    std::fs::create_dir(&config).unwrap();
    assert!(matches!(load(), BundleError::NotAFile { .. }));
    std::fs::remove_dir(&config).unwrap();

    let huge = std::fs::File::create(&config).unwrap();
    huge.set_len(17 << 20).unwrap();
    assert!(load().to_string().ends_with("is larger than 16 MiB"), "{}", load());
}

#[test]
fn broken_json_is_an_error_with_its_line_and_column() {
    for (text, at, words) in [
        (
            "{\n  \"ociVersion\": \"1.0.2\",\n  oops\n}",
            (3, 3),
            "key must be a string",
        ),
        ("", (1, 0), "EOF"),
        ("{\"ociVersion\": 5}", (1, 16), "expected a string"),
        ("{\"process\": {\"user\": {}}}", (1, 24), "missing field `cwd`"),
    ] {
        let error = Bundle::from_json(Path::new("/b"), text.as_bytes()).unwrap_err();
        let BundleError::Json {
            line,
            column,
            reason,
            path,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!((*line, *column), at, "{text:?}: {error}");
        assert!(reason.contains(words) && !reason.contains(" at line"), "{error}");
        assert_eq!(path, &PathBuf::from("/b/config.json"));
    }
}

#[test]
fn what_no_runtime_could_carry_out_is_refused() {
    let without = |field: &str| {
        let mut spec = good();
        spec.as_object_mut().unwrap().remove(field);
        spec
    };
    let with = |pointer: &str, value: Value| {
        let mut spec = good();
        *spec.pointer_mut(pointer).unwrap() = value;
        spec
    };
    let twice = json!([{"type": "uts"}, {"type": "pid"}, {"type": "pid"}]);
    let limits =
        json!([{"type": "RLIMIT_NPROC", "hard": 1, "soft": 1}, {"type": "RLIMIT_NPROC", "hard": 2, "soft": 2}]);
    let mut doubled = good();
    doubled["process"]["rlimits"] = limits;
    for (spec, words) in [
        (without("ociVersion"), "ociVersion \"\" is not supported"),
        (
            with("/ociVersion", json!("2.0.0")),
            "ociVersion \"2.0.0\" is not supported (known are 1.0 to 1.3)",
        ),
        (with("/ociVersion", json!("1.4.0")), "ociVersion \"1.4.0\""),
        (without("process"), "process must not be empty"),
        (with("/process/args", json!([])), "process.args must not be empty"),
        (with("/process/args", json!([""])), "process.args must not be empty"),
        (
            with("/process/args", json!(["a\0b"])),
            "process.args contains a zero byte",
        ),
        (
            with("/process/cwd", json!("tmp")),
            "process.cwd must be an absolute path, not \"tmp\"",
        ),
        (without("root"), "root.path must not be empty"),
        (with("/root/path", json!("")), "root.path must not be empty"),
        (without("linux"), "the linux section is missing"),
        (with("/linux/namespaces", twice), "linux.namespaces has pid twice"),
        (
            with("/linux/namespaces", json!([])),
            "hostname is set, but linux.namespaces has no uts namespace",
        ),
        (
            with("/mounts/1/destination", json!("data")),
            "mounts[1].destination must be an absolute path, not \"data\"",
        ),
        (
            with("/mounts/1/source", Value::Null),
            "mounts[1] (to /data) is a bind mount without a source",
        ),
        (doubled, "process.rlimits has RLIMIT_NPROC twice"),
    ] {
        let error = parse(&spec).unwrap_err().to_string();
        assert!(
            error.starts_with("/b/config.json: ") && error.contains(words),
            "{error}"
        );
    }
}

#[test]
fn versions_from_1_0_to_1_3_are_known() {
    for version in ["1.0.0", "1.0.2-dev", "1.1.0", "1.2.1", "1.3.0"] {
        let mut spec = good();
        spec["ociVersion"] = version.into();
        parse(&spec).unwrap();
    }
}

#[test]
fn engines_say_what_a_container_is() {
    let role = |annotations: Value| {
        let mut spec = good();
        spec["annotations"] = annotations;
        parse(&spec).map(|bundle| bundle.role().clone())
    };
    let member = |id: &str| Role::Member { pod_id: id.into() };
    for (annotations, wanted) in [
        (json!({"io.container.manager": "libpod"}), Role::Single),
        (json!({"io.kubernetes.cri.container-type": "sandbox"}), Role::Pod),
        (
            json!({"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": "p"}),
            member("p"),
        ),
        (json!({"io.kubernetes.cri-o.ContainerType": "sandbox"}), Role::Pod),
        (
            json!({"io.kubernetes.cri-o.ContainerType": "container", "io.kubernetes.cri-o.SandboxID": "q"}),
            member("q"),
        ),
        (json!({"io.kubernetes.docker.type": "podsandbox"}), Role::Pod),
        (
            json!({"io.kubernetes.docker.type": "container", "io.kubernetes.sandbox.id": "r"}),
            member("r"),
        ),
    ] {
        assert_eq!(role(annotations.clone()).unwrap(), wanted, "{annotations}");
    }
    let strange = role(json!({"io.kubernetes.cri.container-type": "pod"}))
        .unwrap_err()
        .to_string();
    assert!(
        strange.contains("is \"pod\"; allowed are \"sandbox\" and \"container\""),
        "{strange}"
    );
    let lost = role(json!({"io.kubernetes.cri.container-type": "container"}))
        .unwrap_err()
        .to_string();
    assert!(
        lost.contains("io.kubernetes.cri.sandbox-id does not say to which"),
        "{lost}"
    );
}

#[test]
fn the_name_of_a_container_is_that_of_its_engine() {
    let mut spec = good();
    assert_eq!(parse(&spec).unwrap().container_name(), None);
    spec["annotations"] = json!({"io.kubernetes.cri.container-name": "web"});
    assert_eq!(parse(&spec).unwrap().container_name(), Some("web"));
}

#[test]
fn process_files_are_checked_as_specifications_are() {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("process.json");
    std::fs::write(&file, good()["process"].to_string()).unwrap();
    assert_eq!(load_process(&file).unwrap().args().as_ref().unwrap().len(), 3);

    std::fs::write(&file, "{\"user\": {}, \"cwd\": \"/\", \"args\": []}").unwrap();
    let error = load_process(&file).unwrap_err().to_string();
    assert!(
        error.ends_with("process.json: process.args must not be empty"),
        "{error}"
    );
    assert!(matches!(
        load_process(&dir.path().join("none")),
        Err(BundleError::Read { .. })
    ));
}

#[test]
fn the_default_specification_is_a_good_one() {
    let json = serde_json::to_value(default_spec()).unwrap();
    let bundle = parse(&json).unwrap();
    assert!(bundle.terminal());
    assert_eq!(bundle.spec().root().as_ref().unwrap().readonly(), Some(true));
    assert_eq!(
        json["process"]["rlimits"],
        json!([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}])
    );
    assert_eq!(json["process"]["capabilities"].as_object().unwrap().len(), 4);
    assert_eq!(json["linux"]["namespaces"].as_array().unwrap().len(), 6);
}
