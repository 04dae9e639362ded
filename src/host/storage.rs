//! The file system and the medium that a folder is on.

use super::Root;
use super::mounts::{MAX_LAYERS, Mount, keeper, mount_of, mounts};
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

/// Reads what `root` shows of `folder`, and times syncing in it if it may be written.
pub fn storage(root: &Root, folder: &Path) -> Storage {
    let folder = existing(root, folder);
    let real = root.path(&folder);
    let mounts = mounts(root);
    let mount = mount_of(&mounts, &folder);
    let keeper = mount.and_then(|m| keeper(root, &mounts, m));
    let disk = keeper.and_then(|m| disk_of(root, m));
    let space = statvfs(&real).ok();
    let medium = medium(root, keeper.map(|m| m.kind.as_str()), disk.as_deref());
    let options = mount.map_or(vec![], |m| m.options.clone());
    let read_only = space.as_ref().is_some_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY))
        || options.iter().any(|o| o == "ro");
    let sync_us = if read_only { None } else { time_sync(&real) };
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let wear =
        disk.as_ref().and_then(|d| root.text(format!("/sys/class/block/{d}/device/life_time")));
    Storage {
        sync: sync(mount, keeper, medium, sync_us, &preload),
        mount: mount.map(|m| m.point.clone()),
        source: mount.map(|m| m.source.clone()),
        file_system: mount.map(|m| m.kind.clone()),
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

/// Options that drop fsync or the flush of the disk's cache; `volatile` is an overlay's, which newer
/// kernels show as `fsync=volatile`, `fsync_mode` is f2fs's.
const NO_SYNC: &[&str] =
    &["nobarrier", "barrier=0", "volatile", "fsync=volatile", "fsync_mode=nobarrier"];

/// `keeper` keeps what is written in `mount`.
fn sync(
    mount: Option<&Mount>,
    keeper: Option<&Mount>,
    medium: Medium,
    us: Option<u64>,
    preload: &str,
) -> Sync {
    if preload.contains("eatmydata") {
        return Sync::No("LD_PRELOAD loads libeatmydata, which drops fsync".into());
    }
    if medium == Medium::Memory {
        return Sync::No("it is kept in memory and lost when the power goes".into());
    }
    let mut options = mount.into_iter().chain(keeper).flat_map(|m| &m.options);
    // With f2fs's checkpoints off, the next start finds what was there when they were switched off.
    let dropped =
        |o: &&String| NO_SYNC.contains(&o.as_str()) || o.starts_with("checkpoint=disable");
    if let Some(option) = options.find(dropped) {
        return Sync::No(format!("it is mounted with '{option}'"));
    }
    if medium == Medium::Remote {
        return Sync::Unknown("another machine or the host decides".into());
    }
    match (mount, keeper, us) {
        (None, _, None) => Sync::Unknown("the system does not say what the folder is on".into()),
        (Some(_), None, _) => Sync::Unknown(
            "it is an overlay whose upper layer may be memory: what is written may be gone after a \
             restart"
                .into(),
        ),
        (_, Some(below), _) if below.kind.starts_with("fuse") => {
            Sync::Unknown(format!("the program behind '{}' decides", below.kind))
        }
        (_, _, Some(us)) if us < TOO_FAST_US => {
            Sync::Unknown(format!("it takes {us} µs, faster than any disk"))
        }
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

    fn mounted(kind: &str, options: &[&str]) -> Mount {
        Mount {
            kind: kind.into(),
            options: options.iter().map(|o| o.to_string()).collect(),
            ..Mount::default()
        }
    }

    #[test]
    fn what_can_not_be_known_is_said_so() {
        let on = |kind: &str, medium, us, preload: &str| {
            let mount = mounted(kind, &[]);
            sync(Some(&mount), Some(&mount), medium, us, preload)
        };
        assert_eq!(on("ext4", Medium::Ssd, Some(800), ""), Sync::Yes);
        assert!(matches!(on("ext4", Medium::Ssd, Some(1), ""), Sync::Unknown(_)));
        let preload = "/usr/lib/libeatmydata.so";
        assert!(matches!(on("ext4", Medium::Ssd, Some(800), preload), Sync::No(_)));
        assert!(matches!(on("nfs4", Medium::Remote, None, ""), Sync::Unknown(_)));
        assert!(matches!(on("fuse.sshfs", Medium::Unknown, Some(900), ""), Sync::Unknown(_)));
        let nothing = storage(&Fake::new(&[]).root, Path::new("/var"));
        assert_eq!((nothing.medium, nothing.mount), (Medium::Unknown, None));
        assert_eq!(wear_percent("0x00 0x00"), None);
    }

    /// f2fs with `fsync_mode=nobarrier` was told to honour fsync.
    #[test]
    fn options_that_drop_fsync_are_known_as_the_kernel_shows_them() {
        let ssd = |mount: &Mount| sync(Some(mount), Some(mount), Medium::Ssd, Some(800), "");
        for (kind, option) in [
            ("f2fs", "fsync_mode=nobarrier"),
            ("f2fs", "checkpoint=disable:0"),
            ("ext4", "nobarrier"),
            ("overlay", "fsync=volatile"),
        ] {
            let expected = Sync::No(format!("it is mounted with '{option}'"));
            assert_eq!(ssd(&mounted(kind, &["rw", option])), expected);
        }
        assert_eq!(ssd(&mounted("f2fs", &["rw", "fsync_mode=posix"])), Sync::Yes);
    }

    /// With raspi-config's overlay root, all of it in memory, fsync was told to be honoured.
    #[test]
    fn an_overlay_is_judged_by_what_is_under_its_upper_layer() {
        let seen = |upper: &str, more: &str| {
            let fake = card("SD");
            fake.put("/media/root-rw/overlay/keep", "");
            let table = format!(
                "30 1 0:27 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,{upper}\n\
                 31 30 179:2 / /media/root-ro ro - ext4 /dev/mmcblk0p2 ro\n{more}"
            );
            std::fs::write(fake.root.path("/proc/self/mountinfo"), table).unwrap();
            storage(&fake.root, Path::new("/var/lib/offshoot"))
        };
        let upper = "upperdir=/media/root-rw/overlay,workdir=/media/root-rw/overlay-workdir/_";
        let memory = seen(upper, "32 30 0:26 / /media/root-rw rw - tmpfs tmpfs-root rw\n");
        assert_eq!(
            (memory.medium, memory.file_system.as_deref()),
            (Medium::Memory, Some("overlay"))
        );
        assert_eq!(
            memory.sync,
            Sync::No("it is kept in memory and lost when the power goes".into())
        );
        let card = "32 30 179:2 / /media/root-rw rw - ext4 /dev/mmcblk0p2 rw";
        let kept = seen(upper, card);
        assert_eq!((kept.medium, kept.sync), (Medium::SdCard, Sync::Yes));
        let without_barrier = seen(upper, &format!("{card},barrier=0\n"));
        assert_eq!(without_barrier.sync, Sync::No("it is mounted with 'barrier=0'".into()));
        // raspi-config before Debian 12 mounts in the initramfs, containers on their host: the path is
        // none of this system's.
        for upper in ["upperdir=/upper/data", "upperdir=upper", "upperdir=/media", "ro"] {
            let hidden = seen(upper, "");
            assert_eq!(hidden.medium, Medium::Unknown, "{upper}");
            let Sync::Unknown(why) = hidden.sync else { panic!("{:?}", hidden.sync) };
            assert!(why.contains("may be gone after a restart"), "{why}");
        }
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
