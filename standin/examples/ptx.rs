//! Loads PTX files and says what is in them, or the line that cannot be executed:
//! `cargo run -p shoal-standin --example ptx -- FILE.ptx ...`

#![expect(clippy::print_stdout, reason = "a tool that answers on its output")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                println!("{path}: {error}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        match shoal_standin::Module::load(&text) {
            Ok(module) => {
                println!("{path}: {}, PTX {:?}", module.target(), module.version());
                for kernel in module.entries() {
                    let (name, params) = (kernel.name(), kernel.params().len());
                    let (shared, threads) = (kernel.static_shared(), kernel.max_threads());
                    println!(
                        "  {name}: {params} parameters, {shared} B shared, threads {threads:?}"
                    );
                }
            }
            Err(error) => {
                println!("{path}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
