//! The page: who may see it, who may press its buttons, and what they do.

use crate::place::Place;
use crate::support::{Answer, Daemon, PATIENCE, read_answer};
use crate::tasks::{base, rows, train};
use serde_json::json;
use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

const TOKEN: &str = "0123456789abcdef-secret";

/// A browser that has logged in.
struct Browser {
    port: u16,
    cookie: String,
}

fn start(place: Place, more: &str) -> (Daemon, Browser) {
    place.write("token", format!("{TOKEN}\n"));
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(place.path("token"), private).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let config = format!(
        "tcp = \"127.0.0.1:{port}\"\ntoken_file = \"token\"\nadapter = \"home\"\n---\n[recent]\n\
         text = true\n{more}"
    );
    let daemon = Daemon::start_in(place, &config);
    let mut browser = Browser { port, cookie: String::new() };
    let answer = browser.post("/login", &format!("token={TOKEN}"), "");
    assert_eq!(answer.status, 303, "{answer:?}");
    let set = header(&answer, "set-cookie").unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(set.contains(part), "{set}");
    }
    browser.cookie = set.split(';').next().unwrap().to_string();
    (daemon, browser)
}

fn header(answer: &Answer, name: &str) -> Option<String> {
    let find = |line: &str| {
        let (key, value) = line.split_once(": ")?;
        key.eq_ignore_ascii_case(name).then(|| value.to_string())
    };
    answer.head.lines().find_map(find)
}

impl Browser {
    fn send(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let host = match headers.to_lowercase().contains("host: ") {
            true => String::new(),
            false => format!("Host: localhost:{}\r\n", self.port),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        read_answer(&mut stream).unwrap()
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &format!("Cookie: {}\r\n", self.cookie), "")
    }

    fn post(&self, path: &str, body: &str, more: &str) -> Answer {
        let headers = format!(
            "Cookie: {}\r\nContent-Type: application/x-www-form-urlencoded\r\n{more}",
            self.cookie
        );
        self.send("POST", path, &headers, body)
    }

    fn page(&self, path: &str) -> String {
        let answer = self.get(path);
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
        String::from_utf8(answer.body).unwrap()
    }

    /// What every form of the page carries.
    fn form(&self) -> String {
        let page = self.page("/");
        format!("form={}&adapter=home", between(&page, "name=\"form\" value=\"", "\""))
    }

    /// Says what is right of an answer.
    fn judges(&self, fields: &str) {
        let answer = self.post("/page/answer", &format!("{}&{fields}", self.form()), "");
        assert_eq!(answer.status, 303, "{fields}: {answer:?}");
        let there = header(&answer, "location").unwrap();
        assert!(there.starts_with("/?adapter=home") && there.ends_with("#check"), "{there}");
    }

    fn does(&self, path: &str, fields: &str) {
        let answer = self.post(path, &format!("{}&{fields}", self.form()), "");
        assert_eq!(answer.status, 303, "{path} {fields}: {answer:?}");
        assert_eq!(header(&answer, "location").unwrap(), "/?adapter=home");
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let from = text.find(before).unwrap_or_else(|| panic!("no {before} in {text}")) + before.len();
    let rest = &text[from..];
    &rest[..rest.find(after).unwrap()]
}

#[test]
fn only_who_has_the_token_sees_it_and_it_is_in_nobodys_frame() {
    let (daemon, browser) = start(Place::new(), "");
    let anyone = Browser { cookie: String::new(), ..browser };
    for path in ["/", "/page/input/1", "/page/sample/1", "/page/forget?adapter=home"] {
        let answer = anyone.get(path);
        assert_eq!((answer.status, header(&answer, "location").unwrap()), (303, "/login".into()));
        assert!(answer.body.is_empty(), "{path}");
    }
    let started = Instant::now();
    let wrong = anyone.post("/login", "token=0123456789abcdef-secreT", "");
    assert_eq!(wrong.status, 401);
    assert!(header(&wrong, "set-cookie").is_none() && started.elapsed().as_millis() > 900);
    // A changed cookie, one that has run out, one of another daemon.
    let (name, value) = browser.cookie.split_once('=').unwrap();
    let (expires, rest) = value.split_once('.').unwrap();
    let later = expires.parse::<u64>().unwrap() + 1;
    for forged in [format!("{later}.{rest}"), format!("1.{rest}"), "a.b.c".into(), String::new()] {
        let other = Browser { cookie: format!("{name}={forged}"), ..anyone };
        assert_eq!(other.get("/").status, 303, "{forged}");
    }
    // The login is the page's: the API takes the token alone, so that no page can ride on it.
    assert_eq!(browser.get("/v1/status").status, 401);
    assert_eq!(browser.get("/metrics").status, 401);

    for path in ["/", "/login", "/page/style.css", "/page/keys.js", "/page/forget?adapter=none"] {
        let answer = browser.get(path);
        let policy = header(&answer, "content-security-policy").unwrap();
        for part in [
            "default-src 'none'",
            "frame-ancestors 'none'",
            "form-action 'self'",
            "base-uri 'none'",
        ] {
            assert!(policy.contains(part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
        for (name, value) in [
            ("x-frame-options", "DENY"),
            ("x-content-type-options", "nosniff"),
            ("cross-origin-resource-policy", "same-origin"),
            ("cache-control", "no-store"),
        ] {
            assert_eq!(header(&answer, name).as_deref(), Some(value), "{path}");
        }
        let text = String::from_utf8_lossy(&answer.body);
        assert!(!text.contains("https:") && !text.contains("src=\"//"), "{path}: {text}");
        assert!(!text.contains("style=") && !text.contains("onclick"), "{path}: {text}");
    }
    // The socket's users need no login.
    assert_eq!(daemon.get("/").status, 200);
    assert_eq!(anyone.post("/logout", "", "").status, 303);
}

#[test]
fn another_page_can_neither_read_nor_post() {
    let (daemon, browser) = start(Place::new(), "");
    daemon.add_home();
    daemon.activate(1);
    let (port, form) = (browser.port, browser.form());
    // DNS rebinding: the attacker's name leads to this port.
    for (path, method) in
        [("/", "GET"), ("/login", "GET"), ("/page/style.css", "GET"), ("/login", "POST")]
    {
        let headers = format!("Host: evil.example:{port}\r\nCookie: {}\r\n", browser.cookie);
        assert_eq!(browser.send(method, path, &headers, "").status, 403, "{path}");
    }
    let back = format!("{form}&generation=1");
    let own = format!("Origin: http://localhost:{port}\r\nSec-Fetch-Site: same-origin\r\n");
    for more in [
        "Origin: https://evil.example\r\n".to_string(),
        "Origin: null\r\n".into(),
        // Another port of the same machine is the same site to a browser: the cookie is sent.
        format!("Origin: http://localhost:{}\r\n", port ^ 1),
        "Sec-Fetch-Site: cross-site\r\n".into(),
        "Sec-Fetch-Site: same-site\r\n".into(),
    ] {
        assert_eq!(browser.post("/page/rollback", &back, &more).status, 403, "{more}");
        let login = format!("token={TOKEN}");
        assert_eq!(browser.post("/login", &login, &more).status, 403, "{more}");
    }
    let field = between(&form, "form=", "&");
    for forged in [String::new(), "0".repeat(64), field[1..].to_string()] {
        let body = format!("form={forged}&adapter=home&generation=1");
        for path in ["/page/rollback", "/page/train", "/page/forget"] {
            assert_eq!(browser.post(path, &body, &own).status, 403, "{path} {forged}");
        }
    }
    let without = browser.post("/page/rollback", "adapter=home&generation=1", &own);
    assert_eq!(without.status, 400);
    // A form of another type, as scripts may send one without asking.
    let plain = format!("Cookie: {}\r\nContent-Type: text/plain\r\n", browser.cookie);
    assert_eq!(browser.send("POST", "/page/rollback", &plain, &back).status, 400);
    assert_eq!(daemon.ok("GET", "/v1/adapters", None)["adapters"][0]["active"], 1);
    // The page's own.
    assert_eq!(browser.post("/page/rollback", &back, &own).status, 303);
    assert_eq!(daemon.ok("GET", "/v1/adapters", None)["adapters"][0]["active"], json!(null));
    // Asked a moment ago, of a generation that serves no more.
    assert_eq!(browser.post("/page/rollback", &back, &own).status, 409);
}

/// Label, correct, forget, go back: as a person does it, without scripts.
#[test]
fn answers_are_confirmed_and_corrected_and_samples_forgotten() {
    let place = base();
    let data = rows(&[
        json!({"text": "lamp on", "label": "light"}),
        json!({"text": "door open", "label": "door"}),
        json!({"text": "radio on", "label": "sound"}),
    ]);
    place.write("data.jsonl", data);
    train(&place, "data.jsonl", "--epochs 20");
    let (daemon, browser) = start(place, "");
    let bytes = daemon.place.read("a.adapter");
    daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    assert!(browser.page("/").contains("No generation answers"));
    daemon.activate(1);

    let sentences = ["lamp on", "door open <b>&", "radio on", "berlin red", "LAMP, on!"];
    for text in sentences {
        daemon.ok("POST", "/v1/predict", Some(&json!({"text": text})));
    }
    let start = Instant::now();
    let page = loop {
        let page = browser.page("/?adapter=home");
        if page.matches("class=\"card\"").count() == 4 && page.contains("1 were near duplicates") {
            break page;
        }
        assert!(start.elapsed() < PATIENCE, "{page}");
        std::thread::sleep(Duration::from_millis(20));
    };
    assert!(page.contains("door open &lt;b&gt;&amp;") && !page.contains("open <b>"));
    let card = |page: &str, text: &str| -> u64 {
        let rest = &page[page.find(text).unwrap_or_else(|| panic!("{text}: {page}"))..];
        between(rest, "name=\"id\" value=\"", "\"").parse().unwrap()
    };
    // The most doubtful is first.
    let places: Vec<usize> = sentences[..4].iter().map(|s| page.find(&s[..7]).unwrap()).collect();
    assert!(places[3] < places[0] || places[3] < places[2], "{page}");

    browser.judges(&format!("id={}&verdict=right", card(&page, "lamp on")));
    browser.judges(&format!("id={}&other=sound", card(&page, "radio on")));
    // Enter in the field presses the first button of the form, which takes what was typed.
    let first = between(&page[page.find("berlin red").unwrap()..], "<button ", ">");
    assert!(first.contains("value=\"typed\""), "{first}");
    let berlin = card(&page, "berlin red");
    browser.judges(&format!("id={berlin}&verdict=typed&label=city"));
    // A slip of the finger is asked back.
    let slip = format!("{}&id={}&label=Dorr", browser.form(), card(&page, "door open"));
    let asked = browser.post("/page/answer", &slip, "");
    let text = String::from_utf8(asked.body).unwrap();
    assert!(asked.status == 200 && text.contains("I mean door"), "{text}");
    browser.judges(&format!("id={}&other=door&sure=1", card(&page, "door open")));
    assert!(!browser.page("/").contains("class=\"card\""));
    // A second tap, from another device.
    browser.judges(&format!("id={berlin}&verdict=right"));

    let list = daemon.ok("GET", "/v1/samples?adapter=home", None);
    let told: Vec<(&str, &str, u64)> = list["samples"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| {
            let text = |key: &str| s[key].as_str().unwrap();
            (text("label"), text("source"), s["generation"].as_u64().unwrap())
        })
        .collect();
    let all = ["light", "sound", "city", "door"].map(|label| (label, "page", 1));
    assert_eq!(told, all);

    // Forgetting says what goes, and does it.
    let place = "/page/forget?adapter=home&label=city";
    let asked = browser.page(place);
    assert!(asked.contains("1 sample is deleted") && asked.contains("No generation had learned"));
    let dry = daemon.ok("POST", "/v1/forget?dry_run=true", Some(&json!({"label": "city"})));
    assert_eq!(dry["samples"], 1);
    assert_eq!(daemon.ok("GET", "/v1/samples", None)["samples"].as_array().unwrap().len(), 4);
    browser.does("/page/forget", "label=city");
    assert_eq!(daemon.ok("GET", "/v1/samples", None)["samples"].as_array().unwrap().len(), 3);

    let asked = browser.page("/page/rollback?adapter=home");
    assert!(asked.contains("no generation is left to answer"), "{asked}");
    let would = json!({"dry_run": true});
    let would = daemon.ok("POST", "/v1/adapters/home/rollback", Some(&would));
    assert_eq!((&would["active"], &would["before"]), (&json!(null), &json!(1)));
    assert!(browser.page("/").contains("Generation <strong>1</strong> answers"));
    browser.does("/page/rollback", "generation=1");
    let page = browser.page("/");
    assert!(
        page.contains("No generation answers") && page.contains("taken back: by hand, on the page")
    );
    browser.does("/page/train", "");
    let jobs = daemon.ok("GET", "/v1/train", None);
    assert_eq!(jobs["jobs"][0]["name"], "home", "{jobs}");
}

/// The page of an adapter that was trained on `data`, and the card of each of `texts`.
fn taught(data: &[serde_json::Value], texts: &[&str]) -> (Daemon, Browser, Vec<String>) {
    let place = base();
    place.write("data.jsonl", rows(data));
    train(&place, "data.jsonl", "--epochs 20");
    let (daemon, browser) = start(place, "");
    let bytes = daemon.place.read("a.adapter");
    daemon.send("POST", "/v1/adapters/home", "application/octet-stream", &bytes);
    daemon.activate(1);
    for text in texts {
        daemon.ok("POST", "/v1/predict", Some(&json!({"text": text})));
    }
    let start = Instant::now();
    loop {
        let page = browser.page("/?adapter=home");
        if page.matches("class=\"card\"").count() == texts.len() {
            let card = |text: &&str| {
                let of = page.split("<li class=\"card\">").find(|card| card.contains(*text));
                of.unwrap().to_string()
            };
            let cards = texts.iter().map(card).collect();
            return (daemon, browser, cards);
        }
        assert!(start.elapsed() < PATIENCE, "{page}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn id(card: &str) -> u64 {
    between(card, "name=\"id\" value=\"", "\"").parse().unwrap()
}

/// What the newest sample says.
fn newest(daemon: &Daemon) -> serde_json::Value {
    let list = daemon.ok("GET", "/v1/samples?adapter=home", None);
    let last = list["samples"].as_array().unwrap().last().unwrap()["id"].as_u64().unwrap();
    daemon.ok("GET", &format!("/v1/samples/{last}"), None)
}

#[test]
fn tags_are_ticked_and_others_typed() {
    let data = [
        json!({"text": "lamp on", "labels": ["light"]}),
        json!({"text": "door open", "labels": ["door"]}),
        json!({"text": "lamp on door open", "labels": ["door", "light"]}),
        json!({"text": "radio on", "labels": []}),
    ];
    let (daemon, browser, cards) = taught(&data, &["lamp on", "berlin red"]);
    assert!(cards[0].contains("value=\"light\" checked") && cards[0].contains("value=\"door\">"));
    let (lamp, berlin) = (id(&cards[0]), id(&cards[1]));
    let kept = browser.post(
        "/page/answer",
        &format!("{}&id={lamp}&tag=light&label=&verdict=right", browser.form()),
        "",
    );
    let there = header(&kept, "location").unwrap();
    let page = browser.page(there.split('#').next().unwrap());
    assert!(there.ends_with("#check") && page.contains("“light”: kept to"), "{there} {page}");
    assert_eq!(newest(&daemon)["answer"], json!({"labels": ["light"]}));
    // It counts as a right answer.
    assert!(page.contains("people judged 1 of its answers, 1 right"), "{page}");
    // A slip in one of several is asked back, and the others stay.
    let sent = format!("{}&id={berlin}&tag=light&label=city,+Dorr", browser.form());
    let asked = String::from_utf8(browser.post("/page/answer", &sent, "").body).unwrap();
    assert!(asked.contains("I mean door") && asked.contains("name=\"tag\" value=\"city\""));
    let sent = format!("id={berlin}&sure=1&tag=city&tag=light&tag=door");
    browser.judges(&sent);
    assert_eq!(newest(&daemon)["answer"], json!({"labels": ["city", "door", "light"]}));
    assert!(browser.page("/").contains("people judged 2 of its answers, 1 right"));
}

#[test]
fn numbers_are_typed_over() {
    let data = [
        json!({"text": "lamp on", "values": [1.5, 0.25]}),
        json!({"text": "door open", "values": [0.5, 2.0]}),
        json!({"text": "radio on", "values": [0.1, 0.2]}),
    ];
    let (daemon, browser, cards) = taught(&data, &["lamp on"]);
    let given = between(&cards[0], "name=\"label\" value=\"", "\"").to_string();
    assert_eq!(given.split(' ').count(), 2, "{given}");
    let lamp = id(&cards[0]);
    for wrong in ["1.5", "a+b", "1,5+2,5", ""] {
        let sent = format!("{}&id={lamp}&label={wrong}&verdict=right", browser.form());
        let refused = browser.post("/page/answer", &sent, "");
        assert_eq!(refused.status, 400, "{wrong}: {refused:?}");
    }
    browser.judges(&format!("id={lamp}&label=3.5+-1&verdict=right"));
    assert_eq!(newest(&daemon)["values"], json!([3.5, -1.0]));
    assert!(!browser.page("/").contains("class=\"card\""));
}

/// What a language model wrote is typed over, to a prompt and to a conversation.
#[test]
fn texts_that_were_written_are_corrected() {
    let (daemon, browser) = start(crate::completions::place(), "[train]\nenabled = false\n");
    let chat = json!({"messages": [{"role": "user", "content": "Whose is the hat?"}]});
    // A name is known by its first sample.
    let first = json!({"text": "Where?", "completion": "Here.", "adapter": "home"});
    daemon.ok("POST", "/v1/feedback", Some(&first));
    for asked in [json!({"text": "Who?"}), chat.clone()] {
        let asked = crate::support::and(asked, "tokens", 6);
        daemon.ok("POST", "/v1/predict", Some(&asked));
    }
    let began = Instant::now();
    let ids = loop {
        let page = browser.page("/");
        let ids: Vec<String> = page
            .split("name=\"id\" value=\"")
            .skip(1)
            .map(|part| part.split('"').next().unwrap().into())
            .collect();
        if ids.len() == 2 {
            assert!(
                page.contains("<textarea") && page.contains("user: Whose is the hat?"),
                "{page}"
            );
            break ids;
        }
        assert!(began.elapsed() < PATIENCE, "{page}");
    };
    for id in &ids {
        browser.judges(&format!("id={id}&verdict=right&label=Ada,%0D%0A+at+six."));
    }
    let listed = daemon.ok("GET", "/v1/samples?adapter=home", None);
    let samples = listed["samples"].as_array().unwrap().iter().map(|sample| {
        let sample = daemon.ok("GET", &format!("/v1/samples/{}", sample["id"]), None);
        (sample["input"].clone(), sample["answer"].clone())
    });
    let samples: Vec<_> = samples.collect();
    assert_eq!(samples.len(), 3, "{samples:?}");
    for asked in [chat, json!({"text": "Who?"})] {
        let typed = json!({"completion": "Ada,\n at six."});
        assert!(samples.contains(&(asked, typed)), "{samples:?}");
    }
}
