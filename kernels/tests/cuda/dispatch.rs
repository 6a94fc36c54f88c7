//! Rows on their way to experts and back: lists against plain loops, moved rows byte for byte, sums against `row_sums`.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::dispatch::{
    Choices, Lists, Moved, NONE, Pairs, Receiving, Segments, Sending, Terms, Values,
};
use shoal_kernels::cuda::gemm::Operand;
use shoal_kernels::cuda::quantise::QuantizedSlices;
use shoal_kernels::cuda::{Buffer, Slice};
use shoal_kernels::row_sums;
use shoal_kernels::tensor::{DType, Tensor};
use shoal_kernels::{Quantized, ScaleFormat, Scales, Tiling};

use super::gpu::{Case, Gpu, Guarded, f32s, same_bytes};
use super::honest::{Change, GONE, Mutant, mutant};
use super::router::u32s;

/// Tokens, choices, and where shards begin and end: tiny's grids, one shard, a shard without experts, more tokens than a
/// block reads at a time, experts that nobody owns, nothing.
const SENDING: [(usize, usize, &[u32]); 6] = [
    (70, 4, &[0, 8, 16]),
    (33, 4, &[0, 16]),
    (40, 6, &[0, 3, 3, 9, 10]),
    (1100, 2, &[0, 5, 8]),
    (20, 3, &[2, 4, 6]),
    (0, 4, &[0, 8, 16]),
];

/// Of each source the pairs of its rows: experts, ascending; E.
const RECEIVING: [(&[usize], usize); 5] =
    [(&[30, 0, 41], 8), (&[600], 3), (&[5, 9], 1), (&[0, 0], 4), (&[12], 300)];

/// Rows there are, rows that are made, columns.
const MOVED: [(usize, usize, usize); 5] =
    [(40, 70, 256), (9, 5, 130), (3, 33, 1), (0, 4, 64), (12, 20, 16)];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (t, top_k, bounds) in SENDING {
        let name = format!("dispatch lists {t} tokens {top_k} choices {} shards", bounds.len() - 1);
        cases.push(Case::new(name, move |gpu| lists(gpu, t, top_k, bounds)));
    }
    for (sources, experts) in RECEIVING {
        let name = format!("dispatch segments {sources:?} rows {experts} experts");
        cases.push(Case::new(name, move |gpu| segments(gpu, sources, experts)));
    }
    for (from, to, columns) in MOVED {
        let n = Moved { from, to, columns };
        let size = format!("{from} to {to} x {columns}");
        for format in [None, Some(ScaleFormat::Pow2), Some(ScaleFormat::Fp32)] {
            let kind = format.map_or("Bf16".to_owned(), |format| format!("{format:?}"));
            let name = format!("dispatch gather {kind} {size}");
            cases.push(Case::new(name, move |gpu| gather(gpu, format, n)));
        }
        for x in [DType::F32, DType::Bf16] {
            for out in [DType::F32, DType::Bf16] {
                let name = format!("dispatch sum {x:?} to {out:?} {size}");
                cases.push(Case::new(name, move |gpu| sum(gpu, x, out, n)));
            }
        }
    }
    cases.push(Case::new("dispatch gather numbers", numbers));
    cases.push(Case::new("dispatch keeps what a peer made up inside its lists", made_up));
    cases.push(Case::new("dispatch refuses what does not fit", refusals));
    cases
}

fn upload(gpu: &Gpu, numbers: &[u32]) -> Buffer {
    gpu.upload(bytemuck::cast_slice(numbers))
}

fn read(gpu: &Gpu, what: &str, list: &Guarded) -> Result<Vec<u32>, String> {
    Ok(u32s(&gpu.result(what, list)?))
}

fn same(what: &str, got: &[u32], want: &[u32]) -> Result<(), String> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None if got.len() == want.len() => Ok(()),
        None => Err(format!("{what}: {} numbers, want {}", got.len(), want.len())),
        Some(at) => Err(format!("{what}[{at}] is {}, want {}", got[at], want[at])),
    }
}

/// K different experts of E for each token.
fn choices(random: &mut Random, t: usize, top_k: usize, experts: u32) -> Vec<u32> {
    let mut chosen = Vec::with_capacity(t * top_k);
    for _ in 0..t {
        let mut all: Vec<u32> = (0..experts).collect();
        for _ in 0..top_k {
            chosen.push(all.swap_remove(random.below(all.len() as u64) as usize));
        }
    }
    chosen
}

/// What the lists hold, plainly.
#[derive(Default)]
struct Plain {
    totals: Vec<u32>,
    token_of_row: Vec<u32>,
    row_of_pair: Vec<u32>,
    expert_of_pair: Vec<u32>,
    gate_of_pair: Vec<f32>,
    pair_of_slot: Vec<u32>,
}

fn plain(chosen: &[u32], gates: &[f32], top_k: usize, bounds: &[u32]) -> Plain {
    let mut plain = Plain { pair_of_slot: vec![NONE; chosen.len()], ..Plain::default() };
    for shard in bounds.windows(2) {
        let (rows, pairs) = (plain.token_of_row.len(), plain.row_of_pair.len());
        for token in 0..chosen.len() / top_k {
            let slots = token * top_k..(token + 1) * top_k;
            let mut own: Vec<(u32, usize)> = slots.map(|slot| (chosen[slot], slot)).collect();
            own.retain(|(expert, _)| (shard[0]..shard[1]).contains(expert));
            own.sort_unstable();
            if own.is_empty() {
                continue;
            }
            for (expert, slot) in own {
                plain.pair_of_slot[slot] = plain.row_of_pair.len() as u32;
                plain.row_of_pair.push((plain.token_of_row.len() - rows) as u32);
                plain.expert_of_pair.push(expert - shard[0]);
                plain.gate_of_pair.push(gates[slot]);
            }
            plain.token_of_row.push(token as u32);
        }
        plain.totals.push((plain.token_of_row.len() - rows) as u32);
        plain.totals.push((plain.row_of_pair.len() - pairs) as u32);
    }
    plain
}

fn lists(gpu: &Gpu, t: usize, top_k: usize, bounds: &[u32]) -> Result<(), String> {
    let mut random = Random::new(gpu.seed ^ t as u64);
    let chosen = choices(&mut random, t, top_k, bounds.last().unwrap() + bounds[0]);
    let gates = random.normal(t * top_k);
    let s = Sending { t, top_k, shards: bounds.len() - 1 };
    let list = |n: usize| gpu.guarded(4 * n);
    let (ranks, totals, first) = (list(2 * s.shards * t), list(2 * s.shards), list(t + 1));
    let [token_of_row, rows_of_token] = [(); 2].map(|()| list(s.rows_max()));
    let [row, expert, gate, slot] = [(); 4].map(|()| list(t * top_k));
    let (device_chosen, device_bounds) = (upload(gpu, &chosen), upload(gpu, bounds));
    let device_gates = gpu.upload(bytemuck::cast_slice(&gates));
    let given = Choices {
        chosen: device_chosen.all(),
        gates: device_gates.all(),
        bounds: device_bounds.all(),
    };
    let out = Lists {
        ranks: ranks.slice(),
        totals: totals.slice(),
        token_of_row: token_of_row.slice(),
        first_of_token: first.slice(),
        rows_of_token: rows_of_token.slice(),
        row_of_pair: row.slice(),
        expert_of_pair: expert.slice(),
        gate_of_pair: gate.slice(),
        pair_of_slot: slot.slice(),
    };
    gpu.dispatch().lists(&gpu.stream, given, out, s).unwrap();
    gpu.result("ranks", &ranks)?;
    let want = plain(&chosen, &gates, top_k, bounds);
    let (rows, pairs) = (want.token_of_row.len(), want.row_of_pair.len());
    same("totals", &read(gpu, "totals", &totals)?, &want.totals)?;
    let tokens = read(gpu, "token_of_row", &token_of_row)?;
    same("token_of_row", &tokens[..rows], &want.token_of_row)?;
    same("row_of_pair", &read(gpu, "row_of_pair", &row)?[..pairs], &want.row_of_pair)?;
    let experts = read(gpu, "expert_of_pair", &expert)?;
    same("expert_of_pair", &experts[..pairs], &want.expert_of_pair)?;
    same("pair_of_slot", &read(gpu, "pair_of_slot", &slot)?, &want.pair_of_slot)?;
    let gates = gpu.result("gate_of_pair", &gate)?;
    same_bytes("gates", &gates[..4 * pairs], bytemuck::cast_slice(&want.gate_of_pair))?;
    let first = read(gpu, "first_of_token", &first)?;
    let rows_of = read(gpu, "rows_of_token", &rows_of_token)?;
    for token in 0..t as u32 {
        let of_token = first[token as usize] as usize..first[token as usize + 1] as usize;
        let all = (0..rows as u32).filter(|row| want.token_of_row[*row as usize] == token);
        same("rows_of_token", &rows_of[of_token], &all.collect::<Vec<u32>>())?;
    }
    same("the last first_of_token", &first[t..], &[rows as u32])
}

/// What arrived, as the sender's lists have it, one source after another.
#[derive(Default)]
struct Arrived {
    row_of_pair: Vec<u32>,
    expert_of_pair: Vec<u32>,
    rows_before: Vec<u32>,
    pairs_before: Vec<u32>,
}

impl Arrived {
    fn new(random: &mut Random, sources: &[usize], experts: usize) -> Self {
        let mut arrived = Self { rows_before: vec![0], pairs_before: vec![0], ..Self::default() };
        for rows in sources {
            for row in 0..*rows {
                let first = random.below(experts as u64) as usize;
                for expert in (first..experts).step_by(3).take(4) {
                    arrived.row_of_pair.push(row as u32);
                    arrived.expert_of_pair.push(expert as u32);
                }
            }
            arrived.rows_before.push(arrived.rows_before.last().unwrap() + *rows as u32);
            arrived.pairs_before.push(arrived.row_of_pair.len() as u32);
        }
        arrived
    }
}

/// What the device made of it.
struct Grouped {
    counts: Vec<u32>,
    first: Vec<u32>,
    place_of_pair: Vec<u32>,
    row_of_place: Vec<u32>,
    pair_of_place: Vec<u32>,
    ranges: Vec<u32>,
}

fn group(gpu: &Gpu, arrived: &Arrived, s: Receiving) -> Result<Grouped, String> {
    let list = |n: usize| gpu.guarded(4 * n);
    let (ranks, counts, first) = (list(s.pairs), list(s.experts), list(s.rows + 1));
    let (place, ranges) = (list(s.pairs), list(2 * s.experts));
    let [row_of_place, pair_of_place] = [(); 2].map(|()| list(s.places()));
    let Arrived { row_of_pair, expert_of_pair, rows_before, pairs_before } = arrived;
    let [row, expert, rows, pairs] =
        [row_of_pair, expert_of_pair, rows_before, pairs_before].map(|list| upload(gpu, list));
    let given = Pairs {
        row_of_pair: row.all(),
        expert_of_pair: expert.all(),
        rows_before: rows.all(),
        pairs_before: pairs.all(),
    };
    let out = Segments {
        ranks: ranks.slice(),
        counts: counts.slice(),
        first_of_row: first.slice(),
        place_of_pair: place.slice(),
        row_of_place: row_of_place.slice(),
        pair_of_place: pair_of_place.slice(),
        ranges: ranges.slice(),
    };
    gpu.dispatch().segments(&gpu.stream, given, out, s).unwrap();
    gpu.result("ranks", &ranks)?;
    Ok(Grouped {
        counts: read(gpu, "counts", &counts)?,
        first: read(gpu, "first_of_row", &first)?,
        place_of_pair: read(gpu, "place_of_pair", &place)?,
        row_of_place: read(gpu, "row_of_place", &row_of_place)?,
        pair_of_place: read(gpu, "pair_of_place", &pair_of_place)?,
        ranges: read(gpu, "ranges", &ranges)?,
    })
}

fn segments(gpu: &Gpu, sources: &[usize], experts: usize) -> Result<(), String> {
    let arrived = Arrived::new(&mut Random::new(gpu.seed), sources, experts);
    let (rows, pairs) = (sources.iter().sum(), arrived.row_of_pair.len());
    let s = Receiving { sources: sources.len(), rows, pairs, experts };
    let got = group(gpu, &arrived, s)?;
    let (mut place_of_pair, mut first) = (vec![0; pairs], vec![pairs as u32; rows + 1]);
    let [mut row_of_place, mut pair_of_place] = [(); 2].map(|()| vec![NONE; s.places()]);
    let (mut counts, mut ranges, mut next) = (Vec::new(), Vec::new(), 0);
    for expert in 0..experts as u32 {
        let begin = u32::next_multiple_of(next, 128);
        next = begin;
        for pair in (0..pairs).filter(|pair| arrived.expert_of_pair[*pair] == expert) {
            let source = arrived.pairs_before[1..].iter().position(|end| pair < *end as usize);
            let row = arrived.rows_before[source.unwrap()] + arrived.row_of_pair[pair];
            first[row as usize] = first[row as usize].min(pair as u32);
            place_of_pair[pair] = next;
            row_of_place[next as usize] = row;
            pair_of_place[next as usize] = pair as u32;
            next += 1;
        }
        counts.push(next - begin);
        ranges.extend([begin, next]);
    }
    same("counts", &got.counts, &counts)?;
    same("ranges", &got.ranges, &ranges)?;
    same("first_of_row", &got.first, &first)?;
    same("place_of_pair", &got.place_of_pair, &place_of_pair)?;
    same("row_of_place", &got.row_of_place, &row_of_place)?;
    same("pair_of_place", &got.pair_of_place, &pair_of_place)
}

/// An expert that there is not, and a row that there is not: they get no place, and nothing is written beside the lists.
fn made_up(gpu: &Gpu) -> Result<(), String> {
    let arrived = Arrived {
        row_of_pair: vec![0, 0, 9, 1],
        expert_of_pair: vec![1, 7, 0, 0],
        rows_before: vec![0, 2],
        pairs_before: vec![0, 4],
    };
    let s = Receiving { sources: 1, rows: 2, pairs: 4, experts: 2 };
    let got = group(gpu, &arrived, s)?;
    same("place_of_pair", &got.place_of_pair, &[128, NONE, NONE, 1])
}

/// A matrix on the device, and its rows as bytes: values or codes, and scales.
struct Matrix {
    parts: [Vec<u8>; 2],
    /// Bytes of a row of both.
    widths: [usize; 2],
}

fn matrix(format: Option<ScaleFormat>, rows: usize, columns: usize, seed: u64) -> Matrix {
    let values = Random::new(seed).normal(rows * columns);
    let x = Tensor::from_f32(DType::Bf16, &[rows, columns], &values);
    let Some(format) = format else {
        return Matrix { parts: [x.bytes().to_vec(), Vec::new()], widths: [2 * columns, 0] };
    };
    let x = Quantized::quantise(&x, Tiling::Row, format);
    let scales = match x.scales() {
        Scales::Pow2(scales) => scales[..].to_vec(),
        Scales::Fp32(scales) => scales.iter().flat_map(|scale| scale.to_le_bytes()).collect(),
    };
    let widths = [columns, columns.div_ceil(128) * format.bytes()];
    Matrix { parts: [x.codes().to_vec(), scales], widths }
}

fn operand<'a>(format: Option<ScaleFormat>, values: Slice<'a>, scales: Slice<'a>) -> Operand<'a> {
    match format {
        None => Operand::Bf16(values),
        Some(format) => Operand::Fp8(QuantizedSlices { codes: values, scales, format }),
    }
}

/// An index of `to` rows, some of which name none of the `from` there are.
fn index(random: &mut Random, from: usize, to: usize) -> Vec<u32> {
    let mut one = || match random.below(from as u64 + 2) {
        row if row < from as u64 => row as u32,
        _ => NONE,
    };
    (0..to).map(|_| one()).collect()
}

fn gather(gpu: &Gpu, format: Option<ScaleFormat>, n: Moved) -> Result<(), String> {
    let x = matrix(format, n.from, n.columns, gpu.seed);
    let index = index(&mut Random::new(gpu.seed ^ 1), n.from, n.to);
    let [values, scales] = x.parts.each_ref().map(|bytes| gpu.upload(bytes));
    let [out, out_scales] = x.widths.map(|width| gpu.guarded(n.to * width));
    let from = operand(format, values.all(), scales.all());
    let to = operand(format, out.slice(), out_scales.slice());
    let device_index = upload(gpu, &index);
    gpu.dispatch().gather_rows(&gpu.stream, from, to, device_index.all(), n).unwrap();
    let results = ["rows", "scales"].into_iter().zip([&out, &out_scales]);
    for ((what, out), (part, width)) in results.zip(x.parts.iter().zip(x.widths)) {
        let row = |row: &u32| match *row {
            NONE => vec![0; width],
            row => part[row as usize * width..][..width].to_vec(),
        };
        let want: Vec<u8> = index.iter().flat_map(row).collect();
        same_bytes(what, &gpu.result(what, out)?, &want)?;
    }
    Ok(())
}

fn numbers(gpu: &Gpu) -> Result<(), String> {
    let mut random = Random::new(gpu.seed);
    let x = random.normal(600);
    let index = index(&mut random, 600, 1300);
    let (device_x, device_index) = (gpu.upload(bytemuck::cast_slice(&x)), upload(gpu, &index));
    let out = gpu.guarded(4 * 1300);
    let (from, to) = ((device_x.all(), device_index.all()), out.slice());
    gpu.dispatch().gather_numbers(&gpu.stream, from.0, from.1, to, (600, 1300)).unwrap();
    let want = index.iter().map(|at| x.get(*at as usize).copied().unwrap_or(0.0));
    let want: Vec<f32> = want.collect();
    same_bytes("numbers", &gpu.result("numbers", &out)?, bytemuck::cast_slice(&want))
}

/// The bits of `row_sums`: sums in one order, rounded once.
fn sum(gpu: &Gpu, dtype: DType, out: DType, n: Moved) -> Result<(), String> {
    let Moved { from, to, columns } = n;
    let mut random = Random::new(gpu.seed ^ to as u64);
    let x = Tensor::from_f32(dtype, &[from, columns], &random.normal(from * columns));
    let also = Tensor::from_f32(DType::F32, &[to, columns], &random.normal(to * columns));
    let (mut first, mut rows) = (vec![0], Vec::new());
    for _ in 0..to {
        let terms = if from == 0 { 0 } else { random.below(5) };
        rows.extend((0..terms).map(|_| random.below(from as u64) as u32));
        first.push(rows.len());
    }
    let device_first = upload(gpu, &first.iter().map(|first| *first as u32).collect::<Vec<u32>>());
    let (device_rows, device_x) = (upload(gpu, &rows), gpu.upload(x.bytes()));
    let device_also = gpu.upload(also.bytes());
    let places: Vec<(u32, u32)> = rows.iter().map(|row| (0, *row)).collect();
    let sources = [Some(&x)];
    for with_also in [true, false] {
        let also = with_also.then_some(&also);
        let terms = row_sums::Terms { first: &first, places: &places, sources: &sources };
        let want = row_sums::sum(&terms, columns, also, out);
        let sums = gpu.guarded(to * columns * out.size());
        let terms = Terms { first: device_first.all(), index: device_rows.all() };
        let (values, result) =
            (Values { values: device_x.all(), dtype }, Values { values: sums.slice(), dtype: out });
        let also = with_also.then(|| device_also.all());
        gpu.dispatch().sum_rows(&gpu.stream, values, terms, also, result, n).unwrap();
        let got = gpu.result("sums", &sums)?;
        if out == DType::F32 && f32s(&got).iter().any(|sum| sum.is_nan()) {
            return Err("a sum of finite rows is NaN".to_owned());
        }
        same_bytes("sums", &got, want.bytes())?;
    }
    Ok(())
}

fn refusals(gpu: &Gpu) -> Result<(), String> {
    let n = Moved { from: 2, to: 3, columns: 4 };
    let [x, index, long] = [16, 12, 24].map(|bytes| gpu.upload(&vec![0; bytes]));
    let out = gpu.guarded(24);
    let (from, to) = (Operand::Bf16(x.all()), Operand::Bf16(out.slice()));
    let try_it = |from: Operand<'_>, to: Operand<'_>, index: Slice<'_>| {
        let said = gpu.dispatch().gather_rows(&gpu.stream, from, to, index, n);
        said.err().map_or_else(|| "nothing".to_owned(), |error| error.to_string())
    };
    let codes =
        QuantizedSlices { codes: long.all(), scales: index.all(), format: ScaleFormat::Fp32 };
    let found = [
        (try_it(from, to, x.all()), "dispatch gather rows: the index has 16 bytes, want 12"),
        (try_it(from, Operand::Bf16(long.slice(0..22)), index.all()), "has 22 bytes, want 24"),
        (try_it(from, Operand::Fp8(codes), index.all()), "rows and result of two kinds"),
    ];
    match found.iter().find(|(said, wanted)| !said.contains(wanted)) {
        None => Ok(()),
        Some((said, wanted)) => Err(format!("{said:?}, want {wanted:?}")),
    }
}

const LISTS: &str = "dispatch lists 1100";
const SEGMENTS: &str = "dispatch segments [600]";

pub(crate) static MUTANTS: &[Mutant] = &[
    mutant(
        "warps are added before they are there",
        "dispatch_rank",
        ("bar.sync", 0, GONE),
        (LISTS, "race"),
    ),
    mutant(
        "sums of the next tokens take the place of these too early",
        "dispatch_rank",
        ("bar.sync", 1, GONE),
        (LISTS, "race"),
    ),
    mutant(
        "experts begin at multiples of 64",
        "dispatch_places",
        ("-128", 0, Change::To("-64")),
        (SEGMENTS, "ranges"),
    ),
    mutant(
        "a place is looked up before all are known",
        "dispatch_places",
        ("bar.sync", 2, GONE),
        (SEGMENTS, "race"),
    ),
    mutant(
        "a row is taken off, not added",
        "dispatch_sum_rows_bf16_to_bf16",
        ("add.f32", 1, Change::To("sub.f32")),
        ("dispatch sum Bf16 to Bf16 40", "sums"),
    ),
    mutant(
        "one row more than the index has",
        "dispatch_gather_rows",
        ("setp.ge.u32", 0, Change::To("setp.gt.u32")),
        ("dispatch gather Pow2 9", ""),
    ),
];
