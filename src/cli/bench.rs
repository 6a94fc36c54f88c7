//! `shoal bench`: what is measured, and of what.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use shoal_plan::device::DeviceChoice;
use shoal_plan::job;
use shoal_plan::model::ModelConfig;

use super::{Model, Output, Precision};

pub(super) const EXAMPLES: &str = "\
Examples:
  shoal bench
  shoal bench ops --preset small --precision fp8 --threads 1
  shoal bench train --preset small --batch 4 --tokens 512 --mtp 0 --text README.md
  shoal bench train --preset small --mtp 0 --recompute all
  shoal bench growth --preset tiny
  shoal bench --device cuda --preset v2-lite-like --precision fp8
  shoal bench train --device cuda:1 --preset small
  shoal bench decode runs/quickstart
  shoal bench comm --workers 2 --mib 1,16,64

Exit codes: 0 done, 1 failed, 2 wrong usage, 5 no model there (decode), 130 Ctrl-C.";

/// What `bench` continues: the examples that come with shoal learn Rust.
const PROMPTS: [&str; 8] = [
    "pub fn ",
    "impl ",
    "/// Returns ",
    "use std::",
    "    let mut ",
    "#[derive(",
    "match self {",
    "fn poll(",
];

/// `shoal bench`. Without a word more it is `bench ops`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub(crate) struct Bench {
    #[command(subcommand)]
    pub measured: Option<Measured>,
    #[command(flatten)]
    pub ops: Ops,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Measured {
    /// Every operation at a preset's shapes, against the peaks of this machine or its GPU
    Ops(Ops),
    /// Whole training steps of a preset in this process: tokens/s, share of the peak, memory
    Train(Train),
    /// How a step's cost grows with sequence length, experts, layers and batch
    Growth(Growth),
    /// Measure plain and speculative decoding, and what bounds the gain
    Decode(Decode),
    /// What workers on this machine move in collectives, against plain TCP
    Comm(CommArgs),
}

/// The network, and how it is computed.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Sizes {
    /// Sizes of the network
    #[arg(long, value_enum, default_value_t = Preset::Tiny)]
    pub preset: Preset,
    /// Form of weights and activations
    #[arg(long, value_enum, default_value_t = Precision::Bf16)]
    pub precision: Precision,
    /// Compute threads; 0: one for each core
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Sequences of a step; 0: 8 for tiny, else 4
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub batch: usize,
    /// Tokens of a sequence; 0: 256 for tiny, 512 for small, else 2048
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub tokens: usize,
}

/// The presets that fit a machine without a GPU, and one whose operations fit a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Preset {
    Tiny,
    Small,
    /// Single operations on a GPU only
    V2LiteLike,
}

impl Preset {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Small => "small",
            Self::V2LiteLike => "v2-lite-like",
        }
    }

    pub(crate) fn model(self) -> ModelConfig {
        ModelConfig::preset(self.name()).expect("all names are presets")
    }
}

impl Sizes {
    pub(crate) fn batch(&self) -> usize {
        let usual = match self.preset {
            Preset::Tiny => 8,
            Preset::Small | Preset::V2LiteLike => 4,
        };
        if self.batch == 0 { usual } else { self.batch }
    }

    pub(crate) fn tokens(&self) -> usize {
        let usual = match self.preset {
            Preset::Tiny => 256,
            Preset::Small => 512,
            Preset::V2LiteLike => 2048,
        };
        if self.tokens == 0 { usual } else { self.tokens }
    }
}

/// `shoal bench ops`.
#[derive(Debug, Args)]
pub(crate) struct Ops {
    #[command(flatten)]
    pub sizes: Sizes,
    /// What computes: cpu, cuda (the first GPU) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// On a GPU: one short sample each, to see that everything runs. Its figures say little
    #[arg(long)]
    pub quick: bool,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `shoal bench train`.
#[derive(Debug, Args)]
pub(crate) struct Train {
    #[command(flatten)]
    pub sizes: Sizes,
    /// What computes: cpu, cuda (the first GPU) or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "cpu")]
    pub device: DeviceChoice,
    /// Megabytes of a GPU to use; 0: nine tenths of what is free
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device_mb: usize,
    /// On a GPU: peaks by one short sample each
    #[arg(long)]
    pub quick: bool,
    /// Multi-token-prediction modules
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=4))]
    pub mtp: u32,
    /// What backward computes again, as `spec.training.recompute`
    #[arg(long, value_enum, default_value_t = Recompute::None)]
    pub recompute: Recompute,
    /// Passes that share the batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub microbatches: usize,
    /// Train on the bytes of this file in place of noise
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Seconds to measure after the warm-up of 3 steps
    #[arg(long, value_name = "X", default_value_t = 10.0, conflicts_with = "steps")]
    pub seconds: f64,
    /// Steps to measure, in place of seconds
    #[arg(long, value_name = "N")]
    pub steps: Option<usize>,
    /// Of initial values, noise and places in the text
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Blocks that keep what they read and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Recompute {
    None,
    Attention,
    FeedForward,
    All,
}

impl From<Recompute> for job::Recompute {
    fn from(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self::None,
            Recompute::Attention => Self::Attention,
            Recompute::FeedForward => Self::FeedForward,
            Recompute::All => Self::All,
        }
    }
}

/// `shoal bench growth`.
#[derive(Debug, Args)]
pub(crate) struct Growth {
    #[command(flatten)]
    pub sizes: Sizes,
    /// What grows; without it all four, one after the other
    #[arg(long, value_enum)]
    pub over: Option<Over>,
    /// Seconds to measure each row, after 3 steps of warm-up
    #[arg(long, value_name = "X", default_value_t = 3.0)]
    pub seconds: f64,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// A size that `bench growth` changes while the others stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Over {
    /// 256 to 4096 tokens a sequence, the tokens of a step unchanged
    Tokens,
    /// 8 to 256 experts, as many chosen as before
    Experts,
    /// 2 to 16 layers
    Layers,
    /// 1 to 16 sequences a step
    Batch,
}

/// `shoal bench comm`.
#[derive(Debug, Args)]
pub(crate) struct CommArgs {
    /// Processes that talk to each other
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub workers: u32,
    /// MiB of each member's tensor
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 16, 64], value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub mib: Vec<u32>,
    /// Seconds to measure each row, after 3 rounds of warm-up
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    pub seconds: f64,
    /// Which of the processes this is: the first one starts the others
    #[arg(long, hide = true)]
    pub member: Option<u32>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Decode {
    #[command(flatten)]
    pub model: Model,
    /// What is continued; may be repeated. Every batch continues all of them
    #[arg(long, value_name = "TEXT", default_values = PROMPTS)]
    pub prompt: Vec<String>,
    /// Tokens to write in every measurement
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub tokens: usize,
    /// Texts at a time
    #[arg(long, value_name = "N,..", value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32])]
    pub batch: Vec<usize>,
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}
