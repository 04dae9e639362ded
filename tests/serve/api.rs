//! What the endpoints answer.

use crate::support::{Daemon, and, question, read_answer, write_request};
use offshoot::Array;
use offshoot::testing::npy;
use serde_json::{Value, json};
use std::io::Read;

fn predict(daemon: &Daemon, body: &Value) -> Value {
    daemon.ok("POST", "/v1/predict", Some(body))
}

#[test]
fn adapters_answer_by_name_generation_and_default() {
    let daemon = Daemon::start("adapter = \"home\"");
    // A new device: the name that it is set to is there with its first sample or generation. Who
    // asks for it by name is told so.
    assert!(daemon.log().contains("'home' (serve.adapter) is not there yet"), "{}", daemon.log());
    let new = predict(&daemon, &question(1.0));
    let answer = daemon.post("/v1/predict", &and(question(1.0), "adapter", "home"));
    assert_eq!((answer.status, answer.error().as_str()), (404, "not_found"));
    daemon.add_home();
    // Known, but nothing is active: the base, said so.
    let bare = predict(&daemon, &question(1.0));
    assert_eq!(new["outputs"], bare["outputs"]);
    for (answer, why) in [(&new, "learned nothing yet"), (&bare, "was made the active one")] {
        assert!(answer["no_answer"].as_str().unwrap().contains(why), "{answer}");
    }
    assert_eq!((&bare["adapter"], &bare["generation"]), (&json!("home"), &json!(null)));
    assert_eq!(bare["predictions"], json!([]));
    assert!(bare["outputs"].is_object());

    assert_eq!(daemon.activate(1), json!({"name": "home", "active": 1, "before": null}));
    let one = predict(&daemon, &question(1.0));
    assert_eq!((&one["generation"], &one["predictions"][0]["label"]), (&json!(1), &json!("0")));
    assert_eq!(predict(&daemon, &question(-1.0))["predictions"][0]["label"], "1");
    assert!(one.get("outputs").is_none());
    let all = predict(&daemon, &and(and(question(1.0), "top", 1), "outputs", true));
    assert_eq!(all["predictions"][0]["top"].as_array().unwrap().len(), 1);
    assert!(all["outputs"].is_object());

    let base = predict(&daemon, &and(question(1.0), "adapter", Value::Null));
    assert_eq!((&base["adapter"], &base["outputs"]), (&json!(null), &bare["outputs"]));
    let pinned = predict(&daemon, &and(question(1.0), "adapter", "home@2"));
    assert_eq!(pinned["generation"], 2);
    assert_ne!(pinned["predictions"], one["predictions"]);
    daemon.activate(2);
    assert_eq!(predict(&daemon, &question(1.0))["predictions"], pinned["predictions"]);
    for missing in ["home@3", "other", "other@1"] {
        let answer = daemon.post("/v1/predict", &and(question(1.0), "adapter", missing));
        assert_eq!((answer.status, answer.error().as_str()), (404, "not_found"), "{missing}");
    }
}

#[test]
fn switches_compare_and_roll_back() {
    let daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(1);
    let activate = |body: Value| daemon.post("/v1/adapters/home/activate", &body);
    let stale = activate(json!({"generation": 2, "expected_generation": 2}));
    assert_eq!((stale.status, stale.error().as_str()), (409, "conflict"));
    assert_eq!(predict(&daemon, &question(1.0))["generation"], 1);
    assert_eq!(activate(json!({"generation": 2, "expected_generation": 1})).status, 200);
    let stale = json!({"expected_generation": 1});
    assert_eq!(daemon.post("/v1/adapters/home/rollback", &stale).status, 409);
    let back = daemon.ok("POST", "/v1/adapters/home/rollback", None);
    assert_eq!(back, json!({"name": "home", "active": 1, "before": 2}));
    assert_eq!(predict(&daemon, &question(1.0))["generation"], 1);
    assert_eq!(activate(json!({"generation": 9})).status, 404);
    let stale = activate(json!({"generation": null, "expected_generation": 2}));
    assert_eq!((stale.status, stale.error().as_str()), (409, "conflict"));
    assert_eq!(predict(&daemon, &question(1.0))["generation"], 1);
    let base = activate(json!({"generation": null, "expected_generation": 1}));
    assert_eq!(base.json(), json!({"name": "home", "active": null, "before": 1}));
    let from_base = json!({"generation": null, "expected_generation": null});
    assert_eq!(activate(from_base).status, 200);
    assert_eq!(predict(&daemon, &question(1.0))["generation"], json!(null));

    let shown = daemon.ok("GET", "/v1/adapters/home", None);
    assert_eq!(shown["history"].as_array().unwrap().len(), 4);
    daemon.activate(1);
    let kept = daemon.send("DELETE", "/v1/adapters/home/1", "", b"");
    assert!((400..500).contains(&kept.status), "{kept:?}");
    assert_eq!(daemon.send("DELETE", "/v1/adapters/home/2", "", b"").status, 200);
    assert_eq!(daemon.send("DELETE", "/v1/adapters/home?force=true", "", b"").status, 200);
    // An adapter that is gone is unknown. What the daemon is set to is as on a new device.
    let gone = daemon.post("/v1/predict", &and(question(1.0), "adapter", "home"));
    assert_eq!((gone.status, gone.error().as_str()), (404, "not_found"));
    assert_eq!(predict(&daemon, &question(1.0))["generation"], json!(null));
    assert_eq!(daemon.send("GET", "/v1/adapters/home", "", b"").status, 404);
    assert_eq!(daemon.ok("GET", "/v1/adapters", None)["adapters"], json!([]));
    predict(&daemon, &and(question(1.0), "adapter", Value::Null));
    // One with samples is known: it serves the base, and says so.
    let told = and(and(question(1.0), "label", "0"), "adapter", "home");
    assert_eq!(daemon.post("/v1/feedback", &told).status, 201);
    let bare = predict(&daemon, &question(1.0));
    assert_eq!((&bare["adapter"], &bare["generation"]), (&json!("home"), &json!(null)));
    assert_eq!(daemon.ok("GET", "/v1/adapters", None)["adapters"][0]["generations"], json!([]));
    assert_eq!(daemon.send("DELETE", "/v1/adapters/home", "", b"").status, 409);
}

#[test]
fn what_the_command_line_does_to_the_store_is_served() {
    let daemon = Daemon::start("adapter = \"home\"");
    daemon.place.ok("adapter add 1.adapter --name home --use");
    std::thread::sleep(std::time::Duration::from_millis(250));
    assert_eq!(predict(&daemon, &question(1.0))["generation"], 1);
    let host = format!("--host unix://{}", daemon.socket().display());
    let status = daemon.place.ok(&format!("status {host}"));
    assert!(status.contains("home") && status.contains("generation 1"), "{status}");
    let npz = npy::to_npz(&[("x".into(), Array::f32([1, 12], vec![1.0; 12]).unwrap())]).unwrap();
    daemon.place.write("x.npz", &npz);
    let answer = daemon.place.json(&format!("predict --inputs x.npz --top 1 {host}"));
    assert_eq!(answer["generation"], 1);
    let told = daemon.place.ok(&format!("feedback --inputs x.npz --label 1 {host}"));
    assert!(told.contains("kept"), "{told}");
    assert!(daemon.place.ok(&format!("train-now home {host}")).contains("queued"));
    // A name that no request has asked for yet.
    daemon.place.ok("adapter add 2.adapter --name late");
    assert!(daemon.place.ok(&format!("train-now late {host}")).contains("queued"));
    let report = daemon.place.json(&format!("forget --label 1 {host}"));
    assert_eq!(report["samples"], 1);
    let error = daemon.place.fails(&format!("predict --inputs x.npz --adapter none {host}"), 2);
    assert!(error.contains("none"), "{error}");
    daemon.place.fails("status --host unix:///nowhere/s", 6);
    daemon.place.fails("status --host http://example.org:80", 2);
}

#[test]
fn feedback_is_kept_listed_and_forgotten() {
    let mut daemon = Daemon::start("adapter = \"home\"");
    daemon.add_home();
    daemon.activate(1);
    let told = and(and(question(1.0), "label", "0"), "predicted", "1");
    let told = and(and(told, "generation", 1), "source", "test");
    let answer = daemon.post("/v1/feedback", &told);
    assert_eq!(answer.status, 201);
    assert_eq!(answer.json()["outcome"], "new");
    let id = answer.json()["id"].as_i64().unwrap();
    assert_eq!(daemon.post("/v1/feedback", &told).json()["outcome"], "merged");
    let refused = and(and(question(-1.0), "label", "1"), "consent", false);
    let answer = daemon.post("/v1/feedback", &refused);
    assert_eq!((answer.status, &answer.json()["stored"]), (200, &json!(false)));

    // The state outlives the daemon.
    daemon.signal("-KILL");
    daemon.wait();
    let place = std::mem::replace(&mut daemon.place, crate::place::Place::new());
    let daemon = Daemon::start_in(place, "adapter = \"home\"");
    assert_eq!(predict(&daemon, &question(1.0))["generation"], 1);
    let list = daemon.ok("GET", "/v1/samples?adapter=home&source=test", None);
    assert_eq!(list["samples"].as_array().unwrap().len(), 1);
    assert_eq!(list["samples"][0]["seen"], 2);
    let shown = daemon.ok("GET", &format!("/v1/samples/{id}"), None);
    assert_eq!(shown["sample"]["label"], "0");
    assert!(shown["input"]["npz"].is_string());
    let set = json!({"state": "quarantined", "reason": "looks odd"});
    assert_eq!(daemon.post(&format!("/v1/samples/{id}"), &set).status, 200);
    let status = daemon.ok("GET", "/v1/status", None);
    assert_eq!(status["adapters"][0]["samples"]["quarantined"], 1);
    assert_eq!(status["adapters"][0]["outcomes"]["total"], 1, "one input");

    let report = daemon.ok("POST", "/v1/forget", Some(&json!({"source": "test"})));
    assert_eq!(report["samples"], 1);
    assert_eq!(daemon.get(&format!("/v1/samples/{id}")).status, 404);
    assert_eq!(daemon.post("/v1/forget", &json!({})).status, 400);
}

#[test]
fn raw_bodies_carry_their_options_in_the_query() {
    let daemon = Daemon::start("");
    daemon.add_home();
    daemon.activate(2);
    let npz = npy::to_npz(&[("x".into(), Array::f32([1, 12], vec![1.0; 12]).unwrap())]).unwrap();
    let path = "/v1/predict?adapter=home&top=1";
    let answer = daemon.send("POST", path, "application/x-npz", &npz);
    assert_eq!((answer.status, &answer.json()["generation"]), (200, &json!(2)), "{answer:?}");
    let path = "/v1/feedback?adapter=home&label=1";
    assert_eq!(daemon.send("POST", path, "application/x-npz", &npz).status, 201);
    // The same input as JSON is the same sample.
    let told = json!({"inputs": {"x": {"shape": [1, 12], "data": vec![1.0; 12]}},
        "adapter": "home", "label": "1"});
    assert_eq!(daemon.post("/v1/feedback", &told).json()["outcome"], "merged");
}

#[test]
fn llama_clients_find_their_adapters() {
    let daemon = Daemon::start("");
    daemon.add_home();
    daemon.activate(1);
    let list = daemon.ok("GET", "/lora-adapters", None);
    assert_eq!(list, json!([{"id": 0, "path": "home", "scale": 0.0}]));
    assert_eq!(predict(&daemon, &question(1.0))["adapter"], json!(null));
    let once = and(question(1.0), "lora", json!([{"id": 0, "scale": 1.0}]));
    let adapted = predict(&daemon, &once);
    assert_eq!(adapted["generation"], 1);
    daemon.ok("POST", "/lora-adapters", Some(&json!([{"id": 0, "scale": 1.0}])));
    assert_eq!(predict(&daemon, &question(1.0)), adapted);
    daemon.ok("POST", "/lora-adapters", Some(&json!([{"id": 0, "scale": 0.5}])));
    let half = predict(&daemon, &question(1.0));
    assert_ne!(half["predictions"], adapted["predictions"]);
    assert_eq!(daemon.ok("POST", "/lora-adapters", Some(&json!([]))), list);
    // A name that sorts before it does not take its number.
    let bytes = daemon.place.read("2.adapter");
    let added = daemon.send("POST", "/v1/adapters/garden", "application/octet-stream", &bytes);
    assert_eq!(added.status, 201);
    let file = daemon.get("/v1/adapters/garden/1");
    // It has the name that it was given; its values are those of the file that was sent.
    assert_eq!((file.status, file.body.starts_with(b"offadpt")), (200, true));
    assert!(file.body[file.body.len() - 64..] == bytes[bytes.len() - 64..]);
    let list = daemon.ok("GET", "/lora-adapters", None);
    assert_eq!(list[0]["path"], "home");
    assert_eq!(list[1], json!({"id": 1, "path": "garden", "scale": 0.0}));
    assert_eq!(predict(&daemon, &once), adapted);
}

#[test]
fn jobs_are_queued_and_followed() {
    let daemon = Daemon::start("");
    daemon.add_home();
    assert_eq!(daemon.post("/v1/train", &json!({"adapter": "other"})).status, 404);
    let queued = daemon.post("/v1/train", &json!({"adapter": "home"}));
    assert_eq!(queued.status, 202);
    let job = queued.json()["job"].as_i64().unwrap();
    assert_eq!(daemon.ok("GET", &format!("/v1/train/{job}"), None)["name"], "home");
    let mut stream = daemon.connect();
    write_request(&mut stream, "GET", &format!("/v1/train/{job}/events"), "", b"");
    let mut seen = String::new();
    let mut chunk = [0u8; 4096];
    while !seen.contains("event: job\ndata: {") {
        let n = stream.read(&mut chunk).unwrap();
        assert!(n > 0, "{seen}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..n]));
    }
    assert!(seen.contains("text/event-stream"), "{seen}");
}

#[test]
fn the_document_and_the_router_agree() {
    let daemon = Daemon::start("");
    let document = daemon.ok("GET", "/openapi.json", None);
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.len() >= 18, "{}", paths.len());
    for (path, operations) in paths {
        let real = path
            .replace("{name}", "nobody")
            .replace("{generation}", "7")
            .replace("{id}", "77")
            .replace("{job}", "77");
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH"] {
            let operation = &operations[method.to_lowercase()];
            let answer = daemon.send(method, &real, "", b"");
            if operation.is_null() {
                assert_eq!(answer.status, 405, "{method} {path}");
                assert!(answer.head.to_lowercase().contains("\nallow:"), "{}", answer.head);
                assert_eq!(answer.error(), "method_not_allowed");
            } else {
                let status = answer.status.to_string();
                assert!(operation["responses"][&status].is_object(), "{method} {path}: {answer:?}");
                assert_ne!(answer.status, 405, "{method} {path}");
            }
        }
    }
    assert_eq!(daemon.get("/nowhere").error(), "not_found");
}

#[test]
fn requests_have_ids_and_are_counted() {
    let daemon = Daemon::start("");
    daemon.ok("POST", "/v1/predict", Some(&question(1.0)));
    let mut stream = daemon.connect();
    use std::io::Write;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Request-Id: my-own.1\r\n\r\n")
        .unwrap();
    let answer = read_answer(&mut stream).unwrap();
    assert!(answer.head.contains("x-request-id: my-own.1"), "{}", answer.head);
    let text = String::from_utf8(answer.body).unwrap();
    let line = "offshoot_requests_total{route=\"/v1/predict\",method=\"POST\",status=\"200\"} 1";
    assert!(text.contains(line), "{text}");
    assert!(text.contains("offshoot_predict_seconds_count 1\n"), "{text}");
    assert!(daemon.get("/health").head.contains("x-request-id: "));
}

#[test]
fn metrics_tell_what_serves_and_what_is_learned() {
    let daemon = Daemon::start("");
    daemon.add_home();
    daemon.activate(2);
    for (sign, label) in [(1.0, "up"), (-1.0, "down"), (0.5, "up")] {
        let said = and(and(question(sign), "label", label), "predicted", "up");
        daemon.ok(
            "POST",
            "/v1/feedback",
            Some(&and(and(said, "adapter", "home"), "generation", 2)),
        );
    }
    let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for line in [
        &*format!(
            "offshoot_build_info{{version=\"{version}\",target=\"{}\"}} 1",
            std::env::consts::ARCH
        ),
        "offshoot_adapter_generation{adapter=\"home\"} 2",
        "offshoot_adapter_on_trial{adapter=\"home\"} 0",
        "offshoot_adapter_fault{adapter=\"home\"} 0",
        "offshoot_samples{adapter=\"home\",state=\"quarantined\"} 0",
        "offshoot_judged_right{adapter=\"home\"} 2",
        "offshoot_judged{adapter=\"home\"} 3",
        "offshoot_jobs_open 0",
        "offshoot_state_readable 1",
        "offshoot_base_damaged 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is missing: {text}");
    }
}

/// Rows of one run must not see each other: sentences that wait together get, bit for bit, the
/// answers that they get alone.
#[test]
fn sentences_that_wait_together_share_runs_and_keep_their_answers() {
    let place = crate::place::Place::new();
    let [model, tokenizer] = ["models/minilm-l6.onnx", "models/minilm-l6.tokenizer.json"]
        .map(|file| crate::place::repo(file).display().to_string());
    place.ok(&format!("pack {model} -o mlp.base --tokenizer {tokenizer}"));
    let daemon = Daemon::start_in(place, "workers = 1\n---[limits]\nbatch = 4\n");
    let sentences: Vec<String> = (0..24).map(|i| format!("turn on light number {i}")).collect();
    let body = |text: &String| json!({"text": text, "outputs": true});
    let alone: Vec<Value> = sentences.iter().map(|s| predict(&daemon, &body(s))).collect();
    assert_ne!(alone[0], alone[1]);
    let count = || {
        let text = String::from_utf8(daemon.get("/metrics").body).unwrap();
        let line = text.lines().find(|l| l.starts_with("offshoot_batches_total ")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(count(), 0);
    // All are written before any is read: most wait.
    let mut streams: Vec<_> = sentences.iter().map(|_| daemon.connect()).collect();
    for (stream, sentence) in streams.iter_mut().zip(&sentences) {
        let body = body(sentence).to_string();
        write_request(stream, "POST", "/v1/predict", "application/json", body.as_bytes());
    }
    for (stream, alone) in streams.iter_mut().zip(&alone) {
        assert_eq!(&read_answer(stream).unwrap().json(), alone);
    }
    assert!(count() >= 1, "no run was shared");
}
