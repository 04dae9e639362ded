//! What the facts mean: pure words from what was seen.

use super::{Finding, Level, Seen};
use crate::host::{Medium, NEAR, Sync, Throttled, deciding};
use crate::pack::SECTION_ALIGN;

/// Less than this leaves no room for a base and a request beside the system: MiniLM runs in 40 MB,
/// and Raspberry Pi OS Lite itself takes about 100 MB.
const LITTLE_MEMORY: u64 = 200 << 20;
/// Training the models that ship takes up to 290 MB (docs/FIGURES.md).
const TRAINING_MEMORY: u64 = 400 << 20;
/// Raspberry Pi's firmware starts to slow down here (raspberrypi.com, "frequency management and thermal
/// control"), which its thermal zone does not say; elsewhere a bound for want of a better one.
const HOT_CELSIUS: f32 = 80.0;
/// Drivers whose `powersave` sets the clock by load, as the other governors of the name do not
/// (kernel documentation of intel_pstate and amd-pstate; the last is Linux 6.3's spelling).
const SCALES_IN_POWERSAVE: [&str; 3] = ["intel_pstate", "amd-pstate-epp", "amd_pstate_epp"];
const SUPPLY: &str = "use the supply made for the board (5 V and 3 A or 5 A) and a short cable";
const COOL: &str = "cool it: a heat sink, a fan, or free air around the board";
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
    heat(seen, &mut list);
    power(seen, &mut list);
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
            _ => (
                Level::Note,
                "where the processor has 64 bits (Raspberry Pi 3 and later), a 64-bit system is faster",
            ),
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
    let scales = seen.cpu.clock_driver.as_deref().is_some_and(|d| SCALES_IN_POWERSAVE.contains(&d));
    if seen.cpu.governor.as_deref() == Some("powersave") && !scales {
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
        let place = match (&seen.cmdline, seen.cpu.is_raspberry_pi()) {
            (Some(file), true) => format!("to the line in {}", file.display()),
            (None, true) => "to the line in cmdline.txt on the boot partition".into(),
            (_, false) => "to the kernel's parameters, where the boot loader keeps them,".into(),
        };
        list.add(
            Level::Note,
            "memory",
            "the kernel's memory controller is off, so MemoryMax= of a service has no effect"
                .into(),
            &format!("add 'cgroup_enable=memory' {place} and start again"),
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

fn heat(seen: &Seen, list: &mut List) {
    let Some(hot) = deciding(&seen.heat) else {
        list.add(
            Level::Note,
            "heat",
            "no temperature can be read: training can't wait for a hot board".into(),
            "expected on virtual machines; on a board, is /sys/class/thermal there?",
        );
        return;
    };
    let near = |at: Option<f32>| at.filter(|at| at - hot.celsius <= NEAR);
    let pi = seen.cpu.is_raspberry_pi();
    let then = if let Some(at) = near(hot.switches_off_at) {
        format!("at {at:.0} °C the board switches off")
    } else if let Some(at) = near(hot.slows_down_at) {
        format!("at {at:.0} °C the clock is slowed")
    } else if hot.celsius >= HOT_CELSIUS && (pi || hot.slows_down_at.is_none()) {
        "the clock is about to be slowed".into()
    } else {
        return;
    };
    let words = format!("{} is at {:.0} °C: {then}", hot.name, hot.celsius);
    list.add(Level::Warning, "heat", words, COOL);
}

fn power(seen: &Seen, list: &mut List) {
    let p = &seen.power;
    let Throttled { now, before } = seen.throttled.unwrap_or_default();
    if p.under_voltage == Some(true) || now.under_voltage {
        let words = "the supply's voltage is too low now: the board may switch off at any time";
        list.add(Level::Warning, "power", words.into(), SUPPLY);
    } else if before.under_voltage {
        let words = "the supply's voltage was too low before: the firmware has noted it";
        list.add(Level::Warning, "power", words.into(), SUPPLY);
    }
    let mend = |under_voltage| if under_voltage { SUPPLY } else { COOL };
    if !now.slowed().is_empty() {
        let why = now.slowed().join(", ");
        let words = format!("the firmware holds the clock down now ({why})");
        list.add(Level::Warning, "power", words, mend(now.under_voltage));
    } else if !before.slowed().is_empty() && !before.under_voltage {
        let why = before.slowed().join(", ");
        let words = format!("the firmware has held the clock down before ({why})");
        list.add(Level::Note, "power", words, COOL);
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
#[path = "advice_tests.rs"]
pub(super) mod tests;
