//! The `offshoot` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    offshoot::program()
}
