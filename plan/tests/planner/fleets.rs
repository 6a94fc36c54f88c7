//! Thirty fleets out of seeds, and jobs of a size that may fit them: what `docs/planner.md` reports on.

use shoal_plan::fleet::{Fleet, Rig, Site, SiteLink};
use shoal_plan::job::Job;
use shoal_plan::manifest::parse;

/// Numbers without a pattern.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u64) as usize]
    }
}

/// Two to sixteen rigs of one to four gaming cards, mostly mixed, on 1 to 25 Gbit/s; every third fleet at two sites.
pub(crate) fn random(seed: u64) -> Fleet {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed);
    let gpus =
        ["RTX3060", "RTX3080-12", "RTX3090", "RTX4070", "RTX4080", "RTX4090", "RTX5080", "RTX5090"];
    let n = 2 + random.below(15);
    let rate = |text: &str| text.parse().expect("a rate");
    let network = random.one_of(&["1Gbit/s", "10Gbit/s", "10Gbit/s", "25Gbit/s"]);
    let two_sites = seed.is_multiple_of(3);
    let mut rigs = Vec::new();
    for i in 0..n {
        let mut rig =
            Rig::new(&format!("rig-{i}"), random.one_of(&gpus), random.one_of(&[1, 1, 2, 2, 4]));
        rig.nic = rate(network);
        if two_sites && i % 2 == 1 {
            "away".clone_into(&mut rig.site);
        }
        rigs.push(rig);
    }
    let mut fleet = Fleet::of(rigs);
    if two_sites {
        fleet.sites.insert("away".to_owned(), Site::default());
        let between = vec!["home".to_owned(), "away".to_owned()];
        fleet.links.push(SiteLink { between, rate: rate("1Gbit/s"), rtt_ms: 10.0 });
    }
    fleet
}

/// Whether a fleet has cards of more than one kind.
pub(crate) fn is_mixed(fleet: &Fleet) -> bool {
    fleet.rigs.iter().any(|rig| rig.gpu != fleet.rigs[0].gpu)
}

/// Sizes of a model, from the largest, and the memory from which it is tried.
const SIZES: [(f64, &str); 3] = [
    (360.0, "moonlight"),
    (110.0, "{preset: moonlight, num_hidden_layers: 14, n_routed_experts: 32}"),
    (
        0.0,
        "{preset: moonlight, num_hidden_layers: 10, n_routed_experts: 16, hidden_size: 1024, vocab_size: 32768}",
    ),
];

/// The largest of three models that a fleet's memory invites.
pub(crate) fn job_for(fleet: &Fleet) -> Job {
    let memory: f64 =
        fleet.rigs.iter().map(|rig| f64::from(rig.gpus()) * rig.card().memory_gib).sum();
    let (_, model) = SIZES.iter().find(|(least, _)| memory >= *least).expect("the last takes all");
    job(model, 256, 4096)
}

/// A job in FP8 with a model, a batch and a sequence.
pub(crate) fn job(model: &str, batch: u32, sequence: u32) -> Job {
    job_in("fp8", model, batch, sequence)
}

/// The same in any precision.
pub(crate) fn job_in(precision: &str, model: &str, batch: u32, sequence: u32) -> Job {
    let text = format!(
        "{{apiVersion: shoal/v1, kind: Training, metadata: {{name: planned}}, spec: {{data: {{files: [x]}}, \
         model: {model}, training: {{batch: {batch}, sequence: {sequence}, precision: {precision}}}}}}}"
    );
    parse("planned.yaml", &text, &[], &|_| Err(std::io::ErrorKind::NotFound.into()))
        .expect("it is valid")
        .job
}
