//! A daemon on a tiny base, and a client that writes bytes as they are.

use crate::place::{Place, learnable};
use serde_json::Value;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest anything is waited for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Built once: `mlp.base` and two adapters with different labels.
struct Prepared {
    folder: PathBuf,
    _place: Place,
}

fn prepared() -> &'static Prepared {
    static PREPARED: OnceLock<Prepared> = OnceLock::new();
    PREPARED.get_or_init(|| {
        let place = Place::new();
        learnable(&place);
        for seed in [1, 2] {
            place.ok(&format!(
                "train mlp.base --data two.npz --out {seed}.adapter --steps 20 --batch 8 --seed {seed}"
            ));
        }
        Prepared { folder: place.path("."), _place: place }
    })
}

/// A running daemon with its state in a folder of its own.
pub struct Daemon {
    pub place: Place,
    pub child: Child,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&self.body)))
    }

    /// The error's type, checking its shape.
    pub fn error(&self) -> String {
        let error = &self.json()["error"];
        assert_eq!(error["code"], self.status, "{error}");
        let message = error["message"].as_str().unwrap();
        assert!(!message.is_empty() && !message.contains('\n'), "{error}");
        error["type"].as_str().unwrap().to_string()
    }
}

impl Daemon {
    /// With these lines after `base` in the configuration.
    pub fn start(config: &str) -> Daemon {
        Daemon::start_in(Place::new(), config)
    }

    pub fn start_in(place: Place, config: &str) -> Daemon {
        Daemon::spawn(place, config, |_| {})
    }

    pub fn spawn(place: Place, config: &str, change: impl FnOnce(&mut Command)) -> Daemon {
        for file in ["mlp.base", "1.adapter", "2.adapter"] {
            if !place.path(file).exists() {
                std::fs::copy(prepared().folder.join(file), place.path(file)).unwrap();
            }
        }
        Daemon::configure(&place, config);
        let mut command = place.command(&["serve", "--config", "o.toml"]);
        let log =
            std::fs::File::options().create(true).append(true).open(place.path("log")).unwrap();
        command.stdout(Stdio::null()).stderr(log);
        change(&mut command);
        let child = command.spawn().unwrap();
        let mut daemon = Daemon { place, child };
        daemon.wait_ready();
        daemon
    }

    pub fn configure(place: &Place, config: &str) {
        let (serve, rest) = config.split_once("---").unwrap_or((config, ""));
        place.write(
            "o.toml",
            format!(
                "base = \"mlp.base\"\nstate = \"store\"\n[serve]\nsocket = \"s\"\n{serve}\n{rest}"
            ),
        );
    }

    fn wait_ready(&mut self) {
        let start = Instant::now();
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                panic!("the daemon ended with {status}: {}", self.log());
            }
            if UnixStream::connect(self.socket()).is_ok() && self.get("/health").status == 200 {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.place.path("s")
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&self.place.read("log")).into_owned()
    }

    pub fn connect(&self) -> UnixStream {
        let start = Instant::now();
        loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => {
                    stream.set_read_timeout(Some(PATIENCE)).unwrap();
                    stream.set_write_timeout(Some(PATIENCE)).unwrap();
                    return stream;
                }
                // The backlog is full for a moment.
                Err(_) if start.elapsed() < PATIENCE => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => panic!("{e}: {}", self.log()),
            }
        }
    }

    pub fn send(&self, method: &str, path: &str, mime: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        write_request(&mut stream, method, path, mime, body);
        let answer = read_answer(&mut stream)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}: {}", self.log()));
        crate::schema::hold(self, method, path, &answer);
        answer
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, "application/json", body.to_string().as_bytes())
    }

    /// A request that must succeed.
    pub fn ok(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let bytes = body.map(|b| b.to_string().into_bytes()).unwrap_or_default();
        let answer = self.send(method, path, "application/json", &bytes);
        assert!((200..300).contains(&answer.status), "{method} {path}: {answer:?}");
        answer.json()
    }

    /// Adds the two adapters as generations 1 and 2 of `home`.
    pub fn add_home(&self) {
        for seed in [1, 2] {
            let bytes = self.place.read(&format!("{seed}.adapter"));
            let mime = "application/octet-stream";
            let answer = self.send("POST", "/v1/adapters/home", mime, &bytes);
            assert_eq!(answer.status, 201, "{answer:?}");
            assert_eq!(answer.json()["generation"], seed);
        }
    }

    pub fn activate(&self, generation: u64) -> Value {
        let body = serde_json::json!({"generation": generation});
        self.ok("POST", "/v1/adapters/home/activate", Some(&body))
    }

    pub fn signal(&self, name: &str) {
        let status =
            Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end; gives the exit code.
    pub fn wait(&mut self) -> i32 {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap_or(-1);
            }
            assert!(start.elapsed() < PATIENCE, "it does not stop: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn write_request(stream: &mut impl Write, method: &str, path: &str, mime: &str, body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
    if !body.is_empty() || method == "POST" {
        head.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    if !mime.is_empty() {
        head.push_str(&format!("Content-Type: {mime}\r\n"));
    }
    head.push_str("\r\n");
    // A refusal may come, and the connection close, before all is written.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

/// Reads one answer with a stated length, or until the end.
pub fn read_answer(stream: &mut impl Read) -> std::io::Result<Answer> {
    let mut bytes = vec![];
    let mut chunk = [0u8; 16384];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        match stream.read(&mut chunk)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => bytes.extend_from_slice(&chunk[..n]),
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut body = bytes.split_off(end + 4);
    let length = head.lines().find_map(|l| {
        let (key, value) = l.split_once(':')?;
        key.eq_ignore_ascii_case("content-length").then(|| value.trim().parse::<usize>().ok())?
    });
    while length.is_none_or(|n| body.len() < n) {
        match stream.read(&mut chunk)? {
            0 => break,
            n => body.extend_from_slice(&chunk[..n]),
        }
    }
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok(Answer { status, head, body })
}

/// A question for the tiny base.
pub fn question(sign: f32) -> Value {
    let data: Vec<f32> = (0..12).map(|i| if i % 2 == 0 { sign } else { -sign }).collect();
    serde_json::json!({"inputs": {"x": {"shape": [1, 12], "data": data}}})
}

/// `body` with one more field.
pub fn and(body: Value, key: &str, value: impl Into<Value>) -> Value {
    let mut body = body;
    body[key] = value.into();
    body
}
