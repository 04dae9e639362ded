//! The file system and the medium that a folder is on.

use super::Root;
use rustix::fs::{StatVfsMountFlags, statvfs};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a folder is on.
#[derive(Clone, Debug, Serialize)]
pub struct Storage {
    /// The folder asked about, or the nearest one above it that exists.
    pub folder: PathBuf,
    /// Where its file system is mounted.
    pub mount: Option<PathBuf>,
    /// `ext4`, `tmpfs`.
    pub file_system: Option<String>,
    /// The device or whatever else is mounted.
    pub source: Option<String>,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
    /// What keeps the bytes.
    pub medium: Medium,
    /// Wear that an eMMC states, in percent of its life, rounded up to tens.
    pub wear_percent: Option<u8>,
    /// Bytes that this user may still write.
    pub free_bytes: Option<u64>,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Whether what is synced is kept through a cut of power.
    pub sync: Sync,
    /// Median time of writing 4 KiB and waiting until they are on the medium, in microseconds.
    /// `None` where nothing may be written.
    pub sync_us: Option<u64>,
}

/// What keeps the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Medium {
    /// A removable SD card.
    SdCard,
    /// Flash soldered to the board.
    Emmc,
    /// A solid-state disk.
    Ssd,
    /// A disk with moving parts.
    Disk,
    /// A stick or card reader on USB.
    Removable,
    /// Main memory.
    Memory,
    /// Another machine, or a file system of the host.
    Remote,
    /// Nothing says.
    Unknown,
}

/// Whether `fsync` does what it promises.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "honoured", content = "why", rename_all = "snake_case")]
pub enum Sync {
    /// Nothing speaks against it.
    Yes,
    /// It does nothing, for this reason.
    No(String),
    /// It depends on what can't be seen from here.
    Unknown(String),
}

/// A disk can't be this fast, the fastest measured were above 20: something drops the request.
const TOO_FAST_US: u64 = 5;
/// How often syncing is timed.
const TRIALS: usize = 5;
/// Device mapper layers that are looked through.
const MAX_LAYERS: usize = 4;

/// One line of mountinfo.
struct Mount {
    point: PathBuf,
    device: String,
    kind: String,
    source: String,
    options: Vec<String>,
}

/// Reads what `root` shows of `folder`, and times syncing in it if it may be written.
pub fn storage(root: &Root, folder: &Path) -> Storage {
    let folder = existing(root, folder);
    let real = root.path(&folder);
    let mount = mount_of(root, &folder);
    let disk = mount.as_ref().and_then(|m| disk_of(root, m));
    let space = statvfs(&real).ok();
    let kind = mount.as_ref().map(|m| m.kind.clone());
    let medium = medium(root, kind.as_deref(), disk.as_deref());
    let options = mount.as_ref().map_or(vec![], |m| m.options.clone());
    let read_only = space.as_ref().is_some_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY))
        || options.iter().any(|o| o == "ro");
    let sync_us = if read_only { None } else { time_sync(&real) };
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let wear =
        disk.as_ref().and_then(|d| root.text(format!("/sys/class/block/{d}/device/life_time")));
    Storage {
        sync: sync(kind.as_deref(), &options, medium, sync_us, &preload),
        mount: mount.as_ref().map(|m| m.point.clone()),
        source: mount.map(|m| m.source),
        file_system: kind,
        wear_percent: wear.and_then(|t| wear_percent(&t)),
        free_bytes: space.map(|s| s.f_bavail.saturating_mul(s.f_frsize)),
        folder,
        options,
        medium,
        read_only,
        sync_us,
    }
}

/// `folder`, or the nearest one above it that exists.
fn existing(root: &Root, folder: &Path) -> PathBuf {
    let absolute = std::path::absolute(folder).unwrap_or_else(|_| folder.to_path_buf());
    let found = absolute.ancestors().find(|f| root.path(f).is_dir());
    let found = found.unwrap_or(Path::new("/"));
    if root.is_system() {
        // A link leads to where the bytes are.
        return found.canonicalize().unwrap_or_else(|_| found.to_path_buf());
    }
    found.to_path_buf()
}

/// The mount that `folder` is on: the deepest one, the last where several are stacked.
fn mount_of(root: &Root, folder: &Path) -> Option<Mount> {
    let table = root.text("/proc/self/mountinfo")?;
    let mounts = table.lines().filter_map(parse_mount);
    let on = mounts.filter(|m| folder.starts_with(&m.point));
    on.max_by_key(|m| m.point.components().count())
}

/// proc(5): ID, parent, major:minor, root, mount point, options, optional fields, `-`, type, source,
/// options of the file system.
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let mut after = after.split(' ');
    let kind = after.next()?.to_string();
    let source = unescape(after.next()?);
    let all = before.get(5)?.split(',').chain(after.next().unwrap_or("").split(','));
    Some(Mount {
        point: PathBuf::from(unescape(before.get(4)?)),
        device: before.get(2)?.to_string(),
        kind,
        source,
        options: all.filter(|o| !o.is_empty()).map(String::from).collect(),
    })
}

/// mountinfo writes blanks and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let mut out = vec![];
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let digits = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match digits.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The whole disk under a mount: `mmcblk0` for `/dev/mmcblk0p2`.
fn disk_of(root: &Root, mount: &Mount) -> Option<String> {
    let by_number = root.path(format!("/sys/dev/block/{}", mount.device));
    let mut at = match by_number.canonicalize() {
        Ok(folder) => folder,
        // btrfs and the like show numbers of no device.
        Err(_) => {
            let name = mount.source.strip_prefix("/dev/")?;
            root.path(format!("/sys/class/block/{name}")).canonicalize().ok()?
        }
    };
    for _ in 0..MAX_LAYERS {
        if at.join("partition").exists() {
            at = at.parent()?.to_path_buf();
        }
        let below = std::fs::read_dir(at.join("slaves")).ok();
        let below = below.and_then(|mut entries| entries.next()?.ok());
        match below.and_then(|e| e.path().canonicalize().ok()) {
            Some(folder) => at = folder,
            None => break,
        }
    }
    Some(at.file_name()?.to_str()?.to_string())
}

fn medium(root: &Root, kind: Option<&str>, disk: Option<&str>) -> Medium {
    match kind {
        Some("tmpfs" | "ramfs") => return Medium::Memory,
        Some("nfs" | "nfs4" | "cifs" | "smb3" | "9p" | "virtiofs" | "ceph" | "glusterfs") => {
            return Medium::Remote;
        }
        _ => {}
    }
    let Some(disk) = disk else { return Medium::Unknown };
    let read = |file: &str| root.text(format!("/sys/class/block/{disk}/{file}"));
    if disk.starts_with("zram") || disk.starts_with("ram") {
        return Medium::Memory;
    }
    if disk.starts_with("mmcblk") {
        return match read("device/type").as_deref() {
            Some("SD") => Medium::SdCard,
            Some("MMC") => Medium::Emmc,
            _ => Medium::Unknown,
        };
    }
    if read("removable").as_deref() == Some("1") {
        return Medium::Removable;
    }
    // What a virtual disk says of its medium is the host's choice.
    match read("queue/rotational").as_deref() {
        Some("0") => Medium::Ssd,
        Some("1") if !disk.starts_with("vd") => Medium::Disk,
        _ => Medium::Unknown,
    }
}

fn sync(
    kind: Option<&str>,
    options: &[String],
    medium: Medium,
    us: Option<u64>,
    preload: &str,
) -> Sync {
    let has = |wanted: &[&str]| options.iter().find(|o| wanted.contains(&o.as_str()));
    if preload.contains("eatmydata") {
        return Sync::No("LD_PRELOAD loads libeatmydata, which drops fsync".into());
    }
    if medium == Medium::Memory {
        return Sync::No("it is kept in memory and lost when the power goes".into());
    }
    if let Some(option) = has(&["nobarrier", "barrier=0", "volatile"]) {
        return Sync::No(format!("it is mounted with '{option}'"));
    }
    if medium == Medium::Remote {
        return Sync::Unknown("another machine or the host decides".into());
    }
    match (kind, us) {
        (Some(fuse), _) if fuse.starts_with("fuse") => {
            Sync::Unknown(format!("the program behind '{fuse}' decides"))
        }
        (_, Some(us)) if us < TOO_FAST_US => {
            Sync::Unknown(format!("it takes {us} µs, faster than any disk"))
        }
        (None, None) => Sync::Unknown("the system does not say what the folder is on".into()),
        _ => Sync::Yes,
    }
}

/// Median of writing and syncing a page of a temporary file, in microseconds.
fn time_sync(folder: &Path) -> Option<u64> {
    let path = folder.join(format!(".offshoot-doctor-{}.tmp", std::process::id()));
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).ok()?;
    let mut times: Vec<u64> = vec![];
    for trial in 0..TRIALS {
        let start = Instant::now();
        let page = [u8::try_from(trial).unwrap_or(0); 4096];
        if file.write_all(&page).and_then(|()| file.sync_data()).is_err() {
            break;
        }
        times.push(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX));
    }
    // The folder stays as it was; a file that can't be removed is nothing to fail for.
    let _ = std::fs::remove_file(&path);
    times.sort_unstable();
    times.get(times.len() / 2).copied()
}

/// JEDEC 5.0: two bytes, each 1 for up to 10 % of the life used, 11 for past it.
fn wear_percent(text: &str) -> Option<u8> {
    let bytes = text.split_whitespace();
    let bytes = bytes.filter_map(|t| u8::from_str_radix(t.trim_start_matches("0x"), 16).ok());
    bytes.max().filter(|&n| n > 0).map(|n| n.saturating_mul(10).min(110))
}

#[cfg(test)]
mod tests {
    use super::super::root::testing::Fake;
    use super::*;

    const ROOT: &str = "22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw\n";

    fn card(kind: &str) -> Fake {
        let disk = "/sys/devices/platform/mmc0/block/mmcblk0";
        let fake = Fake::new(&[
            (&format!("{disk}/device/type"), kind),
            (&format!("{disk}/device/life_time"), "0x01 0x0a\n"),
            (&format!("{disk}/mmcblk0p2/partition"), "2"),
            ("/sys/dev/block/179:2", "-> ../../devices/platform/mmc0/block/mmcblk0/mmcblk0p2"),
            ("/sys/class/block/mmcblk0", "-> ../../devices/platform/mmc0/block/mmcblk0"),
            ("/proc/self/mountinfo", ROOT),
            ("/var/lib/keep", ""),
        ]);
        fake.put("/mnt/a b/keep", "");
        fake
    }

    #[test]
    fn a_card_is_told_from_soldered_flash() {
        let seen = storage(&card("SD\n").root, Path::new("/var/lib/offshoot/state"));
        assert_eq!((seen.medium, seen.sync), (Medium::SdCard, Sync::Yes));
        assert_eq!(seen.folder, Path::new("/var/lib"));
        assert_eq!(seen.file_system.as_deref(), Some("ext4"));
        assert!(seen.sync_us.is_some() && seen.free_bytes.unwrap() > 0 && !seen.read_only);
        let seen = storage(&card("MMC\n").root, Path::new("/var/lib"));
        assert_eq!((seen.medium, seen.wear_percent), (Medium::Emmc, Some(100)));
    }

    #[test]
    fn the_deepest_and_last_mount_counts() {
        let fake = card("SD");
        let more = format!(
            "{ROOT}40 22 0:9 / /mnt rw - ext4 /dev/x rw\n\
             41 22 0:30 / /mnt/a\\040b ro,nodev - nfs4 server:/x rw,vers=4\n\
             42 22 0:31 / /mnt/a\\040b rw - tmpfs tmpfs rw,size=1k\n\
             43 22 0:32 / /var/lib rw - overlay overlay rw,volatile\n\
             broken line\n44 22 - x\n"
        );
        std::fs::write(fake.root.path("/proc/self/mountinfo"), more).unwrap();
        let seen = storage(&fake.root, Path::new("/mnt/a b"));
        assert_eq!(seen.file_system.as_deref(), Some("tmpfs"));
        assert_eq!(seen.medium, Medium::Memory);
        assert!(matches!(seen.sync, Sync::No(_)));
        let seen = storage(&fake.root, Path::new("/var/lib"));
        assert_eq!(seen.sync, Sync::No("it is mounted with 'volatile'".into()));
        assert_eq!(seen.medium, Medium::Unknown);
    }

    #[test]
    fn what_can_not_be_known_is_said_so() {
        let yes = |us, preload: &str| sync(Some("ext4"), &[], Medium::Ssd, us, preload);
        assert_eq!(yes(Some(800), ""), Sync::Yes);
        assert!(matches!(yes(Some(1), ""), Sync::Unknown(_)));
        assert!(matches!(yes(Some(800), "/usr/lib/libeatmydata.so"), Sync::No(_)));
        let remote = sync(Some("nfs4"), &[], Medium::Remote, None, "");
        assert!(matches!(remote, Sync::Unknown(_)));
        let fuse = sync(Some("fuse.sshfs"), &[], Medium::Unknown, Some(900), "");
        assert!(matches!(fuse, Sync::Unknown(_)));
        let nothing = storage(&Fake::new(&[]).root, Path::new("/var"));
        assert_eq!((nothing.medium, nothing.mount), (Medium::Unknown, None));
        assert_eq!(wear_percent("0x00 0x00"), None);
        assert_eq!([unescape("a\\040b\\"), unescape("\\9")], ["a b\\", "\\9"]);
    }

    #[test]
    fn this_machine_has_a_file_system() {
        let folder = tempfile::tempdir().unwrap();
        let seen = storage(&Root::system(), &folder.path().join("not/yet"));
        assert_eq!(seen.folder, folder.path().canonicalize().unwrap());
        assert!(seen.sync_us.is_some());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
