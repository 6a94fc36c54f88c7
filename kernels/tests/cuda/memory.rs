//! Arenas, and columns that are moved.

use shoal_kernels::compare::Random;
use shoal_kernels::cuda::window::Columns;
use shoal_kernels::cuda::{Arena, DeviceError, Staging};

use super::gpu::{Case, Gpu, same_bytes};

/// Rows, bytes of a row in each matrix, first byte of the columns in each, and their bytes.
const WINDOWS: [(usize, [usize; 2], [usize; 2], usize); 8] = [
    (0, [64, 64], [0, 0], 16),
    (1, [2, 2], [0, 0], 2),
    (7, [64, 128], [0, 64], 64),
    (300, [640, 1152], [16, 1024], 128),
    (33, [96, 80], [32, 6], 32),
    (129, [34, 130], [2, 64], 30),
    (5, [16, 16], [8, 8], 0),
    (1000, [32, 4096], [0, 4064], 32),
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = vec![Case::new("arena: what is given back is taken again", arena)];
    cases.push(Case::new("staging: bytes go up and come down, part by part", staging));
    cases.extend(WINDOWS.map(|window| {
        Case::new(format!("window {window:?}"), move |gpu| columns_are_moved(gpu, window))
    }));
    cases
}

fn arena(gpu: &Gpu) -> Result<(), String> {
    let arena = Arena::new(&gpu.device, "a cell", 1000).map_err(|error| error.to_string())?;
    let first = arena.take("first", 300).unwrap();
    let second = arena.take("second", 256).unwrap();
    gpu.stream.fill(first.all(), 1).unwrap();
    gpu.stream.fill(second.all(), 2).unwrap();
    let was = first.all().address();
    same_bytes("first", &gpu.download(first.all()), &[1; 300])?;
    match arena.take("the expert rows", 257) {
        Err(error @ DeviceError::ArenaFull { free: 256, largest: 256, total: 1024, .. })
            if error.to_string().contains("the expert rows wants 257 bytes") => {}
        other => return Err(format!("{other:?}")),
    }
    drop(first);
    let third = arena.take("third", 512).unwrap();
    if third.all().address() != was {
        return Err("the free bytes are not taken first fit".into());
    }
    gpu.stream.fill(third.all(), 3).unwrap();
    same_bytes("second", &gpu.download(second.all()), &[2; 256])?;
    let usage = arena.usage();
    if (usage.used, usage.high_water, usage.total) != (768, 768, 1024) {
        return Err(format!("{usage:?}"));
    }
    Ok(())
}

/// More parts than there are slots, up and down by turns; several slices in one go; what is fetched is what was there when it was asked for, though
/// work that is queued later overwrites something else first.
fn staging(gpu: &Gpu) -> Result<(), String> {
    let staging = Staging::new(&gpu.device, 1000).unwrap();
    let mut random = Random::new(gpu.seed);
    for bytes in [0, 1, 999, 1000, 1001, 4000, 9500] {
        let buffer = gpu.device.buffer("bytes", 2 * bytes).unwrap();
        let (here, there) = (buffer.slice(0..bytes), buffer.slice(bytes..2 * bytes));
        let values: Vec<u8> = (0..bytes).map(|_| random.below(255) as u8).collect();
        staging.upload(&gpu.stream, here, &values).unwrap();
        gpu.stream.copy(there, here).unwrap();
        let part = |range| there.slice(range);
        let parts = [part(0..bytes / 3), part(0..0), part(bytes / 3..bytes)];
        let fetch = staging.fetch(&gpu.stream, &parts).unwrap();
        let mut got = vec![0; bytes];
        gpu.stream.fill(here, 7).unwrap();
        staging.download(&gpu.stream, here, &mut got).unwrap();
        same_bytes("after the fill", &got, &vec![7; bytes])?;
        let fetched = staging.fetched(fetch, <[u8]>::to_vec).unwrap();
        same_bytes("fetched", &fetched, &values)?;
        staging.download(&gpu.stream, there, &mut got).unwrap();
        same_bytes("downloaded", &got, &values)?;
        for round in 0..3 {
            let changed: Vec<u8> = values.iter().map(|value| value ^ round).collect();
            let write = |out: &mut [u8]| out.copy_from_slice(&changed);
            staging.upload_parts(&gpu.stream, &parts, write).unwrap();
            staging.download(&gpu.stream, there, &mut got).unwrap();
            same_bytes("uploaded in parts", &got, &changed)?;
        }
    }
    Ok(())
}

fn columns_are_moved(
    gpu: &Gpu,
    (rows, [to_row, from_row], [to_first, from_first], width): (
        usize,
        [usize; 2],
        [usize; 2],
        usize,
    ),
) -> Result<(), String> {
    let mut random = Random::new(gpu.seed);
    let from: Vec<u8> = (0..rows * from_row).map(|_| random.below(256) as u8).collect();
    let mut want = vec![7_u8; rows * to_row];
    for row in 0..rows {
        want[row * to_row + to_first..][..width]
            .copy_from_slice(&from[row * from_row + from_first..][..width]);
    }
    let source = gpu.upload(&from);
    let result = gpu.guarded(rows * to_row);
    gpu.stream.fill(result.slice(), 7).unwrap();
    let to = Columns { values: result.slice(), row: to_row, first: to_first };
    let from = Columns { values: source.all(), row: from_row, first: from_first };
    gpu.window().copy(&gpu.stream, to, from, (rows, width)).map_err(|error| error.to_string())?;
    same_bytes("columns", &gpu.result("columns", &result)?, &want)
}
