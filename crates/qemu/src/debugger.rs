//! QEMU's debugger port, by the remote serial protocol (the GDB manual, appendix E): as much of it as one step of the guest.

use std::io;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// The longest packet that is listened to, bytes; those that are expected have some dozens.
const PACKET_LIMIT: usize = 4096;

/// More CPUs than a guest can have.
const CPUS_LIMIT: usize = 4096;

/// How long a CPU may wait before another one's turn comes.
const PATIENCE: Duration = Duration::from_secs(1);

/// Stops a guest that runs.
const INTERRUPT: &str = "\x03";

/// Why the guest has stopped: signal numbers, SIGTRAP and SIGINT.
const STEPPED: &str = "T05";
const INTERRUPTED: &str = "T02";

/// A conversation. While there is one, QEMU has stopped the guest when it says nothing else.
#[derive(Debug)]
pub(crate) struct Debugger {
    stream: UnixStream,
    heard: Vec<u8>,
}

impl Debugger {
    /// Connects to who listens at `socket`, which stops the guest.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) async fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self::on(UnixStream::connect(socket).await?))
    }

    fn on(stream: UnixStream) -> Self {
        Self {
            stream,
            heard: Vec::new(),
        }
    }

    /// Lets the guest run until one of its CPUs has done one thing more: an instruction or, if it waits, what it waits for.
    ///
    /// # Errors
    /// What the system says; `InvalidData` for words that are not expected. When it is given up before, the guest runs, and has
    /// to be stopped so that no step is still to come.
    pub(crate) async fn step(&mut self) -> io::Result<()> {
        // QEMU's own: 1 is to step, without 2 (no interrupts) and 4 (no timers), or a CPU that waits would do so for ever.
        self.ask_well("Qqemu.sstep=1").await?;
        let cpus = self.cpus().await?;
        for cpu in cpus.iter().cycle() {
            self.ask_well(&format!("Hc{cpu}")).await?;
            self.say(&frame("s")).await?;
            let stopped = match timeout(PATIENCE, self.hear()).await {
                Ok(stopped) => stopped?,
                Err(_) => {
                    if cpus.len() > 1 {
                        self.say(INTERRUPT).await?;
                    }
                    self.hear().await?
                }
            };
            match stopped.get(..3) {
                Some(STEPPED) => return Ok(()),
                Some(INTERRUPTED) => {}
                _ => return Err(unexpected("a step", &stopped)),
            }
        }
        Err(unexpected("which CPUs there are", ""))
    }

    /// Names of the guest's CPUs.
    async fn cpus(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let mut question = "qfThreadInfo";
        loop {
            let answer = self.ask(question).await?;
            match answer.strip_prefix('m') {
                Some(more) if names.len() < CPUS_LIMIT => names.extend(more.split(',').map(str::to_owned)),
                None if answer == "l" => return Ok(names),
                _ => return Err(unexpected(question, &answer)),
            }
            question = "qsThreadInfo";
        }
    }

    async fn ask_well(&mut self, packet: &str) -> io::Result<()> {
        match self.ask(packet).await?.as_str() {
            "OK" => Ok(()),
            other => Err(unexpected(packet, other)),
        }
    }

    async fn ask(&mut self, packet: &str) -> io::Result<String> {
        self.say(&frame(packet)).await?;
        self.hear().await
    }

    async fn say(&mut self, words: &str) -> io::Result<()> {
        self.stream.write_all(words.as_bytes()).await
    }

    /// Waiting for it may be given up, and nothing is lost.
    async fn hear(&mut self) -> io::Result<String> {
        let answer = loop {
            if let Some((answer, used)) = unframe(&self.heard)? {
                self.heard.drain(..used);
                break answer;
            }
            if self.heard.len() > PACKET_LIMIT {
                return Err(unexpected("a question", "too long a packet"));
            }
            if self.stream.read_buf(&mut self.heard).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        self.say("+").await?;
        Ok(answer)
    }
}

fn unexpected(asked: &str, answer: &str) -> io::Error {
    let answer = answer.escape_debug();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("QEMU's debugger port answers {asked} by \"{answer}\""),
    )
}

fn sum(packet: &[u8]) -> u8 {
    packet.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn frame(packet: &str) -> String {
    format!("${packet}#{:02x}", sum(packet.as_bytes()))
}

/// The first packet in `heard`, if it is there as a whole, and how many bytes it ends after. Acknowledgements are passed over.
fn unframe(heard: &[u8]) -> io::Result<Option<(String, usize)>> {
    let Some(begin) = heard.iter().position(|&byte| byte != b'+') else {
        return Ok(None);
    };
    let shown = || String::from_utf8_lossy(&heard[begin..]).into_owned();
    if heard[begin] != b'$' {
        return Err(unexpected("a packet", &shown()));
    }
    let Some(length) = heard[begin..].iter().position(|&byte| byte == b'#') else {
        return Ok(None);
    };
    let (packet, rest) = heard[begin + 1..].split_at(length - 1);
    let Some(digits) = rest.get(1..3) else {
        return Ok(None);
    };
    let told = std::str::from_utf8(digits).ok();
    if told.and_then(|digits| u8::from_str_radix(digits, 16).ok()) != Some(sum(packet)) {
        return Err(unexpected("a packet", &shown()));
    }
    Ok(Some((String::from_utf8_lossy(packet).into_owned(), begin + length + 3)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_have_sums() {
        assert_eq!(frame("s"), "$s#73");
        assert_eq!(frame(""), "$#00");
        assert_eq!(frame("Qqemu.sstep=1"), "$Qqemu.sstep=1#d4");
    }

    #[test]
    fn packets_are_read() {
        let read = |heard: &str| unframe(heard.as_bytes()).expect("fine");
        assert_eq!(read("+$OK#9a"), Some(("OK".into(), 7)));
        assert_eq!(read("++$#00$s#73"), Some((String::new(), 6)));
        for part in ["", "+", "$", "$OK", "$OK#", "$OK#9"] {
            assert_eq!(read(part), None, "{part}");
        }
        for bad in ["-", "OK", "$OK#9b", "$OK#zz", "+\u{fc}"] {
            let error = unframe(bad.as_bytes()).expect_err(bad);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    /// What comes of it when QEMU answers so, and what it was asked.
    async fn talk(answers: &str) -> (Result<(), String>, String) {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(answers.as_bytes()).await.expect("room");
        let stepped = Debugger::on(ours).step().await;
        let mut said = String::new();
        theirs.read_to_string(&mut said).await.expect("text");
        (stepped.map_err(|error| error.to_string()), said)
    }

    #[tokio::test]
    async fn a_step_is_taken_or_not() {
        const BEGIN: &str = "+$OK#9a+$m01#ce+$l#6c+$OK#9a";
        let asked = |more: &str| format!("$Qqemu.sstep=1#d4+$qfThreadInfo#bb+$qsThreadInfo#c8+$Hc01#0c+$s#73{more}");
        let (stepped, said) = talk(&format!("{BEGIN}+$T05thread:01;#07")).await;
        assert_eq!((stepped, said), (Ok(()), asked("+")));
        let (stepped, said) = talk(&format!("{BEGIN}+$W00#b7")).await;
        let error = "QEMU's debugger port answers a step by \"W00\"";
        assert_eq!((stepped, said), (Err(error.to_owned()), asked("+")));
        let (stepped, said) = talk("+$E22#a9").await;
        let error = "QEMU's debugger port answers Qqemu.sstep=1 by \"E22\"";
        assert_eq!((stepped, said.as_str()), (Err(error.to_owned()), "$Qqemu.sstep=1#d4+"));
        let (stepped, _) = talk("+$OK#9a+$l#6c").await;
        let error = "QEMU's debugger port answers which CPUs there are by \"\"";
        assert_eq!(stepped, Err(error.to_owned()));
    }

    #[tokio::test]
    async fn each_cpu_has_its_turn() {
        let (stepped, said) =
            talk("+$OK#9a+$m01,02#5c+$l#6c+$OK#9a+$T02thread:01;#04+$OK#9a+$T02thread:02;#05+$OK#9a+$T05thread:01;#07")
                .await;
        assert_eq!(stepped, Ok(()));
        let turns: Vec<&str> = said.matches(['1', '2']).collect();
        assert_eq!(turns, ["1", "1", "2", "1"], "{said}");
    }
}
