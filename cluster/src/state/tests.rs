//! Rigs come and go, jobs wait and end: what is decided about it.

use shoal_plan::grid::Grid;

use super::*;
use crate::words::{Answer, Ask, RigIs};

mod churn;
mod meetings;

/// A cluster, and the clock that it is told.
struct Harbour {
    cluster: Cluster,
    now_ms: u64,
    sessions: u64,
    effects: Vec<Effect>,
}

fn facts() -> Facts {
    Facts { cores: 4, ..Facts::default() }
}

fn job(name: &str, cells: u32, min: u32) -> Job {
    let mut job = Job::example();
    job.name = name.to_owned();
    job.grid = Grid { stages: cells, expert_shards: 1, replicas: 1 };
    (job.workers.local, job.workers.min) = (cells, min);
    job
}

impl Harbour {
    fn new() -> Self {
        let mut harbour = Self {
            cluster: Cluster::new(Known::default()),
            now_ms: 0,
            sessions: 0,
            effects: Vec::new(),
        };
        harbour.wait(1);
        harbour
    }

    /// Everything that is to be done, since the last call.
    fn take(&mut self) -> Vec<Effect> {
        let (_, effects) = self.cluster.take();
        self.effects.extend(effects);
        std::mem::take(&mut self.effects)
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.cluster.tick(self.now_ms);
    }

    /// Time passes, and these rigs say that they live.
    fn live(&mut self, seconds: u64, rigs: &[SessionId]) {
        for _ in 0..seconds {
            for rig in rigs {
                self.cluster.rig_says(*rig, FromRig::Heartbeat { disk_free_mb: 1 });
            }
            self.wait(1_000);
        }
    }

    fn comes(&mut self, rig: &str) -> SessionId {
        self.comes_running(rig, Vec::new())
    }

    fn comes_running(&mut self, rig: &str, running: Vec<Post>) -> SessionId {
        self.sessions += 1;
        let session = SessionId(self.sessions);
        self.cluster.rig_came(session, rig, facts(), running);
        session
    }

    fn apply(&mut self, job: Job) -> Answer {
        let manifest = Manifest {
            file: "job.yaml".into(),
            directory: "/".into(),
            text: String::new(),
            overrides: vec![],
            dry_run: false,
        };
        self.cluster.apply(manifest, job)
    }

    fn opens(&mut self, name: &str) {
        let opened = Opened {
            run: RunId(format!("run-{name}")),
            secret: "5e".into(),
            address: "127.0.0.1:1".parse().unwrap(),
            files: Vec::new(),
        };
        self.cluster.launcher_says(name, FromLauncher::Open(Box::new(opened)));
    }

    fn seats(&self, name: &str) -> Vec<(u32, String)> {
        let job = self.cluster.job(name).unwrap();
        job.seats.iter().map(|(worker, rig)| (worker.0, rig.clone())).collect()
    }

    fn phase(&self, name: &str) -> JobPhase {
        self.cluster.job(name).unwrap().phase
    }
}

fn starts(effects: &[Effect]) -> Vec<(SessionId, u32)> {
    let start = |effect: &Effect| {
        let Effect::Tell { session, message: ToRig::Start(order) } = effect else { return None };
        Some((*session, order.post.worker.0))
    };
    effects.iter().filter_map(start).collect()
}

fn post(name: &str, worker: u32) -> Post {
    Post { run: RunId(format!("run-{name}")), worker: WorkerId(worker) }
}

#[test]
fn a_job_waits_for_rigs_settles_starts_and_gives_each_a_seat() {
    let mut harbour = Harbour::new();
    harbour.apply(job("a", 4, 2));
    assert_eq!(harbour.phase("a"), JobPhase::Queued);
    let why = |harbour: &Harbour| harbour.cluster.job("a").unwrap().why.clone().unwrap();
    assert_eq!(why(&harbour), "it needs 2 free rigs and there are 0");
    let b = harbour.comes("b");
    let a = harbour.comes("a");
    assert!(why(&harbour).contains("waiting a moment"), "{}", why(&harbour));
    harbour.live(SETTLE_MS / 1000 + 1, &[a, b]);
    let launched = harbour.take();
    let launch = Effect::Launch { job: "a".into(), most: 4, first: 2, nth: 1 };
    assert!(launched.contains(&launch), "{launched:?}");
    assert_eq!(harbour.seats("a"), [(0, "a".into()), (1, "b".into())]);
    assert!(starts(&launched).is_empty(), "nobody starts before the run's coordinator listens");
    harbour.opens("a");
    assert_eq!(starts(&harbour.take()), [(a, 0), (b, 1)]);
    // One that comes later helps.
    let c = harbour.comes("c");
    assert_eq!(starts(&harbour.take()), [(c, 2)]);
    assert_eq!(harbour.cluster.member("c", "run-a").map(|(_, worker)| worker), Some(WorkerId(2)));
    assert!(harbour.cluster.member("d", "run-a").is_none());
}

#[test]
fn enough_rigs_for_all_cells_need_no_settling_and_one_too_many_stays_free() {
    let mut harbour = Harbour::new();
    for rig in ["a", "b", "c"] {
        harbour.comes(rig);
    }
    harbour.apply(job("a", 2, 1));
    assert_eq!(harbour.phase("a"), JobPhase::Starting);
    harbour.apply(job("next", 1, 1));
    assert_eq!(harbour.seats("next"), [(0, "c".into())], "several jobs train side by side");
    harbour.apply(job("last", 1, 1));
    assert_eq!(harbour.phase("last"), JobPhase::Queued);
    harbour.cluster.launcher_says("a", FromLauncher::Ended(LaunchEnd::Finished));
    assert_eq!(
        (harbour.phase("a"), harbour.phase("last")),
        (JobPhase::Finished, JobPhase::Starting)
    );
}

#[test]
fn a_rig_that_is_away_keeps_its_seat_until_another_one_is_free_for_a_while() {
    let mut harbour = Harbour::new();
    let (a, b) = (harbour.comes("a"), harbour.comes("b"));
    harbour.apply(job("a", 2, 1));
    harbour.opens("a");
    harbour.take();
    harbour.live(LEASE_MS / 1000 + 2, &[b]);
    assert!(
        harbour
            .take()
            .iter()
            .any(|effect| matches!(effect, Effect::Close { session, .. } if *session == a))
    );
    harbour.live(SEAT_MS / 1000 + 5, &[b]);
    assert_eq!(harbour.seats("a").len(), 2, "nobody else is here");
    // It is back, and its process has lived on: nothing is to be done.
    let a = harbour.comes_running("a", vec![post("a", 0)]);
    assert!(starts(&harbour.take()).is_empty());
    harbour.live(LEASE_MS / 1000 + 2, &[b]);
    let c = harbour.comes("c");
    assert_eq!(harbour.seats("a")[0], (0, "a".into()));
    harbour.live(SEAT_MS / 1000, &[b, c]);
    let told = harbour.take();
    assert_eq!(harbour.seats("a"), [(0, "c".into()), (1, "b".into())]);
    assert_eq!(starts(&told), [(c, 0)]);
    // And what still runs on the one that comes too late is ended.
    let late = harbour.comes_running("a", vec![post("a", 0)]);
    let kill = Effect::Tell { session: late, message: ToRig::Kill { post: post("a", 0) } };
    assert!(harbour.take().contains(&kill), "{a:?}");
}

#[test]
fn ends_of_processes_are_the_launchers_business_and_a_worker_that_left_frees_its_rig() {
    let mut harbour = Harbour::new();
    let a = harbour.comes("a");
    harbour.apply(job("a", 1, 1));
    harbour.opens("a");
    harbour.take();
    let exited = |status| FromRig::Exited { post: post("a", 0), pid: 7, status };
    harbour.cluster.rig_says(a, exited(9));
    let message = ToLauncher::Exited { worker: WorkerId(0), pid: 7, status: 9 };
    assert_eq!(harbour.take(), [Effect::TellLauncher { job: "a".into(), message }]);
    harbour.cluster.launcher_says("a", FromLauncher::Start { worker: WorkerId(0) });
    assert_eq!(starts(&harbour.take()), [(a, 0)]);
    harbour.cluster.rig_says(a, exited(0));
    assert!(harbour.seats("a").is_empty());
    // A rig on which it dies all the time gets no more of it.
    harbour.wait(300);
    assert_eq!(harbour.seats("a").len(), 1);
    let why = "it died".to_owned();
    harbour.cluster.launcher_says("a", FromLauncher::GivenUp { worker: WorkerId(0), why });
    harbour.live(2, &[a]);
    assert!(harbour.seats("a").is_empty());
    let b = harbour.comes("b");
    assert_eq!(harbour.seats("a"), [(0, "b".into())], "{b:?}");
}

#[test]
fn a_launcher_that_is_lost_is_replaced_and_not_for_ever() {
    let mut harbour = Harbour::new();
    let a = harbour.comes("a");
    harbour.apply(job("a", 1, 1));
    for _ in 0..3 {
        assert_eq!(harbour.phase("a"), JobPhase::Starting);
        harbour.opens("a");
        harbour.cluster.launcher_lost("a", "exit status: 101");
        harbour.live(1, &[a]);
    }
    harbour.opens("a");
    harbour.cluster.launcher_lost("a", "exit status: 101");
    assert_eq!(harbour.phase("a"), JobPhase::Failed);
    assert!(harbour.cluster.job("a").unwrap().why.as_ref().unwrap().contains("lost 4 times"));
    let over = ToRig::Over { run: RunId("run-a".into()) };
    assert!(harbour.take().contains(&Effect::Tell { session: a, message: over }));
}

#[test]
fn after_a_restart_launchers_and_rigs_that_live_on_are_left_alone() {
    let mut before = Harbour::new();
    before.comes("a");
    before.apply(job("a", 1, 1));
    before.opens("a");
    let record = |cluster: &Cluster, key| cluster.value(&key).unwrap();
    let mut known = Known::default();
    let bytes = record(&before.cluster, Key::Job("a".into()));
    known.jobs.insert("a".into(), serde_json::from_slice(&bytes).unwrap());
    let bytes = record(&before.cluster, Key::Rig("a".into()));
    known.rigs.insert("a".into(), serde_json::from_slice(&bytes).unwrap());
    let again = |known: &Known| Known {
        rigs: known.rigs.clone(),
        jobs: known.jobs.clone(),
        ..Known::default()
    };

    let mut after = Harbour { cluster: Cluster::new(again(&known)), ..Harbour::new() };
    let a = after.comes_running("a", vec![post("a", 0)]);
    after.cluster.launcher_says("a", FromLauncher::Here { name: "a".into() });
    after.opens("a");
    after.live(REATTACH_MS / 1000 + 2, &[a]);
    assert_eq!(after.phase("a"), JobPhase::Running);
    let told = after.take();
    assert!(
        !told.iter().any(|effect| matches!(effect, Effect::Tell { .. } | Effect::Launch { .. })),
        "{told:?}"
    );

    // One whose launcher does not come back is launched anew.
    let mut after = Harbour { cluster: Cluster::new(known), ..Harbour::new() };
    let a = after.comes_running("a", vec![post("a", 0)]);
    after.live(REATTACH_MS / 1000 + 2, &[a]);
    let told = after.take();
    assert!(told.iter().any(|effect| matches!(effect, Effect::Launch { .. })), "{told:?}");
}

#[test]
fn applying_again_shows_what_differs_and_never_changes_a_run_under_way() {
    let mut harbour = Harbour::new();
    harbour.comes("a");
    harbour.apply(job("a", 1, 1));
    harbour.opens("a");
    let Answer::Applied { changes, what, .. } = harbour.apply(job("a", 1, 1)) else { panic!() };
    assert!(changes.is_empty() && what == "unchanged: it is running", "{what}");
    let mut longer = job("a", 1, 1);
    longer.training.steps += 10;
    let Answer::Refused(why) = harbour.apply(longer.clone()) else { panic!() };
    assert!(why.contains("spec.training.steps") && why.contains("`shoal stop a` first"), "{why}");
    harbour.cluster.launcher_says("a", FromLauncher::Ended(LaunchEnd::Finished));
    let Answer::Applied { changes, what, .. } = harbour.apply(longer) else { panic!() };
    assert_eq!(changes.len(), 1);
    assert!(what.starts_with("it was finished"), "{what}");
    assert_eq!(harbour.phase("a"), JobPhase::Starting);
}

#[test]
fn cordoned_and_expelled_rigs_get_nothing_and_leavers_are_not_waited_for() {
    let mut harbour = Harbour::new();
    let a = harbour.comes("a");
    harbour.comes("b");
    harbour.cluster.rig_has("b", ("past", 99), 0).unwrap();
    harbour.cluster.rig_has("b", ("0a", 150), 100).unwrap();
    harbour.cluster.rig_has("b", ("0b", 200), 100).unwrap();
    harbour.cluster.ask(&Ask::Cordon { rig: "a".into() }, 0);
    harbour.apply(job("a", 1, 1));
    assert_eq!(harbour.seats("a"), [(0, "b".into())]);
    harbour.opens("a");
    harbour.take();
    harbour.cluster.ask(&Ask::Expel { rig: "b".into() }, 100);
    assert!(harbour.cluster.denied().contains_key("0b") && harbour.cluster.rig("b").is_none());
    // The one before its last renewal, too: it is good still. What is past needs no denial.
    let denied: Vec<_> = harbour.cluster.denied().iter().collect();
    assert_eq!(denied, [(&"0a".to_owned(), &150), (&"0b".to_owned(), &200)]);
    assert!(harbour.seats("a").is_empty());
    harbour.cluster.ask(&Ask::Uncordon { rig: "a".into() }, 0);
    assert_eq!(harbour.seats("a"), [(0, "a".into())]);
    harbour.take();
    harbour.cluster.rig_says(a, FromRig::Started { post: post("a", 0), pid: 7 });
    harbour.cluster.rig_says(a, FromRig::Leaving { reason: "SIGTERM".into() });
    let leave = Effect::Tell { session: a, message: ToRig::Leave { post: post("a", 0) } };
    assert!(harbour.take().contains(&leave));
    harbour.cluster.rig_gone(a, "it hung up");
    assert!(harbour.seats("a").is_empty(), "it said that it goes");
    let Answer::Overview(overview) = harbour.cluster.ask(&Ask::Overview, 0) else { panic!() };
    assert_eq!(overview.rigs[0].is, RigIs::Away);
}

#[test]
fn a_token_has_an_end_and_so_many_uses_and_its_secret_is_looked_at_first() {
    let mut harbour = Harbour::new();
    let cluster = &mut harbour.cluster;
    let record = |uses_left, expires| TokenRecord {
        hash: "h".into(),
        role: "worker".into(),
        uses_left,
        expires,
    };
    cluster.add_token("t", record(2, 100), 0).unwrap();
    assert!(
        cluster.use_token("t", 50, |_| false).is_none()
            && cluster.use_token("x", 50, |_| true).is_none()
    );
    assert!(cluster.use_token("t", 50, |hash| hash == "h").is_some());
    assert!(cluster.use_token("t", 100, |_| true).is_none(), "it is over");
    assert!(cluster.use_token("t", 99, |_| true).is_some());
    assert!(cluster.use_token("t", 99, |_| true).is_none(), "it is used up");
    cluster.add_token("next", record(1, 100), 60).unwrap();
    assert!(cluster.token("t").is_none(), "what is over is forgotten");
    cluster.ask(&Ask::RevokeToken { id: "next".into() }, 60);
    assert!(cluster.use_token("next", 61, |_| true).is_none());
}

#[test]
fn jobs_that_are_over_are_forgotten_in_the_end() {
    let mut harbour = Harbour::new();
    harbour.comes("a");
    for n in 0..JOBS_KEPT + 3 {
        let name = format!("job-{n}");
        harbour.apply(job(&name, 1, 1));
        harbour.opens(&name);
        harbour.cluster.launcher_says(&name, FromLauncher::Ended(LaunchEnd::Finished));
    }
    assert_eq!(harbour.cluster.jobs().count(), JOBS_KEPT);
    assert!(harbour.cluster.job("job-0").is_none() && harbour.cluster.job("job-202").is_some());
}

#[test]
fn a_coordinator_that_goes_lets_runs_stop_and_they_go_on_with_the_next() {
    let mut harbour = Harbour::new();
    harbour.comes("a");
    harbour.apply(job("a", 1, 1));
    harbour.opens("a");
    harbour.take();
    harbour.cluster.rest();
    let stop = Effect::TellLauncher { job: "a".into(), message: ToLauncher::Stop };
    assert!(harbour.take().contains(&stop));
    harbour.cluster.launcher_says("a", FromLauncher::Ended(LaunchEnd::Stopped));
    harbour.wait(10_000);
    assert_eq!(harbour.phase("a"), JobPhase::Queued, "it waits for the next process");
    assert!(!harbour.take().iter().any(|effect| matches!(effect, Effect::Launch { .. })));
}

#[test]
fn a_run_is_taken_over_and_only_its_newest_launcher_counts() {
    let mut first = Harbour::new();
    first.cluster.is_at("a:1");
    first.comes("a");
    first.apply(job("a", 1, 1));
    first.opens("a");
    let nth = first.cluster.job("a").unwrap().launches;
    let record = serde_json::from_slice(&first.cluster.value(&Key::Job("a".into())).unwrap());
    let known = Known {
        jobs: [("a".to_owned(), record.unwrap())].into(),
        rigs: [("a".to_owned(), RigRecord::default())].into(),
        ..Known::default()
    };
    let mut after = Harbour { cluster: Cluster::new(known), ..Harbour::new() };
    after.cluster.is_at("b:2");
    assert!(after.cluster.is_newest("a", nth) && !after.cluster.is_newest("a", nth - 1));
    after.cluster.launcher_says("a", FromLauncher::Here { name: "a".into() });
    after.wait(60_000);
    assert_eq!(after.phase("a"), JobPhase::Running, "its launcher is there");
    // It is gone, and what it had reached is on its machine alone.
    after.cluster.launcher_away("a");
    let rig = after.comes("a");
    after.live(20, &[rig]);
    assert_eq!(after.phase("a"), JobPhase::Queued);
    let why = after.cluster.job("a").unwrap().why.clone().unwrap();
    assert!(why.contains("on the machine of the coordinator at a:1"), "{why}");
    after.take();
    // With a copy elsewhere another launcher goes on, and the one before counts no more.
    after.cluster.change_job("a").unwrap().job.checkpoint.store = Some("s3://copies".into());
    after.live(1, &[rig]);
    let launched = after.take();
    let launch = Effect::Launch { job: "a".into(), most: 1, first: 1, nth: nth + 1 };
    assert!(launched.contains(&launch), "{launched:?}");
    assert!(!after.cluster.is_newest("a", nth) && after.cluster.is_newest("a", nth + 1));
}

#[test]
fn a_launcher_that_comes_back_in_time_was_not_lost() {
    let mut harbour = Harbour::new();
    let rig = harbour.comes("a");
    harbour.apply(job("a", 1, 1));
    harbour.opens("a");
    harbour.cluster.launcher_away("a");
    harbour.live(8, &[rig]);
    harbour.cluster.launcher_says("a", FromLauncher::Here { name: "a".into() });
    harbour.live(30, &[rig]);
    assert_eq!(harbour.phase("a"), JobPhase::Running);
}
