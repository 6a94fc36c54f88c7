//! The GPUs: driver, cards, and the libraries that people look for.

use std::fs;

use shoal_worker::devices::{Card, DeviceError, Served};

use super::finding::{Finding, Group};
use super::libraries::{self, Library};
use crate::progress::short;

/// A card that cells fit on beside a desktop.
const FREE_WANTED: u64 = 2_000_000_000;
const FREE_NEEDED: u64 = 500_000_000;

/// NVIDIA's number among makers of cards.
const MAKER: &str = "0x10de";

/// A card, or why it cannot be used.
type Looked = Result<(Card, Served), DeviceError>;

/// What there is of GPUs.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Gpus {
    /// Each card; or why there is no driver.
    pub(super) cards: Result<Vec<Looked>, DeviceError>,
    /// The release of the kernel's part of the driver.
    pub(super) release: Option<String>,
    /// A card of NVIDIA's on this machine's buses, whatever the driver says.
    pub(super) is_on_bus: bool,
    pub(super) libraries: Vec<Library>,
}

impl Gpus {
    pub(super) fn here() -> Self {
        let served = |card: Result<Card, _>| {
            card.and_then(|card| Ok((Served::look(card.ordinal)?, card)))
                .map(|(served, card)| (card, served))
        };
        Self {
            cards: Card::all().map(|cards| cards.into_iter().map(served).collect()),
            release: release(),
            is_on_bus: is_on_bus(),
            libraries: libraries::here(),
        }
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.driver()];
        for (ordinal, card) in self.cards.iter().flatten().enumerate() {
            findings.push(card_finding(ordinal, card));
        }
        findings.extend(self.libraries.iter().map(Library::finding));
        findings
    }

    fn driver(&self) -> Finding {
        let release = self
            .release
            .as_ref()
            .map_or_else(String::new, |release| format!("release {release}, "));
        match &self.cards {
            Ok(cards) if cards.is_empty() => Group::Gpu.warning(
                "driver",
                format!("{release}no GPU that it shows to this process"),
                "unset CUDA_VISIBLE_DEVICES; in a container, start it with --gpus all",
            ),
            Ok(cards) => {
                let cuda = cards.iter().flatten().next().map(|(_, served)| format!("CUDA {}", served.cuda));
                let cuda = cuda.unwrap_or_else(|| "no card that can be used".to_owned());
                Group::Gpu.ok("driver", format!("{release}{cuda}"))
            }
            Err(DeviceError::NoDriver) if self.is_on_bus => Group::Gpu.warning(
                "driver",
                "there is a card of NVIDIA's and no libcuda.so: cells are computed on the CPU",
                "install NVIDIA's driver (apt install nvidia-driver); in a container, start it with --gpus all",
            ),
            Err(DeviceError::NoDriver) => {
                Group::Gpu.ok("driver", "none, and no card of NVIDIA's: cells are computed on the CPU")
            }
            Err(error) => Group::Gpu.problem(
                "driver",
                format!("{release}{error}"),
                "install a newer driver and restart the machine: libcuda.so and the kernel's module are to be of one release",
            ),
        }
    }
}

fn card_finding(ordinal: usize, card: &Looked) -> Finding {
    let what = format!("card {ordinal}");
    match card {
        Ok((card, served)) => {
            let gb = |bytes: usize| format!("{}B", short(bytes as f64));
            let (major, minor) = served.capability;
            let fact = format!(
                "{}, {} of {} free, compute capability {major}.{minor}, runs the PTX for {}",
                card.name,
                gb(card.free_bytes),
                gb(card.memory_bytes),
                served.image
            );
            let of = (card.free_bytes as u64, FREE_WANTED, FREE_NEEDED);
            let mend = "nvidia-smi shows who has its memory: end that, or wait";
            Group::Gpu.at_least(&what, of, fact, mend)
        }
        // The others can be used, and nothing makes this one younger.
        Err(error @ DeviceError::CardTooOld { .. }) => {
            let mend = "leave it out: CUDA_VISIBLE_DEVICES names the cards to use; cells are computed on the CPU otherwise";
            Group::Gpu.warning(&what, error.to_string(), mend)
        }
        Err(error @ DeviceError::InUse { .. }) => {
            Group::Gpu.problem(&what, error.to_string(), "nvidia-smi -c 0")
        }
        Err(error @ DeviceError::DriverTooOld { release, .. }) => {
            let mend = format!("install NVIDIA's driver of release {release} or newer");
            Group::Gpu.problem(&what, error.to_string(), mend)
        }
        Err(error) => {
            let mend = "nvidia-smi, and dmesg | grep NVRM, say more; a restart of the machine helps a card that is lost";
            Group::Gpu.problem(&what, error.to_string(), mend)
        }
    }
}

fn release() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    release_in(&text)
}

/// The first word that is a number with dots: `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  ...`.
fn release_in(text: &str) -> Option<String> {
    let is_release = |word: &&str| {
        word.contains('.')
            && word
                .split('.')
                .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
    };
    text.lines().next()?.split_whitespace().find(is_release).map(str::to_owned)
}

fn is_on_bus() -> bool {
    let devices = fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten();
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap_or_default();
    // Class 3 is what shows pictures or could.
    devices.into_iter().any(|device| {
        read(device.path().join("vendor")).trim() == MAKER
            && read(device.path().join("class")).starts_with("0x03")
    })
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn none() -> Gpus {
        Gpus {
            cards: Err(DeviceError::NoDriver),
            release: None,
            is_on_bus: false,
            libraries: Vec::new(),
        }
    }

    fn card(free_bytes: usize) -> (Card, Served) {
        let card =
            Card { ordinal: 0, name: "GeForce".into(), memory_bytes: 24_000_000_000, free_bytes };
        (card, Served { cuda: "12.8".into(), capability: (8, 9), image: "sm_89".into() })
    }

    fn with(cards: Vec<Looked>) -> Vec<Finding> {
        Gpus { cards: Ok(cards), release: Some("570.1".into()), ..none() }.findings()
    }

    #[test]
    fn a_machine_without_a_card_is_well_and_one_with_a_card_and_no_driver_is_not() {
        assert_eq!(none().findings()[0].level, Level::Ok);
        let found = Gpus { is_on_bus: true, ..none() }.findings().remove(0);
        assert!(found.level == Level::Warning && found.mend.unwrap().contains("--gpus all"));
        let old =
            DeviceError::Driver { call: "cuInit", code: "803".into(), text: "mismatch".into() };
        let found = Gpus { cards: Err(old), ..none() }.findings().remove(0);
        assert!(found.level == Level::Problem && found.fact.contains("803"), "{found:?}");
        assert_eq!(with(Vec::new())[0].level, Level::Warning);
    }

    #[test]
    fn a_card_says_what_it_runs_and_a_full_one_is_named() {
        let found = with(vec![Ok(card(20_000_000_000))]);
        assert_eq!(found[0].fact, "release 570.1, CUDA 12.8");
        assert!(
            found[1].level == Level::Ok
                && found[1].fact.contains("8.9")
                && found[1].fact.contains("sm_89")
        );
        assert_eq!(with(vec![Ok(card(1_000_000_000))])[1].level, Level::Warning);
        assert_eq!(with(vec![Ok(card(1_000_000))])[1].level, Level::Problem);
    }

    #[test]
    fn a_card_that_is_refused_says_why_and_what_helps() {
        let name = || "Old".to_owned();
        let old = DeviceError::CardTooOld { ordinal: 1, name: name(), capability: (6, 1) };
        let used = DeviceError::InUse { ordinal: 2, name: name(), mode: "exclusive process" };
        let found = with(vec![Ok(card(20_000_000_000)), Err(old), Err(used)]);
        assert!(found[2].level == Level::Warning && found[2].fact.contains("6.1"), "{found:?}");
        assert!(
            found[3].level == Level::Problem && found[3].mend.as_deref() == Some("nvidia-smi -c 0")
        );
    }

    #[test]
    fn the_release_is_read_from_the_kernels_words() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22\nGCC version: 12.3.0\n";
        assert_eq!(release_in(text).as_deref(), Some("550.54.14"));
        assert_eq!(release_in("nothing"), None);
    }
}
