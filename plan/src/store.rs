//! Where checkpoints go beside the run directory: `spec.checkpoint.store`.

use std::fmt;
use std::path::{Path, PathBuf};

/// A place for checkpoints, as written in a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreAddress {
    /// A directory, most likely on another disk or a network's.
    Directory(PathBuf),
    /// A bucket of S3, or of what speaks its protocol.
    S3 {
        bucket: String,
        /// Before every key; empty, or without a slash at either end.
        prefix: String,
    },
}

/// Why a text is no address: what is wrong, and what would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoAddress {
    pub what: String,
    pub help: &'static str,
}

const FORMS: &str = "s3://bucket/prefix, file:///a/directory, or a path";

impl StoreAddress {
    /// Reads `s3://bucket/prefix`, `file:///path` or a path, which may be relative.
    pub fn parse(text: &str) -> Result<Self, NoAddress> {
        let wrong = |what: &str, help| Err(NoAddress { what: what.to_owned(), help });
        if text.trim() != text || text.is_empty() || text.chars().any(char::is_control) {
            return wrong("it is empty, or has spaces around it", FORMS);
        }
        if let Some(path) = text.strip_prefix("file://") {
            if !path.starts_with('/') {
                return wrong("after file:// comes an absolute path", "file:///a/directory");
            }
            return Ok(Self::Directory(PathBuf::from(path)));
        }
        let Some(rest) = text.strip_prefix("s3://") else {
            return match text.split_once("://") {
                Some((scheme, _)) => {
                    wrong(&format!("{scheme}:// is no kind of store that shoal knows"), FORMS)
                }
                None => Ok(Self::Directory(PathBuf::from(text))),
            };
        };
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if bucket.contains(['@', ':']) {
            let help = "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the address \
                        from AWS_ENDPOINT_URL";
            return wrong("an address holds no keys and no ports", help);
        }
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        if !(3..=63).contains(&bucket.len()) || !bucket.chars().all(plain) {
            let help = "3 to 63 lower-case letters, digits, dots and hyphens";
            return wrong(&format!("{bucket:?} is no name of a bucket"), help);
        }
        let prefix = prefix.trim_end_matches('/');
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-=/".contains(c);
        let has_gap = prefix.split('/').any(|part| ["", ".", ".."].contains(&part));
        if !prefix.is_empty() && (has_gap || !prefix.chars().all(plain)) {
            let help =
                "names of letters, digits, `.`, `_`, `-` and `=`, with single slashes between";
            return wrong(&format!("{prefix:?} cannot stand before a key"), help);
        }
        Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
    }

    /// The same, with a relative path read from `directory`.
    #[must_use]
    pub fn below(self, directory: &Path) -> Self {
        match self {
            Self::Directory(path) => Self::Directory(directory.join(path)),
            Self::S3 { .. } => self,
        }
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_as_they_are_written() {
        for (text, shown) in [
            ("s3://bucket", "s3://bucket"),
            ("s3://my.bucket-1/runs/a=1/", "s3://my.bucket-1/runs/a=1"),
            ("file:///mnt/nas/a b", "/mnt/nas/a b"),
            ("/mnt/nas", "/mnt/nas"),
        ] {
            assert_eq!(StoreAddress::parse(text).unwrap().to_string(), shown);
        }
        let relative = StoreAddress::parse("../nas").unwrap().below(Path::new("/jobs"));
        assert_eq!(relative.to_string(), "/jobs/../nas");
    }

    #[test]
    fn what_is_no_address_says_what_would_do() {
        for (text, want) in [
            ("", "empty"),
            (" s3://bucket", "spaces"),
            ("gs://bucket", "gs:// is no kind of store"),
            ("https://host/bucket", "https:// is no kind"),
            ("file://relative", "absolute"),
            ("s3://", "no name of a bucket"),
            ("s3://Bucket", "no name of a bucket"),
            ("s3://key:secret@bucket/x", "no keys"),
            ("s3://bucket:9000/x", "no keys and no ports"),
            ("s3://bucket/a//b", "before a key"),
            ("s3://bucket/../b", "before a key"),
            ("s3://bucket/a b", "before a key"),
        ] {
            let error = StoreAddress::parse(text).unwrap_err();
            assert!(error.what.contains(want) && !error.help.is_empty(), "{text}: {error:?}");
        }
        let hidden = StoreAddress::parse("s3://key:secret@bucket").unwrap_err();
        assert!(!hidden.what.contains("secret"), "{hidden:?}");
    }
}
