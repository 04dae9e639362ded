//! Whether a program file would run here, in words.

use super::{Finding, Level, tell};
use crate::cli::output::Out;
use crate::error::Result;
use crate::host::{Elf, Glibc, Root, system_glibc};
use serde_json::json;
use std::path::Path;

/// Looks at `file`; the answer is the list of what stands against it.
pub fn run(file: &Path, root: &Root, out: &Out) -> Result<Vec<Finding>> {
    let elf = Elf::read(file)?;
    let uname = rustix::system::uname();
    let machine = uname.machine().to_string_lossy();
    let loader = elf.interpreter.as_ref().is_none_or(|i| root.path(i).exists());
    let userland = userland(root);
    let here = Here {
        machine: &machine,
        userland: &userland,
        glibc: system_glibc(root, &elf.machine),
        loader,
        emulator: emulator(root, &elf.machine),
    };
    let findings = judge(file, &elf, &here);
    if out.json() {
        out.document(&json!({"file": file, "program": elf, "machine": machine,
            "userland": userland, "system_glibc": here.glibc, "findings": findings}))?;
        return Ok(findings);
    }
    let loader = match &elf.interpreter {
        Some(i) => format!("loaded by {}", i.display()),
        None => "static".into(),
    };
    let glibc = elf.glibc.map_or(String::new(), |g| format!(", needs glibc {g}"));
    out.line(format!("{}: {} program, {loader}{glibc}", file.display(), elf.machine));
    if findings.is_empty() {
        out.line("it can run here");
    } else {
        tell(&findings, out);
    }
    Ok(findings)
}

/// What matters of this system.
struct Here<'a> {
    /// `uname -m`.
    machine: &'a str,
    /// What its own programs are built for, a 32-bit architecture on some 64-bit kernels: packages are
    /// for it.
    userland: &'a str,
    /// The glibc that the program would get.
    glibc: Option<Glibc>,
    /// Whether its loader is there.
    loader: bool,
    /// Whether an emulator is registered for it.
    emulator: bool,
}

fn judge(file: &Path, elf: &Elf, here: &Here<'_>) -> Vec<Finding> {
    let shown = file.display();
    let mut found = vec![];
    let mut add = |level, words: String, mend: String| {
        found.push(Finding { level, about: "program", words, mend });
    };
    if !runs(&elf.machine, here.machine) {
        let words =
            format!("'{shown}' is built for {}; this machine is {}", elf.machine, here.machine);
        if here.emulator {
            let mend = "an emulator is registered and runs it slowly: take the native package";
            add(Level::Warning, words, mend.into());
        } else {
            let mend = match debian(here.userland) {
                Some(name) => format!("install the package for {name}"),
                None => "build it for this machine: cargo build --release".into(),
            };
            add(Level::Problem, format!("{words} and can't run it"), mend);
            return found;
        }
    }
    if let Some(interpreter) = elf.interpreter.as_ref().filter(|_| !here.loader) {
        let package = match (debian(&elf.machine), debian(here.userland)) {
            (Some(built), Some(own)) if built != own => format!("the package for {own}"),
            (Some(built), _) => format!("libc6:{built}"),
            (None, _) => "libc6".into(),
        };
        add(
            Level::Problem,
            format!(
                "'{shown}' asks for the loader '{}', which is missing; starting it says 'No such \
                 file or directory'",
                interpreter.display()
            ),
            format!("install {package}, or take the static build (musl), which needs no loader"),
        );
        return found;
    }
    if let (Some(needed), Some(there)) = (elf.glibc, here.glibc)
        && there < needed
    {
        add(
            Level::Problem,
            format!("'{shown}' needs glibc {needed}; this system has {there}"),
            "take the build for glibc 2.31 or the static one (musl), or a newer system".into(),
        );
    }
    found
}

/// Whether a kernel of `machine` runs programs for `wanted` by itself.
fn runs(wanted: &str, machine: &str) -> bool {
    match wanted {
        "armv7l" => matches!(machine, "armv7l" | "armv8l" | "aarch64"),
        "i686" => matches!(machine, "i686" | "i586" | "x86_64"),
        _ => wanted == machine,
    }
}

/// What the system's shell is built for: 32-bit Raspberry Pi OS starts a 64-bit kernel, `uname` says
/// aarch64, and dpkg refuses packages for arm64.
fn userland(root: &Root) -> String {
    let own = match std::env::consts::ARCH {
        "arm" => "armv7l",
        other => other,
    };
    Elf::read(&root.path("/bin/sh")).map_or_else(|_| own.into(), |elf| elf.machine)
}

fn debian(machine: &str) -> Option<&'static str> {
    match machine {
        "x86_64" => Some("amd64"),
        "aarch64" => Some("arm64"),
        "armv7l" | "armv8l" => Some("armhf"),
        _ => None,
    }
}

/// binfmt_misc as Debian's qemu-user registers it.
fn emulator(root: &Root, machine: &str) -> bool {
    let name = if machine == "armv7l" { "arm" } else { machine };
    let entry = root.text(format!("/proc/sys/fs/binfmt_misc/qemu-{name}"));
    entry.is_some_and(|t| t.starts_with("enabled"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> Elf {
        Elf {
            machine: "aarch64".into(),
            bits: 64,
            interpreter: Some("/lib/ld-linux-aarch64.so.1".into()),
            glibc: Some(Glibc(2, 31)),
        }
    }

    fn here(machine: &str) -> Here<'_> {
        Here {
            machine,
            userland: machine,
            glibc: Some(Glibc(2, 31)),
            loader: true,
            emulator: false,
        }
    }

    fn words(elf: &Elf, here: &Here<'_>) -> String {
        let found = judge(Path::new("x"), elf, here);
        assert_eq!(found.len(), 1, "{found:?}");
        format!("{}; {}", found[0].words, found[0].mend)
    }

    #[test]
    fn each_way_not_to_run_has_its_sentence() {
        assert_eq!(judge(Path::new("x"), &program(), &here("aarch64")), []);
        let text = words(&program(), &here("x86_64"));
        assert!(text.contains("built for aarch64; this machine is x86_64 and can't run it"));
        assert!(text.ends_with("install the package for amd64"), "{text}");
        let text = words(&program(), &Here { emulator: true, ..here("x86_64") });
        assert!(text.contains("emulator"), "{text}");
        let text = words(&program(), &Here { loader: false, ..here("aarch64") });
        assert!(text.contains("'/lib/ld-linux-aarch64.so.1', which is missing"), "{text}");
        assert!(text.contains("libc6:arm64"), "{text}");
        let text = words(&program(), &Here { glibc: Some(Glibc(2, 27)), ..here("aarch64") });
        assert!(text.contains("needs glibc 2.31; this system has 2.27"), "{text}");
    }

    #[test]
    fn a_static_program_needs_its_processor_only() {
        let elf = Elf { interpreter: None, glibc: None, machine: "armv7l".into(), bits: 32 };
        for machine in ["armv7l", "aarch64"] {
            let bare = Here { glibc: None, ..here(machine) };
            assert_eq!(judge(Path::new("x"), &elf, &bare), []);
        }
        assert!(words(&elf, &here("riscv64")).contains("cargo build"));
    }

    /// 32-bit Raspberry Pi OS was told to install the package for arm64, which its dpkg refuses.
    #[test]
    fn the_package_is_for_the_userland_not_for_the_kernel() {
        let pi = || Here { userland: "armv7l", ..here("aarch64") };
        let x86 = Elf { machine: "x86_64".into(), ..program() };
        let text = words(&x86, &pi());
        assert!(text.ends_with("install the package for armhf"), "{text}");
        let text = words(&program(), &Here { loader: false, ..pi() });
        assert!(text.contains("install the package for armhf, or take the static"), "{text}");
    }

    #[test]
    fn the_userland_is_what_the_shell_is_built_for() {
        let fake = crate::host::testing::Fake::new(&[]);
        let own = userland(&fake.root);
        assert!(own.starts_with(&std::env::consts::ARCH[..3]), "{own}");
        // A header of 52 bytes: 32-bit, little-endian, for ARM.
        let mut header = [0; 52];
        header[..6].copy_from_slice(b"\x7fELF\x01\x01");
        header[18] = 0x28;
        fake.put("/bin/sh", std::str::from_utf8(&header).unwrap());
        assert_eq!(userland(&fake.root), "armv7l");
    }
}
