//! What this machine has of a cluster: the address of its coordinator, and its certificate.

use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use shoal_trust::{Credentials, Name, Role, TrustError};

use super::finding::{Finding, Group};
use crate::clock::unix_time;
use crate::exit::Stopped;
use crate::rig::{CERTIFICATE, remembered};
use crate::{cli, settings};

/// A certificate that has less left is renewed soon, or its rig is away from its coordinator.
const DAY: i64 = 24 * 3600;

/// What is known of the certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Certificate {
    None,
    /// Why it counts for nothing, and what mends that.
    Bad {
        why: String,
        mend: String,
    },
    Good {
        name: String,
        role: Role,
        seconds_left: i64,
        is_due: bool,
    },
}

pub(super) struct Papers {
    pub(super) directory: PathBuf,
    /// Whether the directory is there.
    pub(super) is_there: bool,
    /// Of the coordinator, by the command line or remembered; or why it cannot be read.
    pub(super) address: Result<Option<String>, String>,
    pub(super) credentials: Option<Credentials>,
    pub(super) certificate: Certificate,
    /// What a rig would be called that still is to join.
    pub(super) name: String,
}

impl Papers {
    pub(super) fn read(args: &cli::Doctor) -> Result<Self, Stopped> {
        let directory = settings::state(args.state.as_deref(), "rig")?;
        let directory = std::path::absolute(&directory).map_err(anyhow::Error::from)?;
        let known = remembered(&directory).map_err(|stopped| stopped.text().unwrap_or_default());
        let address = match &args.join {
            Some(address) => Ok(Some(address.clone())),
            None => known.map(|known| known.map(|known| known.address)),
        };
        let place = directory.join(CERTIFICATE);
        let (credentials, certificate) = read(&place);
        Ok(Self {
            is_there: directory.is_dir(),
            address,
            credentials,
            certificate,
            name: args.name.clone().unwrap_or_else(crate::rig::facts::host),
            directory,
        })
    }

    pub(super) fn findings(&self) -> Vec<Finding> {
        let shown = self.directory.display().to_string();
        let mut findings = Vec::new();
        findings.push(match &self.address {
            Err(why) => Group::Cluster.problem(
                "state",
                why,
                format!(
                    "remove the file and start `shoal worker --state {shown} --join HOST:PORT`"
                ),
            ),
            Ok(_) if self.is_there => Group::Cluster.ok("state", shown),
            Ok(_) => {
                Group::Cluster.ok("state", format!("{shown}, made by the first `shoal worker`"))
            }
        });
        if self.certificate == Certificate::None
            && let Err(error) = self.name.parse::<Name>()
        {
            let mend = "choose another one with --name";
            findings.push(Group::Cluster.problem("name", error.to_string(), mend));
        }
        findings.push(self.certificate.finding());
        findings
    }
}

fn read(place: &Path) -> (Option<Credentials>, Certificate) {
    if !place.join("key.pem").exists() {
        return (None, Certificate::None);
    }
    match Credentials::open(place) {
        Ok(credentials) => {
            let now = unix_time();
            let ends = credentials.not_after().duration_since(UNIX_EPOCH).unwrap_or_default();
            let certificate = Certificate::Good {
                name: credentials.identity().name.to_string(),
                role: credentials.identity().role,
                // TLS counts whole seconds, and the last one is good.
                seconds_left: ends.as_secs() as i64 - now as i64,
                is_due: credentials.is_due(UNIX_EPOCH + Duration::from_secs_f64(now)),
            };
            (Some(credentials), certificate)
        }
        Err(error) => (None, bad(place, &error)),
    }
}

fn bad(place: &Path, error: &TrustError) -> Certificate {
    let mend = if let TrustError::OthersMayRead { path, .. } = error {
        format!("chmod 600 {}", path.display())
    } else {
        format!("rm -r {}, and join anew with a new token", place.display())
    };
    Certificate::Bad { why: error.to_string(), mend }
}

impl Certificate {
    fn finding(&self) -> Finding {
        let what = "certificate";
        match self {
            Self::None => Group::Cluster.warning(
                what,
                "none: this machine has joined no cluster",
                "`shoal token create` on the coordinator's machine, then `shoal worker --join HOST:PORT --token-file FILE` here",
            ),
            Self::Bad { why, mend } => Group::Cluster.problem(what, why, mend),
            Self::Good { name, role, .. } if *role != Role::Worker => Group::Cluster.problem(
                what,
                format!("{role} {name}: that is no rig"),
                "join with a token of role worker, and another --state",
            ),
            Self::Good { name, seconds_left, .. } if *seconds_left < 0 => Group::Cluster.problem(
                what,
                format!("{name}: it ended {} ago, by this machine's clock", time(-seconds_left)),
                format!("set the clock if it is wrong; else `shoal expel {name} --yes` on the coordinator's machine, \
                         remove the certificate here, and join anew with a new token"),
            ),
            Self::Good { name, seconds_left, is_due, .. } => {
                let fact = format!("rig {name}, good for {}", time(*seconds_left));
                if *is_due {
                    return Group::Cluster.warning(
                        what,
                        format!("{fact}; it should have been renewed by now"),
                        "keep `shoal worker` running: it renews it when it reaches the coordinator",
                    );
                }
                Group::Cluster.ok(what, format!("{fact}; its key is its owner's alone"))
            }
        }
    }
}

/// `3 days`, `7 hours`, `12 minutes`, `50 s`.
fn time(seconds: i64) -> String {
    match seconds {
        DAY.. if seconds >= 2 * DAY => format!("{} days", seconds / DAY),
        7_200.. => format!("{} hours", seconds / 3600),
        120.. => format!("{} minutes", seconds / 60),
        _ => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    fn of(role: Role, seconds_left: i64, is_due: bool) -> Finding {
        Certificate::Good { name: "attic".into(), role, seconds_left, is_due }.finding()
    }

    #[test]
    fn a_certificate_is_good_due_over_another_s_or_missing() {
        let good = of(Role::Worker, 23 * 3600, false);
        assert!(good.level == Level::Ok && good.fact.contains("good for 23 hours"), "{good:?}");
        assert_eq!(of(Role::Worker, 3600, true).level, Level::Warning);
        let over = of(Role::Worker, -90, true);
        assert!(over.level == Level::Problem && over.fact.contains("ended 90 s ago"), "{over:?}");
        assert!(over.mend.unwrap().contains("`shoal expel attic --yes`"));
        assert_eq!(of(Role::Admin, 9999, false).level, Level::Problem);
        let none = Certificate::None.finding();
        assert!(none.level == Level::Warning && none.mend.unwrap().contains("shoal token create"));
    }

    #[test]
    fn a_key_that_others_may_read_is_mended_by_one_command() {
        let path = PathBuf::from("/state/key.pem");
        let Certificate::Bad { why, mend } =
            bad(Path::new("/state"), &TrustError::OthersMayRead { path, mode: 0o644 })
        else {
            panic!("it is bad")
        };
        assert!(why.contains("mode 0644") && mend == "chmod 600 /state/key.pem", "{why} {mend}");
        let damaged = TrustError::Pin { why: "x".into() };
        let Certificate::Bad { mend, .. } = bad(Path::new("/state"), &damaged) else {
            panic!("it is bad")
        };
        assert!(mend.starts_with("rm -r /state"), "{mend}");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        let texts = [5, 119, 120, 7_199, 7_200, 2 * DAY - 1, 2 * DAY].map(time);
        assert_eq!(
            texts,
            ["5 s", "119 s", "2 minutes", "119 minutes", "2 hours", "47 hours", "2 days"]
        );
    }
}
