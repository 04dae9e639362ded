//! The processor and the board it is on.

use super::Root;
use serde::Serialize;

/// The processor.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Cpu {
    /// Architecture that this program is built for, as Rust names it.
    pub arch: &'static str,
    /// Architecture of the kernel, as `uname -m` names it; under emulation the emulated one.
    pub machine: String,
    /// The board's or machine's name.
    pub board: Option<String>,
    /// The processor's name, or its implementer and part numbers.
    pub model: Option<String>,
    /// Processors that this process may use.
    pub cores: usize,
    /// Instruction set extensions seen that kernels can make use of.
    pub features: Vec<String>,
    /// How the clock is governed (`cpufreq`).
    pub governor: Option<String>,
    /// What sets the clock (`cpufreq`): `cpufreq-dt`, `intel_pstate`.
    pub clock_driver: Option<String>,
    /// Highest clock allowed now, in MHz.
    pub max_mhz: Option<u32>,
}

impl Cpu {
    /// Whether the board's name says that it is one.
    pub fn is_raspberry_pi(&self) -> bool {
        self.board.as_ref().is_some_and(|b| b.starts_with("Raspberry Pi"))
    }
}

/// Names of the extensions whose detection macro says yes.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! detected {
    ($detect:ident: $($name:tt)*) => {
        [$(($name, std::arch::$detect!($name))),*]
            .into_iter()
            .filter_map(|(name, seen)| seen.then(|| name.to_string()))
            .collect()
    };
}

/// Reads what `root` shows. Features come from the processor itself on x86-64 and aarch64, from
/// `/proc/cpuinfo` elsewhere.
pub fn cpu(root: &Root) -> Cpu {
    let info = root.text("/proc/cpuinfo").unwrap_or_default();
    let field = |key: &str| {
        let line = info.lines().find(|l| l.split(':').next().is_some_and(|k| k.trim() == key))?;
        line.split_once(':').map(|(_, v)| v.trim().to_string()).filter(|v| !v.is_empty())
    };
    let parts = || Some(format!("{} part {}", field("CPU implementer")?, field("CPU part")?));
    let named = || match (field("CPU implementer")?.as_str(), field("CPU part")?.as_str()) {
        ("0x41", part) => arm_core(part).map(String::from),
        ("0x4e", "0x004") => Some("NVIDIA Carmel".into()),
        _ => None,
    };
    let board = ["/proc/device-tree/model", "/sys/class/dmi/id/product_name"];
    let clock = "/sys/devices/system/cpu/cpu0/cpufreq";
    let khz = root.number(format!("{clock}/scaling_max_freq"));
    Cpu {
        arch: std::env::consts::ARCH,
        machine: rustix::system::uname().machine().to_string_lossy().into_owned(),
        board: board.iter().find_map(|p| root.text(p).filter(|t| !t.is_empty())),
        model: field("model name").or_else(named).or_else(parts),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        features: features(field("Features").or_else(|| field("flags")).as_deref()),
        governor: root.text(format!("{clock}/scaling_governor")),
        clock_driver: root.text(format!("{clock}/scaling_driver")),
        max_mhz: khz.and_then(|khz| u32::try_from(khz / 1000).ok()),
    }
}

#[cfg(target_arch = "x86_64")]
fn features(_listed: Option<&str>) -> Vec<String> {
    detected!(is_x86_feature_detected: "sse4.1" "avx" "f16c" "fma" "avx2" "avxvnni" "avx512f"
        "avx512bw" "avx512dq" "avx512vl" "avx512vnni" "avx512bf16")
}

#[cfg(target_arch = "aarch64")]
fn features(_listed: Option<&str>) -> Vec<String> {
    detected!(is_aarch64_feature_detected: "neon" "fp16" "dotprod" "i8mm" "bf16" "sve" "sve2"
        "lse" "aes" "sha2")
}

/// Rust's detection of 32-bit ARM extensions is not stable.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features(listed: Option<&str>) -> Vec<String> {
    let known = ["neon", "vfpv4", "vfpv3", "asimddp", "i8mm"];
    let words = listed.unwrap_or_default().split_whitespace();
    words.filter(|w| known.contains(w)).map(String::from).collect()
}

/// Arm's own cores on boards that this program is made for (Main ID Register, part number).
fn arm_core(part: &str) -> Option<&'static str> {
    Some(match part {
        "0xc07" => "Cortex-A7",
        "0xd03" => "Cortex-A53",
        "0xd04" => "Cortex-A35",
        "0xd05" => "Cortex-A55",
        "0xd07" => "Cortex-A57",
        "0xd08" => "Cortex-A72",
        "0xd0b" => "Cortex-A76",
        "0xd41" => "Cortex-A78",
        "0xd42" => "Cortex-A78AE",
        "0xd46" => "Cortex-A510",
        "0xd47" => "Cortex-A710",
        "0xd83" => "Neoverse V3AE",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    #[test]
    fn a_raspberry_pi_is_named() {
        let fake = Fake::new(&[
            (
                "/proc/cpuinfo",
                "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd neon crc32\n\
                 CPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
            ),
            ("/proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0"),
            ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "ondemand\n"),
            ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver", "cpufreq-dt\n"),
            ("/sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq", "2400000\n"),
        ]);
        let cpu = cpu(&fake.root);
        assert!(cpu.is_raspberry_pi() && !Cpu::default().is_raspberry_pi());
        assert_eq!(cpu.clock_driver.as_deref(), Some("cpufreq-dt"));
        assert_eq!(cpu.board.unwrap(), "Raspberry Pi 5 Model B Rev 1.0");
        assert_eq!(cpu.model.unwrap(), "Cortex-A76");
        assert_eq!((cpu.governor.unwrap().as_str(), cpu.max_mhz), ("ondemand", Some(2400)));
        assert!(cpu.cores > 0 && !cpu.machine.is_empty());
    }

    #[test]
    fn an_unknown_core_keeps_its_numbers_and_nothing_is_needed() {
        let text = "CPU implementer : 0x51\nCPU part : 0x802\n";
        let fake = Fake::new(&[("/proc/cpuinfo", text)]);
        assert_eq!(cpu(&fake.root).model.unwrap(), "0x51 part 0x802");
        let cpu = cpu(&Fake::new(&[]).root);
        assert_eq!((cpu.model, cpu.board, cpu.max_mhz), (None, None, None));
        #[cfg(target_arch = "aarch64")]
        assert!(cpu.features.contains(&"neon".to_string()));
    }
}
