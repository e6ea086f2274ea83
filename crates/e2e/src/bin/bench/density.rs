//! Many pods beside each other: how fast they come, whether the last comes as fast as the first, whether all answer, and
//! what one of them costs while it idles. First of containers without a VM, then of pods that boot, then of clones of a
//! template, each crowd in a lab of its own, which takes all of it away.

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kata_e2e::command::Cmd;
use kata_e2e::containerd::Containerd;
use kata_e2e::lab::Lab;
use kata_e2e::pids::{self, Part};
use kata_e2e::runtime::Kind;

use crate::Flags;
use crate::container::{self, TURNS};
use crate::floor;
use crate::samples::{Cost, Samples};

/// `ctr run --rm busybox true` with templates.
pub const TEMPLATE_RUN: Cost = Cost {
    wall: "from a template: ctr run --rm busybox true, wall",
    cpu: "from a template: ctr run --rm busybox true, CPU",
};

/// Names of what is measured of a crowd, after what it is made of.
#[derive(Debug, Clone, Copy)]
pub struct Crowd {
    /// Seconds until all run, each.
    pub wall: &'static str,
    /// How much longer the last took than the first.
    pub growth: &'static str,
    /// MiB a pod, everything counted.
    pub pss: &'static str,
    /// MiB a pod that the host has less.
    pub less: &'static str,
    /// MiB of a pod's sandbox process.
    pub pss_sandbox: &'static str,
    /// Milliseconds of CPU time a second that an idle pod takes.
    pub idle: &'static str,
}

impl Crowd {
    fn all(self) -> [&'static str; 6] {
        let Self {
            wall,
            growth,
            pss,
            less,
            pss_sandbox,
            idle,
        } = self;
        [wall, growth, pss, less, pss_sandbox, idle]
    }
}

/// Pods that boot; of runc, containers.
pub const COLD: Crowd = Crowd {
    wall: "cold pods, all run, each",
    growth: "cold pods, last to first",
    pss: "cold pods, PSS",
    less: "cold pods, the host has less",
    pss_sandbox: "cold pods, sandbox process",
    idle: "cold pods, idle CPU",
};
/// Clones.
pub const CLONES: Crowd = Crowd {
    wall: "clones, all run, each",
    growth: "clones, last to first",
    pss: "clones, PSS",
    less: "clones, the host has less",
    pss_sandbox: "clones, sandbox process",
    idle: "clones, idle CPU",
};

/// Seconds until the specification's number of clones run, and how much longer the last of them took than the first.
pub const PODS_100_WALL: &str = "100 clones, all run";
/// See there.
pub const GROWTH_100TH: &str = "100 clones, last to first";
const SPECIFIED: usize = 100;

/// How many at each end are started one by one, to see whether the last come as fast as the first.
const EDGE: usize = 5;
/// How many are started at a time between the ends.
const AT_ONCE: usize = 4;
/// How long those that came at once are given to come to rest; not counted.
const REST: Duration = Duration::from_secs(5);
/// How long pods are left alone until they idle,
pub const SETTLE: Duration = Duration::from_secs(15);
/// and for how long their idling is measured.
const IDLE: Duration = Duration::from_secs(20);
/// How long the start of one of many may take.
const LIMIT: Duration = Duration::from_secs(300);

/// The configuration with templates.
const TEMPLATES: &str = "[factory]\nenable_template = true\n";

pub fn measure(flags: &Flags, samples: &mut Samples) {
    let half = flags.pods.div_ceil(2);
    if flags.kinds.contains(&Kind::Runc) {
        eprintln!("{} containers of runc", flags.pods);
        crowd(Kind::Runc, (half, flags.pods), "", COLD, samples);
    }
    if flags.kinds.contains(&Kind::Kata) {
        eprintln!("{half} pods that boot");
        crowd(Kind::Kata, (half, half), "", COLD, samples);
        match clones_run(flags, samples) {
            Ok(()) => {
                eprintln!("{} clones", flags.pods);
                crowd(Kind::Kata, (half, flags.pods), TEMPLATES, CLONES, samples);
                specified(flags.pods, samples);
            }
            Err(reason) => {
                let alone = [TEMPLATE_RUN.wall, TEMPLATE_RUN.cpu, PODS_100_WALL, GROWTH_100TH];
                for series in alone.into_iter().chain(CLONES.all()) {
                    samples.lack(series, &reason);
                }
            }
        }
    }
}

/// What is said of a hundred is only measured with a hundred.
fn specified(pods: usize, samples: &mut Samples) {
    let hundred = SPECIFIED as f64;
    for (series, of_clones, times) in [
        (PODS_100_WALL, CLONES.wall, hundred),
        (GROWTH_100TH, CLONES.growth, 1.0),
    ] {
        match samples.quantile(of_clones, Kind::Kata, 0.5) {
            Some(value) if pods == SPECIFIED => samples.add(series, Kind::Kata, value * times),
            Some(_) => samples.lack(series, &format!("of {SPECIFIED} pods; this run was of {pods}")),
            None => {
                let reason = samples.reason(of_clones).unwrap_or_default().to_owned();
                samples.lack(series, &reason);
            }
        }
    }
}

/// Measures containers from a template, one after the other, or says why there are none.
fn clones_run(flags: &Flags, samples: &mut Samples) -> Result<(), String> {
    let lab = Lab::configured(TEMPLATES);
    let containerd = Containerd::start(&lab);
    // The first may have to make the template.
    container::run_once(
        &containerd,
        Kind::Kata,
        "warm-up",
        TEMPLATE_RUN,
        &mut Samples::default(),
    );
    start(&containerd, Kind::Kata, "clone")?;
    let is_clone = |process: &pids::Process| process.part() == Some(Part::Vmm) && process.line.contains(" -incoming ");
    if !pids::of_sandbox(&lab, "clone").iter().any(is_clone) {
        return Err("with [factory] enable_template a pod's VMM still boots: there are no templates".to_owned());
    }
    let plain = Lab::open();
    let floor = floor::command(&plain);
    for round in 1..=flags.rounds {
        eprintln!("round {round} of {}: from a template", flags.rounds);
        for turn in 1..=TURNS {
            samples.time(&plain, Kind::Kata, floor::BESIDE_CLONES, || floor.run().ok());
            let id = format!("run-{round}-{turn}");
            container::run_once(&containerd, Kind::Kata, &id, TEMPLATE_RUN, samples);
        }
    }
    Ok(())
}

/// Measures a crowd: memory and idling of the first, speed of all. One that does not come, or does not answer, is why it
/// has no numbers.
fn crowd(kind: Kind, (half, all): (usize, usize), configuration: &str, names: Crowd, samples: &mut Samples) {
    let lab = Lab::configured(configuration);
    let containerd = Containerd::start(&lab);
    container::run_once(&containerd, kind, "warm-up", TEMPLATE_RUN, &mut Samples::default());
    let available = available_mib();
    let reserve = Reserve::for_pods(all);
    let result = begin(&containerd, kind, 0..half, &reserve).and_then(|first| {
        thread::sleep(SETTLE);
        memory(&lab, kind, half, names, samples);
        let less = (available - available_mib() - reserve.mib()) / half as f64;
        samples.add(names.less, kind, less);
        let before = lab.cpu_time();
        thread::sleep(IDLE);
        let idle = (lab.cpu_time() - before).as_secs_f64() * 1000.0 / IDLE.as_secs_f64() / half as f64;
        samples.add(names.idle, kind, idle);
        let rest = begin(&containerd, kind, half..all, &reserve)?;
        all_answer(&containerd, all)?;
        Ok((first, rest))
    });
    match result {
        Ok((first, rest)) => {
            let took = (first.took + rest.took).as_secs_f64();
            samples.add(names.wall, kind, took / all as f64);
            let last_ones = if rest.last_ones.is_empty() {
                &first.last_ones
            } else {
                &rest.last_ones
            };
            if let (Some(first), Some(last)) = (middle(&first.first_ones), middle(last_ones)) {
                samples.add(names.growth, kind, last / first);
            }
        }
        Err(reason) => {
            eprintln!("{reason}\n{}", containerd.log());
            names.all().iter().for_each(|series| samples.lack(series, &reason));
        }
    }
}

/// Memory for a crowd, which the host has got hold of already. Where it is a virtual machine itself, what it uses for the first time
/// comes from the host under it, page by page: the more pods there are, the more of it, which is not what is measured here.
struct Reserve(Mutex<Vec<Vec<u8>>>);

impl Reserve {
    /// More than a clone takes.
    const OF_ONE_MIB: usize = 80;

    fn for_pods(count: usize) -> Self {
        // A value, so that each page is written to.
        let of_one = || vec![1; Self::OF_ONE_MIB << 20];
        Self(Mutex::new((0..count).map(|_| of_one()).collect()))
    }

    /// Leaves one pod's part to that pod.
    fn release(&self) {
        drop(self.0.lock().expect("no panic while it is held").pop());
    }

    /// What is still held.
    fn mib(&self) -> f64 {
        (self.0.lock().expect("no panic while it is held").len() * Self::OF_ONE_MIB) as f64
    }
}

/// How a part of a crowd came.
struct Begun {
    /// Until all ran.
    took: Duration,
    /// What each of the first took.
    first_ones: Vec<Duration>,
    /// What each of the last took.
    last_ones: Vec<Duration>,
}

/// Starts the containers of these numbers: those at the ends one by one, those between some at once.
fn begin(
    containerd: &Containerd,
    kind: Kind,
    numbers: std::ops::Range<usize>,
    reserve: &Reserve,
) -> Result<Begun, String> {
    let begun = Instant::now();
    let edge = EDGE.min(numbers.len() / 2);
    let start = |number| {
        reserve.release();
        start(containerd, kind, &name(number))
    };
    let one_by_one = |numbers: std::ops::Range<usize>| -> Result<Vec<_>, String> { numbers.map(start).collect() };
    let first_ones = one_by_one(numbers.start..numbers.start + edge)?;
    let between = numbers.start + edge..numbers.end - edge;
    some_at_once(between, |number| start(number).map(drop))?;
    let mut took = begun.elapsed();
    // The first ones, too, came when nothing else was going on.
    thread::sleep(REST);
    let begun = Instant::now();
    let last_ones = one_by_one(numbers.end - edge..numbers.end)?;
    took += begun.elapsed();
    Ok(Begun {
        took,
        first_ones,
        last_ones,
    })
}

fn name(number: usize) -> String {
    format!("crowd-{number}")
}

/// Starts a container; answers how long that took.
fn start(containerd: &Containerd, kind: Kind, id: &str) -> Result<Duration, String> {
    let run = containerd.run(kind, &["-d"], id, &["sleep", "100000"]);
    succeed(&run.limit(LIMIT), id)
}

/// Runs one more process in each of the crowd.
fn all_answer(containerd: &Containerd, count: usize) -> Result<(), String> {
    some_at_once(0..count, |number| {
        let id = name(number);
        let exec = containerd.ctr(["task", "exec", "--exec-id", "answer", &id, "true"]);
        succeed(&exec.limit(LIMIT), &id).map(drop)
    })
}

fn succeed(command: &Cmd, id: &str) -> Result<Duration, String> {
    let outcome = command.run();
    let errors = outcome.errors();
    let said = errors.trim().lines().last().unwrap_or("nothing was said");
    (outcome.code() == 0)
        .then_some(outcome.took)
        .ok_or_else(|| format!("{id}: {said}"))
}

/// Does something for each of the numbers, a few at a time; the first failure ends it.
fn some_at_once(
    numbers: std::ops::Range<usize>,
    act: impl Fn(usize) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let (next, failure) = (AtomicUsize::new(numbers.start), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let failed = failure.lock().expect("no panic while it is held").is_some();
                    if number >= numbers.end || failed {
                        return;
                    }
                    if let Err(reason) = act(number) {
                        failure.lock().expect("no panic while it is held").get_or_insert(reason);
                    }
                }
            });
        }
    });
    failure
        .into_inner()
        .expect("no panic while it is held")
        .map_or(Ok(()), Err)
}

/// PSS of everything that belongs to pods, and of the sandbox processes among it.
fn memory(lab: &Lab, kind: Kind, pods: usize, names: Crowd, samples: &mut Samples) {
    let of_pods: Vec<_> = pids::all(lab)
        .into_iter()
        .filter(|process| process.part().is_some())
        .collect();
    let mib_each = |processes: &mut dyn Iterator<Item = &pids::Process>| {
        let kib: u64 = processes.map(|process| pids::pss_kib(lab, process.pid)).sum();
        kib as f64 / 1024.0 / pods as f64
    };
    samples.add(names.pss, kind, mib_each(&mut of_pods.iter()));
    let mut sandboxes = of_pods.iter().filter(|process| process.part() == Some(Part::Shim));
    samples.add(names.pss_sandbox, kind, mib_each(&mut sandboxes));
}

/// What the host could still give, MiB.
fn available_mib() -> f64 {
    let text = fs::read_to_string("/proc/meminfo").expect("/proc/meminfo");
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line
        .expect("MemAvailable")
        .trim()
        .trim_end_matches(" kB")
        .parse::<f64>();
    kib.expect("a number of KiB") / 1024.0
}

/// The median in seconds, of any at all.
fn middle(times: &[Duration]) -> Option<f64> {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).map(Duration::as_secs_f64)
}
