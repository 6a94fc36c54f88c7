//! Runs one hot kernel a few times, for `benches/instructions`, which counts what it executes:
//!
//! `cargo run --release -p shoal-kernels --example one_kernel -- linear-fp8-forward`
//!
//! Without a name it lists the names. Only what runs inside `measured` is counted.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a list of names, or an error")]

#[path = "../benches/cases.rs"]
mod cases;

use std::process::ExitCode;

/// Times that are counted, after one that warms up.
const TIMES: usize = 3;

/// The name that the counting tool looks for; never inlined, or it would not find it.
#[inline(never)]
fn measured(run: &mut cases::Case) {
    run();
}

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        println!("{}", cases::NAMES.join("\n"));
        return ExitCode::SUCCESS;
    };
    let Some(mut run) = cases::find(&name) else {
        eprintln!("no kernel {name}; there are {}", cases::NAMES.join(", "));
        return ExitCode::from(2);
    };
    run();
    for _ in 0..TIMES {
        measured(&mut run);
    }
    ExitCode::SUCCESS
}
