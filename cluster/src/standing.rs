//! How this process stands among a cluster's coordinators, for whoever answers calls.

use tokio::sync::watch;

use crate::clock;
use crate::election::Stand;
use crate::store::remote::Standing;

/// Of a coordinator that shares with nobody: it always decides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stands(Option<watch::Receiver<Standing>>);

/// What a caller is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Is {
    Standby,
    Active,
    /// It was active last, and cannot know whether it is.
    Undecided,
}

impl Is {
    /// On the wire.
    pub(crate) const fn number(self) -> u32 {
        match self {
            Self::Standby => 1,
            Self::Active => 2,
            Self::Undecided => 3,
        }
    }
}

impl Stands {
    pub(crate) fn new(standing: Option<watch::Receiver<Standing>>) -> Self {
        Self(standing)
    }

    fn stand(&self) -> Option<Stand> {
        self.0.as_ref().map(|standing| standing.borrow().stand.clone())
    }

    /// Of whoever is active, as far as is known here.
    pub(crate) fn term(&self) -> u64 {
        self.stand().map_or(0, |stand| stand.term())
    }

    pub(crate) fn is(&self) -> Is {
        match self.stand() {
            None => Is::Active,
            Some(stand) if stand.may_decide(clock::running()) => Is::Active,
            Some(Stand::Active { .. }) => Is::Undecided,
            Some(Stand::Standby { .. } | Stand::Deposed { .. }) => Is::Standby,
        }
    }

    /// Where the active one is, as far as another one is.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        match self.stand()? {
            Stand::Standby { active } => active.map(|holder| holder.address),
            Stand::Active { .. } | Stand::Deposed { .. } => None,
        }
    }

    pub(crate) fn coordinators(&self) -> Vec<String> {
        self.0.as_ref().map_or_else(Vec::new, |standing| standing.borrow().coordinators.clone())
    }

    /// Why a call is not for this coordinator now. `changes`: it would have to decide something.
    pub(crate) fn refusal(&self, changes: bool) -> Option<String> {
        match self.is() {
            Is::Active => None,
            Is::Undecided => changes.then(|| {
                "this coordinator does not hear of etcd and decides nothing now; what runs goes on".to_owned()
            }),
            Is::Standby => Some(match self.elsewhere() {
                Some(at) => format!("this coordinator stands by: the active coordinator is at {at}"),
                None => "this coordinator stands by, and no other one is active now".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::election::Holder;

    fn stands(stand: Stand) -> Stands {
        let standing = Standing { stand, coordinators: vec!["a:1".to_owned()] };
        Stands::new(Some(watch::channel(standing).1))
    }

    #[test]
    fn a_standby_says_who_is_active_and_one_without_etcd_only_looks() {
        assert_eq!(Stands::default().refusal(true), None);
        let holder = Holder { address: "a:1".to_owned(), term: 7, lease: 1 };
        let standby = stands(Stand::Standby { active: Some(holder) });
        assert_eq!((standby.is(), standby.term()), (Is::Standby, 7));
        let said = standby.refusal(false).unwrap();
        assert_eq!(said, "this coordinator stands by: the active coordinator is at a:1");
        let active = stands(Stand::Active { term: 7, until: Duration::MAX });
        assert_eq!((active.is(), active.refusal(true)), (Is::Active, None));
        let late = stands(Stand::Active { term: 7, until: Duration::ZERO });
        assert_eq!((late.is(), late.term(), late.refusal(false)), (Is::Undecided, 7, None));
        assert!(late.refusal(true).unwrap().contains("decides nothing now"));
    }
}
