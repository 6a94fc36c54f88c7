//! Addresses: what may be fetched from where, and under which name it is kept.

use crate::error::DataError;

/// The only host that sees the user's token.
pub(super) const HUB: &str = "huggingface.co";

/// Longest name of a file in the cache.
const NAME_BYTES_MAX: usize = 120;

/// A checked address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) url: String,
    /// Without port.
    pub(super) host: String,
    /// The host with its port, as a name of a directory.
    pub(super) safe_host: String,
    pub(super) file_name: String,
}

impl Address {
    /// `https://HOST/PATH`, `hf://datasets/ORG/NAME[@REV]/PATH` or `hf://ORG/MODEL[@REV]/PATH`.
    /// `http://` only for this machine itself.
    pub(super) fn parse(text: &str) -> Result<Self, DataError> {
        let wrong = |what: &str| Err(DataError::Settings { what: format!("{text:?}: {what}") });
        let Some(url) = of_hub(text) else {
            return wrong(
                "want hf://datasets/ORG/NAME[@REVISION]/PATH or hf://ORG/MODEL[@REVISION]/PATH",
            );
        };
        if url.bytes().any(|byte| byte <= b' ' || byte >= 0x7F) {
            return wrong(
                "spaces and letters beyond ASCII are written %20 and so on in an address",
            );
        }
        let (is_plain, rest) = match (url.strip_prefix("https://"), url.strip_prefix("http://")) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return wrong("want https:// or hf://"),
        };
        let Some((authority, path)) = rest.split_once('/') else {
            return wrong("want https://HOST/PATH");
        };
        if authority.contains('@') {
            return wrong("names and passwords in an address are not sent");
        }
        let host = host_of(authority);
        if is_plain && !["127.0.0.1", "localhost", "[::1]"].contains(&host) {
            return wrong("http:// is for this machine only, want https://");
        }
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let Some(name) = path.rsplit('/').next().filter(|name| !name.is_empty()) else {
            return wrong("it names no file");
        };
        let (host, safe_host) = (host.to_ascii_lowercase(), safe(authority));
        let file_name = safe(name);
        Ok(Self { url, host, safe_host, file_name })
    }

    /// Where a redirection leads.
    pub(super) fn redirected(&self, location: &str) -> Result<Self, DataError> {
        if location.starts_with('/') && !location.starts_with("//") {
            let scheme_end = self.url.find("://").map_or(0, |at| at + 3);
            let root =
                self.url[scheme_end..].find('/').map_or(self.url.len(), |at| scheme_end + at);
            return Self::parse(&format!("{}{location}", &self.url[..root]));
        }
        Self::parse(location)
    }

    pub(super) fn is_hub(&self) -> bool {
        self.host == HUB && self.url.starts_with("https://")
    }

    pub(super) fn is_this_machine(&self) -> bool {
        self.url.starts_with("http://")
    }
}

/// The address behind a name of the hub; others are their own. `None` for a name of another shape.
fn of_hub(text: &str) -> Option<String> {
    let Some(name) = text.strip_prefix("hf://") else { return Some(text.to_owned()) };
    let (kind, name) = match name.strip_prefix("datasets/") {
        Some(name) => ("datasets/", name),
        None => ("", name),
    };
    let mut parts = name.splitn(3, '/');
    let (organisation, name, path) = (parts.next()?, parts.next()?, parts.next()?);
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    if [organisation, name, revision, path].contains(&"") {
        return None;
    }
    Some(format!("https://{HUB}/{kind}{organisation}/{name}/resolve/{revision}/{path}"))
}

fn host_of(authority: &str) -> &str {
    if let Some(end) = authority.find(']') {
        return &authority[..=end];
    }
    authority.split(':').next().unwrap_or_default()
}

/// A name with nothing in it that means something to a file system; its end, with the extension,
/// is kept.
fn safe(name: &str) -> String {
    let plain = |letter: char| {
        if letter.is_ascii_alphanumeric() || "-_.".contains(letter) { letter } else { '_' }
    };
    let name: String = name.chars().map(plain).collect();
    let name = &name[name.len().saturating_sub(NAME_BYTES_MAX)..];
    if name.starts_with('.') { format!("_{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_hub_become_addresses_and_names_of_files_are_safe() {
        let check = |text: &str, url: &str, name: &str| {
            let address = Address::parse(text).unwrap();
            assert_eq!((address.url.as_str(), address.file_name.as_str()), (url, name));
        };
        let hub = "https://huggingface.co";
        check(
            "hf://datasets/a/b/x/y.jsonl",
            &format!("{hub}/datasets/a/b/resolve/main/x/y.jsonl"),
            "y.jsonl",
        );
        check("hf://datasets/a/b@v1/y.gz", &format!("{hub}/datasets/a/b/resolve/v1/y.gz"), "y.gz");
        check(
            "hf://a/b/tokenizer.json",
            &format!("{hub}/a/b/resolve/main/tokenizer.json"),
            "tokenizer.json",
        );
        check("https://h.example/a/..%2f..?x=/y", "https://h.example/a/..%2f..?x=/y", "_.._2f..");
        check("http://127.0.0.1:80/.a", "http://127.0.0.1:80/.a", "_.a");
    }

    #[test]
    fn other_addresses_are_refused_with_what_is_wanted() {
        let check = |text: &str, want: &str| {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        };
        check("http://example.org/x", "http:// is for this machine only");
        check("http://localhost.example.org/x", "http:// is for this machine only");
        check("http://127.0.0.1@example.org/x", "names and passwords");
        check("hf://datasets/a/b", "want hf://datasets/ORG/NAME");
        check("hf://a/b@/x", "want hf://datasets/ORG/NAME");
        check("https://h.example", "want https://HOST/PATH");
        check("https://h.example/a/", "names no file");
        check("https://h.example/a b", "%20");
        check("ftp://h.example/a", "want https:// or hf://");
    }

    #[test]
    fn only_the_hub_itself_is_the_hub() {
        let is_hub = |text: &str| Address::parse(text).unwrap().is_hub();
        assert!(is_hub("hf://a/b/c") && is_hub("https://HuggingFace.co/x"));
        assert!(
            !is_hub("https://huggingface.co.example/x") && !is_hub("https://cdn.huggingface.co/x")
        );
        let hub = Address::parse("hf://a/b/c").unwrap();
        assert!(!hub.redirected("https://cdn.example/c").unwrap().is_hub());
        assert_eq!(hub.redirected("/d/c").unwrap().url, "https://huggingface.co/d/c");
        assert!(hub.redirected("http://example.org/c").is_err());
        assert!(hub.redirected("//example.org/c").is_err());
    }
}
