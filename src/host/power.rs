//! Where power comes from, and whether there is enough of it.

use super::Root;
use serde::Serialize;

/// Supplies and what the firmware says of the voltage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Power {
    /// Supplies of the machine that the kernel knows; boards without a battery rarely show any.
    pub supplies: Vec<Supply>,
    /// Whether the voltage is too low now (Raspberry Pi's `rpi_volt` or firmware).
    pub under_voltage: Option<bool>,
    /// What Raspberry Pi's firmware has had to do.
    pub throttled: Option<Throttled>,
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

/// Bits of `get_throttled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Throttled {
    /// The voltage is too low now.
    pub under_voltage: bool,
    /// The clock is held down or slowed now, by voltage or heat.
    pub slowed: bool,
    /// The voltage was too low since the board started.
    pub under_voltage_seen: bool,
    /// The clock was slowed since the board started.
    pub slowed_seen: bool,
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
    let throttled = throttled(root);
    let alarm = hwmon_alarm(root).or(throttled.map(|t| t.under_voltage));
    Power { supplies: supplies(root), under_voltage: alarm, throttled }
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

/// The driver `raspberrypi-hwmon` asks the firmware every two seconds.
fn hwmon_alarm(root: &Root) -> Option<bool> {
    let folder = "/sys/class/hwmon";
    let chips = root.names(folder);
    let chip = chips
        .iter()
        .find(|n| root.text(format!("{folder}/{n}/name")).as_deref() == Some("rpi_volt"))?;
    root.number(format!("{folder}/{chip}/in0_lcrit_alarm")).map(|v| v != 0)
}

/// `/sys/devices/platform/soc*/soc*:firmware/get_throttled`: the place differs between models.
fn throttled(root: &Root) -> Option<Throttled> {
    let platform = "/sys/devices/platform";
    let socs = root.names(platform).into_iter().filter(|n| n.starts_with("soc"));
    let text = socs.flat_map(|soc| {
        let inner = root.names(format!("{platform}/{soc}")).into_iter();
        let inner = inner.filter(|n| n.ends_with("firmware"));
        let paths = inner.map(|n| format!("{platform}/{soc}/{n}/get_throttled"));
        paths.filter_map(|p| root.text(p)).collect::<Vec<_>>()
    });
    let text = text.into_iter().next()?;
    let bits = u32::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
    let any = |mask: u32| bits & mask != 0;
    Some(Throttled {
        under_voltage: any(1),
        slowed: any(0b1110),
        under_voltage_seen: any(1 << 16),
        slowed_seen: any(0b1110 << 16),
    })
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
            ("/sys/class/hwmon/hwmon1/in0_lcrit_alarm", "0\n"),
            ("/sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n"),
        ]);
        let p = power(&fake.root);
        // The driver's own reading is the newer one.
        assert_eq!((p.under_voltage, p.on_battery()), (Some(false), None));
        let t = p.throttled.unwrap();
        assert!(t.under_voltage && t.slowed && t.under_voltage_seen && t.slowed_seen);
        fake.put("/sys/devices/platform/soc/soc:firmware/get_throttled", "0x80000\n");
        let t = power(&fake.root).throttled.unwrap();
        assert!(!t.under_voltage && !t.slowed && !t.under_voltage_seen && t.slowed_seen);
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
