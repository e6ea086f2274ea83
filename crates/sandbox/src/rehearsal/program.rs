//! The program of the container in a rehearsal: without arguments it waits for ever, with any it copies its input to its
//! output.
//!
//! It is put together here, because there is nothing on a host or in a guest that would surely be there to be run. What it
//! does is not what it is for: that it is loaded, runs in its jail, reads, writes and ends.

/// Where it is loaded.
const ADDRESS: u64 = 0x40_0000;

/// How long the file is, bytes: programs are longer than what is read of a file at once. There is nothing in the rest.
const LENGTH: usize = 0x10_004;

/// Bytes of an ELF header, and of the header of a segment.
const ELF_HEADER: u16 = 64;
const SEGMENT_HEADER: u16 = 56;

/// x86-64 in an ELF header.
const MACHINE: u16 = 62;

/// `pause` in a loop if there is but one argument, the name; else a look at the last page, and then `read` and `write`
/// until there is no more, and `exit`.
#[rustfmt::skip]
const CODE: &[u8] = &[
    0x8b, 0x04, 0x24,                   //       mov  eax, [rsp]      how many arguments
    0xff, 0xc8,                         //       dec  eax
    0x75, 0x07,                         //       jnz  copy
    0x6a, 0x22, 0x58,                   // wait: push 34; pop rax     pause
    0x0f, 0x05,                         //       syscall
    0xeb, 0xf9,                         //       jmp  wait
    0x8a, 0x04, 0x25, 0, 0, 0x41, 0,    // copy: mov  al, [0x410000]  its last page
    0x48, 0x81, 0xec, 0, 1, 0, 0,       //       sub  rsp, 256
    0x31, 0xff,                         // next: xor  edi, edi        standard input
    0x48, 0x89, 0xe6,                   //       mov  rsi, rsp
    0xba, 0, 1, 0, 0,                   //       mov  edx, 256
    0x31, 0xc0,                         //       xor  eax, eax        read
    0x0f, 0x05,                         //       syscall
    0x85, 0xc0,                         //       test eax, eax
    0x7e, 0x0b,                         //       jle  end
    0x89, 0xc2,                         //       mov  edx, eax
    0x6a, 0x01, 0x58,                   //       push 1; pop rax      write
    0x89, 0xc7,                         //       mov  edi, eax        standard output
    0x0f, 0x05,                         //       syscall
    0xeb, 0xe3,                         //       jmp  next
    0x89, 0xc7,                         // end:  mov  edi, eax        0, or what went wrong
    0x6a, 0x3c, 0x58,                   //       push 60; pop rax     exit
    0x0f, 0x05,                         //       syscall
];

/// The file: headers and code in one segment.
pub(super) fn bytes() -> Vec<u8> {
    let start = u64::from(ELF_HEADER + SEGMENT_HEADER);
    let length = LENGTH as u64;
    let mut file = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    // An executable, of version 1; entry; segments, no sections, no flags.
    put(&2u16.to_le_bytes());
    put(&MACHINE.to_le_bytes());
    put(&1u32.to_le_bytes());
    put(&(ADDRESS + start).to_le_bytes());
    put(&u64::from(ELF_HEADER).to_le_bytes());
    put(&[0; 12]);
    for number in [ELF_HEADER, SEGMENT_HEADER, 1, 0, 0, 0] {
        put(&number.to_le_bytes());
    }
    // Loaded, to be read and executed, from its beginning.
    put(&1u32.to_le_bytes());
    put(&5u32.to_le_bytes());
    for number in [0, ADDRESS, ADDRESS, length, length, 0x1000] {
        put(&number.to_le_bytes());
    }
    put(CODE);
    file.resize(LENGTH, 0);
    file
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn it_copies_or_waits() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("program");
        std::fs::write(&path, bytes()).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("permissions");
        let spawn = |command: &mut Command| loop {
            match command.spawn() {
                // A child that another test has just made still has the file open for writing.
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                spawned => return spawned.expect("spawn"),
            }
        };
        let mut command = Command::new(&path);
        command.arg("copy").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut copying = spawn(&mut command);
        let text = "some words\n".repeat(100);
        let mut input = copying.stdin.take().expect("stdin");
        input.write_all(text.as_bytes()).expect("write");
        drop(input);
        let output = copying.wait_with_output().expect("wait");
        assert_eq!((output.status.code(), output.stdout), (Some(0), text.into_bytes()));

        let mut waiting = spawn(&mut Command::new(&path));
        let file = format!("/proc/{}/syscall", waiting.id());
        let waits = || std::fs::read_to_string(&file).is_ok_and(|text| text.starts_with("34 "));
        for _ in 0..500 {
            if waits() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert!(waits(), "in pause(2)");
        waiting.kill().expect("kill");
        assert_eq!(waiting.wait().expect("wait").signal(), Some(9));
    }
}
