//! Boots a kernel by hand: `boot MACHINE KERNEL INITRD [PARAMETER…]`. Prints how long it took, the console's tail, and
//! how it ended.

use std::time::{Duration, Instant};

use kata_machine::{Boot, Channel, MachineSpec, MemoryBacking, Root, Vmm};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |what: &str| arguments.next().ok_or(format!("{what} is missing"));
    let (machine_type, kernel, initrd) = (next("MACHINE")?, next("KERNEL")?, next("INITRD")?);
    let run_dir = std::env::temp_dir().join(format!("kata-boot-{}", std::process::id()));
    std::fs::create_dir_all(&run_dir)?;
    let choice = kata_qemu::probe();
    println!("accelerator: {} because {}", choice.accelerator, choice.reason);
    let spec = MachineSpec {
        id: "by,hand".into(),
        vmm: "/usr/bin/qemu-system-x86_64".into(),
        machine_type,
        firmware: None,
        accelerator: choice.accelerator,
        cpu_features: String::new(),
        vcpus: 1,
        growth: None,
        memory_mib: 256,
        memory_backing: MemoryBacking::SharedMemfd,
        boot: Boot {
            kernel: kernel.into(),
            root: Root::Initrd(initrd.into()),
            parameters: arguments.collect(),
        },
        channel: Channel::Serial {
            port: "org.kata.agent.0".into(),
            socket: run_dir.join("channel,sock"),
        },
        devices: vec![kata_machine::Device::Rng {
            source: "/dev/urandom".into(),
        }],
        run_dir: run_dir.clone(),
        seccomp_sandbox: "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny".into(),
        debug: std::env::var_os("DEBUG").is_some(),
    };
    let start = Instant::now();
    let machine = kata_qemu::Qemu.boot(&spec).await?;
    println!("greeted after {:?}, pid {}", start.elapsed(), machine.pid());
    let _transport = machine.connect().await?;
    machine.suspend().await?;
    machine.resume().await?;
    println!("connected, suspended and resumed after {:?}", start.elapsed());
    let mut exit = machine.exit();
    let grace = std::env::var("GRACE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(30);
    machine.halt(Duration::from_secs(grace)).await;
    println!("ended after {:?}: {:?}", start.elapsed(), *exit.borrow_and_update());
    println!("console: {:?}", machine.console_tail());
    drop(machine);
    for entry in std::fs::read_dir(&run_dir)? {
        println!("left: {:?}", entry?.path());
    }
    std::fs::remove_dir_all(run_dir)?;
    Ok(())
}
