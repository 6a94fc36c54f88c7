//! What NVIDIA's driver says of this machine's GPUs, through its library NVML.
//!
//! Every figure is optional: GeForce cards, WSL2 and older drivers each lack some, and what is not
//! answered is not shown. A thread of its own asks: a driver that hangs must stop neither a heartbeat
//! nor a scrape. Every worker of a machine shows all its GPUs; `uuid` tells them apart.

use std::thread;
use std::time::Duration;

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::{Device, Nvml};
use prometheus::{GaugeVec, Opts, Registry, Result};

/// Between two looks. A look takes the driver milliseconds.
const EVERY: Duration = Duration::from_secs(2);

const LABELS: [&str; 2] = ["gpu", "uuid"];

/// One GPU at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reading {
    uuid: String,
    name: Option<String>,
    /// Share of the last moments in which a kernel ran, and in which memory was read or written.
    utilization: Option<(f64, f64)>,
    /// Used and total bytes.
    memory: Option<(f64, f64)>,
    celsius: Option<f64>,
    watts: Option<f64>,
    watts_limit: Option<f64>,
    joules: Option<f64>,
    sm_hertz: Option<f64>,
    memory_hertz: Option<f64>,
    throttled: Option<ThrottleReasons>,
    pcie_replays: Option<f64>,
}

/// The reasons for lower clocks that say something is wrong, by name. An idle card and one whose
/// owner has set its clocks are well.
const REASONS: [(&str, ThrottleReasons); 5] = [
    ("sw_power_cap", ThrottleReasons::SW_POWER_CAP),
    ("sw_thermal", ThrottleReasons::SW_THERMAL_SLOWDOWN),
    ("hw_slowdown", ThrottleReasons::HW_SLOWDOWN),
    ("hw_thermal", ThrottleReasons::HW_THERMAL_SLOWDOWN),
    ("hw_power_brake", ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN),
];

/// Asks from now on, until the process ends. Without a driver nothing is registered.
pub(super) fn watch(registry: &Registry) -> Result<()> {
    let nvml = match Nvml::init() {
        Ok(nvml) => nvml,
        Err(error) => {
            tracing::debug!(%error, "no NVML: no metrics of GPUs");
            return Ok(());
        }
    };
    let gauges = Gauges::new(registry)?;
    thread::spawn(move || {
        loop {
            for gpu in 0..nvml.device_count().unwrap_or(0) {
                if let Ok(device) = nvml.device_by_index(gpu) {
                    gauges.show(gpu, &Reading::of(&device));
                }
            }
            pause();
        }
    });
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the thread does nothing else, and nobody waits for it"
)]
fn pause() {
    thread::sleep(EVERY);
}

impl Reading {
    fn of(device: &Device<'_>) -> Self {
        let milli = |value: u32| f64::from(value) / 1e3;
        let mega = |value: u32| f64::from(value) * 1e6;
        let percent = |value: u32| f64::from(value) / 1e2;
        Self {
            uuid: device.uuid().unwrap_or_default(),
            name: device.name().ok(),
            utilization: device
                .utilization_rates()
                .ok()
                .map(|rates| (percent(rates.gpu), percent(rates.memory))),
            memory: device.memory_info().ok().map(|info| (info.used as f64, info.total as f64)),
            celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
            watts: device.power_usage().ok().map(milli),
            watts_limit: device.enforced_power_limit().ok().map(milli),
            joules: device
                .total_energy_consumption()
                .ok()
                .map(|millijoules| millijoules as f64 / 1e3),
            sm_hertz: device.clock_info(Clock::SM).ok().map(mega),
            memory_hertz: device.clock_info(Clock::Memory).ok().map(mega),
            throttled: device.current_throttle_reasons().ok(),
            pcie_replays: device.pcie_replay_counter().ok().map(f64::from),
        }
    }
}

/// What stands in the registry.
struct Gauges {
    info: GaugeVec,
    utilization: GaugeVec,
    memory_utilization: GaugeVec,
    memory_used: GaugeVec,
    memory_total: GaugeVec,
    temperature: GaugeVec,
    power: GaugeVec,
    power_limit: GaugeVec,
    energy: Counted,
    clock: GaugeVec,
    throttle: GaugeVec,
    replays: Counted,
}

/// A counter that somebody else counts: what it has grown by since the last look is added.
struct Counted(prometheus::CounterVec);

impl Counted {
    fn new(registry: &Registry, name: &str, help: &str) -> Result<Self> {
        let counter = prometheus::CounterVec::new(Opts::new(name, help), &LABELS)?;
        registry.register(Box::new(counter.clone()))?;
        Ok(Self(counter))
    }

    fn is(&self, labels: &[&str; 2], value: f64) {
        let counter = self.0.with_label_values(labels);
        let grown = value - counter.get();
        if grown < 0.0 {
            // Anew after the driver was loaded again: a reset that Prometheus understands.
            counter.reset();
        }
        counter.inc_by(value - counter.get());
    }
}

impl Gauges {
    fn new(registry: &Registry) -> Result<Self> {
        let gauges = |name: &str, help: &str, more: &[&str]| {
            let labels = [&LABELS[..], more].concat();
            let gauges = GaugeVec::new(Opts::new(name, help), &labels)?;
            registry.register(Box::new(gauges.clone()))?;
            Ok::<_, prometheus::Error>(gauges)
        };
        Ok(Self {
            info: gauges("shoal_gpu_info", "Which card this is.", &["name"])?,
            utilization: gauges(
                "shoal_gpu_utilization_ratio",
                "Share of the last moments in which a kernel ran.",
                &[],
            )?,
            memory_utilization: gauges(
                "shoal_gpu_memory_utilization_ratio",
                "Share of the last moments in which its memory was read or written.",
                &[],
            )?,
            memory_used: gauges("shoal_gpu_memory_used_bytes", "Memory in use by anybody.", &[])?,
            memory_total: gauges("shoal_gpu_memory_total_bytes", "Its memory.", &[])?,
            temperature: gauges("shoal_gpu_temperature_celsius", "Of the chip.", &[])?,
            power: gauges("shoal_gpu_power_watts", "What the card draws.", &[])?,
            power_limit: gauges("shoal_gpu_power_limit_watts", "What it may draw.", &[])?,
            energy: Counted::new(
                registry,
                "shoal_gpu_energy_joules_total",
                "Energy since the driver was loaded.",
            )?,
            clock: gauges("shoal_gpu_clock_hertz", "Clocks.", &["domain"])?,
            throttle: gauges(
                "shoal_gpu_throttle_active",
                "1 while the clocks are lowered for this reason.",
                &["reason"],
            )?,
            replays: Counted::new(
                registry,
                "shoal_gpu_pcie_replays_total",
                "Packets sent again over PCIe since the driver was loaded.",
            )?,
        })
    }

    fn show(&self, gpu: u32, reading: &Reading) {
        let gpu = gpu.to_string();
        let labels = [&*gpu, &*reading.uuid];
        let set = |gauge: &GaugeVec, value: Option<f64>| {
            if let Some(value) = value {
                gauge.with_label_values(&labels).set(value);
            }
        };
        if let Some(name) = &reading.name {
            self.info.with_label_values(&[labels[0], labels[1], name]).set(1.0);
        }
        set(&self.utilization, reading.utilization.map(|(kernels, _)| kernels));
        set(&self.memory_utilization, reading.utilization.map(|(_, memory)| memory));
        set(&self.memory_used, reading.memory.map(|(used, _)| used));
        set(&self.memory_total, reading.memory.map(|(_, total)| total));
        set(&self.temperature, reading.celsius);
        set(&self.power, reading.watts);
        set(&self.power_limit, reading.watts_limit);
        for (domain, hertz) in [("sm", reading.sm_hertz), ("memory", reading.memory_hertz)] {
            if let Some(hertz) = hertz {
                self.clock.with_label_values(&[labels[0], labels[1], domain]).set(hertz);
            }
        }
        if let Some(now) = reading.throttled {
            for (reason, bit) in REASONS {
                let active = f64::from(u8::from(now.contains(bit)));
                self.throttle.with_label_values(&[labels[0], labels[1], reason]).set(active);
            }
        }
        if let Some(joules) = reading.joules {
            self.energy.is(&labels, joules);
        }
        if let Some(replays) = reading.pcie_replays {
            self.replays.is(&labels, replays);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use prometheus::{Encoder, TextEncoder};

    use super::*;

    fn text(registry: &Registry) -> String {
        let mut text = Vec::new();
        TextEncoder::new().encode(&registry.gather(), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn full() -> Reading {
        Reading {
            uuid: "GPU-1".into(),
            name: Some("RTX 4090".into()),
            utilization: Some((0.97, 0.5)),
            memory: Some((20e9, 24e9)),
            celsius: Some(71.0),
            watts: Some(430.5),
            watts_limit: Some(450.0),
            joules: Some(1000.0),
            sm_hertz: Some(2.52e9),
            memory_hertz: Some(10.5e9),
            throttled: Some(ThrottleReasons::SW_POWER_CAP),
            pcie_replays: Some(3.0),
        }
    }

    #[test]
    fn a_card_that_answers_everything_shows_every_documented_metric() {
        let registry = Registry::new();
        Gauges::new(&registry).unwrap().show(0, &full());
        let text = text(&registry);
        for wanted in [
            "shoal_gpu_utilization_ratio{gpu=\"0\",uuid=\"GPU-1\"} 0.97",
            "shoal_gpu_throttle_active{gpu=\"0\",reason=\"sw_power_cap\",uuid=\"GPU-1\"} 1",
            "shoal_gpu_throttle_active{gpu=\"0\",reason=\"hw_thermal\",uuid=\"GPU-1\"} 0",
            "shoal_gpu_clock_hertz{domain=\"sm\",gpu=\"0\",uuid=\"GPU-1\"} 2520000000",
            "shoal_gpu_pcie_replays_total{gpu=\"0\",uuid=\"GPU-1\"} 3",
        ] {
            assert!(text.contains(wanted), "want {wanted} in:\n{text}");
        }
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
        let page = fs::read_to_string(page).unwrap();
        let rows = page.lines().filter_map(|line| line.strip_prefix("| `shoal_gpu_"));
        let documented: BTreeSet<&str> = rows.map(|row| row.split('`').next().unwrap()).collect();
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE shoal_gpu_"));
        let shown: BTreeSet<&str> = types.map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(documented, shown);
    }

    #[test]
    fn what_a_card_does_not_answer_is_not_shown() {
        let registry = Registry::new();
        let reading = Reading { uuid: "GPU-2".into(), watts: Some(30.0), ..Reading::default() };
        Gauges::new(&registry).unwrap().show(1, &reading);
        let text = text(&registry);
        let series: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(series, ["shoal_gpu_power_watts{gpu=\"1\",uuid=\"GPU-2\"} 30"]);
    }

    #[test]
    fn a_driver_that_counts_anew_resets_the_counter() {
        let registry = Registry::new();
        let gauges = Gauges::new(&registry).unwrap();
        for (joules, shown) in [(1000.0, "1000"), (1500.0, "1500"), (20.0, "20")] {
            gauges.show(0, &Reading { joules: Some(joules), ..full() });
            let wanted =
                format!("shoal_gpu_energy_joules_total{{gpu=\"0\",uuid=\"GPU-1\"}} {shown}");
            assert!(text(&registry).contains(&wanted), "{wanted}");
        }
    }
}
