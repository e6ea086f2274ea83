//! Takes over connections to the loopback addresses of a network namespace, whatever their port
//! (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9): before the kernel looks for who listens on a port, it asks a program, and that
//! names a listener of ours.
//!
//! Only TCP to 127.0.0.0/8 and `::1` is steered. Connections from ports that are exempt take their usual way, so that who
//! steers can still reach those who listen there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::bpf::{Instruction, command, load};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const LINK_CREATE: libc::c_int = 28;
const TYPE_SK_LOOKUP: u32 = 30;
const ATTACH_SK_LOOKUP: u32 = 36;
const MAP_HASH: u32 = 1;
const MAP_SOCKMAP: u32 = 15;

/// Most ports that are exempt at a time.
pub const MOST_EXEMPT: u32 = 256;

/// Where the listeners are in the map of sockets.
const V4: i32 = 0;
const V6: i32 = 1;

#[repr(C)]
#[derive(Default)]
struct MapAttributes {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

#[repr(C)]
struct ElementAttributes {
    map_fd: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct LinkAttributes {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// A map from a 32 bit number to another.
#[derive(Debug)]
struct Map(OwnedFd);

impl Map {
    fn new(map_type: u32, max_entries: u32) -> io::Result<Self> {
        let attributes = MapAttributes {
            map_type,
            key_size: 4,
            value_size: 4,
            max_entries,
            map_flags: 0,
        };
        // SAFETY: the struct begins as `union bpf_attr` does for this command, and holds no addresses.
        let fd = unsafe { command(MAP_CREATE, &attributes) }?;
        // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    fn set(&self, key: u32, value: u32) -> io::Result<()> {
        self.element(MAP_UPDATE, key, Some(&value))
    }

    fn remove(&self, key: u32) -> io::Result<()> {
        self.element(MAP_DELETE, key, None)
    }

    fn element(&self, number: libc::c_int, key: u32, value: Option<&u32>) -> io::Result<()> {
        let attributes = ElementAttributes {
            map_fd: self.0.as_raw_fd() as u32,
            key: &raw const key as u64,
            value: value.map_or(0, |value| std::ptr::from_ref(value) as u64),
            flags: 0,
        };
        // SAFETY: the struct begins as `union bpf_attr` does for these commands (the gap before the key is the union's own);
        // key and value are of the map's sizes, live through the call and are only read.
        unsafe { command(number, &attributes) }.map(drop)
    }
}

/// Steering under way. Dropping it, or the end of the process, ends it; connections that are made stay.
#[derive(Debug)]
pub struct Steering {
    _link: OwnedFd,
    exempt: Map,
}

impl Steering {
    /// Steers connections of the network namespace `netns` to these listening sockets of it: to `v4` those to 127.0.0.0/8,
    /// to `v6`, if there is one, those to `::1`.
    ///
    /// # Errors
    /// What the kernel refuses: `EINVAL` before 5.9 or without socket maps, `EPERM` without the capabilities, `E2BIG` when
    /// the namespace has too many such programs.
    pub fn begin(netns: BorrowedFd<'_>, v4: BorrowedFd<'_>, v6: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let listeners = Map::new(MAP_SOCKMAP, 2)?;
        listeners.set(V4 as u32, v4.as_raw_fd() as u32)?;
        if let Some(v6) = v6 {
            listeners.set(V6 as u32, v6.as_raw_fd() as u32)?;
        }
        let exempt = Map::new(MAP_HASH, MOST_EXEMPT)?;
        let program = load(TYPE_SK_LOOKUP, ATTACH_SK_LOOKUP, &program(&listeners, &exempt))?;
        let attributes = LinkAttributes {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: netns.as_raw_fd() as u32,
            attach_type: ATTACH_SK_LOOKUP,
            flags: 0,
        };
        // SAFETY: the struct begins as `union bpf_attr` does for this command, and holds no addresses.
        let link = unsafe { command(LINK_CREATE, &attributes) }?;
        Ok(Self {
            // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
            _link: unsafe { OwnedFd::from_raw_fd(link) },
            exempt,
        })
    }

    /// Connections from this port are not steered until [`Self::steer_again`].
    ///
    /// # Errors
    /// `E2BIG` when [`MOST_EXEMPT`] are exempt.
    pub fn exempt(&self, port: u16) -> io::Result<()> {
        self.exempt.set(as_seen(port), 1)
    }

    /// Takes back [`Self::exempt`].
    ///
    /// # Errors
    /// `ENOENT` when it is not exempt.
    pub fn steer_again(&self, port: u16) -> io::Result<()> {
        self.exempt.remove(as_seen(port))
    }
}

/// A port as the program loads it: in network order, and wider.
fn as_seen(port: u16) -> u32 {
    u32::from(port.to_be())
}

// Registers. The result is in 0, arguments in 1 to 3, and 6 to 9 outlive calls.
const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const CONTEXT: u8 = 6;
const LISTENER: u8 = 7;
const FRAME: u8 = 10;

/// Where on the stack keys lie.
const KEY: i16 = -4;

// struct bpf_sk_lookup
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const REMOTE_PORT: i16 = 36;
const LOCAL_V4: i16 = 40;
const LOCAL_V6: i16 = 44;

// Helpers
const MAP_LOOKUP: i32 = 1;
const SK_RELEASE: i32 = 86;
const SK_ASSIGN: i32 = 124;

const SK_PASS: i32 = 1;

/// Jumps are written as distances to these, and resolved in the end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    V4,
    Steer,
    Pass,
}

fn program(listeners: &Map, exempt: &Map) -> Vec<Instruction> {
    let one_in_network_order = 1_u32.to_be().cast_signed();
    let first_byte_127 = 127;
    let mut lines = vec![
        line(copy(CONTEXT, R1)),
        line(load_word(R2, CONTEXT, PROTOCOL)),
        jump_unless_equal(R2, libc::IPPROTO_TCP, To::Pass),
        line(load_word(R2, CONTEXT, REMOTE_PORT)),
        line(store_word(FRAME, KEY, R2)),
    ];
    lines.extend(look_up(exempt));
    lines.extend([
        jump_unless_equal(R0, 0, To::Pass),
        line(load_word(R2, CONTEXT, FAMILY)),
        jump_if_equal(R2, libc::AF_INET, To::V4),
        jump_unless_equal(R2, libc::AF_INET6, To::Pass),
    ]);
    for (word, wanted) in [(0, 0), (4, 0), (8, 0), (12, one_in_network_order)] {
        lines.push(line(load_word(R2, CONTEXT, LOCAL_V6 + word)));
        lines.push(jump_unless_equal(R2, wanted, To::Pass));
    }
    lines.extend([
        line(set(R2, V6)),
        jump(To::Steer),
        mark(To::V4),
        line(load_word(R2, CONTEXT, LOCAL_V4)),
        line(and(R2, u32::from_ne_bytes([0xff, 0, 0, 0]).cast_signed())),
        jump_unless_equal(
            R2,
            u32::from_ne_bytes([first_byte_127, 0, 0, 0]).cast_signed(),
            To::Pass,
        ),
        line(set(R2, V4)),
        mark(To::Steer),
        line(store_word(FRAME, KEY, R2)),
    ]);
    lines.extend(look_up(listeners));
    lines.extend([
        // There is none where IPv6 is off.
        jump_if_equal(R0, 0, To::Pass),
        line(copy(LISTENER, R0)),
        line(copy(R1, CONTEXT)),
        line(copy(R2, LISTENER)),
        line(set(R3, 0)),
        line(call(SK_ASSIGN)),
        line(copy(R1, LISTENER)),
        line(call(SK_RELEASE)),
        mark(To::Pass),
        line(set(R0, SK_PASS)),
        line(instruction(0x95, 0, 0, 0, 0)),
    ]);
    resolve(&lines)
}

/// An instruction, where it jumps to, and which mark stands here.
type Line = (Option<Instruction>, To);

fn line(instruction: Instruction) -> Line {
    (Some(instruction), To::Next)
}

fn mark(mark: To) -> Line {
    (None, mark)
}

fn jump(to: To) -> Line {
    (Some(instruction(0x05, 0, 0, 0, 0)), to)
}

fn jump_if_equal(register: u8, value: i32, to: To) -> Line {
    (Some(instruction(0x15, register, 0, 0, value)), to)
}

fn jump_unless_equal(register: u8, value: i32, to: To) -> Line {
    (Some(instruction(0x55, register, 0, 0, value)), to)
}

fn resolve(lines: &[Line]) -> Vec<Instruction> {
    let place = |mark: To| {
        let before = lines.iter().take_while(|line| line.0.is_some() || line.1 != mark);
        before.filter(|line| line.0.is_some()).count()
    };
    let instructions = lines
        .iter()
        .filter_map(|(instruction, to)| Some(((*instruction)?, *to)));
    let resolved = instructions.enumerate().map(|(here, (instruction, to))| {
        if to == To::Next {
            return instruction;
        }
        let distance = place(to) - here - 1;
        Instruction {
            offset: i16::try_from(distance).expect("a program of a few dozen instructions"),
            ..instruction
        }
    });
    resolved.collect()
}

/// Looks for the key on the stack; the answer is the value's place, or the socket, or zero.
fn look_up(map: &Map) -> [Line; 5] {
    const PSEUDO_MAP: u8 = 1;
    [
        // The address of the map: two instructions, the second with the high half.
        line(instruction(0x18, R1, PSEUDO_MAP, 0, map.0.as_raw_fd())),
        line(instruction(0, 0, 0, 0, 0)),
        line(copy(R2, FRAME)),
        line(instruction(0x07, R2, 0, 0, i32::from(KEY))),
        line(call(MAP_LOOKUP)),
    ]
}

fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

fn set(register: u8, value: i32) -> Instruction {
    instruction(0xb7, register, 0, 0, value)
}

fn and(register: u8, value: i32) -> Instruction {
    instruction(0x54, register, 0, 0, value)
}

fn load_word(to: u8, base: u8, offset: i16) -> Instruction {
    instruction(0x61, to, base, offset, 0)
}

fn store_word(base: u8, offset: i16, from: u8) -> Instruction {
    instruction(0x63, base, from, offset, 0)
}

fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: from << 4 | to,
        offset,
        immediate,
    }
}
