//! Where power comes from, and whether there is enough of it.

use super::Root;
use serde::Serialize;

/// Supplies and what the firmware says of the voltage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Power {
    /// Supplies of the machine that the kernel knows; boards without a battery rarely show any.
    pub supplies: Vec<Supply>,
    /// Whether the voltage was too low within the last seconds (Raspberry Pi's `rpi_volt`).
    pub under_voltage: Option<bool>,
}

/// One supply of `/sys/class/power_supply`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Supply {
    /// Its name.
    pub name: String,
    /// `Mains`, `USB`, `Battery`.
    pub kind: String,
    /// Whether it gives power.
    pub online: Option<bool>,
    /// A battery's state: `Discharging`, `Full`.
    pub status: Option<String>,
    /// A battery's charge in percent.
    pub capacity: Option<u8>,
}

/// A supply whose voltage and current a chip on the board measures, as on Jetsons.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rail {
    /// What the board calls it: `VDD_IN`.
    pub name: String,
    /// Its voltage.
    pub millivolts: u32,
    /// What is drawn from it.
    pub milliamperes: Option<u32>,
}

impl Power {
    /// Whether the machine runs on a battery that nothing charges. `None`: nothing says.
    pub fn on_battery(&self) -> Option<bool> {
        let plugged = |s: &&Supply| s.kind != "Battery";
        if self.supplies.iter().filter(plugged).any(|s| s.online == Some(true)) {
            return Some(false);
        }
        let batteries: Vec<&Supply> = self.supplies.iter().filter(|s| !plugged(s)).collect();
        if batteries.is_empty() {
            return None;
        }
        Some(batteries.iter().any(|b| b.status.as_deref() == Some("Discharging")))
    }
}

/// Reads what `root` shows.
pub fn power(root: &Root) -> Power {
    Power { supplies: supplies(root), under_voltage: alarm(root) }
}

fn supplies(root: &Root) -> Vec<Supply> {
    let folder = "/sys/class/power_supply";
    let one = |name: String| {
        let read = |file: &str| root.text(format!("{folder}/{name}/{file}"));
        // The battery of a mouse or a keyboard.
        if read("scope").as_deref() == Some("Device") {
            return None;
        }
        let kind = read("type")?;
        Some(Supply {
            kind,
            online: read("online").map(|t| t != "0"),
            status: read("status"),
            capacity: read("capacity").and_then(|t| t.parse().ok()),
            name,
        })
    };
    root.names(folder).into_iter().filter_map(one).collect()
}

/// The driver `raspberrypi-hwmon` asks the firmware every two seconds whether the voltage was too low
/// since it last asked. The file `get_throttled` beside it only repeats that, and reading it makes the
/// kernel log a warning with a trace (drivers/firmware/raspberrypi.c).
fn alarm(root: &Root) -> Option<bool> {
    let chip = chips(root, "rpi_volt").into_iter().next()?;
    root.number(format!("{chip}/in0_lcrit_alarm")).map(|v| v != 0)
}

/// Folders of the `hwmon` chips of this name.
fn chips(root: &Root, name: &str) -> Vec<String> {
    let folders = root.names("/sys/class/hwmon").into_iter();
    let folders = folders.map(|n| format!("/sys/class/hwmon/{n}"));
    folders.filter(|f| root.text(format!("{f}/name")).as_deref() == Some(name)).collect()
}

/// What `INA3221` chips measure: three channels each, in mV and mA (Documentation/hwmon/ina3221.rst).
pub fn rails(root: &Root) -> Vec<Rail> {
    let number = |path: String| u32::try_from(root.number(path)?).ok();
    let one = |chip: &String, n: u8| {
        Some(Rail {
            name: root.text(format!("{chip}/in{n}_label"))?,
            // A channel that is not connected shows 0.
            millivolts: number(format!("{chip}/in{n}_input")).filter(|&mv| mv > 0)?,
            milliamperes: number(format!("{chip}/curr{n}_input")),
        })
    };
    let chips = chips(root, "ina3221");
    chips.iter().flat_map(|chip| (1..=3).filter_map(move |n| one(chip, n))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    #[test]
    fn a_raspberry_pi_with_a_weak_supply() {
        let fake = Fake::new(&[
            ("/sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("/sys/class/hwmon/hwmon1/name", "rpi_volt\n"),
            ("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "1\n"),
        ]);
        let p = power(&fake.root);
        assert_eq!((p.under_voltage, p.on_battery()), (Some(true), None));
        fake.put("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n");
        assert_eq!(power(&fake.root).under_voltage, Some(false));
    }

    /// Reading it made the kernel log a warning with a trace, and what it said was stale.
    #[test]
    fn the_deprecated_file_of_the_firmware_is_not_read() {
        let fake =
            Fake::new(&[("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")]);
        assert_eq!(power(&fake.root), Power::default());
    }

    #[test]
    fn a_jetsons_supplies_are_measured() {
        let chip = "/sys/class/hwmon/hwmon1";
        let fake = Fake::new(&[
            (&format!("{chip}/name"), "ina3221\n"),
            (&format!("{chip}/in1_label"), "VDD_IN\n"),
            (&format!("{chip}/in1_input"), "5016\n"),
            (&format!("{chip}/curr1_input"), "976\n"),
            (&format!("{chip}/in2_label"), "VDD_SOC\n"),
            (&format!("{chip}/in2_input"), "5008\n"),
            (&format!("{chip}/in3_label"), "NC\n"),
            (&format!("{chip}/in3_input"), "0\n"),
            (&format!("{chip}/in7_label"), "sum of shunt voltages\n"),
        ]);
        let rail = |name: &str, millivolts, milliamperes| Rail {
            name: name.into(),
            millivolts,
            milliamperes,
        };
        let expected = [rail("VDD_IN", 5016, Some(976)), rail("VDD_SOC", 5008, None)];
        assert_eq!(rails(&fake.root), expected);
    }

    #[test]
    fn batteries() {
        let battery = "/sys/class/power_supply/BAT0";
        let fake = Fake::new(&[
            (&format!("{battery}/type"), "Battery\n"),
            (&format!("{battery}/status"), "Discharging\n"),
            (&format!("{battery}/capacity"), "81\n"),
        ]);
        let p = power(&fake.root);
        assert_eq!((p.on_battery(), p.supplies[0].capacity), (Some(true), Some(81)));
        fake.put("/sys/class/power_supply/AC/type", "Mains");
        fake.put("/sys/class/power_supply/AC/online", "1");
        assert_eq!(power(&fake.root).on_battery(), Some(false));
        assert_eq!(power(&Fake::new(&[]).root), Power::default());
    }

    /// A board on mains with a wireless keyboard was taken to run on a battery, and never trained.
    #[test]
    fn a_keyboards_battery_is_not_the_machines() {
        let keyboard = "/sys/class/power_supply/hidpp_battery_0";
        let fake = Fake::new(&[
            (&format!("{keyboard}/type"), "Battery\n"),
            (&format!("{keyboard}/scope"), "Device\n"),
            (&format!("{keyboard}/status"), "Discharging\n"),
        ]);
        assert_eq!(power(&fake.root), Power::default());
        fake.put(&format!("{keyboard}/scope"), "System\n");
        assert_eq!(power(&fake.root).on_battery(), Some(true));
    }
}
