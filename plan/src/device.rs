//! On what workers compute: said in the manifest as one word, and dealt out to the workers of a machine.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// GPUs that one word may name.
const GPUS_MAX: usize = 64;

/// What the workers of a machine compute on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The machine's GPUs where it has some that can train the job, else the CPU.
    #[default]
    Auto,
    Cpu,
    /// These GPUs, in the driver's order from 0; none named: all there are.
    Cuda(Vec<u32>),
}

/// Not a word for a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("got `{got}`, want auto, cpu, cuda, or GPUs such as cuda:0 or cuda:0,2{problem}")]
pub struct NotADevice {
    got: String,
    problem: &'static str,
}

impl FromStr for DeviceChoice {
    type Err = NotADevice;

    fn from_str(word: &str) -> Result<Self, NotADevice> {
        let shown = || word.chars().filter(|c| !c.is_control()).take(40).collect();
        let wrong = |problem| NotADevice { got: shown(), problem };
        match word {
            "auto" => return Ok(Self::Auto),
            "cpu" => return Ok(Self::Cpu),
            "cuda" => return Ok(Self::Cuda(Vec::new())),
            _ => {}
        }
        let numbers = word.strip_prefix("cuda:").ok_or_else(|| wrong(""))?;
        let is_number = |text: &&str| text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| Some(text).filter(is_number)?.parse().ok();
        let gpus: Option<Vec<u32>> = numbers.split(',').map(number).collect();
        let gpus = gpus.ok_or_else(|| wrong("; GPUs are counted from 0"))?;
        if gpus.len() > GPUS_MAX {
            return Err(wrong("; at most 64 of them"));
        }
        if gpus.iter().collect::<BTreeSet<_>>().len() < gpus.len() {
            return Err(wrong("; each one once"));
        }
        Ok(Self::Cuda(gpus))
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = NotADevice;

    fn try_from(word: String) -> Result<Self, NotADevice> {
        word.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(gpus) if gpus.is_empty() => f.write_str("cuda"),
            Self::Cuda(gpus) => {
                let gpus: Vec<String> = gpus.iter().map(u32::to_string).collect();
                write!(f, "cuda:{}", gpus.join(","))
            }
        }
    }
}

impl JsonSchema for DeviceChoice {
    fn schema_name() -> Cow<'static, str> {
        "DeviceChoice".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^(auto|cpu|cuda(:[0-9]+(,[0-9]+)*)?)$" })
    }
}

/// Which of `n_gpus` each of `n_workers` has: every GPU is somebody's, and each worker has one at least. With more
/// workers than GPUs several share one.
pub fn deal(n_gpus: usize, n_workers: usize) -> Vec<Vec<usize>> {
    let mine = |worker: usize| -> Vec<usize> {
        if n_gpus < n_workers {
            return (n_gpus > 0).then(|| worker % n_gpus).into_iter().collect();
        }
        (worker..n_gpus).step_by(n_workers).collect()
    };
    (0..n_workers).map(mine).collect()
}

/// On which of a worker's `devices` its `nth` cell is, in the order of cells.
pub fn device_of(nth: usize, devices: usize) -> usize {
    nth % devices.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_and_written_alike() {
        for (word, want) in [
            ("auto", DeviceChoice::Auto),
            ("cpu", DeviceChoice::Cpu),
            ("cuda", DeviceChoice::Cuda(vec![])),
            ("cuda:0", DeviceChoice::Cuda(vec![0])),
            ("cuda:2,0", DeviceChoice::Cuda(vec![2, 0])),
        ] {
            let read: DeviceChoice = word.parse().unwrap();
            assert_eq!((&read, read.to_string().as_str()), (&want, word));
        }
    }

    #[test]
    fn other_words_are_refused_with_what_was_wanted() {
        for (word, problem) in [
            ("gpu", ""),
            ("CUDA", ""),
            ("cuda:", "counted from 0"),
            ("cuda:-1", "counted from 0"),
            ("cuda:+1", "counted from 0"),
            ("cuda:0,", "counted from 0"),
            ("cuda:99999999999", "counted from 0"),
            ("cuda:1,1", "each one once"),
        ] {
            let error = word.parse::<DeviceChoice>().unwrap_err().to_string();
            let want = format!("got `{word}`, want auto, cpu, cuda, or GPUs such as cuda:0");
            assert!(error.starts_with(&want) && error.ends_with(problem), "{error}");
        }
        let many: Vec<String> = (0..65).map(|gpu: u32| gpu.to_string()).collect();
        assert!(format!("cuda:{}", many.join(",")).parse::<DeviceChoice>().is_err());
    }

    #[test]
    fn every_gpu_is_somebodys_and_every_worker_has_one() {
        assert_eq!(deal(2, 4), [[0], [1], [0], [1]]);
        assert_eq!(deal(4, 2), [[0, 2], [1, 3]]);
        assert_eq!(deal(3, 2), [vec![0, 2], vec![1]]);
        assert_eq!(deal(0, 2), [vec![], Vec::<usize>::new()]);
        for n_gpus in 1..9 {
            for n_workers in 1..9 {
                let dealt = deal(n_gpus, n_workers);
                assert!(dealt.iter().all(|gpus| !gpus.is_empty()));
                let all: BTreeSet<usize> = dealt.concat().into_iter().collect();
                assert_eq!(all.len(), n_gpus);
            }
        }
    }
}
