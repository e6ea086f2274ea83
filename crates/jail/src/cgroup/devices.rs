//! Device rules as a program for the kernel. Pure.
//!
//! OCI rules are a list in which later ones win, for each kind of access by itself. The program asks them from the last
//! to the first and keeps the accesses nobody has decided yet: a matching permission takes its accesses out (none left:
//! allowed), a matching denial of one still in denies. What nobody decided is denied.

use kata_sys::bpf::Instruction;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

/// A rule that no program can express.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// Neither a number of a device nor "any".
    #[error("linux.resources.devices: {field} {value} is not a device number")]
    Number {
        /// `major` or `minor`
        field: &'static str,
        /// What was given.
        value: i64,
    },
    /// Something beside r, w and m.
    #[error("linux.resources.devices: access {access:?} has other letters than r, w, m")]
    Access {
        /// What was given.
        access: String,
    },
}

const MKNOD: i32 = 1;
const READ: i32 = 2;
const WRITE: i32 = 4;

const BLOCK: i32 = 1;
const CHARACTER: i32 = 2;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    allow: bool,
    kind: Option<i32>,
    major: Option<i32>,
    minor: Option<i32>,
    access: i32,
}

/// What every container may do, whatever its own rules: make nodes, and use the harmless ones.
const ALWAYS: &[(i32, Option<i32>, Option<i32>, i32)] = &[
    (CHARACTER, None, None, MKNOD),
    (BLOCK, None, None, MKNOD),
    (CHARACTER, Some(1), Some(3), READ | WRITE | MKNOD),    // null
    (CHARACTER, Some(1), Some(5), READ | WRITE | MKNOD),    // zero
    (CHARACTER, Some(1), Some(7), READ | WRITE | MKNOD),    // full
    (CHARACTER, Some(1), Some(8), READ | WRITE | MKNOD),    // random
    (CHARACTER, Some(1), Some(9), READ | WRITE | MKNOD),    // urandom
    (CHARACTER, Some(5), Some(0), READ | WRITE | MKNOD),    // tty
    (CHARACTER, Some(5), Some(2), READ | WRITE | MKNOD),    // ptmx
    (CHARACTER, Some(136), None, READ | WRITE | MKNOD),     // pts
    (CHARACTER, Some(10), Some(200), READ | WRITE | MKNOD), // tun
];

impl Rule {
    fn read(rule: &LinuxDeviceCgroup) -> Result<Option<Self>, RuleError> {
        let kind = match rule.typ().unwrap_or_default() {
            LinuxDeviceType::A => None,
            LinuxDeviceType::B => Some(BLOCK),
            LinuxDeviceType::C | LinuxDeviceType::U => Some(CHARACTER),
            LinuxDeviceType::P => return Ok(None),
        };
        let mut access = 0;
        for letter in rule.access().as_deref().unwrap_or("rwm").chars() {
            access |= match letter {
                'r' => READ,
                'w' => WRITE,
                'm' => MKNOD,
                _ => {
                    return Err(RuleError::Access {
                        access: rule.access().clone().unwrap_or_default(),
                    });
                }
            };
        }
        Ok(Some(Self {
            allow: rule.allow(),
            kind,
            major: number("major", rule.major())?,
            minor: number("minor", rule.minor())?,
            access,
        }))
    }
}

fn number(field: &'static str, value: Option<i64>) -> Result<Option<i32>, RuleError> {
    match value {
        None | Some(-1) => Ok(None),
        Some(value) => i32::try_from(value)
            .ok()
            .filter(|value| *value >= 0)
            .map(Some)
            .ok_or(RuleError::Number { field, value }),
    }
}

/// The program for these rules and what every container may do.
///
/// # Errors
/// See [`RuleError`].
pub fn program(rules: &[LinuxDeviceCgroup]) -> Result<Vec<Instruction>, RuleError> {
    let own = rules
        .iter()
        .filter_map(|rule| Rule::read(rule).transpose())
        .collect::<Result<Vec<_>, _>>()?;
    let always = ALWAYS.iter().map(|&(kind, major, minor, access)| Rule {
        allow: true,
        kind: Some(kind),
        major,
        minor,
        access,
    });
    let rules: Vec<Rule> = own.into_iter().chain(always).collect();

    // R2 kind, R3 accesses not yet decided, R4 major, R5 minor.
    let mut code = vec![
        load(2, 0),
        copy(3, 2),
        and(2, 0xffff),
        shift_right(3, 16),
        load(4, 4),
        load(5, 8),
    ];
    for rule in rules.iter().rev() {
        let conditions: Vec<(u8, i32)> = [(2, rule.kind), (4, rule.major), (5, rule.minor)]
            .into_iter()
            .filter_map(|(register, value)| Some((register, value?)))
            .collect();
        let verdict = if rule.allow {
            [vec![and(3, !rule.access), skip_unless_zero(3, 2)], answer(1)].concat()
        } else {
            [vec![copy(1, 3), and(1, rule.access), skip_if_zero(1, 2)], answer(0)].concat()
        };
        for (index, (register, value)) in conditions.iter().enumerate() {
            // Programs are short; a rule is at most eight instructions.
            let rest = (conditions.len() - index - 1 + verdict.len()) as i16;
            code.push(skip_unless(*register, *value, rest));
        }
        code.extend(verdict);
    }
    code.extend(answer(0));
    Ok(code)
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

fn load(to: u8, offset: i16) -> Instruction {
    instruction(0x61, to, 1, offset, 0)
}

fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbc, to, from, 0, 0)
}

fn and(register: u8, mask: i32) -> Instruction {
    instruction(0x54, register, 0, 0, mask)
}

fn shift_right(register: u8, bits: i32) -> Instruction {
    instruction(0x74, register, 0, 0, bits)
}

fn skip_unless(register: u8, value: i32, distance: i16) -> Instruction {
    instruction(0x55, register, 0, distance, value)
}

fn skip_unless_zero(register: u8, distance: i16) -> Instruction {
    skip_unless(register, 0, distance)
}

fn skip_if_zero(register: u8, distance: i16) -> Instruction {
    instruction(0x15, register, 0, distance, 0)
}

fn answer(value: i32) -> Vec<Instruction> {
    vec![instruction(0xb7, 0, 0, 0, value), instruction(0x95, 0, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel would, for the few operations used.
    fn run(code: &[Instruction], kind: i32, access: i32, major: u32, minor: u32) -> bool {
        let context = [(access << 16 | kind) as u32, major, minor];
        let mut registers = [0u64; 11];
        let mut at = 0;
        loop {
            let Instruction {
                code: operation,
                registers: both,
                offset,
                immediate,
            } = code[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            at += 1;
            match operation {
                0x61 => registers[to] = context[offset as usize / 4].into(),
                0xbc => registers[to] = registers[from] & 0xffff_ffff,
                0x54 => registers[to] = u64::from(registers[to] as u32 & immediate as u32),
                0x74 => registers[to] = u64::from((registers[to] as u32) >> immediate),
                0x55 if registers[to] != immediate as i64 as u64 => at += offset as usize,
                0x15 if registers[to] == immediate as i64 as u64 => at += offset as usize,
                0x55 | 0x15 => {}
                0xb7 => registers[to] = immediate as i64 as u64,
                0x95 => return registers[0] != 0,
                other => panic!("operation {other:#x}"),
            }
        }
    }

    fn allowed(rules: &str, question: (i32, i32, u32, u32)) -> bool {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).expect("rules");
        let (kind, access, major, minor) = question;
        run(&program(&rules).expect("program"), kind, access, major, minor)
    }

    const SDA: (i32, i32, u32, u32) = (BLOCK, READ | WRITE, 8, 0);

    #[test]
    fn without_rules_only_the_harmless_is_allowed() {
        assert!(!allowed("[]", SDA));
        assert!(allowed("[]", (BLOCK, MKNOD, 8, 0)));
        assert!(allowed("[]", (CHARACTER, READ | WRITE, 1, 3)));
        assert!(allowed("[]", (CHARACTER, READ | WRITE, 136, 77)));
        assert!(!allowed("[]", (CHARACTER, READ, 1, 1)));
        assert!(!allowed("[]", (BLOCK, READ, 1, 3)));
    }

    #[test]
    fn later_rules_win_for_each_access_by_itself() {
        let deny_all = r#"{"allow":false,"access":"rwm"}"#;
        let sda_read = r#"{"allow":true,"type":"b","major":8,"minor":0,"access":"r"}"#;
        let sda_write = r#"{"allow":true,"type":"b","major":8,"minor":0,"access":"w"}"#;
        let no_write = r#"{"allow":false,"type":"b","major":8,"access":"w"}"#;
        assert!(!allowed(&format!("[{deny_all},{sda_read}]"), SDA));
        assert!(allowed(&format!("[{deny_all},{sda_read}]"), (BLOCK, READ, 8, 0)));
        assert!(!allowed(&format!("[{deny_all},{sda_read}]"), (BLOCK, READ, 8, 1)));
        assert!(
            allowed(&format!("[{deny_all},{sda_read},{sda_write}]"), SDA),
            "two rules add up"
        );
        assert!(!allowed(&format!("[{sda_read},{sda_write},{no_write}]"), SDA));
        assert!(allowed(
            &format!("[{sda_read},{sda_write},{no_write}]"),
            (BLOCK, READ, 8, 0)
        ));
        assert!(!allowed(&format!("[{sda_read},{deny_all}]"), (BLOCK, READ, 8, 0)));
    }

    #[test]
    fn a_privileged_container_may_do_everything() {
        for question in [SDA, (CHARACTER, READ | WRITE | MKNOD, 4095, 1_048_575)] {
            assert!(allowed(r#"[{"allow":true,"access":"rwm"}]"#, question));
            assert!(allowed(
                r#"[{"allow":true,"type":"a","major":-1,"minor":-1,"access":"rwm"}]"#,
                question
            ));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for rules in [r#"[{"allow":true,"major":-2}]"#, r#"[{"allow":true,"access":"rx"}]"#] {
            let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(rules).expect("rules");
            assert!(program(&rules).is_err());
        }
    }
}
