//! Would the cases notice? Each mutant is one word of the PTX changed; on the stand-in, the case that is named
//! must fail.

use std::fmt::Write as _;

use shoal_kernels::cuda::image::{Arch, PROGRAMS, Program, kernels};

use super::{
    adamw, attention, cross_entropy, dispatch, elementwise, embedding, reduce, rmsnorm, rope,
    router, swiglu,
};

/// One change of one line of a kernel.
pub(crate) struct Mutant {
    pub(crate) what: &'static str,
    kernel: &'static str,
    /// The line: the `nth` of the kernel, from 0, that has these words.
    find: &'static str,
    nth: usize,
    change: Change,
    /// The cases that must notice.
    pub(crate) cases: &'static str,
    /// What must be said of it.
    pub(crate) says: &'static str,
}

pub(crate) enum Change {
    /// The words become these.
    To(&'static str),
    /// The last two operands change places.
    Swap,
    /// The operand of this number, from 0, and the next one change places.
    SwapFrom(usize),
}

pub(crate) const fn mutant(
    what: &'static str,
    kernel: &'static str,
    (find, nth, change): (&'static str, usize, Change),
    (cases, says): (&'static str, &'static str),
) -> Mutant {
    Mutant { what, kernel, find, nth, change, cases, says }
}

/// On the image of this architecture.
pub(crate) const ARCH: Arch = Arch::Sm89;

pub(crate) const GONE: Change = Change::To("// bar.sync");

/// All of them.
pub(crate) fn mutants() -> Vec<&'static Mutant> {
    let families = [
        adamw::MUTANTS,
        attention::MUTANTS,
        cross_entropy::MUTANTS,
        dispatch::MUTANTS,
        elementwise::MUTANTS,
        embedding::MUTANTS,
        reduce::MUTANTS,
        rmsnorm::MUTANTS,
        rope::MUTANTS,
        router::MUTANTS,
        swiglu::MUTANTS,
        PRODUCTS_AND_QUANTISERS,
    ];
    families.into_iter().flatten().collect()
}

static PRODUCTS_AND_QUANTISERS: &[Mutant] = &[
    mutant(
        "columns are read before every warp has written its own",
        "quantise_columns_pow2",
        ("bar.sync", 0, GONE),
        ("quantise Columns Pow2 129x129", "race"),
    ),
    mutant(
        "inverses are read before they are written",
        "quantise_columns_pow2",
        ("bar.sync", 1, GONE),
        ("quantise Columns Pow2 129x129", "race"),
    ),
    mutant(
        "a block's warps do not wait for one another",
        "quantise_blocks_fp32",
        ("bar.sync", 0, GONE),
        ("quantise Blocks Fp32 129x129", "race"),
    ),
    mutant(
        "a tile is transposed before it is there",
        "transpose_bytes",
        ("bar.sync", 0, GONE),
        ("transpose 130x96", "race"),
    ),
    mutant(
        "a tile is overwritten while it is read",
        "transpose_bytes",
        ("bar.sync", 1, GONE),
        ("transpose 130x96", "race"),
    ),
    mutant(
        "two bytes of a transpose change places",
        "transpose_bytes",
        ("prmt.b32", 0, Change::Swap),
        ("transpose 130x96", "the transpose"),
    ),
    mutant(
        "a chunk is looked for where it was not put",
        "transpose_bytes",
        ("xor.b32", 1, Change::To("or.b32")),
        ("transpose 130x96", "the transpose"),
    ),
    mutant(
        "two codes change places",
        "quantise_rows_pow2",
        ("cvt.rn.satfinite", 3, Change::Swap),
        ("quantise Rows Pow2 257x300", "codes of Row tiles"),
    ),
    mutant(
        "a row's largest is its smallest",
        "quantise_rows_pow2",
        ("max.u32", 40, Change::To("min.u32")),
        ("quantise Rows Pow2 257x300", "of Row tiles"),
    ),
    mutant(
        "a scale is rounded down",
        "quantise_columns_pow2",
        ("2097151", 0, Change::To("0")),
        ("quantise Columns Pow2 every bf16", "scales of Column tiles"),
    ),
    mutant(
        "one row more than there is",
        "quantise_rows_pow2",
        ("setp.ge.u32", 1, Change::To("setp.gt.u32")),
        ("quantise Rows Pow2 5x1024", ""),
    ),
    mutant(
        "the last column is left out",
        "quantise_columns_fp32",
        ("min.u32", 0, Change::To("max.u32")),
        ("quantise Columns Fp32 257x300", ""),
    ),
    mutant(
        "448 over the largest",
        "quantise_blocks_fp32",
        ("div.rn.f32", 0, Change::Swap),
        ("quantise Blocks Fp32", "scales of Block tiles"),
    ),
    mutant(
        "a scale of the row's other half",
        "requantise_columns_pow2",
        ("shr.u32", 2, Change::To("shl.b32")),
        ("quantise Requantise Pow2 257x300", ""),
    ),
    mutant(
        "decoded values are half as large",
        "requantise_columns_pow2",
        ("0f7B800000", 0, Change::To("0f7B000000")),
        ("quantise Requantise Pow2", "of Column tiles"),
    ),
    mutant(
        "codes go where scales belong",
        "quantise_columns_pow2",
        ("quantise_columns_pow2_param_1]", 0, Change::To("quantise_columns_pow2_param_2]")),
        ("quantise Columns Pow2 129x129", ""),
    ),
    mutant(
        "a tile is multiplied before it is there",
        "fp8_forward_64",
        ("bar.sync", 0, GONE),
        (FORWARD, "race"),
    ),
    mutant(
        "a copy too few is waited for",
        "fp8_forward_64",
        ("wait_group 1", 0, Change::To("wait_group 2")),
        (FORWARD, "an asynchronous copy"),
    ),
    mutant(
        "a fragment's rows change places",
        "fp8_forward_64",
        ("mma.sync", 0, Change::SwapFrom(4)),
        (FORWARD, "gemm Forward"),
    ),
    mutant(
        "a fragment's halves change places",
        "fp8_forward_64",
        ("mma.sync", 0, Change::SwapFrom(5)),
        (FORWARD, "gemm Forward"),
    ),
    mutant(
        "a row is looked for where it was not put",
        "fp8_forward_64",
        ("xor.b32", 0, Change::To("or.b32")),
        (FORWARD, ""),
    ),
    mutant(
        "scales are half as large",
        "fp8_forward_64",
        (", 23;", 0, Change::To(", 22;")),
        (FORWARD, "gemm Forward"),
    ),
    mutant(
        "two weights change places",
        "fp8_input_grad_64",
        ("prmt.b32", 0, Change::SwapFrom(1)),
        (INPUT_GRAD, "gemm InputGrad"),
    ),
    mutant(
        "a fragment is read as it lies, not turned",
        "fp8_weight_grad_64",
        (".trans", 0, Change::To("")),
        (WEIGHT_GRAD, "gemm WeightGrad"),
    ),
    mutant(
        "gradients are stored before all warps have summed",
        "fp8_weight_grad_64",
        ("bar.sync", 2, GONE),
        (WEIGHT_GRAD, "race"),
    ),
    mutant(
        "scales of x where those of w belong",
        "fp8_forward_64",
        ("fp8_forward_64_param_3]", 0, Change::To("fp8_forward_64_param_2]")),
        (FORWARD, ""),
    ),
];

const FORWARD: &str = "gemm Forward Pow2 Small 200x320x272";
const INPUT_GRAD: &str = "gemm InputGrad Pow2 Small 200x320x272";
const WEIGHT_GRAD: &str = "gemm WeightGrad Pow2 Small 200x320x272";

impl Mutant {
    /// Where its kernel is.
    pub(crate) fn program(&self) -> &'static Program {
        let has = |program: &&Program| {
            let ptx = program.ptx(ARCH).expect("the image that ships");
            kernels(&ptx).any(|kernel| kernel == self.kernel)
        };
        PROGRAMS.iter().find(has).unwrap_or_else(|| panic!("no kernel is called {}", self.kernel))
    }

    /// The text of all kernels with the change.
    pub(crate) fn ptx(&self) -> String {
        let ptx = self.program().ptx(ARCH).expect("the image that ships");
        let (mut changed, mut inside, mut seen, mut done) = (String::new(), false, 0, false);
        for line in ptx.lines() {
            if line.contains(".entry") {
                inside = line.contains(&format!(" {}(", self.kernel));
            }
            let mut line = line.to_owned();
            if inside && line.contains(self.find) {
                if seen == self.nth {
                    line = self.change.of(&line, self.find);
                    done = true;
                }
                seen += 1;
            }
            writeln!(changed, "{line}").expect("a string grows");
        }
        assert!(done, "{}: {} has {seen} lines with {}", self.what, self.kernel, self.find);
        changed
    }
}

impl Change {
    fn of(&self, line: &str, find: &str) -> String {
        match self {
            Self::To(words) => line.replacen(find, words, 1),
            Self::Swap => {
                let (head, operands) = line.split_once('%').expect("an operand");
                let mut operands: Vec<&str> = operands.trim_end_matches(';').split(", ").collect();
                // The last two of a conversion, those before the selector of a permutation.
                let at = if find.starts_with("prmt") { 1 } else { operands.len() - 2 };
                operands.swap(at, at + 1);
                format!("{head}%{};", operands.join(", "))
            }
            Self::SwapFrom(at) => {
                // Braces stay where they are.
                let (head, operands) = line.split_once('%').expect("an operand");
                let (mut names, rests): (Vec<&str>, Vec<&str>) = operands
                    .split('%')
                    .map(|operand| {
                        let end = operand.find(|c: char| !c.is_alphanumeric());
                        operand.split_at(end.unwrap_or(operand.len()))
                    })
                    .unzip();
                names.swap(*at, *at + 1);
                let operands = names.iter().zip(rests).map(|(name, rest)| format!("%{name}{rest}"));
                format!("{head}{}", operands.collect::<String>())
            }
        }
    }
}
