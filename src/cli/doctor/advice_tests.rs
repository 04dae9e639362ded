//! What is said of machines that differ from a healthy one.

use super::*;
use crate::cli::doctor::KernelsSeen;
use crate::host::{Cpu, Glibc, LibC, Memory, Power, Sensor, Storage, Strain};
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
        heat: vec![Sensor {
            name: "cpu".into(),
            celsius: 50.0,
            slows_down_at: None,
            switches_off_at: Some(110.0),
        }],
        power: Power { under_voltage: Some(false), ..Power::default() },
        rails: vec![],
        throttled: Some(Throttled::default()),
        cmdline: Some("/boot/firmware/cmdline.txt".into()),
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

/// Each board was told of Raspberry Pi OS 12's file.
#[test]
fn the_file_of_the_kernels_parameters_is_the_boards_own() {
    let mend = |change: fn(&mut Seen)| {
        let (_, text) = one(|s| {
            s.memory.controller = Some(false);
            change(s);
        });
        text
    };
    assert!(mend(|_| ()).contains("to the line in /boot/firmware/cmdline.txt and"));
    let eleven = mend(|s| s.cmdline = Some("/boot/cmdline.txt".into()));
    assert!(eleven.contains("to the line in /boot/cmdline.txt and"), "{eleven}");
    assert!(mend(|s| s.cmdline = None).contains("cmdline.txt on the boot partition"));
    let other = mend(|s| s.cpu.board = Some("NVIDIA Jetson Orin Nano".into()));
    assert!(other.contains("kernel's parameters") && !other.contains("cmdline.txt"), "{other}");
}

/// Laptops, whose driver scales under that name, were said to be held at their lowest clock.
#[test]
fn powersave_is_the_lowest_clock_only_with_drivers_that_leave_it_to_the_governor() {
    let said = |driver: Option<&str>| {
        let mut seen = healthy();
        seen.cpu.governor = Some("powersave".into());
        seen.cpu.clock_driver = driver.map(String::from);
        !findings(&seen).is_empty()
    };
    for driver in [None, Some("cpufreq-dt"), Some("intel_cpufreq"), Some("amd-pstate")] {
        assert!(said(driver), "{driver:?}");
    }
    assert!(!said(Some("intel_pstate")) && !said(Some("amd-pstate-epp")));
}

#[test]
fn heat_is_judged_by_what_the_board_does() {
    let heat = |board: &str, celsius, slows_down_at, switches_off_at| {
        let mut seen = healthy();
        seen.cpu.board = Some(board.into());
        let name = "cpu".into();
        seen.heat = vec![Sensor { name, celsius, slows_down_at, switches_off_at }];
        findings(&seen).pop().map_or(String::new(), |f| f.words)
    };
    // Its thermal zone knows of 110 °C alone, its firmware acts from 80 °C on.
    let pi = |celsius| heat("Raspberry Pi 5 Model B", celsius, None, Some(110.0));
    assert_eq!(pi(79.9), "");
    assert!(pi(82.0).contains("at 82 °C: the clock is about to be slowed"), "{}", pi(82.0));
    assert!(pi(106.0).contains("at 110 °C the board switches off"), "{}", pi(106.0));
    // One that bears more, and says so.
    let orin = |celsius| heat("NVIDIA Jetson Orin Nano", celsius, Some(99.0), Some(104.5));
    assert_eq!(orin(85.0), "");
    assert!(orin(95.0).contains("at 99 °C the clock is slowed"), "{}", orin(95.0));
    let silent = |celsius| heat("Board", celsius, None, None);
    assert!(silent(79.0).is_empty() && silent(81.0).contains("about to be slowed"));
    let (_, text) = one(|s| s.heat.clear());
    assert!(text.contains("no temperature"), "{text}");
}

/// As the daemon does: the flash chip is in danger, not the hotter processor.
#[test]
fn the_sensor_that_decides_is_told() {
    let (_, text) = one(|s| {
        let sensor = |name: &str, celsius, slows_down_at| Sensor {
            name: name.into(),
            celsius,
            slows_down_at,
            switches_off_at: None,
        };
        s.cpu.board = None;
        s.heat = vec![sensor("cpu", 75.0, Some(105.0)), sensor("flash", 68.0, Some(70.0))];
    });
    assert!(text.starts_with("flash is at 68 °C"), "{text}");
}

#[test]
fn power_is_told() {
    let (_, text) = one(|s| s.power.under_voltage = Some(true));
    assert!(text.contains("too low now"), "{text}");
    let low = Strain { under_voltage: true, throttled: true, ..Strain::default() };
    let hot = Strain { soft_limit: true, ..Strain::default() };
    let none = Strain::default();
    let bits = |now, before| move |s: &mut Seen| s.throttled = Some(Throttled { now, before });
    let (level, text) = one(bits(none, low));
    assert!(level == Level::Warning && text.contains("was too low before"), "{text}");
    assert!(!text.contains("since"), "{text}");
    let (level, text) = one(bits(none, hot));
    assert!(level == Level::Note && text.contains("before (soft temperature limit)"), "{text}");
    let (level, text) = one(bits(hot, hot));
    assert!(level == Level::Warning && text.contains("now (soft temperature limit)"), "{text}");
    assert!(text.contains("heat sink"), "{text}");
    let mut seen = healthy();
    seen.power.under_voltage = None;
    bits(low, low)(&mut seen);
    let found = findings(&seen);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.iter().all(|f| f.mend == SUPPLY) && found[0].words.contains("too low now"));
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
