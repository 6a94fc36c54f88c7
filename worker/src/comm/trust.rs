//! What workers go by once they leave one machine: certificates, and whose is whose.

use std::collections::BTreeMap;
use std::path::PathBuf;

use shoal_plan::plan::WorkerId;
use shoal_trust::{Credentials, Identity, Name, Role, TrustError};

/// How workers know each other. With it every connection between two of them is TLS 1.3 with both
/// certificates; without it they are plain, and stay on one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// Where this worker's credentials are. They are read anew for each connection, so that renewed
    /// ones are used from the next on.
    pub credentials: PathBuf,
    /// The name in each worker's certificate, as the plan says. Nobody else can speak for it.
    pub names: BTreeMap<WorkerId, Name>,
}

impl Trust {
    /// With the names of a plan, which count from now on.
    pub(crate) fn naming(&self, names: &BTreeMap<WorkerId, Name>) -> Self {
        let mut all = self.clone();
        all.names.extend(names.iter().map(|(worker, name)| (*worker, name.clone())));
        all
    }

    /// This worker's own, as they are now.
    pub(crate) fn open(&self) -> Result<Credentials, TrustError> {
        let credentials = Credentials::open(&self.credentials)?;
        let identity = credentials.identity();
        if identity.role == Role::Worker {
            return Ok(credentials);
        }
        let (subject, got) = (identity.to_string(), identity.role.to_string());
        Err(TrustError::Purpose { subject, got, want: "a worker".to_owned() })
    }

    /// Who must answer when a worker is dialed.
    pub(super) fn expected(&self, worker: WorkerId) -> Result<Identity, String> {
        let name = self.names.get(&worker).cloned();
        let name =
            name.ok_or_else(|| format!("the plan has no certificate's name for {worker}"))?;
        Ok(Identity { name, role: Role::Worker })
    }

    /// Why whoever showed the certificate of `shown` cannot be this worker.
    pub(super) fn objection(&self, shown: &Name, claimed: WorkerId) -> Option<String> {
        match self.expected(claimed) {
            Ok(expected) if expected.name == *shown => None,
            Ok(expected) => {
                let name = expected.name;
                Some(format!("{claimed} is the worker {name}, and its certificate says {shown}"))
            }
            Err(why) => Some(why),
        }
    }
}
