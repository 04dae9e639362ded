//! Temperatures.

use super::Root;
use serde::Serialize;

/// A temperature.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sensor {
    /// What the kernel calls it.
    pub name: String,
    /// Now, in degrees Celsius.
    pub celsius: f32,
    /// Where the kernel or the firmware slows down or switches off, the lowest such point above
    /// 0 °C.
    pub limit: Option<f32>,
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
    let trips = root.names(folder).into_iter().filter_map(|file| {
        let stem = file.strip_suffix("_type").filter(|s| s.starts_with("trip_point_"))?;
        let kind = root.text(format!("{folder}/{file}"))?;
        matches!(kind.as_str(), "passive" | "hot" | "critical")
            .then(|| celsius(root, &format!("{folder}/{stem}_temp")))?
    });
    let limit = trips.filter(|&t| t > 0.0).min_by(f32::total_cmp);
    Some(Sensor { name, celsius: celsius_now, limit })
}

fn chip(root: &Root, folder: &str) -> Vec<Sensor> {
    let chip = root.text(format!("{folder}/name")).unwrap_or_else(|| "hwmon".into());
    let inputs = root.names(folder);
    let stems = inputs.iter().filter_map(|n| n.strip_suffix("_input"));
    stems
        .filter(|s| s.starts_with("temp"))
        .filter_map(|stem| {
            let label = root.text(format!("{folder}/{stem}_label"));
            let points = ["max", "crit"].map(|p| celsius(root, &format!("{folder}/{stem}_{p}")));
            Some(Sensor {
                name: format!("{chip} {}", label.as_deref().unwrap_or(stem)),
                celsius: celsius(root, &format!("{folder}/{stem}_input"))?,
                limit: points.into_iter().flatten().filter(|&t| t > 0.0).min_by(f32::total_cmp),
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
        let expected = Sensor { name: "cpu-thermal".into(), celsius: 51.54, limit: Some(85.0) };
        assert_eq!(sensors(&fake.root), [expected]);
    }

    #[test]
    fn hwmon_where_there_are_no_zones() {
        let fake = Fake::new(&[
            ("/sys/class/hwmon/hwmon3/name", "k10temp\n"),
            ("/sys/class/hwmon/hwmon3/temp1_input", "40250\n"),
            ("/sys/class/hwmon/hwmon3/temp1_label", "Tctl\n"),
            ("/sys/class/hwmon/hwmon3/in0_input", "5000\n"),
        ]);
        let expected = Sensor { name: "k10temp Tctl".into(), celsius: 40.25, limit: None };
        assert_eq!(sensors(&fake.root), [expected]);
        assert_eq!(sensors(&Fake::new(&[]).root), []);
    }
}
