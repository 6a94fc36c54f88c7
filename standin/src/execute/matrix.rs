//! Matrices of a warp: tensor-core products, and their operands from and to shared memory.

use super::movement::{put_words, words};
use super::{Surface, addresses};
use crate::error::{FaultKind, Trap};
use crate::formats::{bf16_to_f32, e4m3_to_f32, f16_to_f32};
use crate::instruction::{Address, Mma, Product, R32, Scale};
use crate::memory::WORDS_MAX;
use crate::product::{K_MAX, NAN_SCALE, Operands, adder, exact, hardware, shape};
use crate::shared::bank_conflicts;
use crate::warp::{Lanes32, Warp};

/// Values of all E4M3 codes.
static E4M3: std::sync::LazyLock<[f32; 256]> =
    std::sync::LazyLock::new(|| std::array::from_fn(|code| e4m3_to_f32(code as u8)));

/// True if the lanes are the whole warp; else they were parked or it is a fault.
fn is_whole(warp: &mut Warp, lanes: u32, what: &str) -> Result<bool, Trap> {
    if lanes == u32::MAX {
        return Ok(true);
    }
    if lanes == warp.alive {
        let what = format!("{what} needs all 32 lanes, only {lanes:08x} are left");
        return Err(Trap::new(FaultKind::Divergence, what));
    }
    warp.park(lanes);
    Ok(false)
}

impl Surface<'_> {
    pub(super) fn mma(&mut self, warp: &mut Warp, mma: &Mma, lanes: u32) -> Result<(), Trap> {
        if !is_whole(warp, lanes, "mma")? {
            return Ok(());
        }
        let (k, per_register) = shape(mma.product);
        let mut operands = Operands {
            a: [[0.0; K_MAX]; 16],
            b: [[0.0; K_MAX]; 8],
            scale_a: [0; 16],
            scale_b: [0; 8],
        };
        let table: &[f32; 256] = &E4M3;
        let value = |register: u32, i: usize| match mma.product {
            Product::E4m3 | Product::MxE4m3 => table[register.to_le_bytes()[i] as usize],
            Product::Bf16 => bf16_to_f32((register >> (16 * i)) as u16),
            Product::F16 => f16_to_f32((register >> (16 * i)) as u16),
        };
        for (r, register) in mma.a.iter().enumerate() {
            for (lane, bits) in warp.r32(*register).iter().enumerate() {
                let (row, column) =
                    (lane / 4 + 8 * (r % 2), lane % 4 * per_register + k / 2 * (r / 2));
                for i in 0..per_register {
                    operands.a[row][column + i] = value(*bits, i);
                }
            }
        }
        for (r, register) in mma.b.iter().enumerate() {
            for (lane, bits) in warp.r32(*register).iter().enumerate() {
                let row = lane % 4 * per_register + k / 2 * r;
                for i in 0..per_register {
                    operands.b[lane / 4][row + i] = value(*bits, i);
                }
            }
        }
        if let Some([a, b]) = mma.scales {
            let scale = scales(warp, a, 2)?;
            operands.scale_a = std::array::from_fn(|row| scale(row % 8, row / 8));
            let scale = scales(warp, b, 4)?;
            operands.scale_b = std::array::from_fn(|column| scale(column, 0));
        }
        let c = gather(warp, &mma.c);
        let d = if self.is_exact() {
            exact(&operands, k, &c)
        } else {
            let min_exponent = match mma.product {
                Product::E4m3 | Product::MxE4m3 => -6,
                Product::Bf16 => -126,
                Product::F16 => -14,
            };
            hardware(&operands, k, &c, (adder(self.kernel.architecture, mma.product), min_exponent))
        };
        for (r, register) in mma.d.iter().enumerate() {
            let value: Lanes32 = std::array::from_fn(|lane| {
                let value = d[lane / 4 + 8 * (r / 2)][lane % 4 * 2 + r % 2];
                if value.is_nan() { 0x7FFF_FFFF } else { value.to_bits() }
            });
            warp.set32(*register, u32::MAX, &value);
        }
        Ok(())
    }

    /// `ldmatrix`: lane i gives the address of row i mod 8 of matrix i div 8.
    pub(super) fn load_matrix(
        &mut self,
        warp: &mut Warp,
        (count, is_transposed, address): (u8, bool, Address),
        d: &[R32; 4],
        lanes: u32,
    ) -> Result<(), Trap> {
        if !is_whole(warp, lanes, "ldmatrix")? {
            return Ok(());
        }
        let at = addresses(warp, address);
        let used = 8 * count as usize;
        let mut rows = [[0u32; WORDS_MAX]; 32];
        for lane in 0..used {
            let offset = self.shared.offset(at[lane], 16).map_err(|trap| trap.at(lane))?;
            self.shared.note_read(offset, 16, 32 * warp.index + lane)?;
            words(self.shared.at(offset, 16), &mut rows[lane]);
        }
        for (matrix, register) in d[..count as usize].iter().enumerate() {
            let rows = &rows[8 * matrix..8 * matrix + 8];
            let half =
                |row: usize, column: usize| rows[row][column / 2] >> (16 * (column % 2)) & 0xFFFF;
            let value: Lanes32 = std::array::from_fn(|lane| {
                if is_transposed {
                    let (row, column) = (lane % 4 * 2, lane / 4);
                    half(row + 1, column) << 16 | half(row, column)
                } else {
                    rows[lane / 4][lane % 4]
                }
            });
            warp.set32(*register, u32::MAX, &value);
            self.counts.stats.bank_conflicts += bank_conflicts(&at[8 * matrix..8 * matrix + 8], 16);
        }
        Ok(())
    }

    /// `stmatrix`: the opposite.
    pub(super) fn store_matrix(
        &mut self,
        warp: &mut Warp,
        (count, is_transposed, address): (u8, bool, Address),
        a: &[R32; 4],
        lanes: u32,
    ) -> Result<(), Trap> {
        if !is_whole(warp, lanes, "stmatrix")? {
            return Ok(());
        }
        let at = addresses(warp, address);
        for (matrix, register) in a[..count as usize].iter().enumerate() {
            let value = *warp.r32(*register);
            for row in 0..8 {
                let lane = 8 * matrix + row;
                let half = |column: usize| {
                    let (row, column) = if is_transposed { (column, row) } else { (row, column) };
                    value[4 * row + column / 2] >> (16 * (column % 2)) & 0xFFFF
                };
                let mut data = [0; WORDS_MAX];
                for (i, word) in data[..4].iter_mut().enumerate() {
                    *word = half(2 * i + 1) << 16 | half(2 * i);
                }
                let offset = self.shared.offset(at[lane], 16).map_err(|trap| trap.at(lane))?;
                self.shared.note_write(offset, 16, 32 * warp.index + lane, false)?;
                put_words(self.shared.at_mut(offset, 16), &data);
            }
            self.counts.stats.bank_conflicts += bank_conflicts(&at[8 * matrix..8 * matrix + 8], 16);
        }
        Ok(())
    }
}

/// C by row and column.
fn gather(warp: &Warp, registers: &[R32; 4]) -> [[f32; 8]; 16] {
    let mut c = [[0.0; 8]; 16];
    for (r, register) in registers.iter().enumerate() {
        for (lane, bits) in warp.r32(*register).iter().enumerate() {
            c[lane / 4 + 8 * (r / 2)][lane % 4 * 2 + r % 2] = f32::from_bits(*bits);
        }
    }
    c
}

/// Block scales, as exponents, by quad and number within the chosen threads of the quad.
///
/// PTX ISA, "Block Scaling for mma.sync", `scale_vec::1X`: byte-id chooses one of the four bytes.
/// For A, thread-id chooses the lower or upper pair of each quad; the first of the pair gives row
/// g, the second row g + 8. For B, thread-id is the one thread of each quad that gives column g.
fn scales(
    warp: &Warp,
    scale: Scale,
    choices: u32,
) -> Result<impl Fn(usize, usize) -> i32 + use<>, Trap> {
    let selector = |register: R32, below: u32| {
        let value = warp.r32(register)[0] & 0xFFFF;
        let is_uniform = warp.r32(register).iter().all(|lane| lane & 0xFFFF == value);
        if is_uniform && value < below {
            return Ok(value as usize);
        }
        let what = format!(
            "a scale selector of {value}, the same number below {below} is wanted in all lanes"
        );
        Err(Trap::new(FaultKind::Operand, what))
    };
    let (byte, thread) = (selector(scale.byte, 4)?, selector(scale.thread, choices)?);
    let first = thread * (4 / choices as usize);
    let data = *warp.r32(scale.data);
    Ok(move |quad: usize, number: usize| {
        let code = data[4 * quad + first + number].to_le_bytes()[byte];
        if code == 0xFF { NAN_SCALE } else { i32::from(code) - 127 }
    })
}
