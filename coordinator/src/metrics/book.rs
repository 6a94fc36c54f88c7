//! A registry that takes each metric in as it is made. Labels whose values are known beforehand stand
//! there from the start: a counter that appears with its first event hides that event from `rate`.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec,
    IntGauge, IntGaugeVec, Opts, Registry, Result,
};

/// A millisecond to a minute and a half: a tiny step on a laptop, a large one on slow links.
const BUCKETS_S: (f64, f64, usize) = (1e-3, 2.0, 17);

/// The registry of one process under construction.
pub struct Book(Registry);

impl Book {
    pub fn new(registry: &Registry) -> Self {
        Self(registry.clone())
    }

    /// What is made in another way than those below.
    pub fn take<T: Collector + Clone + 'static>(&self, metric: T) -> Result<T> {
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    pub fn counter(&self, name: &str, help: &str) -> Result<IntCounter> {
        self.take(IntCounter::new(name, help)?)
    }

    /// Of what is too much for 64 bits.
    pub fn large_counter(&self, name: &str, help: &str) -> Result<Counter> {
        self.take(Counter::new(name, help)?)
    }

    /// By a label with these values.
    pub fn counters(
        &self,
        name: &str,
        help: &str,
        (label, values): (&str, &[&str]),
    ) -> Result<IntCounterVec> {
        let counters = self.take(IntCounterVec::new(Opts::new(name, help), &[label])?)?;
        for value in values {
            counters.with_label_values(&[*value]);
        }
        Ok(counters)
    }

    pub fn gauge(&self, name: &str, help: &str) -> Result<Gauge> {
        self.take(Gauge::new(name, help)?)
    }

    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec> {
        self.take(GaugeVec::new(Opts::new(name, help), labels)?)
    }

    pub fn integer(&self, name: &str, help: &str) -> Result<IntGauge> {
        self.take(IntGauge::new(name, help)?)
    }

    pub fn integers(&self, name: &str, help: &str, label: &str) -> Result<IntGaugeVec> {
        self.take(IntGaugeVec::new(Opts::new(name, help), &[label])?)
    }

    pub fn seconds(&self, name: &str, help: &str) -> Result<Histogram> {
        self.take(Histogram::with_opts(durations(name, help)?)?)
    }

    pub fn seconds_by(&self, name: &str, help: &str, label: &str) -> Result<HistogramVec> {
        self.take(HistogramVec::new(durations(name, help)?, &[label])?)
    }

    /// A gauge that is 1, for the sake of its labels.
    pub fn fact(&self, name: &str, help: &str, labels: &[(&str, String)]) -> Result<()> {
        let opts = labels
            .iter()
            .fold(Opts::new(name, help), |opts, (label, value)| opts.const_label(*label, value));
        self.take(IntGauge::with_opts(opts)?)?.set(1);
        Ok(())
    }
}

fn durations(name: &str, help: &str) -> Result<HistogramOpts> {
    let (start, factor, count) = BUCKETS_S;
    let buckets = prometheus::exponential_buckets(start, factor, count)?;
    Ok(HistogramOpts::new(name, help).buckets(buckets))
}
