use super::*;
use std::os::unix::fs::PermissionsExt;

const SHIPPED: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/cross/package/offshoot.toml"));

#[test]
fn the_shipped_file_states_the_defaults() {
    let shipped = Config::parse(SHIPPED).unwrap();
    let bare = Config::parse("base = \"/var/lib/offshoot/model.base\"").unwrap();
    assert_eq!(shipped, bare);
    // What is commented out there is valid too.
    let all: String = SHIPPED
        .lines()
        .map(|l| match l.strip_prefix("# ") {
            Some(rest) if rest.contains(" = ") && !rest.contains("  ") => format!("{rest}\n"),
            _ => format!("{l}\n"),
        })
        .collect();
    let all = Config::parse(&all).unwrap();
    assert_eq!(all.serve.tcp.unwrap().port(), 8733);
    assert!(all.samples.key_file.is_some() && all.serve.adapter.is_some());
}

#[test]
fn wrong_values_are_named() {
    let base = "base = \"m.base\"\n";
    for (text, part) in [
        ("", "base"),
        ("base = \"\"", "base"),
        ("base = 3", "string"),
        ("base = \"m.base\"\ncolour = 1", "colour"),
        ("base = \"m.base\"\n[limits]\nqueue = 0", "limits.queue"),
        ("base = \"m.base\"\n[limits]\nqueue = -1", "line 3"),
        ("base = \"m.base\"\n[limits]\nheader_seconds = nan", "limits.header_seconds"),
        ("base = \"m.base\"\n[limits]\nbody_bytes = 1", "limits.body_bytes"),
        ("base = \"m.base\"\n[serve]\nadapter = \"../x\"", "serve.adapter"),
        ("base = \"m.base\"\n[serve]\ntcp = \"0.0.0.0:80\"\ntoken_file = \"t\"", "loopback"),
        ("base = \"m.base\"\n[peers]\nothers = \"owner\"", "owner"),
        ("base = \"m.base\"\n[mqtt]\nrole = \"owner\"", "owner"),
        (
            "base = \"m.base\"\n[wyoming]\nlisten = \"0.0.0.0:10400\"",
            "wyoming.listen: expected a loopback",
        ),
        ("base = \"m.base\"\n[wyoming]\nlanguages = []", "wyoming.languages"),
        ("base = \"m.base\"\n[wyoming]\nadapter = \"../x\"", "wyoming.adapter"),
        ("base = \"m.base\"\n[wyoming]\nprobability = nan", "wyoming.probability"),
        ("base = \"m.base\"\n[wyoming]\nreject = 1.0", "wyoming.reject"),
        ("base = \"m.base\"\n[serve]\ntcp = \"example.org\"", "line 3"),
        ("base = \"m.base\"\n[log]\nlevel = \"loud\"", "loud"),
        ("base = \"m.base\"\n[samples]\nmax_generations = 1", "max_generations"),
        ("base = [", "line 1"),
    ] {
        let e = Config::parse(text).unwrap_err();
        assert!(e.message().contains(part), "{text}: {e}");
        assert_eq!(e.kind(), ErrorKind::BadInput, "{text}");
    }
    Config::parse(base).unwrap();
}

#[test]
fn relative_paths_start_at_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("o.toml");
    std::fs::write(&path, "base = \"m.base\"\n[serve]\nsocket = \"/run/s\"").unwrap();
    let config = Config::read(&path).unwrap();
    assert_eq!(config.base, dir.path().join("m.base"));
    assert_eq!(config.serve.socket, Path::new("/run/s"));
}

#[test]
fn tokens_are_one_visible_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "0123456789abcdef\n").unwrap();
    let set = |mode| std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
    for (mode, good) in
        [(0o600, true), (0o640, true), (0o644, false), (0o666, false), (0o660, false)]
    {
        set(mode);
        let read = read_token(&path);
        assert_eq!(read.is_ok(), good, "{mode:o}");
        assert!(read.is_ok_and(|token| token == "0123456789abcdef") == good);
    }
    let error = read_token(&path).unwrap_err();
    assert!(error.message().contains("has mode 0660: others can use it"), "{error}");
    set(0o600);
    for bad in ["", "short", "0123456789 abcdef", "0123456789abcdef\n0123", &"x".repeat(257)] {
        std::fs::write(&path, bad).unwrap();
        assert!(read_token(&path).is_err(), "{bad:?}");
    }
}

#[test]
fn what_takes_a_restart_stays_and_is_named() {
    let running = Config::parse("base = \"m.base\"").unwrap();
    let mut new = running.clone();
    new.limits.queue = 3;
    new.serve.adapter = Some("home".into());
    let wanted = new.clone();
    assert!(new.keep_fixed(&running).is_empty());
    assert_eq!(new, wanted);
    new.serve.workers = 3;
    new.serve.threads = 2;
    new.base = "other".into();
    assert_eq!(new.keep_fixed(&running), ["base", "serve.workers", "serve.threads"]);
    assert_eq!(new, wanted);
}
