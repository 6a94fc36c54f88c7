//! Times the hot kernels one by one: `cargo bench -p shoal-kernels [NAME]`. Threads follow
//! `RAYON_NUM_THREADS`. `shoal bench` holds whole layers against the machine's peaks; this is for
//! somebody at work on one kernel.

mod cases;

use divan::Bencher;

fn main() {
    divan::main();
}

#[divan::bench(args = cases::NAMES)]
fn kernel(bencher: Bencher<'_, '_>, name: &str) {
    let mut run = cases::find(name).expect("every name has a case");
    bencher.bench_local(&mut run);
}
