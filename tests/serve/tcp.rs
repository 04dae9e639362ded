//! The loopback port: token and host.

use crate::place::Place;
use crate::support::{Answer, Daemon, read_answer};
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef-secret";

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(port: u16, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\n{headers}\r\n").unwrap();
    read_answer(&mut stream).unwrap()
}

/// A daemon with a port, whose token is [`TOKEN`].
fn with_port(rest: &str) -> (Daemon, u16) {
    let place = Place::new();
    place.write("token", format!("{TOKEN}\n"));
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.path("token"), private).unwrap();
    let port = free_port();
    let config = format!("tcp = \"127.0.0.1:{port}\"\ntoken_file = \"token\"\n{rest}");
    (Daemon::start_in(place, &config), port)
}

/// Nothing was logged, and guesses cost no time.
#[test]
fn guesses_at_the_token_are_slow_and_logged() {
    let (daemon, port) = with_port("");
    let start = Instant::now();
    let host = format!("Host: localhost:{port}\r\n");
    let wrong = ask(port, &format!("{host}Authorization: Bearer {TOKEN}x\r\n"));
    assert_eq!(wrong.status, 401);
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
    assert!(daemon.log().contains("wrong token"), "{}", daemon.log());
    let right = ask(port, &format!("{host}Authorization: Bearer {TOKEN}\r\n"));
    assert_eq!(right.status, 200);
}

/// Connections of the port pushed out slow clients of the socket.
#[test]
fn a_flood_on_the_port_takes_no_place_of_the_sockets_clients() {
    let (daemon, port) = with_port("---[limits]\nconnections = 8\nheader_seconds = 60.0\n");
    let mut slow = daemon.connect();
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    let flood: Vec<TcpStream> = (0..64)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.write_all(b"GET /health HTTP/1.1\r\n").unwrap();
            stream
        })
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(daemon.get("/health").status, 200);
    slow.write_all(b"\r\n").unwrap();
    assert_eq!(read_answer(&mut slow).unwrap().status, 200);
    drop(flood);
}

#[test]
fn the_port_wants_its_token_and_its_name() {
    let (daemon, port) = with_port("");
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    let host = format!("Host: localhost:{port}\r\n");
    assert_eq!(ask(port, &format!("{host}{bearer}")).status, 200);
    assert_eq!(ask(port, &format!("Host: [::1]:{port}\r\n{bearer}")).status, 200);
    for (headers, status) in [
        (host.clone(), 401),
        (format!("{host}Authorization: Bearer {TOKEN}x\r\n"), 401),
        (format!("{host}Authorization: Bearer\r\n"), 401),
        (format!("{host}Authorization: Basic {TOKEN}\r\n"), 401),
        (format!("Host: evil.example:{port}\r\n{bearer}"), 403),
        (bearer.clone(), 403),
    ] {
        let answer = ask(port, &headers);
        assert_eq!(answer.status, status, "{headers}: {answer:?}");
        answer.error();
        if status == 401 {
            assert!(answer.head.contains("www-authenticate: Bearer"), "{}", answer.head);
        }
    }
    // The socket needs neither; the command line knows both.
    assert_eq!(daemon.get("/health").status, 200);
    let line = ["status", "--host", &format!("http://127.0.0.1:{port}")];
    let mut command = daemon.place.command(&line);
    command.env("OFFSHOOT_TOKEN_FILE", daemon.place.path("token"));
    assert_eq!(crate::place::done(command).code, 0);
    crate::place::done(daemon.place.command(&line)).failed(2, "without a token");
}
