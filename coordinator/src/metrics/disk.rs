//! How full the disk of the run directory is, asked when somebody scrapes.

use std::path::PathBuf;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Registry, Result};
use rustix::fs::statvfs;

/// Where checkpoints go.
struct Disk {
    directory: PathBuf,
    available: IntGauge,
    size: IntGauge,
}

/// Registers the two gauges. A directory that cannot be asked about shows zeros.
pub(super) fn register(registry: &Registry, directory: PathBuf) -> Result<()> {
    let available = IntGauge::new(
        "shoal_disk_available_bytes",
        "Bytes that may still be written to the run directory's disk.",
    )?;
    let size = IntGauge::new("shoal_disk_size_bytes", "Size of the run directory's disk.")?;
    registry.register(Box::new(Disk { directory, available, size }))
}

impl Collector for Disk {
    fn desc(&self) -> Vec<&Desc> {
        [self.available.desc(), self.size.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Ok(disk) = statvfs(&self.directory) {
            let bytes = |blocks: u64| super::whole(blocks.saturating_mul(disk.f_frsize));
            self.available.set(bytes(disk.f_bavail));
            self.size.set(bytes(disk.f_blocks));
        }
        [self.available.collect(), self.size.collect()].concat()
    }
}
