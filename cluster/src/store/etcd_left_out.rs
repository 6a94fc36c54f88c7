//! In the place of `etcd`, where shoal was built without it.

use super::StoreError;
use super::remote::{Candidacy, Candidate, Remote};

/// # Errors
/// Always: there is nothing here that speaks to etcd.
pub fn open(remote: &Remote, _: Candidate) -> Result<Candidacy, StoreError> {
    Err(StoreError::Unfit(format!(
        "{remote}: this shoal was built without etcd: build it with `cargo build --release --features etcd` (which \
         needs protoc), or take a release"
    )))
}
