//! `offshoot doctor`.

mod advice;
mod binary;

use super::output::{Out, bytes, count, table};
use crate::error::{Error, Result};
use crate::fs::peak_rss_bytes;
use crate::host::{Cpu, LibC, Medium, Memory, Power, Rail, Root, Sensor, Storage, Sync, Throttled};
use crate::host::{cmdline, cpu, libc, memory, power, rails, sensors, storage, throttled};
use crate::quant::{available_kernels, compiled_kernels, kernel_name};
use crate::runtime::{LibraryKernels, library_kernels};
use crate::store::Store;
use serde::Serialize;
use std::path::PathBuf;

/// `offshoot doctor`'s arguments.
#[derive(clap::Args)]
pub struct Args {
    /// The folder whose file system is looked at instead of the store's
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Look at this program file instead: would it run here
    #[arg(long, value_name = "FILE", conflicts_with = "state")]
    binary: Option<PathBuf>,
    /// Read /proc and /sys below DIR
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Good to know.
    Note,
    /// It works, but not as well or as safely as it could.
    Warning,
    /// Something does not work.
    Problem,
}

/// One thing that was found, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// What it is about: `kernels`, `memory`.
    pub about: &'static str,
    /// What is wrong.
    pub words: String,
    /// How to mend it.
    pub mend: String,
}

/// The kernels of this build.
#[derive(Clone, Debug, Serialize)]
pub struct KernelsSeen {
    /// Compiled in, fastest first.
    pub compiled: Vec<&'static str>,
    /// Those that this processor can run.
    pub can_run: Vec<&'static str>,
    /// The ones in use.
    pub chosen: &'static str,
    /// What `OFFSHOOT_KERNELS` asks for.
    pub asked_for: Option<String>,
    /// The matrix kernels of tract, which computes what is not quantized.
    pub library: LibraryKernels,
}

/// All that is looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Seen {
    /// This program's version.
    pub version: &'static str,
    /// The processor.
    pub cpu: Cpu,
    /// The kernels.
    pub kernels: KernelsSeen,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// Main memory.
    pub memory: Memory,
    /// Peak resident memory of this very process, which has opened no base.
    pub own_peak_bytes: Option<u64>,
    /// Temperatures.
    pub heat: Vec<Sensor>,
    /// Power.
    pub power: Power,
    /// Supplies that the board measures.
    pub rails: Vec<Rail>,
    /// What a Raspberry Pi's firmware had to do; `None` if it can't be asked.
    pub throttled: Option<Throttled>,
    /// The file of a Raspberry Pi's boot partition with the kernel's parameters.
    pub cmdline: Option<PathBuf>,
    /// The state folder's file system; `None` if no folder is known.
    pub storage: Option<Storage>,
    /// The C library.
    pub libc: LibC,
}

/// Looks at the machine, or at a program file.
pub fn run(args: &Args, out: &Out) -> Result<()> {
    let root = args.root.as_ref().map_or_else(Root::system, Root::at);
    let findings = match &args.binary {
        Some(file) => binary::run(file, &root, out)?,
        None => {
            let seen = look(args, &root);
            let findings = advice::findings(&seen);
            if out.json() {
                let mut value = serde_json::to_value(&seen)
                    .map_err(|e| Error::failed(format!("the report as JSON: {e}")))?;
                value["findings"] = serde_json::json!(findings);
                out.document(&value)?;
            } else {
                show(&seen, out);
                tell(&findings, out);
            }
            findings
        }
    };
    let problems = findings.iter().filter(|f| f.level == Level::Problem);
    match problems.clone().next() {
        None => Ok(()),
        Some(first) if problems.count() == 1 => Err(Error::failed(&first.words).hint(&first.mend)),
        Some(_) => Err(Error::failed("there are several problems").hint("see the list")),
    }
}

fn look(args: &Args, root: &Root) -> Seen {
    let folder = args.state.clone().or_else(|| Store::folder_of_user().ok());
    Seen {
        version: env!("CARGO_PKG_VERSION"),
        cpu: cpu(root),
        kernels: KernelsSeen {
            compiled: compiled_kernels(),
            can_run: available_kernels(),
            chosen: kernel_name(),
            asked_for: std::env::var("OFFSHOOT_KERNELS").ok().filter(|v| !v.is_empty()),
            library: library_kernels(),
        },
        page_bytes: rustix::param::page_size(),
        memory: memory(root),
        own_peak_bytes: peak_rss_bytes(),
        heat: sensors(root),
        power: power(root),
        rails: rails(root),
        throttled: throttled(root),
        cmdline: cmdline(root),
        storage: folder.map(|f| storage(root, &f)),
        libc: libc(root),
    }
}

/// The facts, for people.
fn show(seen: &Seen, out: &Out) {
    let unknown = || "unknown".to_string();
    let or_unknown = |text: Option<String>| text.unwrap_or_else(unknown);
    let size = |n: Option<u64>| n.map_or_else(unknown, bytes);
    let Cpu { arch, machine, board, model, cores, features, governor, clock_driver, max_mhz } =
        &seen.cpu;
    let machine = if machine == arch { String::new() } else { format!(" on {machine}") };
    let mhz = max_mhz.map_or(String::new(), |m| format!(", at most {m} MHz"));
    let driver = clock_driver.as_ref().map_or(String::new(), |d| format!(" ({d})"));
    let governor = governor.as_ref().map_or(String::new(), |g| format!(", governor {g}{driver}"));
    let kernels = &seen.kernels;
    let memory = &seen.memory;
    let swap = match memory.swap {
        Some(0) => ", no swap".into(),
        Some(n) if memory.swap_is_zram => format!(", {} of swap in zram", bytes(n)),
        Some(n) => format!(", {} of swap", bytes(n)),
        None => String::new(),
    };
    let limit = memory.limit.map_or(String::new(), |n| format!(", limited to {}", bytes(n)));
    let heat: Vec<String> = seen.heat.iter().map(heat_words).collect();
    let libc = match (&seen.libc.running, &seen.libc.needed) {
        (Some(r), Some(n)) => format!("{} {r}, at least {n} needed", seen.libc.name),
        (Some(r), None) => format!("{} {r}", seen.libc.name),
        _ => seen.libc.name.to_string(),
    };
    let mut rows: Vec<[String; 2]> = vec![
        ["board".into(), or_unknown(board.clone())],
        [
            "processor".into(),
            format!("{}, {cores} in use{mhz}{governor}", or_unknown(model.clone())),
        ],
        ["built for".into(), format!("{arch}{machine}, offshoot {}", seen.version)],
        ["features".into(), listed(features)],
        ["kernels".into(), format!("{} of {}", kernels.chosen, kernels.compiled.join(", "))],
        ["tract".into(), library(&kernels.library)],
        ["page".into(), format!("{} bytes", count(seen.page_bytes as u64))],
        [
            "memory".into(),
            format!("{}, {} free{swap}{limit}", size(memory.total), size(memory.available)),
        ],
        ["heat".into(), listed(&heat)],
        ["power".into(), power_words(seen)],
        ["C library".into(), libc],
    ];
    if let Some(s) = &seen.storage {
        rows.push(["state in".into(), s.folder.display().to_string()]);
        let wear = s.wear_percent.map_or(String::new(), |w| format!(", {w} % of its life used"));
        let kind = s.file_system.clone().unwrap_or_else(unknown);
        let text =
            format!("{kind} on {}{wear}, {} free", medium_words(s.medium), size(s.free_bytes));
        rows.push(["".into(), text]);
        let took = s.sync_us.map_or(String::new(), |us| format!(" ({us} µs)"));
        let sync = match &s.sync {
            Sync::Yes => format!("honoured{took}"),
            Sync::No(why) => format!("not honoured: {why}"),
            Sync::Unknown(why) => format!("unknown: {why}"),
        };
        rows.push(["fsync".into(), sync]);
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    for line in table(&rows) {
        out.line(line);
    }
}

fn listed(words: &[String]) -> String {
    if words.is_empty() { "none seen".into() } else { words.join(", ") }
}

fn library(kernels: &LibraryKernels) -> String {
    format!(
        "{} of {} matrix kernels ({})",
        kernels.can_run.len(),
        kernels.compiled.len(),
        kernels.instruction_sets.join(", ")
    )
}

fn heat_words(sensor: &Sensor) -> String {
    let points = [("slows down", sensor.slows_down_at), ("switches off", sensor.switches_off_at)];
    let points = points.into_iter().filter_map(|(what, at)| Some(format!("{what} at {:.0}", at?)));
    let points: Vec<String> = points.collect();
    let points =
        if points.is_empty() { String::new() } else { format!(" ({})", points.join(", ")) };
    format!("{} {:.1} °C{points}", sensor.name, sensor.celsius)
}

fn power_words(seen: &Seen) -> String {
    let power = &seen.power;
    let mut words: Vec<String> = power
        .supplies
        .iter()
        .map(|s| {
            let state = match (&s.status, s.online) {
                (Some(status), _) => format!(" {}", status.to_ascii_lowercase()),
                (None, Some(true)) => " online".into(),
                (None, Some(false)) => " offline".into(),
                (None, None) => String::new(),
            };
            let charge = s.capacity.map_or(String::new(), |c| format!(" {c} %"));
            format!("{} ({}){state}{charge}", s.name, s.kind)
        })
        .collect();
    words.extend(seen.rails.iter().map(|r| {
        let whole = |milli: u32| f64::from(milli) / 1000.0;
        let drawn = r.milliamperes.map_or(String::new(), |ma| format!(" {:.2} A", whole(ma)));
        format!("{} {:.2} V{drawn}", r.name, whole(r.millivolts))
    }));
    let firmware = seen.throttled.map(|t| t.now.under_voltage);
    match power.under_voltage.max(firmware) {
        Some(true) => words.push("voltage too low".into()),
        Some(false) => words.push("voltage good".into()),
        None => {}
    }
    listed(&words)
}

fn medium_words(medium: Medium) -> &'static str {
    match medium {
        Medium::SdCard => "an SD card",
        Medium::Emmc => "eMMC flash",
        Medium::Ssd => "a solid-state disk",
        Medium::Disk => "a disk",
        Medium::Removable => "a removable disk",
        Medium::Memory => "main memory",
        Medium::Remote => "another machine",
        Medium::Unknown => "an unknown medium",
    }
}

/// The findings, for people.
fn tell(findings: &[Finding], out: &Out) {
    if findings.is_empty() {
        out.line("nothing is wrong");
    }
    for f in findings {
        let level = match f.level {
            Level::Note => "note",
            Level::Warning => "warning",
            Level::Problem => "PROBLEM",
        };
        out.line(format!("{level}: {}", f.words));
        out.line(format!("  -> {}", f.mend));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_of_heat_and_supplies_are_named_for_what_they_are() {
        let mut seen = advice::tests::healthy();
        assert_eq!(heat_words(&seen.heat[0]), "cpu 50.0 °C (switches off at 110)");
        seen.heat[0].slows_down_at = Some(85.0);
        let words = heat_words(&seen.heat[0]);
        assert_eq!(words, "cpu 50.0 °C (slows down at 85, switches off at 110)");
        assert_eq!(power_words(&seen), "voltage good");
        seen.power.under_voltage = None;
        seen.throttled = None;
        assert_eq!(power_words(&seen), "none seen");
        let rail = Rail { name: "VDD_IN".into(), millivolts: 5016, milliamperes: Some(976) };
        seen.rails = vec![rail];
        assert_eq!(power_words(&seen), "VDD_IN 5.02 V 0.98 A");
    }
}
