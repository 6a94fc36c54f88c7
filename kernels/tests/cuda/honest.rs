//! Would the cases notice? Each mutant is one word of the PTX changed; on the stand-in, the case that is named
//! must fail.

use std::fmt::Write as _;

use shoal_kernels::cuda::image::{Arch, PROGRAMS, Program, kernels};

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

enum Change {
    /// The words become these.
    To(&'static str),
    /// The last two operands change places.
    Swap,
    /// The operand of this number, from 0, and the next one change places.
    SwapFrom(usize),
}

const fn mutant(
    what: &'static str,
    kernel: &'static str,
    (find, nth, change): (&'static str, usize, Change),
    (cases, says): (&'static str, &'static str),
) -> Mutant {
    Mutant { what, kernel, find, nth, change, cases, says }
}

/// On the image of this architecture.
pub(crate) const ARCH: Arch = Arch::Sm89;

const GONE: Change = Change::To("// bar.sync");

pub(crate) static MUTANTS: &[Mutant] = &[
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
    mutant(
        "sums of a row are read before every warp has written its own",
        "rmsnorm_backward_block",
        ("bar.sync", 0, GONE),
        ("rmsnorm backward 18x1032", "race"),
    ),
    mutant(
        "a row's sums are overwritten while another warp reads them",
        "rmsnorm_backward_block",
        ("xor.b32", 0, Change::To("or.b32")),
        ("rmsnorm backward 18x1032", "race"),
    ),
    mutant(
        "gradients of a gain are added up before they are there",
        "rmsnorm_gain_grad",
        ("bar.sync", 0, GONE),
        ("rmsnorm backward 33x128", "race"),
    ),
    mutant(
        "a row is multiplied by its norm",
        "rmsnorm_forward_warp",
        ("rcp.rn.f32", 0, Change::To("sqrt.rn.f32")),
        ("rmsnorm forward 33x128", "y["),
    ),
    mutant(
        "a warp that has no row goes on",
        "rmsnorm_forward_warp_pow2",
        ("setp.ge.u32", 0, Change::To("setp.gt.u32")),
        ("rmsnorm forward 33x128", ""),
    ),
    mutant(
        "the sigmoid ends early",
        "swiglu_forward",
        ("0fC2AE0000", 0, Change::To("0fC0AE0000")),
        ("swiglu forward 20x300", "h["),
    ),
    mutant(
        "scales of g go where those of u belong",
        "swiglu_forward_pow2",
        ("swiglu_forward_pow2_param_6]", 0, Change::To("swiglu_forward_pow2_param_8]")),
        ("swiglu forward 20x300", "scales of g"),
    ),
    mutant(
        "a difference is turned round",
        "swiglu_backward",
        ("sub.rn.f32", 3, Change::Swap),
        ("swiglu backward bf16 20x300", ""),
    ),
    mutant(
        "a tile's largest is read before every warp has written its own",
        "adamw_blocks_bf16_pow2",
        ("bar.sync", 0, GONE),
        ("adamw bf16 Fp8(Pow2) 129x132", "race"),
    ),
    mutant(
        "a master moves by the reciprocal of a root",
        "adamw_flat_bf16",
        ("sqrt.rn.f32", 2, Change::To("rcp.rn.f32")),
        ("adamw bf16 Master 129x132", "masters["),
    ),
    mutant(
        "the average decays at another rate",
        "adamw_flat_bf16",
        ("adamw_flat_bf16_param_15]", 0, Change::To("adamw_flat_bf16_param_11]")),
        ("adamw bf16 Master 129x132", "average["),
    ),
    mutant(
        "a checksum keeps the largest of the blocks' sums",
        "adamw_flat_bf16",
        ("red.global.add.u64", 0, Change::To("red.global.max.u64")),
        ("adamw bf16 Master 129x132", "the checksum"),
    ),
    mutant(
        "an expert with the mean of tokens counts as idle",
        "router_bias",
        ("setp.lt.u64", 0, Change::To("setp.le.u64")),
        ("router bias 8", "bias["),
    ),
    mutant(
        "a row of the table takes all tokens from its first on",
        "embedding_backward",
        ("min.u32", 0, Change::To("max.u32")),
        ("embedding backward 129 of 300x64", "d_table"),
    ),
    mutant(
        "one token more than there is",
        "embedding_forward",
        ("setp.ge.u32", 0, Change::To("setp.gt.u32")),
        ("embedding forward 129 of 300x64", ""),
    ),
    mutant(
        "a token is turned by its head's number",
        "rope_turn",
        ("rope_turn_param_7]", 0, Change::To("rope_turn_param_3]")),
        ("rope forward 9x2x128+64", "q["),
    ),
    mutant(
        "a key's gradient is turned the other way",
        "rope_sum_back",
        ("sub.rn.f32", 0, Change::Swap),
        ("rope backward 9x2x128+64", "dk_rope["),
    ),
    mutant(
        "two numbers of a pair change places",
        "cast_f32_bf16",
        ("cvt.rn.bf16x2", 1, Change::Swap),
        ("cast from F32 2049", "y["),
    ),
    mutant(
        "a vector's last elements are taken for eight",
        "add_bf16_f32",
        ("min.u64", 0, Change::To("max.u64")),
        ("add F32 to Bf16 2049", ""),
    ),
    mutant(
        "a square is added to the wrong side",
        "sum_of_squares_pieces",
        ("fma.rn.f64", 3, Change::Swap),
        ("sum of squares 16383", "sum of squares"),
    ),
    mutant(
        "the last place instead of the first",
        "first_nonfinite_bf16",
        ("red.global.min", 0, Change::To("red.global.max")),
        ("first non-finite Bf16 4096", "the first place"),
    ),
    mutant(
        "one element of a thread is not looked at",
        "first_nonfinite_f32",
        ("setp.eq.s32", 3, Change::To("setp.gt.s32")),
        ("first non-finite F32 4096", "the first place"),
    ),
];

const FORWARD: &str = "gemm Forward Pow2 Small 200x320x272";
const INPUT_GRAD: &str = "gemm InputGrad Pow2 Small 200x320x272";
const WEIGHT_GRAD: &str = "gemm WeightGrad Pow2 Small 200x320x272";

impl Mutant {
    /// Whether it changes a kernel of this program.
    pub(crate) fn is_of(&self, program: &Program) -> bool {
        self.program().name() == program.name()
    }

    /// The program that has the kernel.
    fn program(&self) -> &'static Program {
        let has = |program: &&Program| {
            kernels(&program.ptx(ARCH).expect("the image that ships"))
                .any(|name| name == self.kernel)
        };
        PROGRAMS.iter().find(has).expect("a program has the kernel")
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
