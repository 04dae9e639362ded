//! The C library that the program runs on.

use super::{Elf, Glibc, Root};
use serde::Serialize;
use std::io::Read;
use std::path::Path;

/// The C library.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LibC {
    /// `glibc`, or `musl` for a static build.
    pub name: &'static str,
    /// The version that is loaded.
    pub running: Option<Glibc>,
    /// The lowest version that this program runs on.
    pub needed: Option<Glibc>,
}

/// Longest libc.so.6; real ones are near 2 MB.
const MAX_FILE: u64 = 16 << 20;

/// What this process runs on, and what its file asks for.
pub fn libc(root: &Root) -> LibC {
    if cfg!(target_env = "musl") {
        return LibC { name: "musl", running: None, needed: None };
    }
    let maps = root.text("/proc/self/maps").unwrap_or_default();
    let loaded = maps.lines().find_map(|l| {
        let path = l.get(l.find('/')?..)?;
        path.ends_with("/libc.so.6").then(|| path.to_string())
    });
    let needed = Elf::read(&root.path("/proc/self/exe")).ok().and_then(|elf| elf.glibc);
    let running = loaded.and_then(|path| version_of(root, &path));
    LibC {
        name: "glibc",
        running: running.or_else(|| system_glibc(root, std::env::consts::ARCH)),
        needed,
    }
}

/// The version of the glibc that is installed for programs of `machine` (`uname -m`).
pub fn system_glibc(root: &Root, machine: &str) -> Option<Glibc> {
    let triple = match machine {
        "x86_64" => "x86_64-linux-gnu",
        "aarch64" => "aarch64-linux-gnu",
        "arm" | "armv7l" => "arm-linux-gnueabihf",
        _ => return None,
    };
    let own = machine == std::env::consts::ARCH;
    let multi =
        [format!("/lib/{triple}"), format!("/usr/lib/{triple}"), format!("/usr/{triple}/lib")];
    let plain = ["/lib64", "/lib", "/usr/lib64", "/usr/lib"].map(String::from);
    let folders = multi.into_iter().chain(plain.into_iter().filter(|_| own));
    folders.into_iter().find_map(|folder| version_of(root, &format!("{folder}/libc.so.6")))
}

/// glibc says it in words: `GNU C Library (…) stable release version 2.36.`
fn version_of(root: &Root, path: &str) -> Option<Glibc> {
    const BEFORE: &[u8] = b" release version ";
    let mut bytes = vec![];
    root.open(Path::new(path))?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    let at = bytes.windows(BEFORE.len()).position(|w| w == BEFORE)? + BEFORE.len();
    let text = bytes.get(at..)?.iter().take_while(|b| b.is_ascii_digit() || **b == b'.');
    Glibc::parse(&text.map(|&b| char::from(b)).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    #[test]
    fn this_process_runs_on_what_it_needs() {
        let seen = libc(&Root::system());
        if seen.name == "glibc" {
            assert!(seen.needed.unwrap() <= seen.running.unwrap(), "{seen:?}");
        }
    }

    #[test]
    fn the_loaded_library_says_its_version() {
        let text =
            "\0\u{1}GNU C Library (Debian GLIBC 2.31-13+rpt2) stable release version 2.31.\n";
        let fake = Fake::new(&[
            ("/proc/self/maps", "7f00-7f01 r--p 0 b3:02 1 /opt/lib/libc.so.6\n"),
            ("/opt/lib/libc.so.6", text),
        ]);
        if cfg!(target_env = "gnu") {
            assert_eq!(libc(&fake.root).running, Some(Glibc(2, 31)));
        }
        let fake = Fake::new(&[("/usr/lib/aarch64-linux-gnu/libc.so.6", text)]);
        assert_eq!(system_glibc(&fake.root, "aarch64"), Some(Glibc(2, 31)));
        assert_eq!(system_glibc(&fake.root, "armv7l"), None);
        assert_eq!(system_glibc(&fake.root, "sparc"), None);
    }
}
