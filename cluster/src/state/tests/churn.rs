//! An hour of rigs that come, go, join and are expelled, of jobs and of tokens: what is kept has an end.

use super::*;

/// Rigs at a time.
const RIGS: u64 = 100;

/// How long certificates are good, in seconds: much is over within the hour.
const LIFE: u64 = 600;

struct Churn {
    harbour: Harbour,
    /// As a store would hold it.
    kept: BTreeMap<Key, Vec<u8>>,
    here: BTreeMap<u64, SessionId>,
    next_rig: u64,
    second: u64,
}

impl Churn {
    fn new() -> Self {
        let mut churn = Self {
            harbour: Harbour::new(),
            kept: BTreeMap::new(),
            here: BTreeMap::new(),
            next_rig: 0,
            second: 0,
        };
        for _ in 0..RIGS {
            churn.joins();
        }
        churn
    }

    fn joins(&mut self) {
        let rig = self.next_rig;
        self.next_rig += 1;
        self.gets_a_certificate(rig);
        let session = self.harbour.comes(&format!("rig-{rig}"));
        self.here.insert(rig, session);
    }

    fn gets_a_certificate(&mut self, rig: u64) {
        let (name, serial) = (format!("rig-{rig}"), format!("{rig}-{}", self.second));
        let until = self.second + LIFE;
        self.harbour.cluster.rig_has(&name, (&serial, until), self.second).unwrap();
    }

    fn ask(&mut self, ask: &Ask) {
        self.harbour.cluster.ask(ask, self.second);
    }

    /// What one second brings.
    fn goes_on(&mut self) {
        self.second += 1;
        let second = self.second;
        for session in self.here.values() {
            self.harbour.cluster.rig_says(*session, FromRig::Heartbeat { disk_free_mb: second });
        }
        // One loses its connection and comes back with another; every ten minutes all have renewed.
        let of_now: Vec<u64> =
            self.here.keys().copied().filter(|rig| rig % 200 == second % 200).collect();
        for rig in of_now {
            self.gets_a_certificate(rig);
            self.harbour.cluster.rig_gone(self.here[&rig], "the cable");
            let session = self.harbour.comes(&format!("rig-{rig}"));
            self.here.insert(rig, session);
        }
        if second.is_multiple_of(10) {
            let (rig, _) = self.here.pop_first().unwrap();
            self.ask(&Ask::Expel { rig: format!("rig-{rig}") });
            self.joins();
            self.a_job(&format!("job-{second}"));
        }
        if second.is_multiple_of(20) {
            let token = TokenRecord {
                hash: String::new(),
                role: "worker".into(),
                uses_left: 1,
                expires: second + LIFE,
            };
            self.harbour.cluster.add_token(&format!("token-{second}"), token, second).unwrap();
        }
        self.harbour.wait(1_000);
        self.write();
    }

    /// One that runs for a moment, on all rigs that it can have.
    fn a_job(&mut self, name: &str) {
        self.harbour.apply(job(name, 4, 1));
        self.harbour.wait(SETTLE_MS);
        self.harbour.opens(name);
        let end = if self.second.is_multiple_of(30) {
            LaunchEnd::Failed("it has no luck".to_owned())
        } else {
            LaunchEnd::Finished
        };
        self.harbour.cluster.launcher_says(name, FromLauncher::Ended(end));
    }

    fn write(&mut self) {
        let (changed, _) = self.harbour.cluster.take();
        for key in changed {
            match self.harbour.cluster.value(&key) {
                Some(value) => drop(self.kept.insert(key, value)),
                None => drop(self.kept.remove(&key)),
            }
        }
    }

    /// Everything that could grow: entries of each map, and bytes of the store.
    fn footprint(&self) -> Vec<(&'static str, usize)> {
        let cluster = &self.harbour.cluster;
        let certificates = cluster.rigs.values().map(|rig| rig.certificates.len()).sum();
        vec![
            ("rigs", cluster.rigs.len()),
            ("certificates", certificates),
            ("jobs", cluster.jobs.len()),
            ("tokens", cluster.tokens.len()),
            ("denied", cluster.denied.len()),
            ("sessions", cluster.sessions.len()),
            ("away", cluster.away_since_ms.len()),
            ("heard", cluster.heard_ms.len()),
            ("awaited", cluster.awaited_until_ms.len()),
            ("launchers lost", cluster.launchers_lost_ms.len()),
            ("effects", cluster.effects.len()),
            ("records", self.kept.len()),
            ("bytes", self.kept.values().map(Vec::len).sum()),
        ]
    }
}

#[test]
fn what_is_kept_does_not_grow_in_an_hour_of_churn() {
    let mut churn = Churn::new();
    // By then as many jobs are over as are remembered, and certificates and tokens of the beginning are past.
    while churn.second < 2_400 {
        churn.goes_on();
    }
    let before = churn.footprint();
    while churn.second < 3_600 {
        churn.goes_on();
    }
    let after = churn.footprint();
    assert!(churn.next_rig > 2 * RIGS, "many have joined");
    for ((what, before), (_, after)) in before.into_iter().zip(after) {
        assert!(
            after <= before + before / 20 + 2,
            "{what}: {before} after 40 minutes, {after} after an hour"
        );
    }
}

#[test]
fn a_rig_that_nobody_has_seen_for_long_is_forgotten_and_its_name_is_free() {
    const DAY: u64 = 24 * 3600;
    let mut harbour = Harbour::new();
    for (rig, serial) in [("gone", "01"), ("here", "02")] {
        harbour.cluster.rig_has(rig, (serial, DAY), 0).unwrap();
    }
    let gone = harbour.comes("gone");
    harbour.comes("here");
    harbour.cluster.rig_gone(gone, "sold");
    harbour.cluster.rig_has("new", ("03", 2 * DAY), 30 * DAY).unwrap();
    assert!(harbour.cluster.rig("gone").is_some(), "its certificate was good until 29 days ago");
    harbour.cluster.rig_has("newer", ("04", 40 * DAY), 32 * DAY).unwrap();
    assert!(harbour.cluster.rig("gone").is_none());
    assert!(
        harbour.cluster.rig("here").is_some(),
        "it is here still, whatever its certificate says"
    );
}
