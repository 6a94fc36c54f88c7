//! Candidates over an etcd that is a few lines, on a clock that only the test moves.

use super::*;

const fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Leases end by this clock, as in etcd: counted from when the beat arrived.
#[derive(Default)]
struct Etcd {
    now: Duration,
    revision: u64,
    leases: Vec<(i64, Duration)>,
    leader: Option<Holder>,
    away: bool,
}

impl Etcd {
    fn pass(&mut self, time: Duration) {
        self.now += time;
        let now = self.now;
        self.leases.retain(|(_, until)| *until > now);
        let lives = |lease: i64| self.leases.iter().any(|(id, _)| *id == lease);
        if self.leader.as_ref().is_some_and(|holder| !lives(holder.lease)) {
            self.leader = None;
            self.revision += 1;
        }
    }

    /// One turn of a driver, up to its next wait. What it asks arrives `late`.
    fn turn(&mut self, candidate: &mut Election, name: &str, late: Duration) {
        for _ in 0..8 {
            let sent = self.now;
            let next = candidate.next(sent);
            if let Next::Wait(_) | Next::Over = next {
                return candidate.apply(sent, Event::Woken);
            }
            self.pass(late);
            let event = if self.away { Event::Unanswered } else { self.answer(next, sent, name) };
            let was_away = event == Event::Unanswered;
            candidate.apply(self.now, event);
            if was_away {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn answer(&mut self, next: Next, sent: Duration, name: &str) -> Event {
        self.revision += 1;
        match next {
            Next::Grant => {
                let lease = self.revision as i64;
                self.leases.push((lease, self.now + TTL));
                Event::Granted { lease, sent }
            }
            Next::Beat { lease } => {
                let now = self.now;
                let known = self.leases.iter_mut().find(|(id, _)| *id == lease);
                let lives = known.map(|(_, until)| *until = now + TTL).is_some();
                Event::Beaten { sent, lives }
            }
            Next::Look => Event::Seen(self.leader.clone()),
            Next::Campaign { lease } => {
                if self.leader.is_some() {
                    return Event::Lost;
                }
                let (address, term) = (name.to_owned(), self.revision);
                self.leader = Some(Holder { address, term, lease });
                Event::Won { term }
            }
            Next::Wait(_) | Next::Over => panic!("nothing to answer"),
        }
    }
}

fn is_active(candidate: &Election, now: Duration) -> bool {
    candidate.stand().may_decide(now)
}

#[test]
fn one_leads_the_other_waits_and_takes_over_when_the_lease_ends() {
    let (mut etcd, mut a, mut b) = (Etcd::default(), Election::default(), Election::default());
    etcd.turn(&mut a, "a", ms(1));
    etcd.turn(&mut b, "b", ms(1));
    let first = a.stand().term();
    assert!(is_active(&a, etcd.now) && !is_active(&b, etcd.now));
    let Stand::Standby { active: Some(holder) } = b.stand() else { panic!("{:?}", b.stand()) };
    assert_eq!((holder.address.as_str(), holder.term), ("a", first));
    for _ in 0..20 {
        etcd.pass(ms(1_000));
        etcd.turn(&mut a, "a", ms(1));
        etcd.turn(&mut b, "b", ms(1));
        assert!(is_active(&a, etcd.now) && !is_active(&b, etcd.now));
    }
    // The active one is dead, or stopped.
    let died = etcd.now;
    while !is_active(&b, etcd.now) {
        assert!(etcd.now < died + ms(10_000), "it takes over within 10 s");
        etcd.pass(ms(500));
        etcd.turn(&mut b, "b", ms(1));
    }
    assert!(!is_active(&a, etcd.now), "by its own clock, without a word from etcd");
    assert!(b.stand().term() > first);
    // It wakes.
    etcd.turn(&mut a, "a", ms(1));
    let Stand::Deposed { why } = a.stand() else { panic!("{:?}", a.stand()) };
    assert_eq!(why, "its lease has ended in etcd");
    assert_eq!(a.next(etcd.now), Next::Over);
}

#[test]
fn two_never_decide_at_once_however_late_answers_are() {
    for seed in 0..400_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut draw = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut etcd = Etcd::default();
        let mut candidates = [Election::default(), Election::default(), Election::default()];
        let mut highest = 0;
        for _ in 0..200 {
            let at = draw(3) as usize;
            etcd.away = draw(4) == 0;
            if draw(12) == 0 {
                candidates[at] = Election::default();
            }
            let late = ms(draw(1_500));
            etcd.turn(&mut candidates[at], "x", late);
            etcd.pass(ms(draw(900)));
            let now = etcd.now;
            let active: Vec<_> =
                candidates.iter().filter(|one| is_active(one, now)).map(Election::stand).collect();
            assert!(active.len() < 2, "seed {seed}: {active:?}");
            if let Some(stand) = active.first() {
                assert!(stand.term() >= highest, "seed {seed}: a term went back");
                highest = stand.term();
            }
        }
    }
}

#[test]
fn without_a_quorum_nobody_decides_and_the_active_one_goes_on_when_it_is_back() {
    let (mut etcd, mut a, mut b) = (Etcd::default(), Election::default(), Election::default());
    etcd.turn(&mut a, "a", ms(1));
    etcd.turn(&mut b, "b", ms(1));
    let term = a.stand().term();
    etcd.away = true;
    // A new leader of etcd gives leases their whole time again: nothing ended meanwhile.
    for _ in 0..20 {
        etcd.now += ms(1_000);
        for (candidate, name) in [(&mut a, "a"), (&mut b, "b")] {
            etcd.leases.iter_mut().for_each(|(_, until)| *until += ms(1_000));
            etcd.turn(candidate, name, ms(1));
        }
    }
    assert!(!is_active(&a, etcd.now) && !is_active(&b, etcd.now));
    etcd.away = false;
    etcd.turn(&mut a, "a", ms(1));
    assert!(is_active(&a, etcd.now), "{:?}", a.stand());
    assert_eq!(a.stand().term(), term);
}

#[test]
fn a_campaign_whose_answer_was_lost_was_won_all_the_same() {
    let (mut etcd, mut a) = (Etcd::default(), Election::default());
    let lease = loop {
        let next = a.next(etcd.now);
        if let Next::Campaign { lease } = next {
            break lease;
        }
        let event = etcd.answer(next, etcd.now, "a");
        a.apply(etcd.now, event);
    };
    let Event::Won { term } = etcd.answer(Next::Campaign { lease }, etcd.now, "a") else {
        panic!("nobody else is there")
    };
    a.apply(etcd.now, Event::Unanswered);
    assert!(!is_active(&a, etcd.now));
    etcd.turn(&mut a, "a", ms(1));
    assert!(is_active(&a, etcd.now));
    assert_eq!(a.stand().term(), term);
}

#[test]
fn whoever_was_fenced_stays_deposed() {
    let (mut etcd, mut a) = (Etcd::default(), Election::default());
    etcd.turn(&mut a, "a", ms(1));
    a.apply(etcd.now, Event::Fenced("another one is active".into()));
    for event in [Event::Won { term: 99 }, Event::Seen(None), Event::Woken, Event::Unanswered] {
        a.apply(etcd.now, event);
        assert!(matches!(a.stand(), Stand::Deposed { .. }));
    }
}
