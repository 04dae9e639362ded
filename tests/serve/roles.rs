//! Who may do what: each role at each route, tokens and their end, users of the socket.

use crate::place::{Place, done};
use crate::support::{Answer, Daemon, and, question, read_answer};
use serde_json::{Value, json};
use std::io::Write;
use std::net::TcpStream;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;

const ROLES: [&str; 3] = ["answer", "teach", "administer"];

/// A daemon with a port and no token yet.
fn start(more: &str) -> (Daemon, u16) {
    start_in(Place::new(), more)
}

fn start_in(place: Place, more: &str) -> (Daemon, u16) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = format!("tcp = \"127.0.0.1:{port}\"\nadapter = \"home\"\n{more}");
    (Daemon::start_in(place, &config), port)
}

fn add(daemon: &Daemon, name: &str, role: &str) -> String {
    let said = daemon.place.run(&format!("token add {name} --role {role} --host s"));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.stderr.contains("not shown again"), "{said:?}");
    said.stdout.trim().to_string()
}

fn send(port: u16, method: &str, path: &str, headers: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: localhost:{port}\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    read_answer(&mut stream).unwrap()
}

fn bearer(token: &str) -> String {
    format!("Authorization: Bearer {token}\r\nContent-Type: application/json\r\n")
}

/// The cookie of a login, as a header.
fn login(port: u16, token: &str) -> String {
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let answer = send(port, "POST", "/login", form, &format!("token={token}"));
    assert_eq!(answer.status, 303, "{answer:?}");
    let set = answer.head.lines().find_map(|l| l.strip_prefix("set-cookie: ")).unwrap();
    format!("Cookie: {}\r\n{form}", set.split(';').next().unwrap())
}

fn rank(role: &str) -> usize {
    ROLES.iter().position(|r| *r == role).unwrap()
}

#[test]
fn each_role_may_do_what_the_document_says_and_no_more() {
    let (daemon, port) = start("---[train]\nenabled = false\n");
    let tokens = ROLES.map(|role| add(&daemon, role, role));
    let document = daemon.ok("GET", "/openapi.json", None);
    let mut seen = 0;
    for (path, operations) in document["paths"].as_object().unwrap() {
        let real = path
            .replace("{name}", "nobody")
            .replace("{generation}", "7")
            .replace("{id}", "77")
            .replace("{job}", "77");
        for (method, operation) in operations.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            let method = method.to_uppercase();
            let need = operation["x-role"].as_str().unwrap();
            assert_eq!(send(port, &method, &real, "", "").status, 401, "{method} {path}");
            for (role, token) in ROLES.iter().zip(&tokens) {
                let answer = send(port, &method, &real, &bearer(token), "");
                seen += 1;
                if rank(role) < rank(need) {
                    assert_eq!(answer.status, 403, "{role}: {method} {path}");
                    let message = answer.json()["error"]["message"].to_string();
                    assert!(message.contains(&format!("needs the role '{need}'")), "{message}");
                    assert!(message.contains(&format!("has '{role}'")), "{message}");
                } else if path.starts_with("/v1/tokens") {
                    assert_eq!(answer.status, 403, "on the socket alone");
                    assert!(answer.json()["error"]["message"].to_string().contains("socket"));
                } else {
                    assert!(
                        ![401, 403].contains(&answer.status),
                        "{role}: {method} {path}: {answer:?}"
                    );
                    let status = answer.status.to_string();
                    assert!(
                        operation["responses"][&status].is_object(),
                        "{method} {path}: {status}"
                    );
                }
            }
        }
    }
    assert!(seen >= 28 * 3, "{seen}");
    // What is not there, and other methods, tell nobody more.
    assert_eq!(send(port, "GET", "/nowhere", "", "").status, 401);
    assert_eq!(send(port, "GET", "/nowhere", &bearer(&tokens[0]), "").status, 404);
    assert_eq!(send(port, "DELETE", "/v1/forget", &bearer(&tokens[0]), "").status, 405);
    let close = format!("{}Connection: close\r\n", bearer(&tokens[0]));
    assert_eq!(send(port, "HEAD", "/v1/samples", &close, "").status, 403);
    // Users of the socket may do all unless the configuration says otherwise.
    assert_eq!(daemon.get("/v1/samples").status, 200);
}

#[test]
fn the_page_shows_what_the_role_may_do() {
    let (daemon, port) = start("---[recent]\ntext = true\n[train]\nenabled = false\n");
    daemon.add_home();
    daemon.activate(1);
    daemon.ok("POST", "/v1/feedback", Some(&and(question(1.0), "label", "plus")));
    let parts = [
        ("href=\"/page/rollback", "administer"),
        ("action=\"/page/train", "administer"),
        ("/page/forget", "administer"),
        ("The newest samples", "administer"),
        ("id=\"check\"", "teach"),
        ("What it learned", "answer"),
        ("What it was taught", "answer"),
    ];
    let routes = [
        ("GET", "/", "answer"),
        ("GET", "/page/input/77", "teach"),
        ("POST", "/page/answer", "teach"),
        ("GET", "/page/sample/77", "administer"),
        ("POST", "/page/train", "administer"),
        ("GET", "/page/rollback?adapter=home", "administer"),
        ("POST", "/page/rollback", "administer"),
        ("GET", "/page/forget?adapter=home", "administer"),
        ("POST", "/page/forget", "administer"),
    ];
    for role in ROLES {
        let cookie = login(port, &add(&daemon, role, role));
        let page = send(port, "GET", "/", &cookie, "");
        let text = String::from_utf8(page.body).unwrap();
        assert!(
            text.contains(&format!("token '{role}' ({role})"))
                || text.contains(&format!("({role})")),
            "{text}"
        );
        for (part, need) in parts {
            assert_eq!(text.contains(part), rank(role) >= rank(need), "{role}: {part}: {text}");
        }
        let form = text.split("name=\"form\" value=\"").nth(1).unwrap().split('"').next().unwrap();
        for (method, path, need) in routes {
            let answer = send(port, method, path, &cookie, "");
            let body = String::from_utf8_lossy(&answer.body).into_owned();
            match rank(role) >= rank(need) {
                true => assert_ne!(answer.status, 403, "{role}: {method} {path}: {body}"),
                false => {
                    assert_eq!(answer.status, 403, "{role}: {method} {path}");
                    assert!(body.contains("needs the role") && body.contains(need), "{body}");
                    // Nor with the form of a page of its own.
                    let sent = format!("form={form}&adapter=home&id=1&verdict=skip&generation=1");
                    assert_eq!(send(port, method, path, &cookie, &sent).status, 403, "{path}");
                }
            }
        }
        assert_eq!(
            send(port, "GET", "/v1/status", &cookie, "").status,
            401,
            "the API takes no cookie"
        );
    }
    let names = daemon.ok("GET", "/v1/adapters", None);
    assert_eq!(names["adapters"][0]["active"], 1, "nobody went back");
}

#[test]
fn tokens_are_shown_once_kept_as_hashes_and_end_when_revoked() {
    let (mut daemon, port) = start("");
    assert!(daemon.log().contains("lets nobody in"), "{}", daemon.log());
    assert_eq!(daemon.place.ok("token list --host s").trim(), "no tokens");
    let kitchen = add(&daemon, "kitchen", "teach");
    let boss = add(&daemon, "boss", "administer");
    assert!(kitchen.starts_with("offshoot_") && kitchen.lines().count() == 1, "{kitchen}");
    let file = daemon.place.path("store/tokens.json");
    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&file).unwrap().contains(&kitchen[9..]));
    let listed = daemon.place.json("token list --host s");
    assert_eq!(listed["tokens"][0]["name"], "kitchen");
    assert_eq!(listed["tokens"][1]["role"], "administer");
    assert!(listed["tokens"][0].get("hash").is_none());
    daemon.place.fails("token add kitchen --role answer --host s", 5);
    daemon.place.fails("token add Kitchen --role answer --host s", 2);
    daemon.place.fails("token add x --role owner --host s", 2);

    // Into a file, as the command line takes it.
    daemon.place.ok("token add hall --role answer --out hall.token --host s");
    assert_eq!(std::fs::metadata(daemon.place.path("hall.token")).unwrap().mode() & 0o777, 0o600);
    let by_port = |words: &[&str]| {
        let host = format!("http://127.0.0.1:{port}");
        let mut command = daemon.place.command(&[words, &["--host", &host]].concat());
        command.env("OFFSHOOT_TOKEN_FILE", daemon.place.path("hall.token"));
        done(command)
    };
    assert_eq!(by_port(&["status"]).code, 0);
    for words in [["train-now", "home"], ["token", "list"]] {
        let refused = by_port(&words);
        refused.failed(5, "more than the role");
        assert!(refused.stderr.contains("needs the role 'administer'"), "{}", refused.stderr);
    }

    // What they teach is theirs, whatever they say; who administers says another.
    let said = and(and(question(1.0), "label", "plus"), "source", "somebody else");
    let taught = send(port, "POST", "/v1/feedback", &bearer(&kitchen), &said.to_string());
    assert_eq!(taught.status, 201, "{taught:?}");
    let said = and(and(question(-1.0), "label", "minus"), "source", "hall");
    assert_eq!(send(port, "POST", "/v1/feedback", &bearer(&boss), &said.to_string()).status, 201);
    let samples = daemon.ok("GET", "/v1/samples", None);
    let sources: Vec<&Value> =
        samples["samples"].as_array().unwrap().iter().map(|s| &s["source"]).collect();
    assert_eq!(sources, ["token:kitchen", "hall"]);

    // Who did what.
    let gone = json!({"name": "home", "source": "token:kitchen"}).to_string();
    let dry = send(port, "POST", "/v1/forget?dry_run=true", &bearer(&boss), &gone);
    assert_eq!(dry.json()["samples"], 1);
    assert_eq!(send(port, "POST", "/v1/forget", &bearer(&boss), &gone).status, 200);
    let events = daemon.ok("GET", "/v1/events?limit=1000", None);
    let acts: Vec<&str> = events["events"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["kind"] == "act")
        .map(|e| e["text"].as_str().unwrap())
        .collect();
    let boss_did: Vec<_> = acts.iter().filter(|a| a.starts_with("token 'boss'")).collect();
    assert_eq!(boss_did, [&"token 'boss': POST /v1/forget: 1 samples"]);
    assert!(acts.iter().any(|a| a.ends_with("POST /v1/tokens: 'kitchen', teach")), "{acts:?}");
    assert!(daemon.log().contains("token 'kitchen': POST /v1/feedback"), "{}", daemon.log());

    // At once, for what is open too, and after a restart.
    let cookie = login(port, &kitchen);
    assert_eq!(send(port, "GET", "/", &cookie, "").status, 200);
    let mut open = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let ask = format!("GET /health HTTP/1.1\r\nHost: localhost\r\n{}\r\n", bearer(&kitchen));
    open.write_all(ask.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut open).unwrap().status, 200);
    daemon.place.ok("token revoke kitchen --host s");
    daemon.place.fails("token revoke kitchen --host s", 2);
    open.write_all(ask.as_bytes()).unwrap();
    assert_eq!(read_answer(&mut open).unwrap().status, 401);
    assert_eq!(send(port, "GET", "/", &cookie, "").status, 303);
    // One of the same name is another.
    let again = add(&daemon, "kitchen", "answer");
    assert_eq!(send(port, "GET", "/", &cookie, "").status, 303);
    assert_eq!(send(port, "GET", "/health", &bearer(&kitchen), "").status, 401);
    daemon.signal("-TERM");
    daemon.wait();
    let place = std::mem::replace(&mut daemon.place, Place::new());
    let (daemon, port) = start_in(place, "");
    assert_eq!(send(port, "GET", "/health", &bearer(&again), "").status, 200);
    assert_eq!(send(port, "GET", "/health", &bearer(&kitchen), "").status, 401);
    let log = daemon.log();
    for token in [&kitchen, &boss, &again] {
        assert!(!log.contains(&token[9..]), "a token is in the log");
    }
    // A list that can't be read lets nobody in, is said, and the base answers on.
    std::fs::set_permissions(file_of(&daemon), PermissionsExt::from_mode(0o644)).unwrap();
    daemon.signal("-HUP");
    let start = std::time::Instant::now();
    while send(port, "GET", "/health", &bearer(&again), "").status != 401 {
        assert!(start.elapsed() < crate::support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(daemon.ok("GET", "/health", None)["status"], "degraded");
    assert!(daemon.log().contains("mode 0644"), "{}", daemon.log());
}

fn file_of(daemon: &Daemon) -> std::path::PathBuf {
    daemon.place.path("store/tokens.json")
}

/// The token of a file went on to do everything, beside those with a name.
#[test]
fn the_token_of_a_file_is_an_administrator_still() {
    let place = Place::new();
    place.write("token", "0123456789abcdef-secret\n");
    let private = PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.path("token"), private).unwrap();
    let (daemon, port) = start_in(place, "token_file = \"token\"\n");
    let old = bearer("0123456789abcdef-secret");
    let new = bearer(&add(&daemon, "hall", "answer"));
    assert_eq!(send(port, "GET", "/v1/samples", &old, "").status, 200);
    assert_eq!(send(port, "GET", "/v1/samples", &new, "").status, 403);
    let all = json!({"all": true}).to_string();
    assert_eq!(send(port, "POST", "/v1/forget", &old, &all).status, 200);
    assert_eq!(send(port, "POST", "/v1/forget", &new, &all).status, 403);
    let said = and(question(1.0), "label", "plus").to_string();
    assert_eq!(send(port, "POST", "/v1/feedback", &old, &said).status, 201);
    let samples = daemon.ok("GET", "/v1/samples", None);
    assert_eq!(samples["samples"][0]["source"], "api");
}

/// Another user of the machine, known by the kernel. Only root can be another.
#[test]
fn users_of_the_socket_have_the_roles_of_the_configuration() {
    let place = Place::new();
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        eprintln!("skipped: only root can be another user");
        return;
    }
    let peers = "---[peers]\nothers = \"answer\"\nusers = { 54321 = \"teach\" }\ngroups = { 54400 = \"administer\" }\n";
    let daemon = Daemon::start_in(place, &format!("adapter = \"home\"\n{peers}"));
    for path in [".", "s"] {
        let all = PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(daemon.place.path(path), all).unwrap();
    }
    let code = |user: u32, group: u32, method: &str, path: &str, body: &str| -> u16 {
        let script = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect('s'); \
                      s.sendall(sys.argv[1].encode()); print(s.recv(65536).decode().split()[1])";
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut command = std::process::Command::new("python3");
        command.args(["-c", script, &request]).current_dir(daemon.place.path("."));
        let out = command.uid(user).gid(group).output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().parse().unwrap()
    };
    let feedback = and(and(question(1.0), "label", "plus"), "source", "me").to_string();
    for (user, group, may) in [(54320, 54320, 0), (54321, 54400, 1), (54322, 54400, 2)] {
        assert_eq!(code(user, group, "GET", "/health", ""), 200);
        let taught = code(user, group, "POST", "/v1/feedback", &feedback);
        assert_eq!(taught == 403, may < 1, "{user}: {taught}");
        let read = code(user, group, "GET", "/v1/samples", "");
        assert_eq!(read, if may < 2 { 403 } else { 200 }, "{user}");
        let token = json!({"name": format!("t{user}"), "role": "administer"}).to_string();
        let made = code(user, group, "POST", "/v1/tokens", &token);
        assert_eq!(made, if may < 2 { 403 } else { 201 }, "{user}");
    }
    let samples = daemon.ok("GET", "/v1/samples", None);
    assert_eq!(samples["samples"][0]["source"], "user:54321", "whatever it said");
    // A reload takes changes over, for connections that are open too.
    let mut open = daemon.connect();
    Daemon::configure(&daemon.place, "adapter = \"home\"\n---[peers]\nothers = \"administer\"\n");
    daemon.signal("-HUP");
    let start = std::time::Instant::now();
    while code(54320, 54320, "GET", "/v1/samples", "") != 200 {
        assert!(start.elapsed() < crate::support::PATIENCE);
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    open.write_all(b"GET /v1/samples HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(read_answer(&mut open).unwrap().status, 200, "root may always");
}
