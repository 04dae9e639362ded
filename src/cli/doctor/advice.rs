//! What the facts mean: pure words from what was seen.

use super::{Finding, Level, Seen};
use crate::host::{Medium, Sync};
use crate::pack::SECTION_ALIGN;

/// Less than this leaves no room for a base and a request beside the system: MiniLM runs in 40 MB,
/// and Raspberry Pi OS Lite itself takes about 100 MB.
const LITTLE_MEMORY: u64 = 200 << 20;
/// Training the models that ship takes up to 290 MB (README).
const TRAINING_MEMORY: u64 = 400 << 20;
/// Raspberry Pi's firmware starts to slow down near here.
const HOT_CELSIUS: f32 = 80.0;
/// A store of a few generations and samples fits; less fills up soon.
const LITTLE_SPACE: u64 = 256 << 20;
/// A commit waits for a few syncs: slower ones are felt.
const SLOW_SYNC_US: u64 = 200_000;
/// From here an eMMC is near its end.
const WORN_PERCENT: u8 = 90;

/// What is to be said, what matters most first.
pub fn findings(seen: &Seen) -> Vec<Finding> {
    let mut list = List(vec![]);
    kernels(seen, &mut list);
    system(seen, &mut list);
    memory(seen, &mut list);
    heat_and_power(seen, &mut list);
    storage(seen, &mut list);
    list.0.sort_by_key(|f| std::cmp::Reverse(f.level));
    list.0
}

struct List(Vec<Finding>);

impl List {
    fn add(&mut self, level: Level, about: &'static str, words: String, mend: &str) {
        self.0.push(Finding { level, about, words, mend: mend.into() });
    }
}

fn kernels(seen: &Seen, list: &mut List) {
    let k = &seen.kernels;
    if let Some(asked) = k.asked_for.as_ref().filter(|a| a.as_str() != k.chosen) {
        list.add(
            Level::Problem,
            "kernels",
            format!(
                "OFFSHOOT_KERNELS asks for '{asked}', which is not to be had here: no base opens"
            ),
            &format!("unset it, or take one of {}", k.can_run.join(", ")),
        );
    }
    if k.chosen == "portable" && k.asked_for.as_deref() != Some("portable") {
        let (level, mend) = match seen.cpu.arch {
            "x86_64" => (Level::Warning, "AVX2, FMA and F16C are needed: nothing to mend here"),
            "aarch64" => (Level::Problem, "the build is wrong: take the arm64 package"),
            _ => (Level::Note, "a 64-bit system on this board would be faster: take arm64"),
        };
        let words = "the portable kernels are in use, several times slower than vector ones";
        list.add(level, "kernels", words.into(), mend);
    }
    if seen.cpu.arch == "aarch64" && !k.library.compiled.iter().any(|n| n.ends_with("_dot")) {
        list.add(
            Level::Problem,
            "kernels",
            "this build lacks tract's dot product kernels".into(),
            "build it with binutils 2.30 or newer: see cross/README.md",
        );
    }
    let can = |name: &str| seen.cpu.features.iter().any(|f| f == name);
    let runs_dot = k.library.can_run.iter().any(|n| n.ends_with("_dot"));
    if can("dotprod") && !runs_dot && k.library.compiled.iter().any(|n| n.ends_with("_dot")) {
        list.add(
            Level::Warning,
            "kernels",
            "the processor has dot products, but tract does not see them".into(),
            "is /proc/cpuinfo readable, and TRACT_CPU_ISA unset?",
        );
    }
}

fn system(seen: &Seen, list: &mut List) {
    if seen.page_bytes as u64 > SECTION_ALIGN {
        list.add(
            Level::Problem,
            "page",
            format!(
                "pages have {} bytes; bases are laid out for at most {SECTION_ALIGN}",
                seen.page_bytes
            ),
            "take a kernel with pages of 64 KiB or less",
        );
    }
    let (arch, machine) = (seen.cpu.arch, seen.cpu.machine.as_str());
    if arch == "arm" && machine == "aarch64" {
        list.add(
            Level::Warning,
            "architecture",
            "this is the 32-bit program on a 64-bit kernel, which is slower".into(),
            "if the system is 64-bit too ('dpkg --print-architecture' says arm64), take arm64",
        );
    }
    if let (Some(running), Some(needed)) = (seen.libc.running, seen.libc.needed)
        && running < needed
    {
        list.add(
            Level::Problem,
            "C library",
            format!("glibc {needed} is needed; this system has {running}"),
            "take the build for glibc 2.31 or the static one (musl)",
        );
    }
    if seen.cpu.governor.as_deref() == Some("powersave") {
        list.add(
            Level::Note,
            "clock",
            "the clock is held at its lowest (governor powersave)".into(),
            "echo schedutil > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        );
    }
}

fn memory(seen: &Seen, list: &mut List) {
    let m = &seen.memory;
    let most = m.total.into_iter().chain(m.limit).min();
    let megabytes = |n: u64| n / 1_000_000;
    if let Some(most) = most.filter(|&n| n < LITTLE_MEMORY) {
        list.add(
            Level::Warning,
            "memory",
            format!("there are {} MB of memory: little for a base and a request", megabytes(most)),
            "take small bases (pack --weights q4), and watch 'run --json' for peak_rss_bytes",
        );
    } else if let Some(most) = most.filter(|&n| n < TRAINING_MEMORY) {
        list.add(
            Level::Note,
            "memory",
            format!("there are {} MB of memory: enough to serve, tight to train", megabytes(most)),
            "give training a limit: train --ram 150M",
        );
    }
    if m.controller == Some(false) {
        list.add(
            Level::Note,
            "memory",
            "the kernel's memory controller is off, so MemoryMax= of a service has no effect"
                .into(),
            "add 'cgroup_enable=memory' to /boot/firmware/cmdline.txt and start again",
        );
    }
    let on_card = seen.storage.as_ref().is_some_and(|s| s.medium == Medium::SdCard);
    if on_card && m.swap.is_some_and(|n| n > 0) && !m.swap_is_zram {
        list.add(
            Level::Warning,
            "memory",
            "there is swap that is not zram; on an SD card it wears the card out".into(),
            "use zram instead: apt install zram-tools, and remove the swap file",
        );
    }
}

fn heat_and_power(seen: &Seen, list: &mut List) {
    match seen.heat.iter().max_by(|a, b| a.celsius.total_cmp(&b.celsius)) {
        Some(hot) if hot.celsius >= hot.limit.unwrap_or(HOT_CELSIUS).min(HOT_CELSIUS) => list.add(
            Level::Warning,
            "heat",
            format!("{} is at {:.0} °C: the clock is about to be slowed", hot.name, hot.celsius),
            "cool it: a heat sink, a fan, or free air around the board",
        ),
        Some(_) => {}
        None => list.add(
            Level::Note,
            "heat",
            "no temperature can be read: training can't wait for a hot board".into(),
            "expected on virtual machines; on a board, is /sys/class/thermal there?",
        ),
    }
    let p = &seen.power;
    if p.under_voltage == Some(true) {
        list.add(
            Level::Warning,
            "power",
            "the supply's voltage is too low now: the board may switch off at any time".into(),
            "use the supply made for the board (5 V and 3 A or 5 A) and a short cable",
        );
    } else if p.throttled.is_some_and(|t| t.under_voltage_seen) {
        list.add(
            Level::Warning,
            "power",
            "the supply's voltage was too low since the board started".into(),
            "use the supply made for the board (5 V and 3 A or 5 A) and a short cable",
        );
    }
    if p.throttled.is_some_and(|t| t.slowed) {
        list.add(
            Level::Warning,
            "power",
            "the firmware holds the clock down now".into(),
            "see 'vcgencmd get_throttled': bit 0 or 1 is the supply, bit 2 or 3 is heat",
        );
    }
    if p.on_battery() == Some(true) {
        list.add(
            Level::Note,
            "power",
            "the machine runs on its battery".into(),
            "training waits for power where the configuration asks for it",
        );
    }
}

fn storage(seen: &Seen, list: &mut List) {
    let Some(s) = &seen.storage else {
        list.add(
            Level::Warning,
            "state",
            "no folder for the state is known: HOME is not set".into(),
            "set OFFSHOOT_STORE to a folder",
        );
        return;
    };
    let folder = s.folder.display();
    if s.read_only {
        list.add(
            Level::Problem,
            "state",
            format!("'{folder}' is on a read-only file system: nothing can be learned or kept"),
            "mount it for writing, or point OFFSHOOT_STORE to a folder that is",
        );
    } else if s.sync_us.is_none() {
        list.add(
            Level::Problem,
            "state",
            format!("nothing can be written in '{folder}'"),
            "make it your own (chown), or point OFFSHOOT_STORE to a folder that is",
        );
    }
    match &s.sync {
        Sync::Yes => {}
        Sync::No(why) => list.add(
            Level::Warning,
            "fsync",
            format!("what is written in '{folder}' can be lost when the power goes: {why}"),
            "point OFFSHOOT_STORE to a folder on ext4 or f2fs with its default options",
        ),
        Sync::Unknown(why) => list.add(
            Level::Note,
            "fsync",
            format!("whether '{folder}' survives a cut of power is not known: {why}"),
            "a local ext4 or f2fs is the safe choice",
        ),
    }
    if let Some(kind @ ("vfat" | "exfat" | "msdos" | "ext2")) = s.file_system.as_deref() {
        list.add(
            Level::Warning,
            "state",
            format!("'{folder}' is on {kind}, which has no journal: a cut of power can harm it"),
            "point OFFSHOOT_STORE to a folder on ext4 or f2fs",
        );
    }
    if s.medium == Medium::SdCard {
        list.add(
            Level::Note,
            "state",
            format!("'{folder}' is on an SD card, which wears out by writing"),
            "take a card made for endurance, or keep the state on an SSD; set quotas",
        );
    }
    if let Some(worn) = s.wear_percent.filter(|&w| w >= WORN_PERCENT) {
        list.add(
            Level::Warning,
            "state",
            format!("the flash under '{folder}' has used {worn} % of its life"),
            "move the state to another medium before it fails",
        );
    }
    if let Some(us) = s.sync_us.filter(|&us| us > SLOW_SYNC_US) {
        list.add(
            Level::Note,
            "fsync",
            format!("syncing a page in '{folder}' takes {} ms", us / 1000),
            "a card of class A1 or better, or an SSD, is faster",
        );
    }
    if let Some(free) = s.free_bytes.filter(|&n| n < LITTLE_SPACE) {
        list.add(
            Level::Warning,
            "state",
            format!("'{folder}' has {} MB left", free / 1_000_000),
            "make room: 'offshoot adapter list' shows generations that can go",
        );
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::KernelsSeen;
    use super::*;
    use crate::host::{Cpu, Glibc, LibC, Memory, Power, Sensor, Storage, Throttled};
    use crate::runtime::LibraryKernels;

    /// A Raspberry Pi 5 with an SSD that has nothing wrong.
    pub fn healthy() -> Seen {
        let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
        Seen {
            version: "0",
            cpu: Cpu {
                arch: "aarch64",
                machine: "aarch64".into(),
                board: Some("Raspberry Pi 5".into()),
                features: names(&["neon", "dotprod"]),
                cores: 4,
                ..Cpu::default()
            },
            kernels: KernelsSeen {
                compiled: vec!["neon", "portable"],
                can_run: vec!["neon", "portable"],
                chosen: "neon",
                asked_for: None,
                library: LibraryKernels {
                    compiled: names(&["mmm_i32_8x8", "mmm_i32_8x8_dot"]),
                    can_run: names(&["mmm_i32_8x8", "mmm_i32_8x8_dot"]),
                    instruction_sets: names(&["aarch64", "dotprod"]),
                },
            },
            page_bytes: 16384,
            memory: Memory {
                total: Some(4 << 30),
                available: Some(3 << 30),
                swap: Some(0),
                controller: Some(true),
                ..Memory::default()
            },
            own_peak_bytes: Some(1 << 20),
            heat: vec![Sensor { name: "cpu".into(), celsius: 50.0, limit: Some(85.0) }],
            power: Power { under_voltage: Some(false), ..Power::default() },
            storage: Some(Storage {
                folder: "/var/lib/offshoot".into(),
                mount: Some("/".into()),
                file_system: Some("ext4".into()),
                source: Some("/dev/nvme0n1p2".into()),
                options: vec!["rw".into()],
                medium: Medium::Ssd,
                wear_percent: None,
                free_bytes: Some(10 << 30),
                read_only: false,
                sync: Sync::Yes,
                sync_us: Some(900),
            }),
            libc: LibC { name: "glibc", running: Some(Glibc(2, 36)), needed: Some(Glibc(2, 31)) },
        }
    }

    /// What is said of a machine that differs from the healthy one, which must be one thing.
    fn one(change: impl FnOnce(&mut Seen)) -> (Level, String) {
        let mut seen = healthy();
        change(&mut seen);
        let found = findings(&seen);
        assert_eq!(found.len(), 1, "{found:?}");
        (found[0].level, format!("{}; {}", found[0].words, found[0].mend))
    }

    fn disk(change: impl FnOnce(&mut Storage)) -> (Level, String) {
        one(|s| change(s.storage.as_mut().unwrap()))
    }

    #[test]
    fn a_healthy_board_needs_no_words() {
        assert_eq!(findings(&healthy()), []);
    }

    #[test]
    fn kernels_that_are_missing_are_told() {
        let (level, text) = one(|s| s.kernels.library.compiled.truncate(1));
        assert!(level == Level::Problem && text.contains("binutils 2.30"), "{text}");
        let (level, text) = one(|s| s.kernels.library.can_run.truncate(1));
        assert!(level == Level::Warning && text.contains("TRACT_CPU_ISA"), "{text}");
        let (level, _) = one(|s| s.kernels.chosen = "portable");
        assert_eq!(level, Level::Problem);
        let (_, text) = one(|s| s.kernels.asked_for = Some("avx2".into()));
        assert!(text.contains("'avx2'") && text.contains("neon, portable"), "{text}");
        let quiet = |s: &mut Seen| {
            s.kernels.chosen = "portable";
            s.kernels.asked_for = Some("portable".into());
        };
        let mut seen = healthy();
        quiet(&mut seen);
        assert_eq!(findings(&seen), []);
    }

    #[test]
    fn the_system_s_faults_are_told() {
        let (level, text) = one(|s| s.page_bytes = 128 << 10);
        assert!(level == Level::Problem && text.contains("131072"), "{text}");
        let (level, text) = one(|s| s.libc.running = Some(Glibc(2, 27)));
        assert!(level == Level::Problem && text.contains("glibc 2.31"), "{text}");
        let (_, text) = one(|s| {
            s.cpu.arch = "arm";
        });
        assert!(text.contains("32-bit program"), "{text}");
        let (level, _) = one(|s| s.memory.limit = Some(100 << 20));
        assert_eq!(level, Level::Warning);
        let (_, text) = one(|s| s.memory.total = Some(300 << 20));
        assert!(text.contains("--ram"), "{text}");
        let (_, text) = one(|s| s.memory.controller = Some(false));
        assert!(text.contains("cgroup_enable=memory"), "{text}");
        let (_, text) = one(|s| s.cpu.governor = Some("powersave".into()));
        assert!(text.contains("schedutil"), "{text}");
    }

    #[test]
    fn heat_and_power_are_told() {
        let (_, text) = one(|s| s.heat[0].celsius = 82.0);
        assert!(text.contains("82 °C"), "{text}");
        let (_, text) = one(|s| s.heat.clear());
        assert!(text.contains("no temperature"), "{text}");
        let (_, text) = one(|s| s.power.under_voltage = Some(true));
        assert!(text.contains("too low now"), "{text}");
        let bits = Throttled {
            under_voltage: false,
            slowed: false,
            under_voltage_seen: true,
            slowed_seen: true,
        };
        let (_, text) = one(|s| s.power.throttled = Some(bits));
        assert!(text.contains("was too low"), "{text}");
    }

    #[test]
    fn the_state_folder_s_faults_are_told() {
        let (level, text) = disk(|d| (d.read_only, d.sync_us) = (true, None));
        assert!(level == Level::Problem && text.contains("read-only"), "{text}");
        let (level, _) = disk(|d| d.sync_us = None);
        assert_eq!(level, Level::Problem);
        let (level, text) = disk(|d| d.sync = Sync::No("it is kept in memory".into()));
        assert!(level == Level::Warning && text.contains("kept in memory"), "{text}");
        let (level, _) = disk(|d| d.sync = Sync::Unknown("who knows".into()));
        assert_eq!(level, Level::Note);
        let (_, text) = disk(|d| d.file_system = Some("vfat".into()));
        assert!(text.contains("no journal"), "{text}");
        let (level, text) = disk(|d| d.medium = Medium::SdCard);
        assert!(level == Level::Note && text.contains("SD card"), "{text}");
        let (_, text) = disk(|d| d.wear_percent = Some(100));
        assert!(text.contains("100 %"), "{text}");
        let (_, text) = disk(|d| d.sync_us = Some(500_000));
        assert!(text.contains("500 ms"), "{text}");
        let (_, text) = disk(|d| d.free_bytes = Some(5_000_000));
        assert!(text.contains("5 MB left"), "{text}");
        let (_, text) = one(|s| s.storage = None);
        assert!(text.contains("OFFSHOOT_STORE"), "{text}");
    }

    #[test]
    fn problems_come_first_and_swap_on_a_card_counts() {
        let mut seen = healthy();
        seen.memory.swap = Some(1 << 30);
        let disk = seen.storage.as_mut().unwrap();
        disk.medium = Medium::SdCard;
        seen.page_bytes = 1 << 20;
        let found = findings(&seen);
        let levels: Vec<Level> = found.iter().map(|f| f.level).collect();
        assert_eq!(levels, [Level::Problem, Level::Warning, Level::Note], "{found:?}");
    }
}
