//! The way to the coordinator: step by step, then what it thinks of this rig, then how fast.

use shoal_cluster::fitness::{CLOCKS_APART_MS, CLOCKS_ODD_MS};
use shoal_cluster::probing::Rate;
use shoal_cluster::probing::reaching::{Reached, Untrusted};
use shoal_cluster::probing::words::Seen;

use super::finding::{Finding, Group};

/// Orders are answered in this time without anybody noticing.
const RTT_SECONDS: f64 = 0.25;

/// 8 Mbit/s: a checkpoint of 100 MB takes two minutes.
const BYTES_PER_SECOND: f64 = 1e6;

/// What was found of the coordinator.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Coordinator {
    pub(super) address: String,
    pub(super) reached: Reached,
    /// What it said of this rig; nothing where TLS already failed or no certificate is there to show.
    pub(super) standing: Option<Result<Standing, String>>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Standing {
    pub(super) seen: Seen,
    /// By how many milliseconds this machine's clock is ahead of the coordinator's.
    pub(super) ahead_ms: i64,
    /// The middle one of several calls.
    pub(super) seconds: f64,
    pub(super) up: Result<Rate, String>,
    pub(super) down: Result<Rate, String>,
}

impl Coordinator {
    pub(super) fn findings(&self) -> Vec<Finding> {
        let mut findings = self.steps();
        match &self.standing {
            None => {}
            Some(Err(why)) => findings.push(Group::Cluster.problem(
                "coordinator",
                why,
                "`shoal ps` on the coordinator's machine shows whether this rig belongs to it",
            )),
            Some(Ok(standing)) => findings.extend(standing.findings()),
        }
        findings
    }

    fn steps(&self) -> Vec<Finding> {
        let Reached { resolved, tcp, tls } = &self.reached;
        let address = &self.address;
        let mut findings = Vec::new();
        match resolved {
            None => {}
            Some(Err(why)) => findings.push(Group::Cluster.problem(
                "address",
                format!("{address} leads nowhere: {why}"),
                "say `shoal worker --join HOST:PORT` with a name that this machine knows (getent hosts HOST), or an IP address",
            )),
            Some(Ok(found)) => {
                let found: Vec<String> = found.iter().map(ToString::to_string).collect();
                findings.push(Group::Cluster.ok("address", format!("{address} is {}", found.join(" "))));
            }
        }
        match tcp {
            None => {}
            Some(Err(why)) => findings.push(Group::Cluster.problem(
                "TCP",
                format!("{address} cannot be reached: {why}"),
                "is `shoal coordinator --listen` up at that address, and does its firewall let the port in? ss -ltn shows it there",
            )),
            Some(Ok(tcp)) => {
                let fact = format!("{} from {} in {:.1} ms", tcp.to, tcp.from, tcp.seconds * 1e3);
                findings.push(Group::Cluster.ok("TCP", fact));
            }
        }
        match tls {
            None => {}
            Some(Ok(())) if self.standing.is_some() => {
                findings.push(Group::Cluster.ok("TLS", "each side trusts what the other shows"));
            }
            Some(Ok(())) => {
                let fact = "the coordinator's authority is the one that the token names";
                findings.push(Group::Cluster.ok("TLS", fact));
            }
            Some(Err(why)) => findings.push(untrusted(why)),
        }
        findings
    }
}

fn untrusted(why: &Untrusted) -> Finding {
    let (fact, mend) = match why {
        Untrusted::OtherAuthority => (
            "the coordinator's certificate was signed by another authority than the one that this machine believes".to_owned(),
            "is this the right address? If the cluster was made anew, remove the certificate here and join anew with a new token",
        ),
        Untrusted::TheirTime => (
            "by this machine's clock the coordinator's certificate is not good now".to_owned(),
            "compare the clocks (date -u on both machines), and set the wrong one: timedatectl set-ntp true",
        ),
        Untrusted::OurTime => (
            "the coordinator refuses this rig's certificate: by its clock it is over, or has not begun".to_owned(),
            "if the clocks agree (date -u on both machines), `shoal expel RIG --yes` there, remove the certificate here, \
             and join anew with a new token; else timedatectl set-ntp true",
        ),
        Untrusted::OursUnknown => (
            "the coordinator does not know the authority that signed this rig's certificate".to_owned(),
            "remove the certificate here and join anew with a token of this cluster",
        ),
        Untrusted::Denied => (
            "this rig was expelled from the cluster".to_owned(),
            "`shoal token create` on the coordinator's machine; remove the certificate here and join anew",
        ),
        Untrusted::Other(why) => (
            why.clone(),
            "does a coordinator of shoal listen there? Its log says why it refused; a proxy in between must leave TLS alone",
        ),
    };
    Group::Cluster.problem("TLS", fact, mend)
}

impl Standing {
    fn findings(&self) -> Vec<Finding> {
        let mut findings = vec![self.clock(), self.version()];
        for objection in &self.seen.objections {
            findings.push(Group::Cluster.problem(
                "coordinator",
                format!("it would refuse this rig: {objection}"),
                "as it says",
            ));
        }
        let fact = format!("{:.1} ms, the middle one of several small calls", self.seconds * 1e3);
        findings.push(if self.seconds <= RTT_SECONDS {
            Group::Cluster.ok("round trip", fact)
        } else {
            let mend = "a cable instead of radio, or a coordinator that is nearer";
            Group::Cluster.warning("round trip", fact, mend)
        });
        for (what, rate) in [("speed up", &self.up), ("speed down", &self.down)] {
            findings.push(speed(Group::Cluster, what, rate));
        }
        findings
    }

    fn clock(&self) -> Finding {
        let apart = self.ahead_ms.unsigned_abs();
        let way = if self.ahead_ms >= 0 { "ahead of" } else { "behind" };
        let fact = format!("{:.3} s {way} the coordinator's", apart as f64 / 1e3);
        let mend = "timedatectl set-ntp true (on both machines)";
        if apart > CLOCKS_APART_MS {
            return Group::Machine.problem("clock", format!("{fact}: certificates break"), mend);
        }
        if apart > CLOCKS_ODD_MS {
            return Group::Machine.warning(
                "clock",
                format!("{fact}: times in logs are off by that"),
                mend,
            );
        }
        Group::Machine.ok("clock", fact)
    }

    /// Words that are not understood are among the coordinator's own objections.
    fn version(&self) -> Finding {
        let (here, there) = (env!("CARGO_PKG_VERSION"), &self.seen.version);
        if here == there {
            return Group::Machine.ok("version", format!("shoal {here}, as the coordinator's"));
        }
        let fact = format!("shoal {here}, and the coordinator's is {there}");
        Group::Machine.warning("version", fact, "install the same shoal on both")
    }
}

/// A link's, in one direction.
pub(super) fn speed(group: Group, what: &str, rate: &Result<Rate, String>) -> Finding {
    match rate {
        Ok(rate) => {
            let fact = shown(*rate);
            if rate.bytes_per_second() >= BYTES_PER_SECOND {
                return group.ok(what, fact);
            }
            let mend = "end what else uses the link (iftop), or use a cable; `shoal plan` says what a slow link costs";
            group.warning(what, fact, mend)
        }
        Err(why) => group.warning(what, format!("not measured: {why}"), "shoal doctor, again"),
    }
}

pub(super) fn shown(rate: Rate) -> String {
    let megabits = rate.bytes_per_second() * 8.0 / 1e6;
    let (mb, seconds) = (rate.bytes as f64 / 1e6, rate.seconds);
    format!("{megabits:.0} Mbit/s ({mb:.1} MB in {seconds:.2} s)")
}

#[cfg(test)]
mod tests {
    use shoal_cluster::probing::reaching::Connected;

    use super::super::finding::Level;
    use super::*;

    fn standing() -> Standing {
        let rate = Ok(Rate { bytes: 16 << 20, seconds: 0.1 });
        let seen = Seen {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_ms: 0,
            address: [10, 0, 0, 2].into(),
            objections: Vec::new(),
        };
        Standing { seen, ahead_ms: -12, seconds: 0.004, up: rate.clone(), down: rate }
    }

    fn level(standing: Standing, what: &str) -> (Level, String) {
        let standing = Some(Ok(standing));
        let found = Coordinator { standing, ..Coordinator::default() }.findings();
        let found = found.into_iter().find(|finding| finding.what == what).unwrap();
        (found.level, found.fact)
    }

    fn stopped(reached: Reached) -> Finding {
        let address = "rig:7400".to_owned();
        Coordinator { address, reached, standing: None }.findings().pop().unwrap()
    }

    #[test]
    fn each_step_that_fails_is_the_last_that_is_said() {
        let connected = Connected {
            from: [10, 0, 0, 2].into(),
            to: "10.0.0.1:7400".parse().unwrap(),
            seconds: 0.01,
        };
        let resolved = Some(Ok(vec![[10, 0, 0, 1].into()]));
        let no_name = Reached { resolved: Some(Err("unknown".into())), ..Reached::default() };
        let found = stopped(no_name);
        assert!((found.level, found.what.as_str()) == (Level::Problem, "address"), "{found:?}");
        let tcp = Some(Err("Connection refused".into()));
        let closed = stopped(Reached { resolved: resolved.clone(), tcp, tls: None });
        assert!(closed.level == Level::Problem && closed.fact.contains("refused"), "{closed:?}");
        let with =
            |tls| Reached { resolved: resolved.clone(), tcp: Some(Ok(connected)), tls: Some(tls) };
        assert_eq!(stopped(with(Ok(()))).level, Level::Ok);
        for (why, word) in [
            (Untrusted::OtherAuthority, "another authority"),
            (Untrusted::TheirTime, "this machine's clock"),
            (Untrusted::OurTime, "by its clock"),
            (Untrusted::OursUnknown, "does not know the authority"),
            (Untrusted::Denied, "expelled"),
            (Untrusted::Other("no HTTP here".into()), "no HTTP here"),
        ] {
            let found = stopped(with(Err(why)));
            assert!(found.level == Level::Problem && found.fact.contains(word), "{found:?}");
        }
    }

    #[test]
    fn clocks_warn_after_half_a_minute_and_are_a_problem_after_five() {
        let clock = |ahead_ms| level(Standing { ahead_ms, ..standing() }, "clock");
        assert_eq!(clock(-12), (Level::Ok, "0.012 s behind the coordinator's".to_owned()));
        assert_eq!(
            [clock(30_001).0, clock(-300_000).0, clock(300_001).0],
            [Level::Warning, Level::Warning, Level::Problem]
        );
    }

    #[test]
    fn versions_objections_distance_and_speed_are_judged() {
        let mut other = standing();
        other.seen.version = "0.0.1".into();
        assert_eq!(level(standing(), "version").0, Level::Ok);
        assert_eq!(level(other, "version").0, Level::Warning);
        let mut unfit = standing();
        unfit.seen.objections = vec!["it speaks version 9".into()];
        let (is, fact) = level(unfit, "coordinator");
        assert!(is == Level::Problem && fact.contains("speaks version 9"), "{fact}");
        assert_eq!(level(standing(), "round trip").0, Level::Ok);
        assert_eq!(level(Standing { seconds: 0.4, ..standing() }, "round trip").0, Level::Warning);
        assert_eq!(
            level(standing(), "speed up"),
            (Level::Ok, "1342 Mbit/s (16.8 MB in 0.10 s)".to_owned())
        );
        let slow = Ok(Rate { bytes: 300_000, seconds: 3.0 });
        assert_eq!(level(Standing { down: slow, ..standing() }, "speed down").0, Level::Warning);
        assert_eq!(
            level(Standing { up: Err("busy".into()), ..standing() }, "speed up").0,
            Level::Warning
        );
    }
}
