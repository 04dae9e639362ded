//! What the machine and the serving side show.

use super::clock::{Now, local_minute};
use crate::daemon::Serving;
use crate::host::{Power, Root, Sensor, deciding, memory, power, sensors};
use std::time::Duration;

/// Facts that conditions are judged by. `None`: nothing says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Readings {
    /// Requests that wait or run.
    pub in_flight: usize,
    /// How long none has.
    pub idle: Duration,
    /// Share of the last minute that the threads which compute answers were busy, 0 to 1.
    pub busy: f32,
    /// Bytes that can be given without swapping, the limits of this process's groups counted.
    pub available: Option<u64>,
    /// The sensor that decides: one near its own limit, else the hottest.
    pub hottest: Option<Sensor>,
    /// Where power comes from.
    pub power: Power,
    /// Share of the processors that processes of ordinary priority keep busy, 0 to 1.
    pub load: Option<f32>,
    /// Minute of the day, local time; `None` if the clock was never set.
    pub minute: Option<u16>,
    /// What is wrong with the base's file, in words.
    pub damage: Option<String>,
}

/// Jiffies of all processors: those of ordinary processes, and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ticks {
    busy: u64,
    all: u64,
}

/// Fewest jiffies between two readings of `/proc/stat` that a share is taken over.
const LEAST_TICKS: u64 = 50;

/// Reads what `root` shows. Load is a share since the last reading, so it keeps that.
#[derive(Debug)]
pub struct Reader {
    root: Root,
    ticks: Option<Ticks>,
    load: Option<f32>,
}

impl Reader {
    /// Of the system below `root`.
    pub fn new(root: Root) -> Reader {
        Reader { root, ticks: None, load: None }
    }

    /// Reads everything.
    pub fn read(&mut self, serving: &dyn Serving, now: Now) -> Readings {
        let memory = memory(&self.root);
        let limited = memory.limit.map(|limit| limit.saturating_sub(self.used_by_group()));
        Readings {
            in_flight: serving.in_flight(),
            idle: serving.idle_for(),
            busy: serving.busy(),
            available: memory.available.into_iter().chain(limited).min(),
            hottest: deciding(&sensors(&self.root)).cloned(),
            power: power(&self.root),
            load: self.load(),
            minute: if now.is_set() { local_minute(now.wall) } else { None },
            damage: serving.damage(),
        }
    }

    /// Bytes that this process's own group uses and can't give back (version 2 groups): cached files,
    /// the mapped base among them, are taken from it where memory is wanted.
    fn used_by_group(&self) -> u64 {
        let groups = self.root.text("/proc/self/cgroup").unwrap_or_default();
        let Some(path) = groups.lines().find_map(|l| l.strip_prefix("0::")) else { return 0 };
        let folder = format!("/sys/fs/cgroup{path}");
        let current = self.root.number(format!("{folder}/memory.current")).unwrap_or(0);
        let stat = self.root.text(format!("{folder}/memory.stat")).unwrap_or_default();
        let cached = stat.lines().filter_map(|line| match line.split_once(' ')? {
            ("active_file" | "inactive_file", bytes) => bytes.trim().parse::<u64>().ok(),
            _ => None,
        });
        u64::try_from(current).unwrap_or(0).saturating_sub(cached.sum())
    }

    /// Nice processes, the trainer among them, don't count as busy.
    fn load(&mut self) -> Option<f32> {
        let now = ticks(&self.root.text("/proc/stat")?)?;
        let before = *self.ticks.get_or_insert(now);
        let passed = now.all.saturating_sub(before.all);
        if passed >= LEAST_TICKS {
            self.ticks = Some(now);
            let busy = now.busy.saturating_sub(before.busy);
            self.load = Some(busy as f32 / passed as f32);
        }
        self.load.or_else(|| self.load_average())
    }

    /// Before there are two readings: the load of the last minute over the processors.
    fn load_average(&self) -> Option<f32> {
        let text = self.root.text("/proc/loadavg")?;
        let load: f32 = text.split_whitespace().next()?.parse().ok()?;
        let stat = self.root.text("/proc/stat")?;
        let cores = stat.lines().filter(|l| l.starts_with("cpu") && !l.starts_with("cpu "));
        Some((load / cores.count().max(1) as f32).min(1.0))
    }
}

/// `cpu user nice system idle iowait irq softirq steal …`
fn ticks(stat: &str) -> Option<Ticks> {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
    let values: Vec<u64> = line.split_whitespace().map_while(|v| v.parse().ok()).take(8).collect();
    let &[user, nice, system, idle, wait, irq, soft, steal] = values.as_slice() else {
        return None;
    };
    let busy = user + system + irq + soft + steal;
    Some(Ticks { busy, all: busy + nice + idle + wait })
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::conditions::{Need, Phase, conditions};
    use super::super::settings::Settings;
    use super::super::testing::Quiet;
    use super::*;
    use crate::host::testing::Fake;

    fn read(fake: &Fake) -> Readings {
        let now = Now { wall: 1_800_000_000, steady: Duration::from_secs(9) };
        Reader::new(fake.root.clone()).read(&Quiet::default(), now)
    }

    /// A processor that bears 105 °C and a flash chip that bears 70 °C: the cooler one is in danger.
    #[test]
    fn the_sensor_near_its_own_limit_decides_else_the_hottest() {
        let fake = Fake::new(&[]);
        let zone = |n: u8, name: &str, temp: &str, limit: &str| {
            let at = |file: &str| format!("/sys/class/thermal/thermal_zone{n}/{file}");
            fake.put(&at("type"), name);
            fake.put(&at("temp"), temp);
            fake.put(&at("trip_point_0_type"), "passive");
            fake.put(&at("trip_point_0_temp"), limit);
        };
        zone(0, "cpu", "66000", "105000");
        let heat = |settings: &Settings| {
            let all = conditions(&Need::default(), &read(&fake), settings, Phase::Training);
            let heat = all.into_iter().find(|c| c.name == "temperature").unwrap();
            (heat.sentence.contains("'cpu'"), heat.met)
        };
        let settings = Settings::default();
        zone(1, "flash", "64900", "70000");
        assert_eq!(heat(&settings), (true, true));
        // The margin is the condition's own.
        zone(1, "flash", "65000", "70000");
        assert_eq!(heat(&settings), (false, false));
    }

    #[test]
    fn cached_files_are_not_used_up_memory() {
        let fake = Fake::new(&[
            ("/proc/meminfo", "MemAvailable:    3000000 kB\n"),
            ("/proc/self/cgroup", "0::/o.service\n"),
            ("/sys/fs/cgroup/o.service/memory.max", "268435456\n"),
            ("/sys/fs/cgroup/o.service/memory.current", "209715200\n"),
        ]);
        assert_eq!(read(&fake).available, Some(56 << 20));
        fake.put(
            "/sys/fs/cgroup/o.service/memory.stat",
            "anon 1\nfile 120586240\ninactive_file 104857600\nactive_file 10485760\n",
        );
        assert_eq!(read(&fake).available, Some(166 << 20));
    }

    #[test]
    fn nice_processes_are_no_load() {
        let fake = Fake::new(&[
            ("/proc/stat", "cpu  100 0 50 800 50 0 0 0 0 0\ncpu0 1 1\ncpu1 1 1\n"),
            ("/proc/loadavg", "1.00 0.5 0.2 1/99 4242\n"),
        ]);
        let mut reader = Reader::new(fake.root.clone());
        assert_eq!(reader.load(), Some(0.5));
        // 1000 jiffies on: 900 of a nice process, 60 of others, 40 idle.
        fake.put("/proc/stat", "cpu  150 900 60 840 50 0 0 0 0 0\ncpu0 1 1\ncpu1 1 1\n");
        assert_eq!(reader.load(), Some(0.06));
        // Too soon for another share: the last one stands.
        fake.put("/proc/stat", "cpu  160 900 60 840 50 0 0 0 0 0\ncpu0 1 1\ncpu1 1 1\n");
        assert_eq!(reader.load(), Some(0.06));
        assert_eq!(Reader::new(Fake::new(&[]).root.clone()).load(), None);
        assert_eq!(ticks("cpu 1 2 3\n"), None);
    }
}
