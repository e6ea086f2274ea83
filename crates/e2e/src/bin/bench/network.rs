//! A pod's network, as the host sees it through real CNI plug-ins: how much goes each way, and how long one byte takes
//! there and back.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use kata_e2e::containerd::Release;
use kata_e2e::cri::{Cri, Pod};
use kata_e2e::image::{self, DEBIAN};
use kata_e2e::lab::Lab;
use kata_e2e::program;
use kata_e2e::runtime::Kind;
use kata_e2e::wait;
use serde_json::json;

use crate::Flags;
use crate::samples::Samples;

/// Mbit/s from the host into a pod, by iperf3.
pub const INTO: &str = "TCP host to pod";
/// The same, out of a pod.
pub const OUT: &str = "TCP pod to host";
/// Milliseconds of one byte there and back.
pub const THERE_AND_BACK: &str = "one byte there and back";

/// Seconds that each stream flows.
const FLOW_S: &str = "3";
/// How many bytes go there and back each round.
const BYTES: usize = 100;
const ECHO_PORT: u16 = 7;
/// How long a server may take until it answers.
const UP: Duration = Duration::from_secs(30);

pub fn measure(flags: &Flags, samples: &mut Samples) {
    let lab = Lab::open();
    let cri = Cri::start(&lab, Release::V1);
    cri.import(&image::debian(&lab.scratch().join("images")));
    let pods: Vec<(Kind, Pod)> = flags.kinds.iter().map(|kind| (*kind, serving(&cri, *kind))).collect();
    for number in 1..=flags.rounds {
        for (kind, pod) in &pods {
            eprintln!("round {number} of {}: {kind:?}", flags.rounds);
            for (series, flags) in [(INTO, &["-t", FLOW_S][..]), (OUT, &["-t", FLOW_S, "-R"][..])] {
                let rate = await_flow(pod, flags);
                samples.add(series, *kind, rate);
            }
            for time in times_there_and_back(pod).expect("the echo of a byte") {
                samples.add(THERE_AND_BACK, *kind, time.as_secs_f64() * 1000.0);
            }
        }
    }
    pods.into_iter().for_each(|(_, pod)| pod.remove());
}

/// A pod with a server of iperf3 and one that sends back what it gets.
fn serving<'cri>(cri: &'cri Cri<'_>, kind: Kind) -> Pod<'cri> {
    let pod = cri.pod(kind, &format!("network-{}", kind.cri_handler()), |_| ());
    let debian = |config: &mut serde_json::Value| config["image"]["image"] = json!(DEBIAN);
    pod.run_container("iperf3", &["iperf3", "-s"], debian);
    let echo = ["nc", "-ll", "-p", &ECHO_PORT.to_string(), "-e", "cat"].map(String::from);
    pod.run_container("echo", &echo.each_ref().map(String::as_str), |_| ());
    await_flow(&pod, &["-n", "1M"]);
    let echoes = wait::eventually(UP, || times_there_and_back(&pod).ok());
    echoes.unwrap_or_else(|| panic!("echo: {}", times_there_and_back(&pod).expect_err("there was no echo")));
    pod
}

/// Mbit/s that the receiving end got. Between two clients the server does not listen for a moment.
fn await_flow(pod: &Pod, flags: &[&str]) -> f64 {
    let rate = wait::eventually(UP, || flow(pod, flags).ok());
    rate.unwrap_or_else(|| panic!("iperf3: {}", flow(pod, flags).expect_err("it did not flow")))
}

/// Mbit/s that the receiving end got, or all that iperf3 said instead.
fn flow(pod: &Pod, flags: &[&str]) -> Result<f64, String> {
    let client = program::of_debian(pod.cri().lab(), "iperf3");
    let client = client.args(["-J", "-c", &pod.ip().to_string()]).args(flags);
    let outcome = client.run();
    let received = || outcome.json()["end"]["sum_received"]["bits_per_second"].as_f64();
    let rate = (outcome.code() == 0).then(received).flatten();
    rate.map(|rate| rate / 1e6).ok_or_else(|| outcome.to_string())
}

fn times_there_and_back(pod: &Pod) -> io::Result<Vec<Duration>> {
    let mut stream = pod.cri().lab().connect(pod.port(ECHO_PORT))?;
    stream.set_nodelay(true)?;
    let mut there_and_back = || {
        let begun = Instant::now();
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
        Ok(begun.elapsed())
    };
    // The first waits until the other end has started its program.
    let _first: Duration = there_and_back()?;
    (0..BYTES).map(|_| there_and_back()).collect()
}
