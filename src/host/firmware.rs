//! What a Raspberry Pi's firmware says, and the file it takes the kernel's parameters from.

use super::Root;
use rustix::fs::{OFlags, fcntl_setfl};
use serde::Serialize;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// What the firmware had to do, by `vcgencmd get_throttled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Throttled {
    /// Now.
    pub now: Strain,
    /// At some time since these marks were cleared: by the start of the board or by a program.
    pub before: Strain,
}

/// Four bits of `get_throttled`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Strain {
    /// The voltage is too low.
    pub under_voltage: bool,
    /// The clock may not rise, for voltage or heat.
    pub capped: bool,
    /// The clock is slowed down, for voltage or heat.
    pub throttled: bool,
    /// The lower of two limits of heat is passed, where the model has it.
    pub soft_limit: bool,
}

impl Strain {
    fn of(bits: u32) -> Strain {
        let bit = |n: u32| bits >> n & 1 == 1;
        Strain { under_voltage: bit(0), capped: bit(1), throttled: bit(2), soft_limit: bit(3) }
    }

    /// What holds the clock down, in the firmware's words.
    pub fn slowed(&self) -> Vec<&'static str> {
        let all = [
            (self.capped, "frequency capped"),
            (self.throttled, "throttled"),
            (self.soft_limit, "soft temperature limit"),
        ];
        all.into_iter().filter_map(|(is, words)| is.then_some(words)).collect()
    }
}

impl Throttled {
    /// Of `throttled=0x50005`.
    fn parse(text: &str) -> Option<Throttled> {
        let bits = u32::from_str_radix(text.trim().strip_prefix("throttled=0x")?, 16).ok()?;
        Some(Throttled { now: Strain::of(bits), before: Strain::of(bits >> 16) })
    }
}

/// Where Debian and others put it, and Raspberry Pi OS before Debian 11.
const PROGRAMS: [&str; 2] = ["/usr/bin/vcgencmd", "/opt/vc/bin/vcgencmd"];
/// It answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Asks the firmware of the running system with `vcgencmd`. `None` where that program is missing, may
/// not ask (it takes the group `video`) or gives no answer.
pub fn throttled(root: &Root) -> Option<Throttled> {
    let program = PROGRAMS.into_iter().find(|p| root.is_system() && root.path(p).is_file())?;
    ask(Command::new(program).arg("get_throttled"), PATIENCE)
}

fn ask(command: &mut Command, patience: Duration) -> Option<Throttled> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().ok()?;
    let Some(status) = ended(&mut child, patience) else {
        // A process that hangs in a driver can't be waited for.
        let _ = child.kill();
        let _ = ended(&mut child, patience / 10);
        return None;
    };
    let mut pipe = child.stdout.take().filter(|_| status.success())?;
    // Another process may hold it open.
    fcntl_setfl(&pipe, OFlags::NONBLOCK).ok()?;
    let mut bytes = [0; 64];
    let read = pipe.read(&mut bytes).ok()?;
    Throttled::parse(std::str::from_utf8(bytes.get(..read)?).ok()?)
}

fn ended(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if start.elapsed() < patience => {
                std::thread::sleep(Duration::from_millis(5));
            }
            _ => return None,
        }
    }
}

/// The file with the kernel's parameters. Where the first one is, the second only points to it.
pub fn cmdline(root: &Root) -> Option<PathBuf> {
    let files = ["/boot/firmware/cmdline.txt", "/boot/cmdline.txt"].map(PathBuf::from);
    files.into_iter().find(|p| root.path(p).is_file())
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    fn answer(script: &str) -> Option<Throttled> {
        ask(Command::new("/bin/sh").args(["-c", script]), Duration::from_secs(20))
    }

    /// The kernel's file `get_throttled` holds what its own driver, which clears the marks every two
    /// seconds, read last: marks were told that were none, or missed.
    #[test]
    fn the_marks_of_now_and_before_are_told_apart() {
        let seen = answer("echo throttled=0x50005").unwrap();
        assert!(seen.now.under_voltage && seen.before.under_voltage);
        assert_eq!((seen.now.slowed(), seen.now), (vec!["throttled"], seen.before));
        let seen = answer("echo throttled=0xe0008").unwrap();
        assert!(!seen.now.under_voltage && !seen.before.under_voltage);
        assert_eq!(seen.now.slowed(), ["soft temperature limit"]);
        let all = ["frequency capped", "throttled", "soft temperature limit"];
        assert_eq!(seen.before.slowed(), all);
        assert_eq!(answer("echo throttled=0x0"), Some(Throttled::default()));
    }

    #[test]
    fn a_program_that_fails_hangs_or_talks_otherwise_says_nothing() {
        for script in [
            "exit 1",
            "echo throttled=0x1; exit 1",
            "echo 'error=1 error_msg=\"Command not registered\"'",
            "echo throttled=0xfffffffff",
            ":",
        ] {
            assert_eq!(answer(script), None, "{script}");
        }
        // Its child keeps the pipe open.
        assert_eq!(answer("sleep 5 & echo throttled=0x0"), Some(Throttled::default()));
        assert_eq!(ask(&mut Command::new("/nowhere/vcgencmd"), PATIENCE), None);
        let start = Instant::now();
        let hangs = ask(Command::new("/bin/sleep").arg("30"), Duration::from_millis(50));
        assert!(hangs.is_none() && start.elapsed() < Duration::from_secs(20));
        // A system below a folder may be another machine's: its programs are not run.
        let fake = Fake::new(&[("/usr/bin/vcgencmd", "#!/bin/sh\necho throttled=0x1\n")]);
        assert_eq!(throttled(&fake.root), None);
    }

    #[test]
    fn the_boot_partition_moved_with_debian_12() {
        let fake = Fake::new(&[]);
        assert_eq!(cmdline(&fake.root), None);
        for path in ["/boot/cmdline.txt", "/boot/firmware/cmdline.txt"] {
            fake.put(path, "console=tty1\n");
            assert_eq!(cmdline(&fake.root), Some(path.into()));
        }
    }
}
