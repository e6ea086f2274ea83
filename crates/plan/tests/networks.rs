//! Where a sandbox lives, and what interfaces its machine gets.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::path::PathBuf;

use kata_bundle::NetworkNamespace;
use kata_config::{Config, Internetworking};
use kata_machine::{Device, Wire};
use kata_netlink::{Address, Interface, Network};
use kata_plan::{Facts, NamespacePlan, PlanError, PodPlan, namespace};

fn configured(model: Internetworking, disable_new_netns: bool) -> Config {
    let mut config = Config::default();
    config.runtime.internetworking_model = model;
    config.runtime.disable_new_netns = disable_new_netns;
    config
}

fn interface(name: &str, number: u8) -> Interface {
    Interface {
        name: name.into(),
        kind: "veth".into(),
        mac: format!("02:42:00:00:00:{number:02x}").parse().unwrap(),
        mtu: 1450,
        ipv6_disabled: false,
        addresses: vec![Address {
            ip: [10, 0, 0, number].into(),
            prefix: 24,
            peer: None,
            broadcast: None,
            scope: 0,
        }],
        routes: Vec::new(),
        neighbours: Vec::new(),
    }
}

fn facts(interfaces: &[Interface]) -> Facts {
    Facts {
        network: Some(Network {
            interfaces: interfaces.to_vec(),
            left_out: vec!["wg0: it is no Ethernet".into()],
        }),
        ..support::facts()
    }
}

fn plan(config: &Config, facts: &Facts) -> PodPlan {
    kata_plan::pod("p1", &support::bundle(&support::small_spec()), config, facts).unwrap()
}

fn wires(plan: &PodPlan) -> Vec<Wire> {
    let nics = plan.machine.devices.iter().filter_map(|device| match device {
        Device::Nic { wire, .. } => Some(wire.clone()),
        _ => None,
    });
    nics.collect()
}

fn tap(number: u8) -> Wire {
    Wire::Tap {
        name: format!("tap{number}_kata"),
    }
}

#[test]
fn sandboxes_live_in_the_pods_namespace_and_never_in_the_engines() {
    use Internetworking::{Macvtap, None, Tcfilter};
    let path = || PathBuf::from("/run/netns/p");
    let enter = || Some(NamespacePlan::Enter(path()));
    // model, disable_new_netns | wanted, is the engine's | where, or refused
    for (model, disabled, wanted, is_engines, expected) in [
        (Tcfilter, false, NetworkNamespace::New, false, Some(NamespacePlan::Make)),
        (Tcfilter, false, NetworkNamespace::At(path()), false, enter()),
        (Macvtap, false, NetworkNamespace::At(path()), false, enter()),
        (None, false, NetworkNamespace::At(path()), false, enter()),
        (Tcfilter, false, NetworkNamespace::At(path()), true, Option::None),
        (Tcfilter, false, NetworkNamespace::Host, false, Option::None),
        (None, false, NetworkNamespace::Host, false, Option::None),
        (None, true, NetworkNamespace::Host, false, Some(NamespacePlan::Stay)),
        (
            None,
            true,
            NetworkNamespace::At(path()),
            true,
            Some(NamespacePlan::Stay),
        ),
        (None, true, NetworkNamespace::New, false, Some(NamespacePlan::Stay)),
    ] {
        let config = configured(model, disabled);
        let what = format!("{model:?} {disabled} {wanted:?} {is_engines}");
        match (namespace(wanted, is_engines, &config), expected) {
            (Ok(got), Some(expected)) => assert_eq!(got, expected, "{what}"),
            (Err(PlanError::HostNetwork { path }), Option::None) => {
                assert_eq!(path.is_some(), is_engines, "{what}");
            }
            (got, _) => panic!("{what}: {got:?}"),
        }
    }
}

#[test]
fn keys_that_do_not_go_together_are_refused() {
    let config = configured(Internetworking::Tcfilter, true);
    let error = namespace(NetworkNamespace::New, false, &config).unwrap_err();
    let words = "disable_new_netns is true, which needs internetworking_model = \"none\", not \"tcfilter\"";
    assert_eq!(error.to_string(), words);
}

#[test]
fn every_link_gets_an_interface() {
    let facts = facts(&[interface("eth0", 2), interface("net1", 3)]);
    let plan = plan(&Config::default(), &facts);
    assert_eq!(wires(&plan), [tap(0), tap(1)]);
    let nics: Vec<(String, String, u32)> = plan
        .network
        .nics
        .iter()
        .map(|nic| {
            (
                nic.interface.as_ref().unwrap().name.clone(),
                nic.mac.to_string(),
                nic.mtu,
            )
        })
        .collect();
    let expected = [("eth0", "02:00:00:00:00:00"), ("net1", "02:00:00:00:00:01")];
    assert_eq!(
        nics,
        expected.map(|(name, mac)| (name.to_owned(), mac.to_owned(), 1450))
    );
    assert!(
        plan.notes
            .contains(&"network: eth0 by tcfilter, 10.0.0.2/24".to_owned())
    );
    assert!(
        plan.notes
            .contains(&"network: without wg0: it is no Ethernet".to_owned())
    );
}

#[test]
fn macvtaps_sit_on_links_and_spares_are_taps() {
    let config = configured(Internetworking::Macvtap, false);
    let with_link = plan(&config, &facts(&[interface("eth0", 2)]));
    let node = "/run/kata/1f/tap0_kata/node".into();
    assert_eq!(wires(&with_link), [Wire::Macvtap { node }]);
    assert_eq!(wires(&plan(&config, &facts(&[]))), [tap(0), tap(1)]);
}

#[test]
fn no_network_no_interface() {
    let eth0 = facts(&[interface("eth0", 2)]);
    assert_eq!(wires(&plan(&configured(Internetworking::None, false), &eth0)), []);
    let unknown = Facts {
        network: None,
        ..support::facts()
    };
    assert_eq!(wires(&plan(&Config::default(), &unknown)), []);
}

#[test]
fn queues_follow_the_cpus_and_vhost_the_host() {
    // CPUs, queues, disable_vhost_net, host has it | queues, vhost
    for (vcpus, queues, disabled, has_vhost, expected) in [
        (1, None, false, false, (1, false)),
        (3, None, false, true, (3, true)),
        (3, Some(2), true, true, (2, false)),
        (1, Some(4), false, true, (4, true)),
    ] {
        let mut config = Config::default();
        config.qemu.default_vcpus = kata_config::CpuCount::Exactly(vcpus);
        config.qemu.network_queues = queues;
        config.qemu.disable_vhost_net = disabled;
        let facts = Facts {
            vhost_net: has_vhost,
            ..facts(&[interface("eth0", 2)])
        };
        let plan = plan(&config, &facts);
        let nic = plan.machine.devices.iter().find_map(|device| match device {
            Device::Nic { queues, vhost, .. } => Some((*queues, *vhost)),
            _ => None,
        });
        assert_eq!(nic, Some(expected), "{vcpus} {queues:?} {disabled} {has_vhost}");
    }
}
