//! The loopback port: token and host.

use crate::place::Place;
use crate::support::{Answer, Daemon, read_answer};
use std::io::Write;
use std::net::TcpStream;

const TOKEN: &str = "0123456789abcdef-secret";

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(port: u16, headers: &str) -> Answer {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    write!(stream, "GET /health HTTP/1.1\r\n{headers}\r\n").unwrap();
    read_answer(&mut stream).unwrap()
}

#[test]
fn the_port_wants_its_token_and_its_name() {
    let place = Place::new();
    place.write("token", format!("{TOKEN}\n"));
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.path("token"), private).unwrap();
    let port = free_port();
    let config = format!("tcp = \"127.0.0.1:{port}\"\ntoken_file = \"token\"\n");
    let daemon = Daemon::start_in(place, &config);
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
