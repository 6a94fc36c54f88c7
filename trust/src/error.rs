//! What can be wrong with names, files, certificates and tokens, in words for whoever mends it.

use std::io;
use std::path::PathBuf;

/// Why something is not trusted, or could not be made. Texts from outside are shown quoted and cut.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(
        "{got:?} is no name: want 1 to 63 of A-Z, a-z, 0-9, '.', '_' and '-', of which '.' and '-' \
         not first"
    )]
    Name { got: String },

    #[error("{got:?} is no role: want coordinator, admin, worker or viewer")]
    Role { got: String },

    #[error("a pin has 64 hexadecimal digits: {why}")]
    Pin { why: String },

    /// Never with the text itself, which may be nearly right.
    #[error(
        "this is no token: {why}; want shoal1.<pin>.<id>.<secret>, in one piece as it was given"
    )]
    Token { why: String },

    #[error("{what} is damaged: {why}; want {want} in PEM")]
    Damaged { what: String, why: String, want: &'static str },

    #[error("the certificate says nobody's name: {why}; want one URI shoal://<role>/<name>")]
    Identity { why: String },

    #[error("the signing request is refused: {why}; make a new one")]
    Request { why: String },

    #[error("the certificate of {subject} is for {got}: want one for {want}")]
    Purpose { subject: String, got: String, want: String },

    #[error("{what} and {with} do not belong together: {mend}")]
    Mismatch { what: String, with: String, mend: &'static str },

    #[error("the cluster's authority has expired, or its clock is wrong: {why}")]
    Expired { why: String },

    #[error(
        "{path} may be read by others than its owner (mode {mode:04o}): run `chmod 600 {path}`",
        path = path.display()
    )]
    OthersMayRead { path: PathBuf, mode: u32 },

    #[error("{path} is {got}: want a regular file, so that nobody else decides what is read", path = path.display())]
    NotRegular { path: PathBuf, got: &'static str },

    #[error(
        "{path} is there already: a second authority would lock out everybody the first let in; \
         remove it only to begin the cluster anew",
        path = path.display()
    )]
    Exists { path: PathBuf },

    #[error("{doing} {path}", path = path.display())]
    File { doing: &'static str, path: PathBuf, source: io::Error },

    #[error("signing or making a key failed")]
    Signing { source: rcgen::Error },

    #[error("TLS cannot be set up with this certificate")]
    Tls { source: rustls::Error },

    #[error("no random bytes from the system")]
    Random,
}

/// At most so many characters of a text from outside are repeated.
const SHOWN_CHARS: usize = 80;

/// The beginning of a text from outside.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(SHOWN_CHARS).collect()
}

impl From<rcgen::Error> for TrustError {
    fn from(source: rcgen::Error) -> Self {
        Self::Signing { source }
    }
}

impl From<rustls::Error> for TrustError {
    fn from(source: rustls::Error) -> Self {
        Self::Tls { source }
    }
}
