//! Who may call what. A call that has no row here is refused, and a test fails where a row is missing.

use shoal_coordinator::control;
use shoal_trust::{Identity, Role};

use crate::words::Ask;

/// Who may make a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Also without a certificate.
    Anybody,
    /// Whoever has a certificate of this cluster.
    Members,
    Rigs,
    /// Admins and viewers; what exactly a viewer may ask, `needs` says.
    People,
    /// It is not for this door at all.
    Nobody,
}

/// Answered by standbys, too.
pub(crate) const STANDING: &str = "/shoal.v1.Rigs/Standing";

/// What is decided, and not only said: not while the coordinator cannot know whether it is active.
const CHANGES: [&str; 3] =
    ["/shoal.v1.Enrolment/Enrol", "/shoal.v1.Rigs/Attend", "/shoal.v1.Rigs/Renew"];

pub(crate) fn changes(path: &str) -> bool {
    CHANGES.contains(&path)
}

const TABLE: [(&str, Who); 17] = [
    ("/shoal.v1.Enrolment/Enrol", Who::Anybody),
    ("/shoal.v1.Rigs/Attend", Who::Rigs),
    ("/shoal.v1.Rigs/Renew", Who::Members),
    ("/shoal.v1.Rigs/Fetch", Who::Rigs),
    ("/shoal.v1.Rigs/Look", Who::Rigs),
    (STANDING, Who::Members),
    ("/shoal.v1.Rigs/Neighbours", Who::Rigs),
    ("/shoal.v1.Rigs/ProbeUp", Who::Rigs),
    ("/shoal.v1.Rigs/ProbeDown", Who::Rigs),
    ("/shoal.v1.Cluster/Ask", Who::People),
    ("/shoal.v1.Cluster/Logs", Who::People),
    ("/shoal.v1.Coordinator/Session", Who::Rigs),
    ("/shoal.v1.Coordinator/Deposit", Who::Rigs),
    ("/shoal.v1.Coordinator/Withdraw", Who::Rigs),
    ("/shoal.v1.Coordinator/Watch", Who::Nobody),
    ("/shoal.v1.Control/Ask", Who::Nobody),
    // What browsers and scanners try first.
    ("/", Who::Nobody),
];

/// Whether this caller may make this call.
///
/// # Errors
/// Why not, as a sentence; the same for calls that do not exist and calls that are not for the caller.
pub(crate) fn may(path: &str, caller: Option<&Identity>) -> Result<(), String> {
    let who = TABLE.iter().find(|(known, _)| *known == path).map_or(Who::Nobody, |(_, who)| *who);
    let role = caller.map(|identity| identity.role);
    let may = match who {
        Who::Anybody => true,
        Who::Members => role.is_some_and(|role| role != Role::Coordinator),
        Who::Rigs => role == Some(Role::Worker),
        Who::People => matches!(role, Some(Role::Admin | Role::Viewer)),
        Who::Nobody => false,
    };
    if may {
        return Ok(());
    }
    Err(match caller {
        None => format!("{path} wants a certificate of this cluster, and none was shown"),
        Some(caller) => format!("{path} is not for a {} ({})", caller.role, caller.name),
    })
}

/// The role that a question needs.
pub(crate) fn needs(ask: &Ask) -> Role {
    match ask {
        Ask::Overview
        | Ask::Metrics { .. }
        | Ask::Run { ask: control::Ask::Status | control::Ask::Traced { .. }, .. } => Role::Viewer,
        Ask::Apply(_)
        | Ask::Run { .. }
        | Ask::Remove { .. }
        | Ask::Cordon { .. }
        | Ask::Uncordon { .. }
        | Ask::Drain { .. }
        | Ask::Expel { .. }
        | Ask::Tokens
        | Ask::CreateToken(_)
        | Ask::RevokeToken { .. } => Role::Admin,
    }
}

/// Whether it is answered without anything being decided.
pub(crate) fn only_looks(ask: &Ask) -> bool {
    matches!(ask, Ask::Tokens) || needs(ask) == Role::Viewer
}

/// Whether somebody of this role may ask it.
pub(crate) fn may_ask(ask: &Ask, role: Role) -> bool {
    role == Role::Admin || (role == Role::Viewer && needs(ask) == Role::Viewer)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOS: [&str; 2] = [
        include_str!("../../proto/proto/shoal.proto"),
        include_str!("../../proto/proto/cluster.proto"),
    ];

    /// `/package.Service/Method` of every call there is.
    fn calls() -> Vec<String> {
        let mut calls = Vec::new();
        for text in PROTOS {
            let mut service = "";
            for line in text.lines().map(str::trim) {
                let mut words = line.split([' ', '(']);
                match (words.next(), words.next()) {
                    (Some("service"), Some(name)) => service = name,
                    (Some("rpc"), Some(name)) => calls.push(format!("/shoal.v1.{service}/{name}")),
                    _ => {}
                }
            }
        }
        calls
    }

    #[test]
    fn every_call_has_a_row_and_every_row_but_one_is_a_call() {
        let mut calls = calls();
        calls.push("/".to_owned());
        calls.sort();
        let mut rows: Vec<_> = TABLE.iter().map(|(path, _)| (*path).to_owned()).collect();
        rows.sort();
        assert_eq!(rows, calls);
    }

    #[test]
    fn each_role_gets_what_the_table_says_and_a_stranger_may_only_enrol() {
        let caller = |role| Identity { name: "a".parse().unwrap(), role };
        let allowed = |caller: Option<&Identity>| -> Vec<String> {
            calls().into_iter().filter(|call| may(call, caller).is_ok()).collect()
        };
        assert_eq!(allowed(None), ["/shoal.v1.Enrolment/Enrol"]);
        assert_eq!(allowed(Some(&caller(Role::Coordinator))), ["/shoal.v1.Enrolment/Enrol"]);
        let people = allowed(Some(&caller(Role::Admin)));
        assert_eq!(people, allowed(Some(&caller(Role::Viewer))));
        let end = |call: &String| call.rsplit('/').next().unwrap().to_owned();
        let people: Vec<_> = people.iter().map(end).collect();
        assert_eq!(people, ["Enrol", "Renew", "Standing", "Ask", "Logs"]);
        let rigs: Vec<_> = allowed(Some(&caller(Role::Worker))).iter().map(end).collect();
        let runs = ["Session", "Deposit", "Withdraw"];
        let cluster = [
            "Enrol",
            "Attend",
            "Renew",
            "Fetch",
            "Look",
            "Standing",
            "Neighbours",
            "ProbeUp",
            "ProbeDown",
        ];
        assert_eq!(rigs, [&runs[..], &cluster].concat());
        let told = may("/shoal.v1.Cluster/Ask", None).unwrap_err();
        assert!(told.contains("wants a certificate"), "{told}");
        assert!(may("/shoal.v1.Nothing/Here", Some(&caller(Role::Admin))).is_err());
    }

    #[test]
    fn a_viewer_looks_and_changes_nothing() {
        let status = Ask::Run { job: "a".into(), ask: control::Ask::Status };
        assert!(may_ask(&Ask::Overview, Role::Viewer) && may_ask(&status, Role::Viewer));
        let order = control::Ask::Order(control::Order::Pause);
        let pause = Ask::Run { job: "a".into(), ask: order };
        for ask in [pause, Ask::Tokens, Ask::Cordon { rig: "a".into() }] {
            assert!(!may_ask(&ask, Role::Viewer) && may_ask(&ask, Role::Admin));
            assert!(!may_ask(&ask, Role::Worker), "{ask:?}");
        }
    }
}
