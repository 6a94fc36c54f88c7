//! The catalogue of GPUs, `plan/gpus.yaml`: memory, bandwidth, tensor peaks, power and links of cards
//! that people own or rent, each with its source. It is read once, by the manifest's own reader.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::manifest::complaint::Sources;
use crate::manifest::nearest::nearest;
use crate::manifest::{reader, tree};

const TEXT: &str = include_str!("../gpus.yaml");

static CATALOGUE: LazyLock<BTreeMap<String, Gpu>> =
    LazyLock::new(|| read(TEXT).unwrap_or_else(|error| panic!("{error}")));

/// One kind of card. Units are in the names; peaks are dense (no sparsity), with FP32 sums.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// `sm_89` and so on.
    pub architecture: String,
    pub memory_gib: f64,
    /// Bandwidth of its memory.
    pub memory_gb_s: f64,
    /// Streaming multiprocessors, where the source states them.
    pub sms: Option<u32>,
    pub boost_ghz: Option<f64>,
    pub bf16_tflops: f64,
    /// `None`: no unit for FP8. Products of FP8 numbers then run in BF16.
    pub fp8_tflops: Option<f64>,
    /// Block-scaled FP8 with power-of-two scales, where the card is faster at it.
    pub mxfp8_tflops: Option<f64>,
    /// Board power.
    pub watts: f64,
    pub pcie: Pcie,
    /// How two cards of a machine reach each other.
    pub peers: Peers,
    /// Of `nvlink`: one direction, all links together.
    #[serde(default)]
    pub nvlink_gb_s: f64,
    pub source: String,
}

/// The slot.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pcie {
    pub generation: u32,
    pub lanes: u32,
}

/// The way between two cards of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Peers {
    /// Through the machine's memory.
    Host,
    /// Over `PCIe`, card to card.
    Pcie,
    Nvlink,
}

impl Pcie {
    /// One direction, after the line code: 8, 16 and 32 GT/s a lane at 128/130. PCI-SIG, base
    /// specifications 3.0 to 5.0.
    pub fn gb_s(self) -> f64 {
        let gigatransfers = 8.0 * 2_f64.powi(self.generation as i32 - 3);
        gigatransfers * f64::from(self.lanes) / 8.0 * 128.0 / 130.0
    }
}

impl Gpu {
    /// Whether it is a gaming card.
    pub fn is_geforce(&self) -> bool {
        matches!(self.architecture.as_str(), "sm_86" | "sm_89" | "sm_120")
    }
}

/// The card of that name, as people write it: case, spaces, `-`, `_`, and the words `NVIDIA` and
/// `GeForce` do not matter, nor does a missing `RTX`. `Err`: the name that was probably meant, if any is near.
pub fn find(name: &str) -> Result<(&'static str, &'static Gpu), Option<&'static str>> {
    // As the catalogue writes it: a planner asks often.
    if let Some((known, gpu)) = CATALOGUE.get_key_value(name) {
        return Ok((known.as_str(), gpu));
    }
    let wanted = plain(name);
    let found = CATALOGUE.iter().find(|(known, _)| plain(known) == wanted);
    found.map(|(known, gpu)| (known.as_str(), gpu)).ok_or_else(|| {
        // Of `RTX 4070 Ti`, the letters before; of `3080`, both cards of that name.
        let starts = CATALOGUE.keys().find(|known| plain(known).starts_with(&wanted));
        let starts = starts.filter(|_| wanted.len() >= 4).map(String::as_str);
        starts.or_else(|| nearest(name, names()))
    })
}

/// The card whose driver calls it so: `NVIDIA H100 80GB HBM3`. Words that say no more than its memory and its socket do not
/// matter; any other does, since `4090 D` is another card than `4090`.
pub fn of_driver(name: &str) -> Option<(&'static str, &'static Gpu)> {
    let is_socket = |word: &&str| word.starts_with("HBM") || word.starts_with("SXM");
    let words: Vec<&str> = name.split([' ', '-']).filter(|word| !is_socket(word)).collect();
    // Some cards are in the catalogue with their memory, as `A100-80`.
    let sized: Vec<&str> = words.iter().map(|word| word.trim_end_matches("GB")).collect();
    let unsized_words: Vec<&str> =
        words.iter().copied().filter(|word| !word.ends_with("GB")).collect();
    [sized, unsized_words].into_iter().find_map(|words| find(&words.join(" ")).ok())
}

/// All names, in alphabetical order.
pub fn names() -> impl Iterator<Item = &'static str> {
    CATALOGUE.keys().map(String::as_str)
}

fn plain(name: &str) -> String {
    let lower = name.to_lowercase().replace("nvidia", "").replace("geforce", "");
    let kept: String = lower.chars().filter(char::is_ascii_alphanumeric).collect();
    kept.trim_start_matches("rtx").to_owned()
}

fn read(text: &str) -> Result<BTreeMap<String, Gpu>, String> {
    let sources = Sources::new("plan/gpus.yaml", text);
    let read = || reader::read_elsewhere(&tree::parse(text, 0)?, "");
    read().map_err(|complaint| sources.explain(&[complaint]).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_has_a_source_and_believable_figures() {
        assert_eq!(names().count(), 18);
        for name in names() {
            let (_, gpu) = find(name).unwrap();
            assert!(gpu.source.contains("NVIDIA"), "{name}: {}", gpu.source);
            assert!((4.0..400.0).contains(&gpu.memory_gib), "{name}");
            assert!((100.0..20_000.0).contains(&gpu.memory_gb_s), "{name}");
            assert!((100.0..1500.0).contains(&gpu.watts), "{name}");
            assert_eq!(gpu.peers == Peers::Nvlink, gpu.nvlink_gb_s > 0.0, "{name}");
            // Never slower in fewer bits.
            let fp8 = gpu.fp8_tflops.unwrap_or(gpu.bf16_tflops);
            assert!(gpu.bf16_tflops <= fp8 && fp8 <= gpu.mxfp8_tflops.unwrap_or(fp8), "{name}");
        }
    }

    /// FLOPs a clock and multiprocessor: whitepapers, and for block-scaled FP8 measured issue rates.
    #[test]
    fn stated_peaks_are_multiprocessors_times_clock_times_rate() {
        let mut compared = 0;
        for name in names() {
            let (_, gpu) = find(name).unwrap();
            let (Some(sms), Some(ghz)) = (gpu.sms, gpu.boost_ghz) else { continue };
            let bf16 = match gpu.architecture.as_str() {
                "sm_80" => 2048.0,
                "sm_90" => 4096.0,
                _ => 512.0,
            };
            let mut check = |stated: Option<f64>, rate: f64| {
                let Some(stated) = stated else { return };
                let derived = f64::from(sms) * ghz * rate / 1000.0;
                assert!((stated / derived - 1.0).abs() < 0.003, "{name}: {stated}, not {derived}");
                compared += 1;
            };
            check(Some(gpu.bf16_tflops), bf16);
            check(gpu.fp8_tflops, 2.0 * bf16);
            check(gpu.mxfp8_tflops, 4.0 * bf16);
        }
        assert!(compared > 25, "{compared}");
    }

    #[test]
    fn names_are_found_as_people_write_them() {
        for name in ["RTX4090", "rtx 4090", "NVIDIA GeForce RTX 4090", "4090", "rtx_4090"] {
            assert_eq!(find(name).unwrap().0, "RTX4090", "{name}");
        }
        assert_eq!(find("H-800").unwrap().0, "H800");
        assert_eq!(find("RTX4909").unwrap_err(), Some("RTX4090"));
        assert_eq!(find("3080").unwrap_err(), Some("RTX3080-10"));
        assert_eq!(find("Voodoo2").unwrap_err(), None);
    }

    #[test]
    fn a_drivers_name_is_that_of_one_card_or_none() {
        for (name, want) in [
            ("NVIDIA GeForce RTX 4090", Some("RTX4090")),
            ("NVIDIA H100 80GB HBM3", Some("H100")),
            ("NVIDIA A100-SXM4-80GB", Some("A100-80")),
            ("NVIDIA H200", Some("H200")),
            ("NVIDIA GeForce RTX 4090 D", None),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA H100 PCIe", None),
        ] {
            assert_eq!(of_driver(name).map(|(name, _)| name), want, "{name}");
        }
    }

    #[test]
    fn a_slot_carries_what_its_generation_says() {
        let of = |generation, lanes| Pcie { generation, lanes }.gb_s();
        assert!((of(4, 16) - 31.5).abs() < 0.1 && (of(5, 16) - 63.0).abs() < 0.1);
        assert!((of(4, 8) - 15.75).abs() < 0.1 && (of(3, 16) - 15.75).abs() < 0.1);
    }

    #[test]
    fn a_catalogue_with_a_slip_is_refused_with_its_line() {
        let wrong = TEXT.replacen("memory_gib: 12", "memory_gb: 12", 1);
        let error = read(&wrong).unwrap_err();
        assert!(error.contains("RTX3060.memory_gb: unknown key"), "{error}");
    }
}
