use super::*;

const SOURCE: &str = "dir/x.onnx";

fn limits() -> Limits {
    let deadline = Duration::from_secs(20);
    Limits {
        memory_bytes: 2 << 30,
        stack_bytes: 4 << 20,
        cpu_seconds: 10,
        building_seconds: 10,
        deadline,
    }
}

fn shell(script: &str) -> Result<WorkerOutput> {
    shell_within(script, &limits())
}

fn shell_within(script: &str, limits: &Limits) -> Result<WorkerOutput> {
    let mut command = Command::new("/bin/sh");
    command.arg("-c").arg(script);
    run_limited(command, limits, Path::new(SOURCE), &mut |_| ())
}

#[track_caller]
fn fails(result: Result<WorkerOutput>, kind: ErrorKind, words: &str) {
    let e = result.unwrap_err();
    assert_eq!(e.kind(), kind, "{e}");
    assert!(e.message().contains(words), "expected '{words}', found: {e}");
}

#[test]
fn output_comes_back() {
    let out = shell("echo out; echo err >&2; cat").unwrap();
    assert_eq!(out, WorkerOutput { stdout: b"out\n".to_vec(), stderr: "err\n".into() });
}

#[test]
fn the_workers_own_error_comes_back_whole() {
    let original = Error::mismatch("target 'q' of \"x\" \u{e9}").hint("try 'k'");
    let line = WorkerError::of(&original).line();
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "echo noise >&2; printf '%s\\n' \"$0\" >&2; echo more >&2; exit 4", &line]);
    let e = run_limited(command, &limits(), Path::new(SOURCE), &mut |_| ()).unwrap_err();
    assert_eq!(e.to_string(), original.to_string());
    assert_eq!(e.kind(), ErrorKind::Mismatch);
    for (kind, _) in KINDS {
        assert_eq!(WorkerError::of(&Error::new(kind, "x")).into_error().kind(), kind);
    }
}

#[test]
fn exit_codes_without_a_message() {
    fails(
        shell("echo last words >&2; exit 9"),
        ErrorKind::Failed,
        "code 9 while reading 'dir/x.onnx': last words",
    );
    fails(
        shell(
            "printf \"thread 'main' panicked at a.rs:1:2:\\nindex out of bounds\\nnote: x\\n\" >&2; exit 101",
        ),
        ErrorKind::Unsupported,
        "panicked while reading 'dir/x.onnx': thread 'main' panicked at a.rs:1:2: index out of bounds",
    );
    let missing = Command::new("/nonexistent/worker");
    let missing = run_limited(missing, &limits(), Path::new("x"), &mut |_| ());
    fails(missing, ErrorKind::Failed, "can't be started");
}

#[test]
fn signals_are_named() {
    let abort =
        "died of signal 6 (SIGABRT: stack overflow or out of memory) while reading 'dir/x.onnx'";
    fails(shell("kill -ABRT $$"), ErrorKind::Unsupported, abort);
    fails(shell("kill -SEGV $$"), ErrorKind::Unsupported, "signal 11 (SIGSEGV");
    fails(shell("kill -KILL $$"), ErrorKind::Unsupported, "signal 9 (SIGKILL");
    fails(shell("kill -TERM $$"), ErrorKind::Failed, "stopped by signal 15");
}

#[test]
fn the_deadline_ends_the_whole_group() {
    let start = Instant::now();
    let short = Limits { deadline: Duration::from_millis(300), ..limits() };
    let result = shell_within("sleep 60 & sleep 60", &short);
    fails(result, ErrorKind::Unsupported, "took longer than 0.3 s");
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// What a worker leaves behind holds its pipes open.
#[test]
fn children_of_the_worker_do_not_outlive_it() {
    let start = Instant::now();
    let out = shell("sleep 60 & echo done").unwrap();
    assert_eq!(out.stdout, b"done\n");
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn floods_are_cut() {
    let out = shell("head -c 10000000 /dev/zero >&2; echo done").unwrap();
    assert_eq!((out.stdout.as_slice(), out.stderr.len()), (&b"done\n"[..], STDERR_CAP));
    fails(shell("head -c 5000000 /dev/zero"), ErrorKind::Unsupported, "printed more than");
}

#[test]
fn limits_reach_a_worker_that_sets_none() {
    // The shell may have started before prlimit was called: wait for it.
    let out = shell("sleep 0.3; ulimit -v; ulimit -t; ulimit -c").unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "2097152\n10\n0\n");
}

#[test]
fn limits_travel_as_one_word() {
    let l = limits();
    let parent = std::process::id().into();
    assert_eq!(Limits::from_argument(&l.argument()).unwrap(), (l, parent));
    for bad in ["", "1,2,3", "1,2,3,4", "1,2,3,4,5", "1,2,3,4,5,6,7", "1,2,3,x,5,6", "-1,2,3,4,5,6"]
    {
        assert_eq!(Limits::from_argument(bad).unwrap_err().kind(), ErrorKind::Usage);
    }
}

/// The worker of the tests below; alone it does nothing.
#[test]
fn worker_child() {
    let Ok(what) = std::env::var("OFFSHOOT_TEST_WORKER") else { return };
    let limits = std::env::var("OFFSHOOT_TEST_LIMITS").unwrap();
    enter_worker(&limits).unwrap();
    let code = run_worker(|| match what.as_str() {
        "good" => Ok("fine".into()),
        "error" => Err(Error::bad_input("node 'n': bad").hint("try --dim")),
        "panic" => panic!("index out of bounds:\n9"),
        "memory" => Ok(format!("{}", std::hint::black_box(vec![1u8; 3 << 30]).len())),
        "stack" => Ok(format!("{}", deep(u64::MAX))),
        _ => loop {
            std::hint::black_box(0);
        },
    });
    std::process::exit(code.into());
}

#[allow(unconditional_recursion)]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    deep(block[3] - 1) + block[5]
}

fn worker(what: &str, limits: &Limits) -> Result<WorkerOutput> {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "import::child::tests::worker_child", "--nocapture"])
        .env("OFFSHOOT_TEST_WORKER", what)
        .env("OFFSHOOT_TEST_LIMITS", limits.argument());
    run_limited(command, limits, Path::new(SOURCE), &mut |_| ())
}

#[test]
fn a_worker_that_ends_well() {
    let out = worker("good", &limits()).unwrap();
    assert!(String::from_utf8(out.stdout).unwrap().ends_with("fine"));
}

#[test]
fn a_worker_that_errs_or_panics() {
    let e = worker("error", &limits()).unwrap_err();
    assert_eq!((e.kind(), e.message()), (ErrorKind::BadInput, "node 'n': bad"));
    assert_eq!(e.hint_text(), Some("try --dim"));
    let e = worker("panic", &limits()).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    assert!(e.message().starts_with("the importer gave up: index out of bounds: 9 (src/"), "{e}");
}

#[test]
fn a_worker_out_of_memory_stack_or_time() {
    let kind = ErrorKind::Unsupported;
    fails(worker("memory", &limits()), kind, "(SIGABRT: out of memory, limit 2048 MiB)");
    fails(worker("stack", &limits()), kind, "(SIGABRT: stack overflow)");
    let short = Limits { building_seconds: 1, ..limits() };
    let why = "(SIGXCPU: more than 1 s of CPU time to build the graph, or 10 s in all)";
    fails(worker("spin", &short), kind, why);
}
