//! WHO IS WHO in a cluster. An authority of the cluster's own signs certificates that say a role and
//! a name; both ends of a connection prove theirs; tokens let strangers ask for one.
//!
//! - `Authority`: the CA, made once. Whoever has its key can be anybody.
//! - `Request`, `Credentials`: a member's key, which never leaves its machine, and what was signed.
//! - `Credentials::server`, `Credentials::client`, `pinned`: the three ways to speak TLS here.
//! - `Token`: an invitation. It pins the CA, so that its secret is told to nobody else.
//!
//! An identity is read from the certificate's one URI, `shoal://<role>/<name>`, and from nothing else.
//!
//! Not here: sockets, and who may do what. Nor a clock: callers say what time it is, but for TLS
//! handshakes, where rustls asks the system.

mod authority;
mod certificate;
mod credentials;
mod error;
mod files;
mod identity;
mod pin;
#[cfg(test)]
mod proof;
pub mod reach;
mod tls;
mod token;

pub use authority::{Authority, Signed};
pub use certificate::identity_of;
pub use credentials::{Credentials, Request};
pub use error::TrustError;
pub use files::refuse_if_others_may_read;
pub use identity::{Identity, Name, Role, SERVER_NAME, server_name};
pub use pin::Pin;
pub use tls::{Clients, explain, pinned};
pub use token::Token;
