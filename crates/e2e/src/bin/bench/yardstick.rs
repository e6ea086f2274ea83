//! The rows of the report: what each shows of what was measured, and what it is compared with. Seconds are of the machine
//! and the day; where a row is to hold on other machines it is in floors (F), or in times of runc.

use crate::cache::CACHE_RUN;
use crate::container::{CLI_EXEC, CLI_RUN, CTR_EXEC, CTR_RUN, POD_PSS};
use crate::density::{CLONES, COLD, GROWTH_100TH, PODS_100_WALL, TEMPLATE_RUN};
use crate::floor;
use crate::network::{INTO, OUT, THERE_AND_BACK};
use crate::pod::{EXEC, POD, SANDBOX, SECOND, STATS};

/// Which number of its series a row shows.
#[derive(Debug, Clone, Copy)]
pub enum Figure {
    /// The median.
    Median(&'static str),
    /// The 99th percentile.
    P99(&'static str),
    /// The median, as a multiple of that of the floor that was measured beside it.
    Floors(&'static str, &'static str),
    /// Our median, as a multiple of runc's.
    TimesRunc(&'static str),
}

impl Figure {
    /// The series it is of.
    pub fn series(self) -> &'static str {
        let (Self::Median(series) | Self::P99(series) | Self::Floors(series, _) | Self::TimesRunc(series)) = self;
        series
    }
}

/// Which numbers are good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Better {
    /// Costs.
    Less,
    /// Rates.
    More,
}

/// What a row's number is compared with.
#[derive(Debug, Clone, Copy)]
pub enum Bounds {
    /// What Kata 1.13 reached on a machine of the same kind without KVM, and what is to be reached; as far as known.
    Fixed {
        /// Kata 1.13's.
        reference: Option<f64>,
        /// To be reached.
        target: Option<f64>,
    },
    /// The same by virtio-9p, measured in the same run: to be reached, too.
    Rival,
}

/// A row, and what its number is compared with.
#[derive(Debug)]
pub struct Yardstick {
    /// The row's name.
    pub name: &'static str,
    /// The unit of all its numbers.
    pub unit: &'static str,
    /// What it shows.
    pub figure: Figure,
    /// In which direction it is good.
    pub better: Better,
    /// What it is compared with.
    pub bounds: Bounds,
}
/// A row of what should be small.
const fn cost(
    name: &'static str,
    unit: &'static str,
    figure: Figure,
    reference: Option<f64>,
    target: Option<f64>,
) -> Yardstick {
    Yardstick {
        name,
        unit,
        figure,
        better: Better::Less,
        bounds: Bounds::Fixed { reference, target },
    }
}

/// A row that shows a series under its own name.
const fn plain(series: &'static str, unit: &'static str, reference: Option<f64>, target: Option<f64>) -> Yardstick {
    cost(series, unit, Figure::Median(series), reference, target)
}

/// A row of what should be large.
const fn rate(series: &'static str, unit: &'static str, bounds: Bounds) -> Yardstick {
    Yardstick {
        name: series,
        unit,
        figure: Figure::Median(series),
        better: Better::More,
        bounds,
    }
}

/// Compared with nothing but runc.
const OPEN: Bounds = Bounds::Fixed {
    reference: None,
    target: None,
};

/// All rows, in their order.
pub const YARDSTICKS: &[Yardstick] = &[
    cost(
        "cold_cpu",
        "F",
        Figure::Floors(CTR_RUN.cpu, floor::COST.cpu),
        Some(5.2),
        Some(1.5),
    ),
    cost(
        "template_cpu",
        "F",
        Figure::Floors(TEMPLATE_RUN.cpu, floor::BESIDE_CLONES.cpu),
        Some(2.4),
        Some(0.25),
    ),
    cost(
        "second_container_cpu",
        "F",
        Figure::Floors(SECOND.cpu, floor::COST.cpu),
        None,
        Some(0.25),
    ),
    cost("exec_wall", "runc", Figure::TimesRunc(CTR_EXEC.wall), None, Some(3.0)),
    cost("pods_100_wall", "s", Figure::Median(PODS_100_WALL), None, Some(30.0)),
    cost("growth_100th", "1st", Figure::Median(GROWTH_100TH), None, Some(1.3)),
    cost(
        "pss_template",
        "MiB",
        Figure::Median(CLONES.pss),
        Some(110.0),
        Some(40.0),
    ),
    cost("pss_cold", "MiB", Figure::Median(COLD.pss), Some(272.0), Some(90.0)),
    cost("pss_sandbox", "MiB", Figure::Median(COLD.pss_sandbox), None, Some(3.5)),
    cost("idle_cpu", "ms/s", Figure::Median(COLD.idle), None, Some(2.0)),
    plain(floor::COST.cpu, "s", None, None),
    plain(floor::COST.wall, "s", None, None),
    plain(CTR_RUN.wall, "s", Some(8.6), None),
    plain(CTR_RUN.cpu, "s", Some(7.4), Some(3.7)),
    plain(TEMPLATE_RUN.wall, "s", None, None),
    plain(TEMPLATE_RUN.cpu, "s", None, None),
    plain(CACHE_RUN, "s", None, None),
    plain(CLI_RUN.wall, "s", None, None),
    plain(CLI_RUN.cpu, "s", None, Some(3.7)),
    plain(CTR_EXEC.wall, "s", Some(2.3), Some(0.25)),
    plain(CTR_EXEC.cpu, "s", None, None),
    plain(CLI_EXEC.wall, "s", Some(2.3), Some(0.25)),
    cost(
        "exec true, wall, of runc's",
        "runc",
        Figure::TimesRunc(CLI_EXEC.wall),
        None,
        Some(3.0),
    ),
    plain(CLI_EXEC.cpu, "s", None, None),
    plain("sandbox process, PSS", "MiB", Some(22.0), Some(8.0)),
    plain("VMM, PSS", "MiB", None, None),
    plain("virtiofsd, PSS", "MiB", None, None),
    plain(POD_PSS, "MiB", Some(398.0), None),
    plain(SANDBOX.wall, "s", None, None),
    plain(SANDBOX.cpu, "s", None, None),
    plain(POD.wall, "s", None, None),
    plain(POD.cpu, "s", None, None),
    plain(SECOND.wall, "s", None, None),
    plain(SECOND.cpu, "s", None, None),
    cost("CRI exec true, p50", "s", Figure::Median(EXEC), None, None),
    cost("CRI exec true, p99", "s", Figure::P99(EXEC), None, None),
    plain(STATS, "s", None, None),
    rate(INTO, "Mbit/s", OPEN),
    rate(OUT, "Mbit/s", OPEN),
    cost(
        "one byte there and back, p50",
        "ms",
        Figure::Median(THERE_AND_BACK),
        None,
        None,
    ),
    cost(
        "one byte there and back, p99",
        "ms",
        Figure::P99(THERE_AND_BACK),
        None,
        None,
    ),
    rate("volume write", "MB/s", Bounds::Rival),
    rate("volume read", "MB/s", Bounds::Rival),
    rate("volume small-read", "MB/s", Bounds::Rival),
    rate("volume random-read", "IOPS", Bounds::Rival),
    rate("volume random-write", "IOPS", Bounds::Rival),
    rate("volume create", "1/s", Bounds::Rival),
    rate("volume stat", "1/s", Bounds::Rival),
    rate("volume unlink", "1/s", Bounds::Rival),
    rate("root write", "MB/s", Bounds::Rival),
    rate("root read", "MB/s", Bounds::Rival),
    rate("root small-read", "MB/s", Bounds::Rival),
    rate("root random-read", "IOPS", Bounds::Rival),
    rate("root random-write", "IOPS", Bounds::Rival),
    rate("root create", "1/s", Bounds::Rival),
    rate("root stat", "1/s", Bounds::Rival),
    rate("root unlink", "1/s", Bounds::Rival),
    plain(COLD.wall, "s", None, None),
    plain(COLD.growth, "1st", None, None),
    plain(COLD.less, "MiB", None, None),
    plain(CLONES.wall, "s", None, None),
    plain(CLONES.growth, "1st", None, None),
    plain(CLONES.less, "MiB", None, None),
    plain(CLONES.pss_sandbox, "MiB", None, Some(3.5)),
    plain(CLONES.idle, "ms/s", None, Some(2.0)),
];
