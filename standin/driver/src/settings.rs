//! What the environment chooses: cards, seed, and what shall go wrong.
//!
//! | variable | value | unset |
//! |---|---|---|
//! | `SHOAL_STANDIN_CARDS` | `3090`, `4090`, `5090`, `h100`, several with commas, or `none` | `4090` |
//! | `SHOAL_STANDIN_SEED` | a number: order of work, of warps, of asynchronous copies | `0` |
//! | `SHOAL_STANDIN_ORDER` | `lazy`, `eager`, `mixed` | by the seed |
//! | `SHOAL_STANDIN_SCHEDULE` | `round-robin`, `warp-first`, `random` | `round-robin` |
//! | `SHOAL_STANDIN_ASYNC_COPIES` | `eager`, `lazy`, `random` | `lazy` |
//! | `SHOAL_STANDIN_ACCUMULATE` | `exact`, `hardware` | `exact` |
//! | `SHOAL_STANDIN_RACES` | `on`, `off`: races in shared memory are faults | `on` |
//! | `SHOAL_STANDIN_THREADS` | threads of the CPU that run a grid | `1` |
//! | `SHOAL_STANDIN_DRIVER` | version of the driver, `12.8` | `13.0` |
//! | `SHOAL_STANDIN_MEMORY` | bytes of each card, with `KiB`, `MiB` or `GiB` | the card's |
//! | `SHOAL_STANDIN_POOLS` | `on`, `off`: stream-ordered allocation | `on` |
//! | `SHOAL_STANDIN_COMPUTE_MODE` | `default`, `exclusive`, `prohibited` (no context can be made) | `default` |
//! | `SHOAL_STANDIN_FAIL` | failures, with commas | none |
//! | `SHOAL_STANDIN_REPORT` | where the report goes; `%p` becomes the process id | standard error only |
//!
//! A failure is `init:STATUS` (every `cuInit`), `alloc:N` (the N-th allocation of device memory has
//! no room), `launch:N` or `launch:NAME` (the N-th launch, or each of that kernel, dies on the card),
//! or `lost:N` or `lost:N:STATUS` (from the N-th call on the card is gone; `device_unavailable` if
//! no status is named), or `FUNCTION:STATUS` or `FUNCTION:N:STATUS` (each, or the N-th, call of a
//! function of the driver fails, without doing anything). Calls and launches count from 1.

use crate::cards::Card;
use crate::order::Temper;
use crate::status::Status;

/// How the machine interleaves the warps of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warps {
    /// In turn.
    RoundRobin,
    /// One as far as it gets.
    WarpFirst,
    /// Drawn by the seed.
    Random,
}

/// When the machine's asynchronous copies land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// At once.
    Eager,
    /// When waited for.
    Lazy,
    /// Drawn by the seed.
    Random,
}

/// Something that shall go wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// `cuInit` returns this.
    Init(Status),
    /// This allocation of device memory, counted from 1, has no room.
    Allocation(u64),
    /// This launch, counted from 1, dies on the card.
    Launch(u64),
    /// Every launch of this kernel dies on the card.
    Kernel(String),
    /// From this call on, counted from 1, every call that needs the card returns the status.
    Lost(u64, Status),
    /// This call of a function, or every one, returns the status and does nothing.
    Call(String, Option<u64>, Status),
}

/// Who may make contexts on the cards. The number is that of `CUcomputemode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ComputeMode {
    /// Everybody.
    Default = 0,
    /// Nobody.
    Prohibited = 2,
    /// One process, and this one has it.
    Exclusive = 3,
}

/// All choices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The cards, by ordinal.
    pub cards: Vec<Card>,
    /// Fixes every draw.
    pub seed: u64,
    /// How eagerly queued work runs.
    pub temper: Temper,
    /// How the machine interleaves warps.
    pub warps: Warps,
    /// When asynchronous copies land.
    pub copies: Copies,
    /// Tensor cores round as the hardware does, instead of adding exactly.
    pub hardware_sums: bool,
    /// Races in shared memory are faults.
    pub races: bool,
    /// Threads of the CPU that run a grid.
    pub threads: usize,
    /// What `cuDriverGetVersion` says: 12080 is 12.8.
    pub driver: u32,
    /// Stream-ordered allocation exists.
    pub pools: bool,
    /// Who may make contexts.
    pub compute_mode: ComputeMode,
    /// What shall go wrong.
    pub failures: Vec<Failure>,
    /// Where the report goes besides standard error.
    pub report: Option<String>,
}

impl Settings {
    /// Reads the variables through `get`. The error names the variable, its value and what it may
    /// be.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let get = |name: &str| get(&format!("SHOAL_STANDIN_{name}")).filter(|v| !v.is_empty());
        let seed = number(get("SEED"), "SEED", 0)?;
        let mut cards = cards(&get("CARDS").unwrap_or_else(|| "4090".into()))?;
        if let Some(text) = get("MEMORY") {
            let memory = bytes(&text).ok_or_else(|| wrong("MEMORY", &text, "512MiB"))?;
            for card in &mut cards {
                card.memory = memory;
            }
        }
        let by_seed = [Temper::Mixed, Temper::Lazy, Temper::Eager][(seed % 3) as usize];
        let tempers = [("lazy", Temper::Lazy), ("eager", Temper::Eager), ("mixed", Temper::Mixed)];
        let warps = [
            ("round-robin", Warps::RoundRobin),
            ("warp-first", Warps::WarpFirst),
            ("random", Warps::Random),
        ];
        let copies = [("lazy", Copies::Lazy), ("eager", Copies::Eager), ("random", Copies::Random)];
        let switch = [("on", true), ("off", false)];
        let modes = [
            ("default", ComputeMode::Default),
            ("exclusive", ComputeMode::Exclusive),
            ("prohibited", ComputeMode::Prohibited),
        ];
        Ok(Self {
            cards,
            seed,
            temper: one_of(get("ORDER"), "ORDER", &tempers, by_seed)?,
            warps: one_of(get("SCHEDULE"), "SCHEDULE", &warps, Warps::RoundRobin)?,
            copies: one_of(get("ASYNC_COPIES"), "ASYNC_COPIES", &copies, Copies::Lazy)?,
            hardware_sums: one_of(
                get("ACCUMULATE"),
                "ACCUMULATE",
                &[("exact", false), ("hardware", true)],
                false,
            )?,
            races: one_of(get("RACES"), "RACES", &switch, true)?,
            threads: number(get("THREADS"), "THREADS", 1)?.max(1) as usize,
            driver: match get("DRIVER") {
                Some(text) => version(&text).ok_or_else(|| wrong("DRIVER", &text, "12.8"))?,
                None => 13_000,
            },
            pools: one_of(get("POOLS"), "POOLS", &switch, true)?,
            compute_mode: one_of(
                get("COMPUTE_MODE"),
                "COMPUTE_MODE",
                &modes,
                ComputeMode::Default,
            )?,
            failures: (get("FAIL").unwrap_or_default().split(','))
                .filter(|text| !text.trim().is_empty())
                .map(|text| {
                    failure(text.trim()).ok_or_else(|| wrong("FAIL", text, "alloc:3 or lost:100"))
                })
                .collect::<Result<_, _>>()?,
            report: get("REPORT"),
        })
    }

    /// The status that a failure of `cuInit` was asked to give.
    pub fn init_failure(&self) -> Option<Status> {
        self.failures.iter().find_map(|failure| {
            if let Failure::Init(status) = failure { Some(*status) } else { None }
        })
    }

    /// The status with which the card is gone at this call.
    pub fn lost_at(&self, call: u64) -> Option<Status> {
        self.failures.iter().find_map(|failure| {
            let Failure::Lost(first, status) = failure else { return None };
            (call >= *first).then_some(*status)
        })
    }

    /// The status that the `nth` call of a function was asked to give.
    pub fn call_failure(&self, function: &str, nth: u64) -> Option<Status> {
        self.failures.iter().find_map(|failure| {
            let Failure::Call(name, which, status) = failure else { return None };
            (name == function && which.is_none_or(|which| which == nth)).then_some(*status)
        })
    }
}

fn wrong(name: &str, value: &str, example: &str) -> String {
    format!("SHOAL_STANDIN_{name} is `{value}`, want something like `{example}`")
}

fn cards(text: &str) -> Result<Vec<Card>, String> {
    if text == "none" {
        return Ok(Vec::new());
    }
    let one = |short: &str| {
        Card::named(short.trim()).ok_or_else(|| wrong("CARDS", text, "3090,4090,5090,h100"))
    };
    text.split(',').map(one).collect()
}

fn one_of<T: Copy>(
    value: Option<String>,
    name: &str,
    choices: &[(&str, T)],
    unset: T,
) -> Result<T, String> {
    let Some(value) = value else { return Ok(unset) };
    let chosen = choices.iter().find(|(word, _)| *word == value).map(|(_, choice)| *choice);
    chosen.ok_or_else(|| {
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        format!("SHOAL_STANDIN_{name} is `{value}`, want one of {}", words.join(", "))
    })
}

fn number(value: Option<String>, name: &str, unset: u64) -> Result<u64, String> {
    let Some(value) = value else { return Ok(unset) };
    value.parse().map_err(|_| wrong(name, &value, "7"))
}

/// `12.8` as 12080.
fn version(text: &str) -> Option<u32> {
    let (major, minor) = text.split_once('.')?;
    Some(major.parse::<u32>().ok()? * 1000 + minor.parse::<u32>().ok().filter(|m| *m < 100)? * 10)
}

fn bytes(text: &str) -> Option<usize> {
    let units = [("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
    let (digits, unit) = (units.iter())
        .find_map(|(name, unit)| Some((text.strip_suffix(name)?, *unit)))
        .unwrap_or((text, 1));
    digits.trim().parse::<usize>().ok()?.checked_mul(unit)
}

fn failure(text: &str) -> Option<Failure> {
    let (what, rest) = text.split_once(':')?;
    Some(match what {
        "init" => Failure::Init(Status::parse(rest)?),
        "alloc" => Failure::Allocation(rest.parse().ok()?),
        "launch" => match rest.parse() {
            Ok(nth) => Failure::Launch(nth),
            Err(_) => Failure::Kernel(rest.to_owned()),
        },
        "lost" => match rest.split_once(':') {
            Some((call, status)) => Failure::Lost(call.parse().ok()?, Status::parse(status)?),
            None => Failure::Lost(rest.parse().ok()?, Status::DeviceUnavailable),
        },
        function if function.starts_with("cu") => match rest.split_once(':') {
            Some((nth, status)) => {
                Failure::Call(function.to_owned(), Some(nth.parse().ok()?), Status::parse(status)?)
            }
            None => Failure::Call(function.to_owned(), None, Status::parse(rest)?),
        },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Settings, String> {
        Settings::read(|name| {
            let found =
                pairs.iter().find(|(key, _)| name.strip_prefix("SHOAL_STANDIN_") == Some(key));
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nothing_set_is_one_4090() {
        let settings = read(&[]).unwrap();
        assert_eq!(settings.cards.len(), 1);
        assert_eq!(settings.cards[0].capability, (8, 9));
        assert_eq!(settings.driver, 13_000);
    }

    #[test]
    fn everything_can_be_chosen() {
        let settings = read(&[
            ("CARDS", "3090,5090"),
            ("SEED", "7"),
            ("ORDER", "eager"),
            ("SCHEDULE", "random"),
            ("ASYNC_COPIES", "random"),
            ("ACCUMULATE", "hardware"),
            ("RACES", "off"),
            ("DRIVER", "12.8"),
            ("MEMORY", "512MiB"),
            ("POOLS", "off"),
            ("FAIL", "alloc:3, launch:scale,launch:2,lost:40:ecc_uncorrectable,init:999"),
        ])
        .unwrap();
        assert_eq!(settings.cards.len(), 2);
        assert_eq!(settings.cards[1].memory, 512 << 20);
        assert_eq!(settings.temper, Temper::Eager);
        assert_eq!(settings.driver, 12_080);
        assert_eq!(
            settings.failures,
            [
                Failure::Allocation(3),
                Failure::Kernel("scale".into()),
                Failure::Launch(2),
                Failure::Lost(40, Status::EccUncorrectable),
                Failure::Init(Status::Unknown),
            ]
        );
        assert_eq!(settings.init_failure(), Some(Status::Unknown));
        assert_eq!(settings.lost_at(39), None);
        assert_eq!(settings.lost_at(41), Some(Status::EccUncorrectable));
        assert!(read(&[("CARDS", "none")]).unwrap().cards.is_empty());
    }

    #[test]
    fn a_wrong_value_is_named() {
        for (name, value) in [
            ("CARDS", "9999"),
            ("SEED", "x"),
            ("ORDER", "slow"),
            ("DRIVER", "twelve"),
            ("MEMORY", "1TB"),
            ("FAIL", "alloc"),
            ("FAIL", "lost:1:nothing"),
        ] {
            let error = read(&[(name, value)]).unwrap_err();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
