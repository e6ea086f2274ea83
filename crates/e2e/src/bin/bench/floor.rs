//! F, the floor under every cold start: the bare VMM boots the same kernel on the same machine into an init that ends at
//! once. What the machine has besides CPUs, memory and firmware is left away: channel, file system, network.

use std::fs;
use std::path::Path;

use kata_e2e::bundle::Bundle;
use kata_e2e::command::Cmd;
use kata_e2e::lab::Lab;
use kata_e2e::program;
use kata_e2e::runtime::{Kind, Runtime};

use crate::samples::Cost;

/// What the floor costs.
pub const COST: Cost = Cost {
    wall: "floor (bare VMM, kernel, init that ends), wall",
    cpu: "floor (bare VMM, kernel, init that ends), CPU",
};

/// What it costs at the time when the clones are measured. The machine may be half as fast by then, or twice.
pub const BESIDE_CLONES: Cost = Cost {
    wall: "floor beside the clones, wall",
    cpu: "floor beside the clones, CPU",
};

/// Ends the machine. `-no-reboot` makes of a restart an end on every board, with ACPI and without.
const INIT: &str = r"
#include <sys/reboot.h>
#include <unistd.h>
int main(void) { reboot(RB_AUTOBOOT); for (;;) pause(); }
";

/// The options of our command line that the floor has, too; each has a value.
const KEPT: [&str; 9] = [
    "-machine", "-accel", "-cpu", "-smp", "-m", "-bios", "-kernel", "-append", "-display",
];

/// The VMM as `kata-runtime plan` has it for a plain container, with nothing to boot but that init.
///
/// # Panics
/// When there is no plan, or no initramfs can be made.
pub fn command(lab: &Lab) -> Cmd {
    let bundle = Bundle::args(lab, "floor", &["true"]);
    let plan = Runtime::new(Kind::Kata, lab)
        .program()
        .args(["plan", "--json", "--bundle"]);
    let plan = plan.arg(bundle.dir()).run().ok().json();
    let words: Vec<&str> = plan["command_line"]
        .as_array()
        .expect("a command line")
        .iter()
        .filter_map(|word| word.as_str())
        .collect();
    let mut command = lab
        .command(words[0])
        .args([
            "-no-user-config",
            "-nodefaults",
            "-no-reboot",
            "-serial",
            "null",
            "-initrd",
        ])
        .arg(initramfs(lab, bundle.dir()));
    for pair in words.windows(2) {
        let memory = pair[0] == "-object" && pair[1].starts_with("memory-backend-");
        if memory || KEPT.contains(&pair[0]) {
            command = command.args(pair);
        }
    }
    command
}

/// An initramfs with that init alone.
fn initramfs(lab: &Lab, dir: &Path) -> std::path::PathBuf {
    let (root, archive) = (dir.join("initramfs"), dir.join("floor.img"));
    fs::create_dir_all(&root).expect("the folder of the initramfs");
    program::compile(INIT, &root.join("init"));
    let pack = r#"cd "$0" && echo init | cpio --quiet -o -H newc >"$1""#;
    let pack = lab.command("sh").args(["-c", pack]).arg(&root).arg(&archive);
    pack.run().ok();
    archive
}
