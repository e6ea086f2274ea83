//! Compiled filters, executed: a small interpreter of the kernel's filter programs answers what the guest's kernel would.

#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use kata_config::Config;
use kata_plan::PlanError;
use serde_json::{Value, json};

const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

const ALLOW: u32 = 0x7fff_0000;
const KILL_THREAD: u32 = 0;
const ERRNO: u32 = 0x0005_0000;
const LOG: u32 = 0x7ffc_0000;
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

const READ: u32 = 0;
const SOCKET: u32 = 41;
const CLONE: u32 = 56;
const PERSONALITY: u32 = 135;
const MOUNT: u32 = 165;
const OPENAT2: u32 = 437;

/// What the kernel would do with a call. The program may load words, compare, mask and return; nothing else comes up.
fn run(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_le_bytes());
    data.extend(arch.to_le_bytes());
    data.extend(0u64.to_le_bytes());
    arguments
        .iter()
        .for_each(|argument| data.extend(argument.to_le_bytes()));
    let word = |at: u32| {
        let at = at as usize;
        u32::from_le_bytes(data[at..at + 4].try_into().unwrap())
    };
    let mut accumulator = 0;
    let mut counter = 0;
    loop {
        let raw: [u8; 8] = program[counter * 8..counter * 8 + 8].try_into().unwrap();
        let code = u16::from_le_bytes([raw[0], raw[1]]);
        let k = u32::from_le_bytes(raw[4..8].try_into().unwrap());
        counter += 1;
        let condition = match code {
            0x20 => {
                accumulator = word(k);
                continue;
            }
            0x54 => {
                accumulator &= k;
                continue;
            }
            0x05 => {
                counter += k as usize;
                continue;
            }
            0x06 => return k,
            0x15 => accumulator == k,
            0x25 => accumulator > k,
            0x35 => accumulator >= k,
            0x45 => accumulator & k != 0,
            other => panic!("instruction {other:#x} at {}", counter - 1),
        };
        counter += usize::from(if condition { raw[2] } else { raw[3] });
    }
}

fn compile(seccomp: Value) -> Result<(Vec<u8>, u64), PlanError> {
    let mut spec = support::small_spec();
    spec["linux"]["seccomp"] = seccomp;
    let bundle = support::bundle(&spec);
    let plan = kata_plan::container("c1", &bundle, &Config::default(), &support::facts())?;
    Ok((plan.guest.seccomp_filter, plan.guest.seccomp_flags))
}

fn program(seccomp: Value) -> Vec<u8> {
    compile(seccomp).unwrap().0
}

#[test]
fn a_list_of_the_allowed_forbids_the_rest() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["read", "openat2", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95},
            {"names": ["socket"], "action": "SCMP_ACT_LOG"},
        ],
    }));
    for (number, answer) in [
        (READ, ALLOW),
        (OPENAT2, ALLOW),
        (MOUNT, ERRNO | 95),
        (SOCKET, LOG),
        (CLONE, ERRNO | EPERM),
        // Newer than the profile: unknown, not forbidden.
        (OPENAT2 + 1, ERRNO | ENOSYS),
        (9999, ERRNO | ENOSYS),
    ] {
        assert_eq!(run(&program, X86_64, number, [0; 6]), answer, "system call {number}");
    }
}

#[test]
fn a_list_of_the_forbidden_allows_the_rest() {
    let program = program(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_ERRNO"}],
    }));
    for (number, answer) in [(READ, ALLOW), (MOUNT, ERRNO | EPERM), (OPENAT2, ALLOW), (9999, ALLOW)] {
        assert_eq!(run(&program, X86_64, number, [0; 6]), answer, "system call {number}");
    }
}

#[test]
fn conditions_on_arguments_are_kept() {
    let one = |op: &str, value: u64, other: u64| {
        program(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 13,
            "syscalls": [{
                "names": ["personality"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "op": op, "value": value, "valueTwo": other}],
            }],
        }))
    };
    let wide = 0x1_0000_0005;
    for (op, value, other, argument, allowed) in [
        ("SCMP_CMP_EQ", 8, 0, 8, true),
        ("SCMP_CMP_EQ", 8, 0, 9, false),
        ("SCMP_CMP_EQ", wide, 0, 5, false),
        ("SCMP_CMP_EQ", wide, 0, wide, true),
        ("SCMP_CMP_NE", 8, 0, 9, true),
        ("SCMP_CMP_NE", 8, 0, 8, false),
        ("SCMP_CMP_LT", 8, 0, 7, true),
        ("SCMP_CMP_LT", 8, 0, 8, false),
        ("SCMP_CMP_LE", 8, 0, 8, true),
        ("SCMP_CMP_LE", 8, 0, wide, false),
        ("SCMP_CMP_GE", 8, 0, 8, true),
        ("SCMP_CMP_GE", 8, 0, 7, false),
        ("SCMP_CMP_GT", 8, 0, wide, true),
        ("SCMP_CMP_GT", 8, 0, 8, false),
        ("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0, 0x11, true),
        ("SCMP_CMP_MASKED_EQ", 0x7e02_0000, 0, 0x1002_0000, false),
        ("SCMP_CMP_MASKED_EQ", 0xf0, 0x20, 0x2f, true),
    ] {
        let answer = run(&one(op, value, other), X86_64, PERSONALITY, [argument, 1, 2, 3, 4, 5]);
        let wanted = if allowed { ALLOW } else { ERRNO | 13 };
        assert_eq!(answer, wanted, "{op} {value:#x} {other:#x} with {argument:#x}");
    }
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_all_must_hold() {
    let with = |args: Value| {
        program(json!({
            "defaultAction": "SCMP_ACT_KILL",
            "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": args}],
        }))
    };
    let either = with(json!([
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1},
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 2},
    ]));
    let both = with(json!([
        {"index": 0, "op": "SCMP_CMP_EQ", "value": 1},
        {"index": 1, "op": "SCMP_CMP_EQ", "value": 2},
    ]));
    for (program, arguments, answer) in [
        (&either, [1, 0], ALLOW),
        (&either, [2, 0], ALLOW),
        (&either, [3, 0], KILL_THREAD),
        (&both, [1, 2], ALLOW),
        (&both, [1, 3], KILL_THREAD),
        (&both, [2, 2], KILL_THREAD),
    ] {
        let [first, second] = arguments;
        let got = run(program, X86_64, SOCKET, [first, second, 0, 0, 0, 0]);
        assert_eq!(got, answer, "{arguments:?}");
    }
}

#[test]
fn other_architectures_are_filtered_only_if_they_are_listed() {
    let with = |architectures: Value| {
        program(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": architectures,
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
        }))
    };
    // 3 is i386's read.
    let listed = with(json!([
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_AARCH64"
    ]));
    assert_eq!(run(&listed, I386, 3, [0; 6]), ALLOW);
    assert_eq!(run(&listed, I386, 4, [0; 6]), ERRNO | EPERM);
    assert_eq!(run(&listed, X86_64, READ, [0; 6]), ALLOW);
    assert_eq!(run(&listed, X86_64, 0x4000_0000 | READ, [0; 6]), ALLOW);
    assert_eq!(run(&listed, 0xc000_00b7, 63, [0; 6]), KILL_THREAD);
    let native = with(json!([]));
    assert_eq!(run(&native, I386, 3, [0; 6]), KILL_THREAD);
}

#[test]
fn the_profile_of_podman_answers_every_call_as_it_says() {
    let input = include_bytes!("golden/podman.config.json");
    let spec: Value = serde_json::from_slice(input).unwrap();
    let seccomp = spec["linux"]["seccomp"].clone();
    let compiled = program(seccomp.clone());
    let rules = seccomp["syscalls"].as_array().unwrap();
    let default = ERRNO | seccomp["defaultErrnoRet"].as_u64().map_or(EPERM, |errno| errno as u32);
    let mut checked = 0;
    for number in 0..460 {
        let Ok(name) = libseccomp::ScmpSyscall::from(number).get_name() else {
            continue;
        };
        let named: Vec<_> = rules
            .iter()
            .filter(|rule| rule["names"].as_array().unwrap().iter().any(|its| *its == *name))
            .collect();
        let answer = match named.as_slice() {
            [] => default,
            // Rules with conditions have tests of their own.
            [rule] if rule["args"].as_array().is_none_or(Vec::is_empty) => match rule["action"].as_str().unwrap() {
                "SCMP_ACT_ALLOW" => ALLOW,
                "SCMP_ACT_ERRNO" => ERRNO | rule["errnoRet"].as_u64().map_or(EPERM, |errno| errno as u32),
                other => panic!("{other}"),
            },
            _ => continue,
        };
        assert_eq!(run(&compiled, X86_64, number.cast_unsigned(), [0; 6]), answer, "{name}");
        checked += 1;
    }
    assert!(checked > 300, "only {checked} system calls were checked");
}

#[test]
fn flags_are_those_that_mean_something_to_one_thread_without_a_listener() {
    let with = |flags: Value| {
        compile(json!({"defaultAction": "SCMP_ACT_ALLOW", "flags": flags}))
            .unwrap()
            .1
    };
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])), 2);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"])), 4);
    assert_eq!(with(json!([])), 0);
    assert_eq!(with(Value::Null), 4);
}

#[test]
fn what_cannot_be_compiled_is_an_error() {
    for (seccomp, words) in [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/listener"}),
            "linux.seccomp.listenerPath is not supported yet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_NOTIFY"}]}),
            "SCMP_ACT_NOTIFY is not supported yet",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 70000}),
            "linux.seccomp: 70000 is no error number",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 6, "op": "SCMP_CMP_EQ", "value": 0}]}]}),
            "a rule for read asks for argument 6",
        ),
    ] {
        let error = compile(seccomp).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn no_filter_is_made_where_none_is_asked_for_or_wanted() {
    let plain = support::bundle(&support::small_spec());
    let plan = kata_plan::container("c1", &plain, &Config::default(), &support::facts()).unwrap();
    assert!(plan.guest.seccomp_filter.is_empty() && plan.guest.seccomp_flags == 0);

    let mut spec = support::small_spec();
    spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ERRNO"});
    let mut config = Config::default();
    config.runtime.disable_guest_seccomp = true;
    let plan = kata_plan::container("c1", &support::bundle(&spec), &config, &support::facts()).unwrap();
    assert!(plan.guest.seccomp_filter.is_empty());
    assert!(
        !support::guest_spec(&plan)["linux"]
            .as_object()
            .unwrap()
            .contains_key("seccomp")
    );
}
