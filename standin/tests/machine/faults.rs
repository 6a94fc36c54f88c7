//! Bugs planted in the compiler's text of `ptx/tile.cu`, each with the check that must find it; and the
//! text as it is, which no check may find fault with.

use shoal_standin::{
    Accumulate, AsyncCopies, Fault, FaultKind, Launch, Memory, Module, Options, Schedule, Stats,
    launch,
};

use super::kit::{Numbers, TILE, download, floats_to_bytes, kernel, pack, run, upload};

/// Sizes that divide no tile.
const M: usize = 45;
const N: usize = 27;
const K: usize = 104;
/// Two stages of (32 + 16) rows of 80 bytes.
const STAGES: usize = 2 * 48 * 80;

struct Product {
    a: Vec<u16>,
    b: Vec<u16>,
}

impl Product {
    fn new() -> Product {
        let mut numbers = Numbers(9);
        let mut matrix =
            |count: usize| (0..count).map(|_| (numbers.real().to_bits() >> 16) as u16).collect();
        Product { a: matrix(M * K), b: matrix(N * K) }
    }

    /// Launches `tile_product` of a text.
    fn launch(&self, ptx: &str, options: &Options) -> Result<(Vec<f32>, Stats), Fault> {
        let module = Module::load(ptx).unwrap();
        let kernel = module.entry("tile_product").unwrap();
        let memory = Memory::new();
        let bytes =
            |codes: &[u16]| codes.iter().flat_map(|code| code.to_le_bytes()).collect::<Vec<u8>>();
        let (a, b) = (upload(&memory, &bytes(&self.a)), upload(&memory, &bytes(&self.b)));
        let c = memory.allocate(4 * M * N);
        let params = pack(&[a, b, c], &[M as u32, N as u32, K as u32]);
        let grid = [N.div_ceil(16) as u32, M.div_ceil(32) as u32, 1];
        let launched =
            Launch { grid, block: [64, 1, 1], dynamic_shared: STAGES, params: &params, options };
        let stats = launch(kernel, &memory, &launched)?;
        Ok((download(&memory, c).iter().map(|bits| f32::from_bits(*bits)).collect(), stats))
    }

    /// The greatest error against three loops in double precision, in units of the sum of magnitudes;
    /// NaN where the result is NaN.
    fn error(&self, c: &[f32]) -> f64 {
        let value = |code: u16| f64::from(f32::from_bits(u32::from(code) << 16));
        let mut worst = 0.0;
        for m in 0..M {
            for n in 0..N {
                let products = (0..K).map(|k| value(self.a[m * K + k]) * value(self.b[n * K + k]));
                let (sum, magnitude) = products
                    .fold((0.0, 0.0), |(sum, all), product| (sum + product, all + product.abs()));
                let error = (f64::from(c[m * N + n]) - sum).abs() / magnitude;
                if error.is_nan() {
                    return error;
                }
                worst = error.max(worst);
            }
        }
        worst
    }
}

/// A rounding to FP32 at each of seven steps of 16.
const TOLERANCE: f64 = 8.0 * 6e-8;

fn schedules() -> Vec<Options> {
    let mut all = Vec::new();
    for schedule in
        [Schedule::RoundRobin, Schedule::WarpFirst, Schedule::Random(1), Schedule::Random(2)]
    {
        for async_copies in [AsyncCopies::Eager, AsyncCopies::Lazy, AsyncCopies::Random(3)] {
            for races in [true, false] {
                all.push(Options { schedule, async_copies, races, ..Options::default() });
            }
        }
    }
    all
}

#[test]
fn the_text_as_it_is_passes_every_check_under_every_schedule() {
    let product = Product::new();
    let mut first: Option<Vec<f32>> = None;
    for options in schedules() {
        let (c, stats) =
            product.launch(TILE, &options).unwrap_or_else(|fault| panic!("{options:?}: {fault}"));
        assert!(product.error(&c) <= TOLERANCE, "{options:?}: {}", product.error(&c));
        let first = first.get_or_insert_with(|| c.clone());
        let is_same = c.iter().zip(first.iter()).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(is_same, "{options:?}: the schedule changed a result");
        // 4 blocks of 2 warps, 4 steps of K, 4 products a step; two barriers a step.
        assert_eq!((stats.count("mma.sync"), stats.barriers), (4 * 2 * 4 * 4, 4 * 4 * 2));
        assert_eq!((stats.bank_conflicts, stats.float_atomics), (0, 0));
    }
    let hardware = Options { accumulate: Accumulate::Hardware, ..Options::default() };
    let (c, _) = product.launch(TILE, &hardware).unwrap();
    let error = product.error(&c);
    assert!((1e-9..1e-6).contains(&error), "sums are cut, not rounded: {error}");
}

/// Replaces the n-th occurrence, from 0; there must be one.
fn nth(text: &str, from: &str, to: &str, n: usize) -> String {
    let (at, _) = text.match_indices(from).nth(n).unwrap_or_else(|| panic!("no {from} number {n}"));
    format!("{}{to}{}", &text[..at], &text[at + from.len()..])
}

/// The text between `.entry name` and its end, changed by `change`.
fn mutate(change: impl Fn(&str) -> String) -> String {
    let start = TILE.find(".visible .entry tile_product").unwrap();
    let end = start + TILE[start..].find("\n}\n").unwrap();
    let changed = change(&TILE[start..end]);
    assert_ne!(changed, TILE[start..end], "the mutation changed nothing");
    format!("{}{changed}{}", &TILE[..start], &TILE[end..])
}

#[track_caller]
fn expect_fault(name: &str, kind: FaultKind, ptx: &str) -> Fault {
    match Product::new().launch(ptx, &Options::default()) {
        Ok((c, _)) => panic!("{name}: nothing noticed, error {}", Product::new().error(&c)),
        Err(fault) => {
            assert_eq!(fault.kind, kind, "{name}: {fault}");
            fault
        }
    }
}

#[test]
fn a_missing_barrier_is_a_race() {
    let fault =
        expect_fault("first", FaultKind::Race, &mutate(|text| nth(text, "bar.sync \t0;", "", 0)));
    let text = fault.to_string();
    assert!(text.contains("ldmatrix") && text.contains("which thread"), "{text}");
    // Without the second one the next step's copies overwrite what the other warp still reads.
    let fault =
        expect_fault("second", FaultKind::Race, &mutate(|text| nth(text, "bar.sync \t0;", "", 1)));
    assert!(fault.to_string().contains("cp.async"), "{fault}");
}

#[test]
fn a_missing_barrier_can_be_seen_without_race_checks_too() {
    let product = Product::new();
    let ptx = mutate(|text| nth(text, "bar.sync \t0;", "", 0));
    let options = Options {
        races: false,
        schedule: Schedule::WarpFirst,
        async_copies: AsyncCopies::Lazy,
        ..Options::default()
    };
    let (c, _) = product.launch(&ptx, &options).unwrap();
    let error = product.error(&c);
    assert!(error.is_nan() || error > TOLERANCE, "{error}");
}

#[test]
fn a_wait_that_is_too_weak_is_a_read_in_flight() {
    let weak = mutate(|text| nth(text, "cp.async.wait_group 0;", "cp.async.wait_group 1;", 0));
    expect_fault("wait_group 1 at the end", FaultKind::InFlight, &weak);
    let none = mutate(|text| nth(text, "cp.async.wait_group 1;", "", 0));
    let fault = expect_fault("no wait", FaultKind::InFlight, &none);
    assert!(fault.to_string().contains("in flight"), "{fault}");
    let open = mutate(|text| text.replace("cp.async.commit_group;", ""));
    expect_fault("no commit", FaultKind::InFlight, &open);
    // And without the checks the bytes have not come when copies are lazy.
    let product = Product::new();
    let options = Options { races: false, async_copies: AsyncCopies::Lazy, ..Options::default() };
    let (c, _) = product.launch(&none, &options).unwrap();
    assert!(product.error(&c).is_nan(), "shared memory is NaN until a copy lands");
}

#[test]
fn swapped_fragments_and_swapped_operands_give_wrong_results() {
    // Rows 8 to 15 for k 8 to 15 of A; then k of B; then two elements of C.
    let swaps: [(&str, &str, &str); 3] = [
        (
            "ldmatrix of A",
            "{%r273,%r274,%r275,%r276}, [%r277]",
            "{%r273,%r275,%r274,%r276}, [%r277]",
        ),
        ("asm operands of B", "{%r278,%r279}", "{%r279,%r278}"),
        ("asm operands of C", "{%f76,%f75,%f74,%f73}, {%r273", "{%f75,%f76,%f74,%f73}, {%r273"),
    ];
    let product = Product::new();
    for (name, from, to) in swaps {
        let ptx = mutate(|text| nth(text, from, to, 0));
        let (c, _) = product.launch(&ptx, &Options::default()).unwrap();
        let error = product.error(&c);
        assert!(error > 1e-3, "{name}: {error}");
    }
}

#[test]
fn one_row_or_column_too_many_is_out_of_bounds() {
    // `row < m` and `column < n` of the store.
    let row = mutate(|text| {
        text.replace("setp.ge.s32 \t%p83, %r75, %r78", "setp.gt.s32 \t%p83, %r75, %r78")
            .replace("setp.ge.s32 \t%p76, %r72, %r78", "setp.gt.s32 \t%p76, %r72, %r78")
    });
    let fault = expect_fault("one row", FaultKind::OutOfBounds, &row);
    let place = fault.place.as_deref().unwrap();
    assert!(
        place.text.starts_with("st.global.f32") && fault.what.contains("4860 bytes"),
        "{fault}"
    );
    // `at < m` of the copies reads behind A.
    let read = mutate(|text| {
        text.replace("setp.lt.s32 \t%p16,", "setp.le.s32 \t%p16,")
            .replace("setp.lt.s32 \t%p22,", "setp.le.s32 \t%p22,")
            .replace("setp.lt.s32 \t%p26,", "setp.le.s32 \t%p26,")
            .replace("setp.lt.s32 \t%p30,", "setp.le.s32 \t%p30,")
            .replace("setp.lt.s32 \t%p34,", "setp.le.s32 \t%p34,")
    });
    let fault = expect_fault("a copy behind A", FaultKind::OutOfBounds, &read);
    assert!(fault.to_string().contains("cp.async"), "{fault}");
}

#[test]
fn a_column_too_many_is_written_by_two_blocks_or_shows_in_the_result() {
    // A store one column further lands in the next row, which another block or thread writes too.
    let ptx = mutate(|text| text.replace("[%rd43+32]", "[%rd43+36]"));
    let outcome = Product::new().launch(&ptx, &Options::default());
    let is_seen = match &outcome {
        Ok((c, _)) => Product::new().error(c).is_nan() || Product::new().error(c) > TOLERANCE,
        Err(fault) => matches!(fault.kind, FaultKind::BlockRace | FaultKind::OutOfBounds),
    };
    assert!(is_seen);
}

#[test]
fn blocks_that_write_the_same_bytes_race() {
    let ptx = mutate(|text| text.replace("%ctaid.x", "0"));
    let fault = expect_fault("all blocks at column 0", FaultKind::BlockRace, &ptx);
    assert!(fault.to_string().contains("block number"), "{fault}");
}

#[test]
fn a_misaligned_copy_is_named() {
    let global = mutate(|text| text.replace("[%rd126], 16", "[%rd126+8], 16"));
    expect_fault("source", FaultKind::Misaligned, &global);
    let shared = mutate(|text| {
        text.replace("cp.async.cg.shared.global [%r12]", "cp.async.cg.shared.global [%r12+4]")
    });
    let fault = expect_fault("destination", FaultKind::Misaligned, &shared);
    assert!(fault.place.unwrap().thread.is_some());
}

#[test]
fn shared_memory_ends_where_the_launch_says() {
    let ptx = mutate(|text| {
        text.replace("cp.async.cg.shared.global [%r12]", "cp.async.cg.shared.global [%r12+8192]")
    });
    let fault = expect_fault("beyond the stages", FaultKind::Overrun, &ptx);
    assert!(fault.what.contains("7680 bytes"), "{fault}");
}

#[test]
fn a_barrier_that_only_some_lanes_reach_is_divergence() {
    let some = mutate(|text| {
        let text = nth(
            text,
            "bar.sync \t0;",
            "and.b32 %r1, %r1, 1; setp.ne.s32 %p99, %r1, 0; @%p99 bar.sync 0;",
            0,
        );
        text.replace("%p<100>", "%p<101>")
    });
    let fault = expect_fault("odd lanes", FaultKind::Divergence, &some);
    assert!(fault.what.contains("aaaaaaaa"), "{fault}");
    // A whole warp that goes by leaves the other one waiting; both then meet at different barriers,
    // so the one that went by is ahead by one and the other waits for ever.
    let warp = mutate(|text| {
        let text =
            nth(text, "bar.sync \t0;", "setp.lt.s32 %p99, %r1, 32; @%p99 bar.sync 1, 64;", 0);
        text.replace("%p<100>", "%p<101>")
    });
    let fault =
        Product::new().launch(&warp, &Options { races: false, ..Options::default() }).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Deadlock, "{fault}");
    assert!(fault.what.contains("warp 0 at barrier 1"), "{fault}");
}

#[test]
fn memory_that_nobody_wrote_is_nan() {
    // The copies of the first stage are gone: it stays as it was at the start.
    let ptx =
        mutate(|text| text.replace("cp.async.cg.shared.global [%r12], [%rd126], 16, %r103;", ""));
    let (c, stats) = Product::new().launch(&ptx, &Options::default()).unwrap();
    assert!(Product::new().error(&c).is_nan());
    assert!(stats.shared_reads_unwritten > 0);
}

#[test]
fn an_endless_loop_ends() {
    let ptx = kernel("sm_89", "", "$again: bra $again;");
    let memory = Memory::new();
    let options = Options { steps_max: 10_000, ..Options::default() };
    let fault = run(&ptx, &memory, (1, 32, 0), &pack(&[0, 0], &[]), &options).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Endless);
}

/// Launches `row_scale` of a text over three rows of 300.
fn row_scale(ptx: &str) -> Result<Vec<f32>, Fault> {
    let memory = Memory::new();
    let mut numbers = Numbers(2);
    let x: Vec<f32> = (0..900).map(|_| numbers.real()).collect();
    let (input, output) = (upload(&memory, &floats_to_bytes(&x)), memory.allocate(12));
    let module = Module::load(ptx).unwrap();
    let params = pack(&[input, output], &[300, 1e-6f32.to_bits()]);
    let options = Options::default();
    let launched = Launch {
        grid: [3, 1, 1],
        block: [128, 1, 1],
        dynamic_shared: 0,
        params: &params,
        options: &options,
    };
    launch(module.entry("row_scale").unwrap(), &memory, &launched)?;
    let y: Vec<f32> = download(&memory, output).iter().map(|bits| f32::from_bits(*bits)).collect();
    for (row, y) in y.iter().enumerate() {
        let squares = x[300 * row..][..300].iter().map(|x| f64::from(*x) * f64::from(*x));
        let expected = 1.0 / (squares.sum::<f64>() / 300.0 + 1e-6).sqrt();
        // 300 additions and a root.
        if f64::from((*y - expected as f32).abs()) > 1e-5 * expected {
            return Ok(Vec::new());
        }
    }
    Ok(y)
}

#[test]
fn a_reduction_through_shuffles_and_shared_memory() {
    assert_eq!(row_scale(TILE).unwrap().len(), 3);
    let start = TILE.find(".entry row_scale").unwrap();
    let change = |from: &str, to: &str| {
        assert!(TILE[start..].contains(from), "{from}");
        format!("{}{}", &TILE[..start], TILE[start..].replacen(from, to, 1))
    };
    let fault = row_scale(&change("bar.sync \t0;", "")).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Race, "{fault}");
    // The mask of the shuffles is one constant: without lane 31 lane 31 names others.
    let mask = TILE[start..].lines().find(|line| line.contains("mov.u32") && line.ends_with("-1;"));
    let fault = row_scale(&change(mask.unwrap(), &mask.unwrap().replace("-1;", "0x7fffffff;")))
        .unwrap_err();
    assert_eq!(fault.kind, FaultKind::Divergence, "{fault}");
    // A shorter reduction and a wrong one are seen in the result.
    assert_eq!(row_scale(&change("shfl.sync.bfly.b32", "shfl.sync.up.b32")).unwrap().len(), 0);
}

#[test]
fn launches_that_a_device_refuses() {
    let module = Module::load(TILE).unwrap();
    let kernel = module.entry("tile_product").unwrap();
    assert_eq!((kernel.static_shared(), kernel.max_threads()), (0, Some(64)));
    let memory = Memory::new();
    let params = vec![0; kernel.param_bytes()];
    let options = Options { shared_max: 8000, ..Options::default() };
    let good = Launch {
        grid: [1, 1, 1],
        block: [64, 1, 1],
        dynamic_shared: STAGES,
        params: &params,
        options: &options,
    };
    let bad = [
        ("block", Launch { block: [65, 1, 1], ..good.clone() }),
        ("empty block", Launch { block: [0, 1, 1], ..good.clone() }),
        ("grid", Launch { grid: [1, 70_000, 1], ..good.clone() }),
        ("shared", Launch { dynamic_shared: 8192, ..good.clone() }),
        ("parameters", Launch { params: &params[4..], ..good.clone() }),
    ];
    for (name, launched) in bad {
        let fault = launch(kernel, &memory, &launched).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Launch, "{name}");
        assert!(fault.to_string().contains("launch of tile_product"), "{fault}");
    }
    // With pointers of zero the first access is a wild one.
    let mut sizes = params.clone();
    sizes[24..].copy_from_slice(&[8, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0, 0]);
    let fault = launch(kernel, &memory, &Launch { params: &sizes, ..good }).unwrap_err();
    assert_eq!(fault.kind, FaultKind::WildAddress, "{fault}");
}
