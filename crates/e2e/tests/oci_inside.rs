//! What the spec asks for, as the container's own process sees it. One container says everything; each test looks at one
//! thing it said.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;

use kata_e2e::against_both;
use kata_e2e::bundle::Bundle;
use kata_e2e::fixture::Shared;
use kata_e2e::lab::Lab;
use kata_e2e::program;
use kata_e2e::runtime::{Kind, Runtime};
use serde_json::{Value, json};

against_both!(
    identity,
    capabilities,
    limits,
    no_new_privileges,
    read_only_root,
    masked_and_read_only_paths,
    sysctls,
    devices,
    temporary_file_systems,
    bind_mounts,
    a_file_mapped_shared,
    host_name_directory_and_environment,
    oom_score,
    system_call_filter,
    namespaces_of_its_own,
    nothing_of_the_host,
);

/// Commands to be run inside; each begins a section of that name.
const ASKED: &[(&str, &str)] = &[
    ("id", "id -u; id -g; id -G; umask"),
    ("status", "cat /proc/self/status"),
    ("limits", "ulimit -Sn; ulimit -Hn; ulimit -Sc"),
    ("root", "touch /tmp/file; touch /file"),
    ("masked", "cat /proc/keys | wc -c; ls /proc/acpi | wc -l"),
    ("mounts", "cat /proc/mounts"),
    (
        "sysctl",
        "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax; (echo 0 >/proc/sys/net/ipv4/ip_forward)",
    ),
    (
        "device",
        "stat -c '%F %t:%T %a %u:%g' /dev/e2e; head -c 3 /dev/e2e | od -An -tx1; ls /dev",
    ),
    ("denied", "cat /dev/e2e-denied"),
    (
        "tmpfs",
        "df -k /scratch | tail -n 1; stat -c %a /scratch; echo kept >/scratch/file; cat /scratch/file",
    ),
    ("bind-dir", "cat /data/hello; echo from inside >/data/answer"),
    ("bind-ro", "cat /data-ro/hello; touch /data-ro/file"),
    ("mapped", "/data/map-shared /data/mapped; cat /data/mapped"),
    ("bind-file", "cat /etc/e2e.conf; echo x >>/etc/e2e.conf"),
    ("uts", "hostname; pwd; env"),
    ("oom", "cat /proc/self/oom_score_adj"),
    ("seccomp", "mkdir /scratch/dir; rmdir /scratch/dir; echo went on"),
    ("processes", "ps -o pid,args"),
    ("links", "ls /sys/class/net; cat /proc/net/dev"),
    ("hosts", "ls -d /work /lib /usr /boot"),
];

struct View {
    sections: HashMap<String, String>,
    data: std::path::PathBuf,
}

fn view(kind: Kind) -> &'static View {
    static RUNC: Shared<View> = Shared::new();
    static KATA: Shared<View> = Shared::new();
    static LAB: Shared<Lab> = Shared::new();
    let cell = if kind == Kind::Kata { &KATA } else { &RUNC };
    cell.get(|| look(kind, LAB.get(Lab::open)))
}

fn look(kind: Kind, lab: &Lab) -> View {
    let id = format!("inside-{kind:?}").to_lowercase();
    let data = lab.scratch().join(format!("{id}-data"));
    std::fs::create_dir(&data).expect("data");
    std::fs::set_permissions(&data, std::fs::Permissions::from_mode(0o777)).expect("mode");
    std::fs::write(data.join("hello"), "from outside\n").expect("hello");
    program::compile(MAP_SHARED, &data.join("map-shared"));
    let sections = ASKED
        .iter()
        .map(|(name, ask)| format!("echo '== {name}'; {{ {ask}; }} 2>&1\n"));
    let script = sections.collect::<String>() + "exit 0\n";
    let bundle = Bundle::script(lab, &id, &script).edit(everything);
    std::fs::write(bundle.rootfs().join("etc/e2e.conf"), "of the root file system\n").expect("conf");
    let bundle = bundle
        .mount(
            "/scratch",
            "tmpfs",
            "tmpfs",
            &["nosuid", "nodev", "size=4m", "mode=1777"],
        )
        .mount("/data", "bind", &data, &["rbind", "rw"])
        .mount("/data-ro", "bind", &data, &["rbind", "ro", "nosuid"])
        .mount("/etc/e2e.conf", "bind", data.join("hello"), &["bind", "ro"]);
    let said = Runtime::new(kind, lab).run(&bundle, &id).run().ok().text();
    let mut sections = HashMap::new();
    for section in said.split("== ").skip(1) {
        let (name, text) = section.split_once('\n').unwrap_or((section, ""));
        sections.insert(name.to_owned(), text.to_owned());
    }
    View { sections, data }
}

const MAP_SHARED: &str = r#"
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv) {
    static const char text[] = "written through memory\n";
    int file = open(argv[argc - 1], O_RDWR | O_CREAT | O_TRUNC, 0644);
    if (file < 0 || ftruncate(file, sizeof text - 1)) { perror("file"); return 1; }
    char *memory = mmap(0, sizeof text - 1, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (memory == MAP_FAILED) { perror("mmap"); return 1; }
    memcpy(memory, text, sizeof text - 1);
    return msync(memory, sizeof text - 1, MS_SYNC);
}
"#;

fn everything(spec: &mut Value) {
    spec["root"]["readonly"] = true.into();
    spec["hostname"] = "inside".into();
    let process = &mut spec["process"];
    process["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [2000, 3000], "umask": 0o027});
    let some = json!(["CAP_CHOWN", "CAP_NET_BIND_SERVICE"]);
    let bind = json!(["CAP_NET_BIND_SERVICE"]);
    process["capabilities"] =
        json!({"bounding": some, "permitted": some, "inheritable": bind, "effective": bind, "ambient": bind});
    process["rlimits"] = json!([
        {"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200},
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
    ]);
    process["noNewPrivileges"] = true.into();
    process["oomScoreAdj"] = 500.into();
    process["cwd"] = "/home/worker".into();
    process["env"] = json!(["PATH=/bin", "GREETING=hello world", "EMPTY="]);
    let linux = &mut spec["linux"];
    linux["sysctl"] = json!({"net.ipv4.ip_forward": "1", "kernel.msgmax": "4321"});
    let device = |path: &str, minor: u32| json!({"path": path, "type": "c", "major": 1, "minor": minor, "fileMode": 0o640, "uid": 1000, "gid": 2000});
    linux["devices"] = json!([device("/dev/e2e", 5), device("/dev/e2e-denied", 11)]);
    linux["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "c", "major": 1, "minor": 5, "access": "r"},
    ]);
    linux["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
    });
    linux["maskedPaths"]
        .as_array_mut()
        .expect("paths")
        .push("/proc/acpi".into());
}

#[track_caller]
fn section(kind: Kind, name: &str) -> &'static str {
    view(kind)
        .sections
        .get(name)
        .unwrap_or_else(|| panic!("the container did not get to {name}"))
}

#[track_caller]
fn says(kind: Kind, name: &str, part: &str) {
    let text = section(kind, name);
    assert!(text.contains(part), "{name} should hold {part:?}:\n{text}");
}

/// The options of the mount at `path`, the last one if there are several.
#[track_caller]
fn mount_options(kind: Kind, path: &str) -> Vec<&'static str> {
    let mut lines = section(kind, "mounts")
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    let mount = lines.rfind(|fields| fields.get(1) == Some(&path));
    mount.unwrap_or_else(|| panic!("{path} is no mount:\n{}", section(kind, "mounts")))[3]
        .split(',')
        .collect()
}

fn identity(kind: Kind) {
    assert_eq!(section(kind, "id"), "1000\n1000\n1000 2000 3000\n0027\n");
}

fn capabilities(kind: Kind) {
    says(kind, "status", "CapEff:\t0000000000000400");
    says(kind, "status", "CapPrm:\t0000000000000400");
    says(kind, "status", "CapBnd:\t0000000000000401");
    says(kind, "status", "CapAmb:\t0000000000000400");
}

fn limits(kind: Kind) {
    assert_eq!(section(kind, "limits"), "100\n200\n0\n");
}

fn no_new_privileges(kind: Kind) {
    says(kind, "status", "NoNewPrivs:\t1");
}

fn read_only_root(kind: Kind) {
    says(kind, "root", "touch: /tmp/file: Read-only file system");
    assert!(mount_options(kind, "/").contains(&"ro"));
}

fn masked_and_read_only_paths(kind: Kind) {
    assert!(
        section(kind, "masked").starts_with("0\n"),
        "{}",
        section(kind, "masked")
    );
    says(kind, "masked", "\n0");
    assert!(mount_options(kind, "/proc/sys").contains(&"ro"));
    assert!(mount_options(kind, "/proc/fs").contains(&"ro"));
}

fn sysctls(kind: Kind) {
    assert!(
        section(kind, "sysctl").starts_with("1\n4321\n"),
        "{}",
        section(kind, "sysctl")
    );
}

fn devices(kind: Kind) {
    says(kind, "device", "character special file 1:5 640 1000:2000\n 00 00 00\n");
    for name in [
        "full", "null", "ptmx", "pts", "random", "stdin", "tty", "urandom", "zero",
    ] {
        assert!(
            section(kind, "device").lines().any(|line| line == name),
            "no /dev/{name}"
        );
    }
    says(kind, "denied", "Operation not permitted");
}

fn temporary_file_systems(kind: Kind) {
    says(kind, "tmpfs", " 4096 ");
    says(kind, "tmpfs", "1777\nkept\n");
    let options = mount_options(kind, "/scratch");
    assert!(options.contains(&"nosuid") && options.contains(&"nodev"), "{options:?}");
}

fn bind_mounts(kind: Kind) {
    assert_eq!(section(kind, "bind-dir"), "from outside\n");
    let answer = |name: &str| std::fs::read_to_string(view(kind).data.join(name));
    assert_eq!(answer("answer").expect("written inside"), "from inside\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(view(kind).data.join("answer")).expect("file"));
    assert_eq!(owner, 1000, "who wrote it");
    assert_eq!(
        section(kind, "bind-ro"),
        "from outside\ntouch: /data-ro/file: Read-only file system\n"
    );
    assert!(mount_options(kind, "/data-ro").contains(&"nosuid"));
    assert!(section(kind, "bind-file").starts_with("from outside\n"));
    assert_eq!(answer("hello").expect("still there"), "from outside\n");
}

/// As databases do it; a share that does not let them is of no use to them.
fn a_file_mapped_shared(kind: Kind) {
    assert_eq!(section(kind, "mapped"), "written through memory\n");
    let seen = std::fs::read_to_string(view(kind).data.join("mapped")).expect("the host sees it");
    assert_eq!(seen, "written through memory\n");
}

fn host_name_directory_and_environment(kind: Kind) {
    let text = section(kind, "uts");
    assert!(text.starts_with("inside\n/home/worker\n"), "{text}");
    for variable in ["PATH=/bin", "GREETING=hello world", "EMPTY="] {
        assert!(
            text.lines().any(|line| line == variable),
            "{variable} is missing:\n{text}"
        );
    }
    assert!(!text.contains("CARGO"), "the host's environment:\n{text}");
}

fn oom_score(kind: Kind) {
    assert_eq!(section(kind, "oom"), "500\n");
}

fn system_call_filter(kind: Kind) {
    says(kind, "status", "Seccomp:\t2");
    assert!(
        section(kind, "seccomp").starts_with("mkdir: can't create directory '/scratch/dir': Operation not permitted\n")
    );
    says(kind, "seccomp", "went on");
}

fn namespaces_of_its_own(kind: Kind) {
    let processes = section(kind, "processes");
    assert!(
        processes
            .lines()
            .nth(1)
            .is_some_and(|line| line.trim().starts_with("1 sh")),
        "{processes}"
    );
    assert!(processes.lines().count() <= 4, "others' processes:\n{processes}");
    let links = section(kind, "links");
    assert!(links.starts_with("lo\n") && !links.contains("eth"), "{links}");
}

fn nothing_of_the_host(kind: Kind) {
    for path in ["/work", "/lib", "/usr", "/boot"] {
        says(kind, "hosts", &format!("ls: {path}: No such file or directory"));
    }
}
