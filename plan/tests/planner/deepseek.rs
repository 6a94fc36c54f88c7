//! DeepSeek-V3's pre-training as its report describes it (arXiv:2412.19437, sections 3.1, 3.2 and 4.2): 2048 H800,
//! 16 stages, experts over 64 cards of 8 machines, batches of 15360 sequences of 4096 tokens.

use shoal_plan::cost::Software;
use shoal_plan::fleet::{Fleet, Rig};
use shoal_plan::grid::Grid;
use shoal_plan::job::Job;
use shoal_plan::placement::make_plan;
use shoal_plan::plan::{Generation, WorkerId};
use shoal_plan::planner::{Candidate, Layout, Prediction, Question, predict};
use shoal_plan::schedule::Schedule;

/// "On each trillion tokens, 180K H800 GPU hours": section 1, table 1.
pub(crate) const PUBLISHED_GPU_HOURS: f64 = 180e3;

/// The cluster: 256 machines of eight cards, each with a port of 400 Gbit/s.
pub(crate) fn cluster() -> Fleet {
    let mut rig = Rig::new("h800", "H800", 8);
    (rig.machines, rig.rdma) = (256, true);
    rig.nic = "3200Gbit/s".parse().expect("a rate");
    (rig.host_watts, rig.rent_per_gpu_hour) = (2000.0, 2.0);
    Fleet::of(vec![rig])
}

/// The published parallelism. `Software::DEEPSEEK` runs it under `DualPipe`, whatever the schedule says here.
pub(crate) fn candidate(job: &Job) -> Candidate {
    let grid = Grid { stages: 16, expert_shards: 64, replicas: 2 };
    let balanced =
        make_plan(&Job { grid, ..job.clone() }, &[WorkerId(0)], Generation(1)).expect("it divides");
    Candidate {
        grid,
        schedule: Schedule::ZbH1,
        chunks: 1,
        microbatch: 1,
        layers: balanced.stages.iter().map(|stage| stage.layers.end - stage.layers.start).collect(),
        experts: vec![4; 64],
        shares: vec![120; 128],
        cards: (0..2048).collect(),
    }
}

/// The step, and H800 hours for 10^12 tokens.
pub(crate) fn prediction(job: &Job) -> (Prediction, f64) {
    let fleet = cluster();
    let question = Question { job, fleet: &fleet, software: Software::DEEPSEEK };
    let prediction = predict(&question, &Layout::of(&fleet), &candidate(job));
    let hours = 1e12 / prediction.tokens_per_s * 2048.0 / 3600.0;
    (prediction, hours)
}
