//! Temperatures.

use super::Root;
use serde::Serialize;

/// A temperature.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sensor {
    /// What the kernel calls it.
    pub name: String,
    /// Now, in degrees Celsius.
    pub celsius: f32,
    /// Where the kernel or the firmware slows the clock down, the lowest such point above 0 °C.
    pub slows_down_at: Option<f32>,
    /// Where the kernel switches the machine off.
    pub switches_off_at: Option<f32>,
}

/// How near to its own limit a sensor decides, in degrees.
pub const NEAR: f32 = 5.0;

impl Sensor {
    /// Where the system acts itself: the lower of both points.
    pub fn limit(&self) -> Option<f32> {
        lowest(self.slows_down_at.into_iter().chain(self.switches_off_at))
    }

    /// Degrees that are left to its limit.
    fn left(&self) -> f32 {
        self.limit().map_or(f32::INFINITY, |limit| limit - self.celsius)
    }
}

/// The sensor nearest to its own limit, where it is [`NEAR`]; else the hottest.
pub fn deciding(sensors: &[Sensor]) -> Option<&Sensor> {
    let nearest = sensors.iter().min_by(|a, b| a.left().total_cmp(&b.left()));
    nearest
        .filter(|s| s.left() <= NEAR)
        .or_else(|| sensors.iter().max_by(|a, b| a.celsius.total_cmp(&b.celsius)))
}

/// Readings outside are no temperatures of a running board: some drivers show 0 or -273 for a
/// sensor that is asleep.
const PLAUSIBLE: std::ops::RangeInclusive<f32> = -60.0..=200.0;

/// The thermal zones, else the sensors of `hwmon` (which show the same ones again).
pub fn sensors(root: &Root) -> Vec<Sensor> {
    let zones = "/sys/class/thermal";
    let found: Vec<Sensor> = root
        .names(zones)
        .iter()
        .filter_map(|name| zone(root, &format!("{zones}/{name}")))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let chips = "/sys/class/hwmon";
    root.names(chips).iter().flat_map(|name| chip(root, &format!("{chips}/{name}"))).collect()
}

/// The zone of a Jetson's power chip that shows 100 °C whatever it is: a stand-in of the device tree,
/// as NVIDIA says (balena-os/balena-jetson issue 142).
const STAND_IN: &str = "PMIC-Die";

fn celsius(root: &Root, path: &str) -> Option<f32> {
    let value = root.number(path)? as f32 / 1000.0;
    Some(value).filter(|v| PLAUSIBLE.contains(v))
}

fn zone(root: &Root, folder: &str) -> Option<Sensor> {
    let name = root.text(format!("{folder}/type")).filter(|name| name != STAND_IN)?;
    let celsius_now = celsius(root, &format!("{folder}/temp"))?;
    let files = root.names(folder);
    let stems = files.iter().filter_map(|f| f.strip_suffix("_type"));
    let trips: Vec<(String, f32)> = stems
        .filter(|stem| stem.starts_with("trip_point_"))
        .filter_map(|stem| {
            let kind = root.text(format!("{folder}/{stem}_type"))?;
            Some((kind, celsius(root, &format!("{folder}/{stem}_temp"))?))
        })
        .collect();
    // `active` ones start a fan.
    let at = |kinds: &[&str]| {
        lowest(trips.iter().filter(|(kind, _)| kinds.contains(&kind.as_str())).map(|(_, at)| *at))
    };
    Some(Sensor {
        name,
        celsius: celsius_now,
        slows_down_at: at(&["passive", "hot"]),
        switches_off_at: at(&["critical"]),
    })
}

fn lowest(points: impl Iterator<Item = f32>) -> Option<f32> {
    points.filter(|&t| t > 0.0).min_by(f32::total_cmp)
}

fn chip(root: &Root, folder: &str) -> Vec<Sensor> {
    let chip = root.text(format!("{folder}/name")).unwrap_or_else(|| "hwmon".into());
    let inputs = root.names(folder);
    let stems = inputs.iter().filter_map(|n| n.strip_suffix("_input"));
    stems
        .filter(|s| s.starts_with("temp"))
        .filter_map(|stem| {
            let label = root.text(format!("{folder}/{stem}_label"));
            let at = |p: &str| celsius(root, &format!("{folder}/{stem}_{p}")).filter(|&t| t > 0.0);
            Some(Sensor {
                name: format!("{chip} {}", label.as_deref().unwrap_or(stem)),
                celsius: celsius(root, &format!("{folder}/{stem}_input"))?,
                slows_down_at: at("max"),
                switches_off_at: at("crit"),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    #[test]
    fn zones_first_with_their_lowest_limit() {
        let fake = Fake::new(&[
            ("/sys/class/thermal/cooling_device0/type", "Fan\n"),
            ("/sys/class/thermal/thermal_zone0/type", "cpu-thermal\n"),
            ("/sys/class/thermal/thermal_zone0/temp", "51540\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_0_type", "critical\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_0_temp", "110000\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_type", "active\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_1_temp", "50000\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_2_type", "passive\n"),
            ("/sys/class/thermal/thermal_zone0/trip_point_2_temp", "85000\n"),
            ("/sys/class/thermal/thermal_zone1/type", "asleep\n"),
            ("/sys/class/thermal/thermal_zone1/temp", "-273000\n"),
            // A Jetson's, as cool as the others.
            ("/sys/class/thermal/thermal_zone2/type", "PMIC-Die\n"),
            ("/sys/class/thermal/thermal_zone2/temp", "100000\n"),
            ("/sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
            ("/sys/class/hwmon/hwmon0/temp1_input", "51540\n"),
        ]);
        let expected = Sensor {
            name: "cpu-thermal".into(),
            celsius: 51.54,
            slows_down_at: Some(85.0),
            switches_off_at: Some(110.0),
        };
        assert_eq!(expected.limit(), Some(85.0));
        assert_eq!(sensors(&fake.root), [expected]);
    }

    /// A Raspberry Pi 5's: it was said to slow down at 110 °C.
    #[test]
    fn a_critical_point_is_where_it_switches_off() {
        let zone = "/sys/class/thermal/thermal_zone0";
        let fake = Fake::new(&[
            (&format!("{zone}/type"), "cpu-thermal\n"),
            (&format!("{zone}/temp"), "60000\n"),
            (&format!("{zone}/trip_point_0_type"), "critical\n"),
            (&format!("{zone}/trip_point_0_temp"), "110000\n"),
            (&format!("{zone}/trip_point_1_type"), "active\n"),
            (&format!("{zone}/trip_point_1_temp"), "75000\n"),
        ]);
        let seen = &sensors(&fake.root)[0];
        assert_eq!((seen.slows_down_at, seen.switches_off_at), (None, Some(110.0)));
        assert_eq!(seen.limit(), Some(110.0));
    }

    #[test]
    fn a_sensor_near_its_own_limit_decides_over_a_hotter_one() {
        let sensor = |name: &str, celsius, slows_down_at, switches_off_at| Sensor {
            name: name.into(),
            celsius,
            slows_down_at,
            switches_off_at,
        };
        let names = |flash: f32| {
            let cpu = sensor("cpu", 80.0, Some(105.0), None);
            let all = [cpu, sensor("flash", flash, None, Some(70.0))];
            deciding(&all).map(|s| s.name.clone())
        };
        assert_eq!([names(64.9), names(65.0)], [Some("cpu".into()), Some("flash".into())]);
        assert_eq!(deciding(&[]), None);
    }

    #[test]
    fn hwmon_where_there_are_no_zones() {
        let fake = Fake::new(&[
            ("/sys/class/hwmon/hwmon3/name", "k10temp\n"),
            ("/sys/class/hwmon/hwmon3/temp1_input", "40250\n"),
            ("/sys/class/hwmon/hwmon3/temp1_label", "Tctl\n"),
            ("/sys/class/hwmon/hwmon3/in0_input", "5000\n"),
        ]);
        let expected = Sensor { name: "k10temp Tctl".into(), celsius: 40.25, ..Sensor::default() };
        assert_eq!(sensors(&fake.root), [expected]);
        assert_eq!(sensors(&Fake::new(&[]).root), []);
    }
}
