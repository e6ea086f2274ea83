//! containerd 2 with `sandboxer = "shim"`: the pod is the machine itself, and there is no pause container in it.

use std::time::Duration;

use kata_e2e::containerd::Release;
use kata_e2e::cri::Cri;
use kata_e2e::lab::Lab;
use kata_e2e::leak::Snapshot;
use kata_e2e::pids::{self, Part};
use kata_e2e::wait;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_pod_without_a_first_container_lives_and_leaves_nothing() {
    let lab = Lab::open();
    let cri = Cri::start(&lab, Release::V2);
    let pod = cri.try_pod("kata-pod", "first", |_| ()).expect("a pod");
    pod.run_container("first", &["true"], |_| ()).await_exit();
    pod.remove();
    let before = Snapshot::take(&lab);

    let pod = cri.try_pod("kata-pod", "api", |_| ()).expect("a pod");
    assert_eq!(pod.status()["state"], "SANDBOX_READY");
    assert_eq!(pids::of_part(&lab, pod.id(), Part::Vmm).len(), 1);

    let serve = "mkdir /tmp/www; echo page >/tmp/www/page; exec httpd -f -p 8080 -h /tmp/www";
    let one = pod.run_container("one", &["sh", "-c", serve], |_| ());
    let two = pod.run_container("two", &["sh", "-c", "hostname; exec sleep 1000"], |_| ());
    let page = "until wget -qO- http://127.0.0.1:8080/page; do sleep 0.1; done";
    two.sh(page).ok().stdout("page\n");
    two.sh("ip -4 addr show eth0").ok().says(&pod.ip().to_string());
    two.sh("hostname").ok().stdout("api\n");
    one.sh("ps").ok().says_not("pause");
    assert_eq!(two.state(), "CONTAINER_RUNNING");
    one.stop(1);
    assert_eq!(one.state(), "CONTAINER_EXITED");
    one.remove();
    assert_eq!(two.state(), "CONTAINER_RUNNING");

    pod.stop();
    assert_eq!(pod.status()["state"], "SANDBOX_NOTREADY");
    assert_eq!(two.state(), "CONTAINER_EXITED");
    pod.remove();
    before.expect_nothing_more(&lab, "pods without a first container");

    let pod = cri.try_pod("kata-pod", "dies", |_| ()).expect("a pod");
    let container = pod.run_container("inside", &["sleep", "1000"], |_| ());
    pids::kill_part(&lab, pod.id(), Part::Vmm);
    wait::until("the pod is not ready", SOON, || {
        pod.status()["state"] == "SANDBOX_NOTREADY"
    });
    wait::until("its container has exited", SOON, || {
        container.state() == "CONTAINER_EXITED"
    });
    pod.remove();
    before.expect_nothing_more(&lab, "a pod whose machine died");
}
