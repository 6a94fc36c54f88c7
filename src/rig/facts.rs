//! What a rig says of its machine.

use std::fs;
use std::net::IpAddr;
use std::path::Path;

use shoal_cluster::words::{Facts, Gpu};
use shoal_plan::device::DeviceChoice;

use crate::devices::lent_cards;
use crate::preflight;

const MB: u64 = 1_000_000;

/// All that is known without measuring.
pub(crate) fn here((directory, lent): (&Path, &DeviceChoice), address: Option<IpAddr>) -> Facts {
    // A machine without a driver has no cards; a card that cannot be used is none.
    let cards = lent_cards(lent).unwrap_or_default();
    let gpus = cards
        .into_iter()
        .flatten()
        .map(|card| Gpu { name: card.name, memory_mb: card.memory_bytes as u64 / MB });
    Facts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        host: host(),
        cores: std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32),
        memory_mb: preflight::free_bytes().unwrap_or(0) / MB,
        disk_free_mb: disk_free_mb(directory),
        gpus: gpus.collect(),
        address,
        probe_port: None,
        relay_only: false,
    }
}

pub(crate) fn disk_free_mb(directory: &Path) -> u64 {
    let free = rustix::fs::statvfs(directory).map(|disk| disk.f_bavail * disk.f_frsize);
    free.unwrap_or(0) / MB
}

/// The machine's name, without what a rig's name may not have.
pub(crate) fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String = name.trim().chars().filter(|letter| plain(*letter)).take(63).collect();
    let name = name.trim_start_matches(['.', '-']).to_owned();
    if name.is_empty() { "rig".to_owned() } else { name }
}
