//! `offshoot doctor`: the machine in words, and as JSON for programs.

use crate::support::{Place, done};
use offshoot::Array;
use offshoot::testing::npy;
use serde_json::Value;

/// What an emulated processor must show.
struct Emulated {
    /// qemu's name for it.
    cpu: &'static str,
    features: &'static [&'static str],
    missing: &'static [&'static str],
    /// Ours, the best first.
    kernels: &'static [&'static str],
    /// Whether tract runs its dot products.
    dots: bool,
}

const EMULATED: &[Emulated] = &[
    Emulated { cpu: "cortex-a7", features: &[], missing: &[], kernels: &["portable"], dots: false },
    Emulated {
        cpu: "cortex-a53",
        features: &["neon"],
        missing: &["dotprod", "fp16", "i8mm", "sve"],
        kernels: &["neon", "portable"],
        dots: false,
    },
    Emulated {
        cpu: "cortex-a72",
        features: &["neon"],
        missing: &["dotprod", "fp16", "i8mm", "sve"],
        kernels: &["neon", "portable"],
        dots: false,
    },
    Emulated {
        cpu: "cortex-a76",
        features: &["neon", "dotprod", "fp16", "lse"],
        missing: &["i8mm", "sve"],
        kernels: &["neon-dotprod", "neon", "portable"],
        dots: true,
    },
    Emulated {
        cpu: "max",
        features: &["neon", "dotprod", "fp16", "i8mm", "sve"],
        missing: &[],
        kernels: &["neon-dotprod", "neon", "portable"],
        dots: true,
    },
];

/// The kernels that a build for this processor's architecture holds, the best first.
const COMPILED: &[&str] = if cfg!(target_arch = "aarch64") {
    &["neon-dotprod", "neon", "portable"]
} else if cfg!(target_arch = "x86_64") {
    &["avx512vnni", "avx512", "avx2", "portable"]
} else {
    &["portable"]
};

fn words(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// A board of files: an SD card on ext4, a temperature, a weak supply.
fn board(place: &Place) {
    let disk = "sys/devices/mmc0/block/mmcblk0";
    let files = [
        ("proc/device-tree/model", "Raspberry Pi 4 Model B Rev 1.4\0"),
        ("proc/cpuinfo", "processor : 0\nmodel name : ARMv8 (v8l)\n"),
        ("proc/meminfo", "MemTotal: 3884096 kB\nMemAvailable: 3000000 kB\nSwapTotal: 102396 kB\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n/var/swap file 102396 0 -2\n"),
        ("proc/cgroups", "#subsys_name hierarchy num_cgroups enabled\nmemory 0 80 0\n"),
        ("proc/self/mountinfo", "24 1 179:2 / / rw,noatime - ext4 /dev/mmcblk0p2 rw\n"),
        ("sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
        ("sys/class/thermal/thermal_zone0/temp", "83250\n"),
        ("sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
        ("sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
        (&format!("{disk}/device/type"), "SD\n"),
        (&format!("{disk}/mmcblk0p2/partition"), "2\n"),
        ("var/lib/offshoot/keep", ""),
    ];
    for (path, text) in files {
        let path = format!("board/{path}");
        let folder = path.rsplit_once('/').unwrap().0;
        std::fs::create_dir_all(place.path(folder)).unwrap();
        place.write(&path, text);
    }
    for (link, to) in [
        ("board/sys/dev/block/179:2", "../../devices/mmc0/block/mmcblk0/mmcblk0p2"),
        ("board/sys/class/block/mmcblk0", "../../devices/mmc0/block/mmcblk0"),
    ] {
        let link = place.path(link);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, link).unwrap();
    }
}

#[test]
fn a_board_with_faults_is_described_with_what_mends_them() {
    let place = Place::new();
    board(&place);
    let line = "doctor --root board --state /var/lib/offshoot";
    let text = place.ok(line);
    for part in [
        "Raspberry Pi 4 Model B Rev 1.4",
        "cpu-thermal 83.2 °C",
        "voltage too low",
        "ext4 on an SD card",
        "fsync      honoured",
        "warning: the supply's voltage is too low now",
        "warning: cpu-thermal is at 83 °C",
        "warning: there is swap that is not zram",
        "cgroup_enable=memory",
        "-> ",
    ] {
        assert!(text.contains(part), "'{part}' is missing: {text}");
    }
    let seen = place.json(line);
    assert_eq!(seen["storage"]["medium"], "sd_card");
    assert_eq!(seen["storage"]["sync"]["honoured"], "yes");
    assert_eq!(seen["memory"]["total"], 3884096u64 << 10);
    assert_eq!(seen["power"]["under_voltage"], true);
    let findings = seen["findings"].as_array().unwrap();
    assert!(findings.len() >= 5, "{findings:?}");
    for f in findings {
        assert!(
            !f["words"].as_str().unwrap().is_empty() && !f["mend"].as_str().unwrap().is_empty()
        );
    }
}

#[test]
fn this_machine_and_its_kernels_are_described() {
    let place = Place::new();
    let seen = place.json("doctor --state .");
    let kernels = &seen["kernels"];
    let (compiled, can_run) = (words(&kernels["compiled"]), words(&kernels["can_run"]));
    assert_eq!(compiled, COMPILED);
    assert_eq!(can_run.last(), Some(&"portable"));
    assert!(can_run.iter().all(|k| compiled.contains(k)));
    if std::env::var_os("OFFSHOOT_KERNELS").is_none() {
        assert_eq!(kernels["chosen"], can_run[0]);
    }
    assert!(seen["page_bytes"].as_u64().unwrap() >= 4096);
    assert!(seen["memory"]["total"].as_u64().unwrap() > 64 << 20);
    assert!(seen["own_peak_bytes"].as_u64().unwrap() < 64 << 20, "{}", seen["own_peak_bytes"]);
    assert!(place.ok("doctor --state .").contains("kernels"));

    let features = words(&seen["cpu"]["features"]);
    let library = words(&kernels["library"]["compiled"]);
    let runs = words(&kernels["library"]["can_run"]);
    let dot = |names: &[&str]| names.iter().any(|n| n.ends_with("_dot"));
    if cfg!(target_arch = "aarch64") {
        assert!(dot(&library), "tract was built without its dot products: {library:?}");
        assert_eq!(dot(&runs), features.contains(&"dotprod"), "{features:?} {runs:?}");
    }
    // Set by cross/suites.sh.
    let Ok(cpu) = std::env::var("OFFSHOOT_EMULATED_CPU") else { return };
    let known = EMULATED.iter().find(|e| e.cpu == cpu);
    let known = known.unwrap_or_else(|| panic!("no such processor: {cpu}"));
    assert!(known.features.iter().all(|f| features.contains(f)), "{cpu}: {features:?}");
    assert!(!known.missing.iter().any(|f| features.contains(f)), "{cpu}: {features:?}");
    assert_eq!(can_run, known.kernels, "{cpu}");
    assert_eq!(dot(&runs), known.dots, "{cpu}: {runs:?}");
}

#[test]
fn a_state_folder_that_can_not_be_used_is_a_problem() {
    let place = Place::new();
    board(&place);
    place.write(
        "board/proc/self/mountinfo",
        "24 1 179:2 / / ro,noatime - squashfs /dev/mmcblk0p2 ro\n",
    );
    let done = place.run("doctor --root board --state /var/lib/offshoot");
    done.failed(1, "a read-only state folder");
    assert!(done.stderr.contains("read-only file system"), "{done:?}");
    assert!(done.stderr.contains("OFFSHOOT_STORE"), "{done:?}");
    let done = place.run("doctor --root board --state /var/lib/offshoot --json");
    assert_eq!(done.code, 1);
    let seen: Value = serde_json::from_str(&done.stdout).unwrap();
    assert_eq!(seen["findings"][0]["level"], "problem");
}

#[test]
fn a_program_that_can_not_run_here_gets_a_sentence() {
    let place = Place::new();
    let own = env!("CARGO_BIN_EXE_offshoot");
    assert!(place.ok(&format!("doctor --binary {own}")).contains("it can run here"));

    let whole = std::fs::read(own).unwrap();
    let mut foreign = whole.clone();
    // e_machine: S/390, which is big-endian, so that no kernel runs this.
    foreign[18..20].copy_from_slice(&22u16.to_le_bytes());
    place.write("foreign", &foreign);
    let error = place.fails("doctor --binary foreign", 1);
    assert!(error.contains("built for machine 22; this machine is"), "{error}");

    // Another loader's name of the same length.
    let interpreter = place.json(&format!("doctor --binary {own}"))["program"]["interpreter"]
        .as_str()
        .map(String::from);
    if let Some(name) = interpreter {
        let at = whole.windows(name.len()).position(|w| w == name.as_bytes()).unwrap();
        let mut lost = whole.clone();
        lost[at + 1] = b'~';
        place.write("lost", &lost);
        let error = place.fails("doctor --binary lost", 1);
        assert!(error.contains("which is missing") && error.contains("musl"), "{error}");
    }

    place.write("short", &whole[..100]);
    assert!(place.fails("doctor --binary short", 3).contains("damaged"));
    place.write("script", "#!/bin/sh\nexit 0\n# long enough for a header\n");
    assert!(place.fails("doctor --binary script", 3).contains("not a Linux program"));
    place.fails("doctor --binary missing", 3);
    place.fails("doctor --binary short --state .", 2);
}

#[test]
fn kernels_that_cannot_be_had_are_refused() {
    let place = Place::new();
    place.ok("pack {models}/mlp.onnx -o mlp.base");
    let x = Array::f32(vec![1, 12], vec![1.0; 12]).unwrap();
    place.write("x.npy", npy::to_bytes(&x));
    let asked = |line: &str, kernels: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = place.command(&words);
        command.env("OFFSHOOT_KERNELS", kernels);
        done(command)
    };
    let run = "run mlp.base --input x=x.npy";
    for kernels in ["", "portable"] {
        let done = asked(run, kernels);
        assert_eq!(done.code, 0, "{done:?}");
    }
    let refused = asked(run, "avx1024");
    refused.failed(2, run);
    assert!(refused.stderr.contains("OFFSHOOT_KERNELS asks for 'avx1024'"), "{refused:?}");
    let doctor = asked("doctor --state .", "avx1024");
    assert!(doctor.stdout.contains("avx1024"), "{doctor:?}");
}
