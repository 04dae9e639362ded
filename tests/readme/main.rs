//! Runs the shell blocks of the README and of pages in `docs`, in order, each page in a folder of its own that
//! holds the repository's models.

use std::path::Path;
use std::process::Command;

#[test]
fn every_command_of_the_readme_works() {
    run("README.md", 10);
}

#[test]
fn every_command_about_sequences_works() {
    run("docs/SEQUENCES.md", 12);
}

#[test]
fn every_command_of_the_page_on_peft_works() {
    run("docs/PEFT.md", 6);
}

/// Runs the commands of a page, `least` at least.
fn run(page: &str, least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let binary = Path::new(env!("CARGO_BIN_EXE_offshoot"));
    let folder = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(root.join("models"), folder.path().join("models")).unwrap();
    let adapter = root.join("tests/shipped/minilm_peft");
    std::os::unix::fs::symlink(adapter, folder.path().join("my-peft")).unwrap();
    let commands = commands(&std::fs::read_to_string(root.join(page)).unwrap());
    assert!(commands.len() >= least, "only {} commands found", commands.len());
    let path = format!(
        "{}:{}",
        binary.parent().unwrap().display(),
        std::env::var("PATH").unwrap_or_default()
    );
    for command in commands {
        let output = Command::new("sh")
            .args(["-c", &command])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("OFFSHOOT_STORE", folder.path().join("store"))
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

/// Commands of the ```sh blocks; a backslash continues a line. `cargo` lines build the project
/// itself and are left out.
fn commands(page: &str) -> Vec<String> {
    let mut commands = vec![];
    let mut in_block = false;
    let mut pending = String::new();
    for line in page.lines() {
        if line.starts_with("```") {
            in_block = !in_block && line == "```sh";
            continue;
        }
        let text = line.split(" # ").next().unwrap_or("").trim();
        if !in_block || text.is_empty() || text.starts_with('#') {
            continue;
        }
        match text.strip_suffix('\\') {
            Some(start) => pending.push_str(start),
            None => {
                let command = format!("{pending}{text}");
                pending.clear();
                if !command.starts_with("cargo ") {
                    commands.push(command);
                }
            }
        }
    }
    commands
}
