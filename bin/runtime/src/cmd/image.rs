//! `kata-runtime image`: builds the guest's kernel, initramfs and image, lists the sets that were built, shows one.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Subcommand;
use serde_json::json;

use crate::cli::Globals;
use crate::image::build::{Request, build};
use crate::image::kernel::Wanted;
use crate::image::manifest::Manifest;
use crate::image::source;
use crate::image::store::{Defect, IMAGE, INITRD, Set, Store, VMLINUX};
use crate::report;

/// Where assets are kept unless something else is said.
pub const DEFAULT_STORE: &str = "/var/cache/kata-containers";

/// What to do with images.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Build the guest's kernel, initramfs and image from the distribution's kernel package or its source, or find them built already
    Build(Build),
    /// List the sets that were built
    List(Place),
    /// Show the set in use, or the one with this key
    Show(Show),
}

#[derive(clap::Args, Debug)]
struct Build {
    #[command(flatten)]
    place: Place,
    /// The static agent [default: beside this program, in its build tree, or /usr/libexec/kata-agent]
    #[arg(long, value_name = "FILE")]
    agent: Option<PathBuf>,
    /// Take this kernel, an ELF vmlinux with a PVH entry or a bzImage, in place of a package's
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel_deb", "kernel_package"])]
    kernel: Option<PathBuf>,
    /// The kernel's module tree (/lib/modules/RELEASE) [default: none, everything is built in]
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Take the kernel of this package, or of the one that it depends on
    #[arg(long, value_name = "NAME", default_value = "linux-image-cloud-amd64")]
    kernel_package: String,
    /// Take the kernel of this package's file
    #[arg(long, value_name = "FILE", conflicts_with = "kernel_package")]
    kernel_deb: Option<PathBuf>,
    /// Compile a small kernel from this source: a package, a directory, a tarball [default: apt's newest linux-source-VERSION]
    #[arg(
        long,
        value_name = "SOURCE",
        num_args = 0..=1,
        default_missing_value = "",
        conflicts_with_all = ["kernel", "kernel_deb", "kernel_package"]
    )]
    kernel_source: Option<String>,
    /// Configure it as this fragment says, `min`, `full` or a file; later ones replace what earlier ones say
    #[arg(long, value_name = "FRAGMENT", default_value = "min", requires = "kernel_source")]
    kernel_fragment: Vec<String>,
}

#[derive(clap::Args, Debug)]
struct Place {
    /// Directory in which sets are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STORE)]
    out: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args, Debug)]
struct Show {
    #[command(flatten)]
    place: Place,
    /// Key of the set
    key: Option<String>,
}

/// Does it.
///
/// # Errors
/// See the rooms of [`image`](crate::image).
pub fn run(args: Args, _: &Globals) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Build(args) => run_build(args)?,
        Action::List(place) => run_list(&place)?,
        Action::Show(args) => run_show(&args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn run_build(args: Build) -> anyhow::Result<()> {
    let began = Instant::now();
    let kernel = match (args.kernel, args.kernel_deb, args.kernel_source) {
        (Some(kernel), ..) => Wanted::File(kernel, args.modules),
        (None, Some(deb), _) => Wanted::Deb(deb),
        (None, None, Some(word)) => Wanted::Source(source::Wanted::parse(&word), args.kernel_fragment),
        (None, None, None) => Wanted::Package(args.kernel_package),
    };
    let built = build(&Request {
        out: args.place.out.clone(),
        agent: args.agent,
        kernel,
    })
    .context("cannot build the guest's assets")?;
    let seconds = began.elapsed().as_secs_f64();
    let current = Store::at(&args.place.out).current();
    if args.place.json {
        let mut value = describe(&built.set);
        value["made"] = built.made.into();
        value["current"] = current.display().to_string().into();
        value["seconds"] = seconds.into();
        return report::print(&format!("{value:#}\n"));
    }
    let what = if built.made { "built" } else { "up to date" };
    report::print(&format!(
        "{}{what} in {seconds:.1} s, in use as {}\n",
        table(&built.set),
        current.display()
    ))
}

fn run_list(place: &Place) -> anyhow::Result<()> {
    let store = Store::at(&place.out);
    let current = store.current_key();
    let mut rows = Vec::new();
    for key in store.keys()? {
        let in_use = current.as_ref() == Some(&key);
        let found = store.find(&key);
        rows.push((key, in_use, found));
    }
    if place.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(key, in_use, found)| {
                json!({
                    "key": key, "current": in_use, "intact": found.is_ok(),
                    "kernel": found.as_ref().ok().map(|set| &set.manifest.kernel.release),
                })
            })
            .collect();
        return report::print(&format!("{:#}\n", json!(rows)));
    }
    let mut text = String::new();
    for (key, in_use, found) in &rows {
        let mark = if *in_use { '*' } else { ' ' };
        let kernel = match found {
            Ok(set) => format!("{} from {}", set.manifest.kernel.release, set.manifest.kernel.source),
            Err(_) => "damaged".to_owned(),
        };
        text.push_str(&format!("{mark} {key}  {kernel}\n"));
    }
    report::print(&text)
}

fn run_show(args: &Show) -> anyhow::Result<()> {
    let store = Store::at(&args.place.out);
    let found = match &args.key {
        Some(key) if key.contains('/') || key.starts_with('.') => bail!("{key:?} is not a set's key"),
        Some(key) => store.find(key),
        None => store.find_current(),
    };
    let set = match found {
        Ok(set) => set,
        Err(Defect::Absent) => bail!(
            "no such set in {}; `kata-runtime image build` makes one",
            args.place.out.display()
        ),
        Err(Defect::Broken(path)) => bail!(
            "{} is damaged; `kata-runtime image build` makes it anew",
            path.display()
        ),
    };
    let text = if args.place.json {
        format!("{:#}\n", describe(&set))
    } else {
        table(&set)
    };
    report::print(&text)
}

fn describe(set: &Set) -> serde_json::Value {
    json!({
        "path": set.path,
        "vmlinux": set.path.join(VMLINUX),
        "initrd": set.path.join(INITRD),
        "image": set.manifest.image.as_ref().map(|_| set.path.join(IMAGE)),
        "manifest": set.manifest,
    })
}

fn table(set: &Set) -> String {
    let Manifest {
        kernel,
        modules,
        missing_modules,
        vmlinux,
        initrd,
        image,
        loader,
        agent_sha256,
        ..
    } = &set.manifest;
    let names = |names: Vec<&str>| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let chosen = names(modules.iter().map(|module| module.name.as_str()).collect());
    let image = match (image, loader) {
        (None, _) => "none: the kernel lacks drivers for it".to_owned(),
        (Some(image), None) => format!("{:.1} MiB, sha256 {}", mib(image.bytes), image.sha256),
        (Some(image), Some(loader)) => format!(
            "{:.1} MiB, sha256 {}, and {:.1} MiB that load its drivers",
            mib(image.bytes),
            image.sha256,
            mib(loader.bytes)
        ),
    };
    let missing = names(missing_modules.iter().map(String::as_str).collect());
    format!(
        "kernel   {} from {}\nvmlinux  {:.1} MiB, sha256 {}\ninitrd   {:.1} MiB, sha256 {}\nimage    {image}\nagent    sha256 {agent_sha256}\n\
         modules  {chosen}\nlacking  {missing}\npath     {}\n",
        kernel.release,
        kernel.source,
        mib(vmlinux.bytes),
        vmlinux.sha256,
        mib(initrd.bytes),
        initrd.sha256,
        set.path.display(),
    )
}
