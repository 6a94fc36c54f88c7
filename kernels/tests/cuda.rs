//! Every kernel on a device, against the CPU. One executable with no need of the source tree: copy it to a
//! machine with a card and run it there.
//!
//! - `REQUIRE_CUDA=1 ./cuda --report FILE` runs all cases on the card and fails without one.
//! - Without `REQUIRE_CUDA` it runs them on a card if there is one, and says what it skipped if not; under cargo
//!   also on the stand-in driver, for a card of each kind.
//! - `SHOAL_GPU=1` takes the second card.
//!
//! Words on the command line choose the cases whose names have one of them; `--seed N` changes the numbers;
//! `--list` names the cases; `--all` leaves out none on any card of the stand-in, where otherwise only one runs
//! them all.
#![expect(clippy::print_stdout, reason = "a table for whoever runs it")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "cuda/adamw.rs"]
mod adamw;
#[path = "cuda/attention.rs"]
mod attention;
#[path = "cuda/bench.rs"]
mod bench;
#[path = "cuda/cross_entropy.rs"]
mod cross_entropy;
#[path = "cuda/device.rs"]
mod device;
#[path = "cuda/dispatch.rs"]
mod dispatch;
#[path = "cuda/elementwise.rs"]
mod elementwise;
#[path = "cuda/embedding.rs"]
mod embedding;
#[path = "cuda/gemm.rs"]
mod gemm;
#[path = "cuda/gemm_bench.rs"]
mod gemm_bench;
#[path = "cuda/gpu.rs"]
mod gpu;
#[path = "cuda/honest.rs"]
mod honest;
#[path = "cuda/memory.rs"]
mod memory;
#[path = "cuda/quantise.rs"]
mod quantise;
#[path = "cuda/reduce.rs"]
mod reduce;
#[path = "cuda/rmsnorm.rs"]
mod rmsnorm;
#[path = "cuda/rope.rs"]
mod rope;
#[path = "cuda/router.rs"]
mod router;
#[path = "cuda/standin.rs"]
mod standin;
#[path = "cuda/swiglu.rs"]
mod swiglu;

use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use shoal_kernels::cuda::{Device, DeviceError};

use gpu::{Case, Gpu};

/// What the command line says.
#[derive(Default)]
struct Options {
    report: Option<String>,
    seed: u64,
    list: bool,
    bench: bool,
    /// Every second case, from this one on.
    half: Option<usize>,
    /// All cases on each card of the stand-in.
    all: bool,
    /// Opens this device and says what came of it, nothing else.
    open: Option<usize>,
    /// Tries this change of the PTX instead of the PTX.
    mutant: Option<usize>,
    words: Vec<String>,
}

impl Options {
    fn read(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self { seed: 1, ..Self::default() };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--report" => options.report = arguments.next(),
                "--seed" => options.seed = arguments.next().unwrap().parse().unwrap(),
                "--list" => options.list = true,
                "--bench" => options.bench = true,
                "--half" => options.half = Some(arguments.next().unwrap().parse().unwrap()),
                "--all" => options.all = true,
                "--mutant" => options.mutant = Some(arguments.next().unwrap().parse().unwrap()),
                "--open" => options.open = Some(arguments.next().unwrap().parse().unwrap()),
                // What `cargo test` hands to every test: not ours.
                word if word.starts_with('-') => {}
                _ => options.words.push(argument),
            }
        }
        options
    }

    fn wants(&self, case: &Case) -> bool {
        self.words.is_empty() || self.words.iter().any(|word| case.name.contains(word))
    }
}

fn cases() -> Vec<Case> {
    let families = [
        adamw::cases(),
        attention::cases(),
        cross_entropy::cases(),
        device::cases(),
        dispatch::cases(),
        elementwise::cases(),
        embedding::cases(),
        gemm::cases(),
        memory::cases(),
        quantise::cases(),
        reduce::cases(),
        rmsnorm::cases(),
        rope::cases(),
        router::cases(),
        swiglu::cases(),
    ];
    families.into_iter().flatten().collect()
}

/// Which half a case belongs to: by its name alone (FNV-1a), so that no family is all in one.
fn half(case: &Case) -> usize {
    let mixed = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    (case.name.bytes().fold(0x811c_9dc5, mixed) >> 31) as usize
}

fn main() -> ExitCode {
    let options = Options::read(std::env::args().skip(1));
    let cases = cases().into_iter().filter(|case| options.wants(case));
    let cases: Vec<Case> =
        cases.filter(|case| options.half.is_none_or(|h| h == half(case))).collect();
    if let Some(ordinal) = options.open {
        match Device::open(ordinal) {
            Ok(device) => println!("opened {}", device.properties().name),
            Err(error) => println!("{error}"),
        }
        return ExitCode::SUCCESS;
    }
    if options.list {
        for case in &cases {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    let required = std::env::var_os("REQUIRE_CUDA").is_some_and(|value| value != "0");
    let mut good = true;
    // Cargo has built the stand-in beside this executable; elsewhere there is none.
    if !required && std::env::var_os("CARGO_MANIFEST_DIR").is_some() {
        let mut failures = standin::run(&options.words, options.all);
        if options.words.is_empty() {
            failures.extend(standin::open());
            failures.extend(standin::mutants());
        }
        for failure in &failures {
            println!("{failure}");
        }
        good = failures.is_empty();
    } else if !required {
        println!("skipped the stand-in driver: cargo builds it");
    }
    let ordinal = std::env::var("SHOAL_GPU").map_or(0, |gpu| gpu.parse().unwrap());
    match Device::open(ordinal) {
        Ok(device) => good &= run_all(&options, &cases, device),
        Err(error @ (DeviceError::NoDriver | DeviceError::NoSuchGpu { .. })) if !required => {
            println!("skipped {} cases on a card: {error}", cases.len());
        }
        Err(error) => {
            println!("no device, but REQUIRE_CUDA is set or the driver is there: {error}");
            good = false;
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// All cases on one device, and whether all went well.
fn run_all(options: &Options, cases: &[Case], device: Device) -> bool {
    let stream = device.stream().unwrap();
    let mutant = options.mutant.map(|at| honest::mutants()[at]);
    let gpu = Gpu::new(device, stream, options.seed, mutant);
    let mut report = header(&gpu);
    print!("{report}");
    let mut failed = 0;
    let lines = if options.bench { bench::lines(&gpu) } else { Vec::new() };
    for line in lines.into_iter().chain(cases.iter().map(|case| run(case, &gpu, &mut failed))) {
        println!("{line}");
        writeln!(report, "{line}").unwrap();
    }
    let summary = format!("{} cases, {failed} failed, seed {}", cases.len(), gpu.seed);
    println!("{summary}");
    writeln!(report, "{summary}").unwrap();
    if let Some(path) = &options.report {
        std::fs::write(path, report).unwrap();
    }
    failed == 0
}

fn header(gpu: &Gpu) -> String {
    let properties = gpu.device.properties();
    let (major, minor) = properties.compute_capability;
    format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {:.1} GiB, driver for CUDA {}, PTX {}\n",
        properties.name,
        properties.multiprocessors,
        properties.memory_bytes as f64 / (1_u64 << 30) as f64,
        properties.driver,
        gpu.device.arch(),
    )
}

/// Runs one case; a panic is a failure like any other.
fn run(case: &Case, gpu: &Gpu, failed: &mut usize) -> String {
    let result = catch_unwind(AssertUnwindSafe(|| (case.run)(gpu))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        Err(text.unwrap_or_else(|| "a panic without a message".to_owned()))
    });
    match result {
        Ok(()) => format!("ok     {}", case.name),
        Err(problem) => {
            *failed += 1;
            format!("FAILED {}: {problem}", case.name)
        }
    }
}
