//! QEMU replaced by small shell scripts that end in some wrong way, and the real one with kernels that are none.

use kata_machine::{Accelerator, Boot, Device, DiskAccess, DiskAio, MemoryBacking, Root};
use tempfile::TempDir;

use super::*;

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const LIMIT: Duration = Duration::from_secs(30);

/// A directory with a spec that names files in it.
struct Place {
    dir: TempDir,
    spec: MachineSpec,
}

impl Place {
    fn new(vmm: &str) -> Self {
        let dir = TempDir::new().expect("temporary directory");
        let file = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            std::fs::write(&path, bytes).expect(name);
            path
        };
        let boot = Boot {
            kernel: file("kernel", b"none"),
            root: Root::Initrd(file("initrd", b"")),
            parameters: vec![],
        };
        let run_dir = dir.path().join("run");
        std::fs::create_dir(&run_dir).expect("run directory");
        let spec = MachineSpec {
            id: "test".into(),
            vmm: vmm.into(),
            machine_type: "q35".into(),
            firmware: None,
            accelerator: Accelerator::Tcg,
            cpu_features: String::new(),
            vcpus: 1,
            growth: None,
            memory_mib: 64,
            memory_backing: MemoryBacking::Private,
            boot,
            channel: Channel::Serial {
                port: "p".into(),
                socket: run_dir.join("channel"),
            },
            devices: vec![],
            run_dir,
            seccomp_sandbox: String::new(),
            debug: true,
        };
        Self { dir, spec }
    }

    fn with_script(script: &str) -> Self {
        let mut place = Self::new("");
        let vmm = place.dir.path().join("vmm");
        kata_testkit::program::write(&vmm, &format!("#!/bin/sh\n{script}\n"));
        place.spec.vmm = vmm;
        place
    }

    async fn boot_fails(&self, limit: Duration) -> MachineError {
        let error = boot(&self.spec, limit).await.expect_err("it cannot boot");
        let left: Vec<_> = std::fs::read_dir(&self.spec.run_dir).expect("run directory").collect();
        assert!(left.is_empty(), "left behind: {left:?}");
        error
    }
}

/// A script that greets, agrees, and goes on with `rest`.
fn greeting_script(rest: &str) -> String {
    format!(
        r#"exec 3<&0 0<&0
echo '{{"QMP": {{"version": {{}}, "capabilities": []}}}}' >&0
read line <&0
echo '{{"return": {{}}, "id": 1}}' >&0
{rest}"#
    )
}

#[tokio::test]
async fn a_missing_vmm_is_named() {
    let place = Place::new("/no/such/qemu");
    let error = place.boot_fails(LIMIT).await;
    assert_eq!(error.to_string(), "cannot start the VMM /no/such/qemu");
    assert!(matches!(error, MachineError::Start { .. }), "{error:?}");
}

#[tokio::test]
async fn a_vmm_that_dies_at_once_explains_itself() {
    let place = Place::with_script("echo 'cannot set up guest memory' >&2; exit 7");
    let error = place.boot_fails(LIMIT).await.to_string();
    assert!(
        error.ends_with("ended with code 7; its messages: cannot set up guest memory"),
        "{error}"
    );
}

#[tokio::test]
async fn messages_without_end_are_bounded() {
    let place = Place::with_script("yes 'error error' | head -c 1000000 >&2; echo the end >&2; exit 1");
    let MachineError::Died { exit, .. } = place.boot_fails(LIMIT).await else {
        panic!("it died")
    };
    assert!(
        exit.messages.len() <= 8192 && exit.messages.ends_with("the end\n"),
        "{}",
        exit.messages.len()
    );
}

#[tokio::test]
async fn a_silent_vmm_is_killed() {
    let place = Place::with_script("echo $$ >&2; exec sleep 1000");
    let limit = Duration::from_millis(200);
    let error = place.boot_fails(limit).await;
    assert!(
        matches!(error, MachineError::Silent { limit: l, .. } if l == limit),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_vmm_that_is_none_is_told_apart() {
    let place = Place::with_script("echo 'welcome to my shell' >&0; exec sleep 1000");
    let error = place.boot_fails(LIMIT).await;
    let MachineError::Host { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(source.to_string().contains("welcome to my shell"), "{source}");
}

#[tokio::test]
async fn an_unreadable_kernel_is_named_before_anything_starts() {
    for (kernel, part) in [("/no/such/kernel", "/no/such/kernel"), ("/dev", "/dev")] {
        let mut place = Place::new("/bin/false");
        place.spec.boot.kernel = kernel.into();
        let error = place.boot_fails(LIMIT).await.to_string();
        assert_eq!(error, format!("cannot read the guest's kernel {part}"));
    }
}

#[tokio::test]
async fn death_is_seen_at_once_with_its_signal() {
    let place = Place::with_script(&greeting_script("echo boo >&2; read line <&0; kill -9 $$"));
    let machine = boot(&place.spec, LIMIT).await.expect("it greets");
    assert!(machine.exit().borrow().is_none());
    let error = machine.suspend().await.expect_err("dead").to_string();
    assert!(
        error.ends_with("ended by signal 9 (so the kernel ends processes when memory is wanting); its messages: boo"),
        "{error}"
    );
    assert_eq!(machine.exit().borrow().as_ref().map(|exit| exit.status), Some(Err(9)));
    let error = machine.connect().await.err().expect("dead");
    assert!(matches!(error, MachineError::Died { .. }), "{error:?}");
}

#[tokio::test]
async fn the_console_is_kept_and_shown() {
    let place = Place::with_script(&greeting_script(
        "printf 'Booting\\r\\nKernel panic\\r\\n'; sleep 0.3; exit 0",
    ));
    let machine = boot(&place.spec, LIMIT).await.expect("it greets");
    machine.halt(LIMIT).await;
    assert_eq!(machine.console_tail(), "Booting\nKernel panic\n");
    let log = std::fs::read_to_string(place.spec.run_dir.join("console.log")).expect("log");
    assert_eq!(log, "Booting\r\nKernel panic\r\n");
}

#[tokio::test]
async fn halt_kills_who_does_not_listen() {
    let place = Place::with_script(&greeting_script("exec sleep 1000"));
    let machine = boot(&place.spec, LIMIT).await.expect("it greets");
    machine.halt(Duration::from_millis(50)).await;
    assert_eq!(machine.exit().borrow().as_ref().map(|exit| exit.status), Some(Err(9)));
    assert!(kata_sys::process::start_ticks(machine.pid()).is_err(), "it is gone");
}

#[tokio::test]
async fn dropping_kills() {
    let place = Place::with_script(&greeting_script("exec sleep 1000"));
    let machine = boot(&place.spec, LIMIT).await.expect("it greets");
    let exit = machine.exit();
    drop(machine);
    let exit = timeout(LIMIT, launch::ended(exit)).await.expect("ended");
    assert_eq!(exit.status, Err(9));
}

#[tokio::test]
async fn the_real_qemu_refuses_what_is_no_kernel() {
    for machine_type in ["q35", "microvm"] {
        let mut place = Place::new(QEMU);
        place.spec.machine_type = machine_type.into();
        let error = place.boot_fails(LIMIT).await.to_string();
        assert!(
            error.contains("ended with code 1") && error.contains("kernel"),
            "{machine_type}: {error}"
        );
    }
}

#[tokio::test]
async fn the_real_qemu_says_that_memory_is_short() {
    let mut place = Place::new(QEMU);
    place.spec.memory_mib = 10 << 20;
    let error = place.boot_fails(LIMIT).await.to_string();
    // Which limit it meets first depends on the host.
    let words = ["cannot set up guest memory", "phys-bits too low", "ram size too large"];
    assert!(words.iter().any(|part| error.contains(part)), "{error}");
}

#[tokio::test]
async fn the_real_qemu_is_driven() {
    let mut place = Place::new(QEMU);
    // Firmware that spins: no guest is needed to talk to QEMU.
    let rom = place.dir.path().join("rom,with,commas");
    let mut code = vec![0xf4; 64 << 10];
    code[0xfff0..0xfff4].copy_from_slice(&[0xfa, 0xf4, 0xeb, 0xfd]);
    std::fs::write(&rom, code).expect("rom");
    place.spec.firmware = Some(rom);
    std::fs::write(&place.spec.boot.kernel, bzimage()).expect("kernel");
    place.spec.channel = Channel::Serial {
        port: "p".into(),
        socket: place.spec.run_dir.join("a,b"),
    };
    place.spec.devices.push(Device::DiskController);
    let machine = boot(&place.spec, LIMIT).await.expect("QEMU starts");
    machine.suspend().await.expect("stop");
    machine.resume().await.expect("cont");
    machine.connect().await.expect("the channel");
    disks_come_and_go(&machine, place.dir.path()).await;
    machine.halt(Duration::ZERO).await;
    let exit = machine.exit().borrow().clone().expect("ended");
    assert_eq!((exit.status, exit.messages.as_str()), (Ok(0), "QEMU was told to quit"));
}

async fn disks_come_and_go(machine: &QemuMachine, dir: &Path) {
    let disk = |read_only: bool, aio: DiskAio| {
        let image = std::fs::File::options()
            .read(true)
            .write(!read_only)
            .create(!read_only)
            .open(dir.join("image"));
        let file = image.expect("image");
        if !read_only {
            file.set_len(1 << 20).expect("size");
        }
        let access = DiskAccess {
            aio,
            ..DiskAccess::default()
        };
        Disk {
            file: file.into(),
            is_device: false,
            read_only,
            access,
        }
    };
    let first = machine.attach(disk(false, DiskAio::Threads)).await.expect("attach");
    let second = machine.attach(disk(true, DiskAio::Threads)).await.expect("attach");
    assert_ne!(first, second);
    machine.detach(first).await.expect("detach");
    machine.detach(second).await.expect("detach");
    let error = machine.detach(first).await.expect_err("twice").to_string();
    assert!(error.contains("device_del"), "{error}");
    // QEMU refuses it, because it is not direct; nothing of it stays.
    let error = machine
        .attach(disk(false, DiskAio::Native))
        .await
        .expect_err("native")
        .to_string();
    assert!(error.contains("blockdev-add"), "{error}");
    let third = machine.attach(disk(false, DiskAio::Threads)).await.expect("attach");
    assert!(third.target > second.target, "targets are not used again soon");
}

/// What QEMU takes for the setup code of a Linux kernel (boot protocol 2.0), with nothing behind it.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 5 * 512 + 4096];
    image[0x1f1] = 4;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x0204_u16.to_le_bytes());
    image[0x211] = 1;
    image[0x22c..0x230].copy_from_slice(&0x37ff_ffff_u32.to_le_bytes());
    image
}

#[test]
fn the_version_of_the_real_one_is_read() {
    let version = crate::version(Path::new(QEMU)).expect("version");
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
    assert!(
        crate::version(Path::new("/bin/true"))
            .expect_err("no QEMU")
            .to_string()
            .contains("/bin/true --version")
    );
    assert!(
        crate::version(Path::new("/no/such"))
            .expect_err("nothing")
            .to_string()
            .contains("/no/such")
    );
}
