//! One transfer: requests, redirections, the part that is there already, and the proof at the end.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::{Agent, Body};

use super::Origin;
use super::address::Address;
use crate::error::{DataError, io_error};

const REDIRECTIONS_MAX: u32 = 8;
const READ_BYTES: usize = 1 << 18;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
/// A transfer that takes longer is cut and goes on in the next one; so a server that sends nothing
/// more is noticed. One that cannot go on must be done within this time.
const BODY_TIMEOUT: Duration = Duration::from_mins(15);

/// Why a transfer ended before its end.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) cause: String,
    /// Another attempt may go on from here.
    pub(super) is_cut: bool,
    status: u16,
}

impl Failure {
    pub(super) fn new(cause: impl Into<String>) -> Self {
        Self { cause: cause.into(), is_cut: false, status: 0 }
    }

    fn cut(cause: impl Into<String>) -> Self {
        Self { is_cut: true, ..Self::new(cause) }
    }

    /// What to do about it.
    pub(super) fn help(&self, address: &Address, place: &Path) -> String {
        match self.status {
            401 | 403 if address.is_hub() => {
                "set HF_TOKEN to a token that may read it, and accept its terms on the page".into()
            }
            404 | 410 => "check the address".into(),
            _ => format!("put the file at {} or use a local path", place.display()),
        }
    }
}

/// A file on its way.
pub(super) struct Transfer<'a> {
    address: &'a Address,
    token: Option<&'a str>,
    agent: Agent,
    partial: &'a Path,
    file: File,
    bytes: u64,
    blake3: blake3::Hasher,
    sha256: Sha256,
    /// Of what is in the partial file.
    etag: Option<String>,
}

/// Where the ETag of a partial file is kept.
pub(super) fn notes_of(partial: &Path) -> PathBuf {
    partial.with_added_extension("etag")
}

impl<'a> Transfer<'a> {
    /// Takes up a partial file of an earlier call, if its ETag is known.
    pub(super) fn new(
        address: &'a Address,
        token: Option<&'a str>,
        partial: &'a Path,
    ) -> Result<Self, DataError> {
        let mut config = Agent::config_builder()
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(ANSWER_TIMEOUT))
            .timeout_recv_body(Some(BODY_TIMEOUT))
            .user_agent(concat!("shoal/", env!("CARGO_PKG_VERSION")));
        if address.is_this_machine() {
            config = config.proxy(None);
        }
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).open(partial);
        let mut transfer = Self {
            address,
            token,
            agent: config.build().into(),
            partial,
            file: file.map_err(io_error("creating", partial))?,
            bytes: 0,
            blake3: blake3::Hasher::new(),
            sha256: Sha256::new(),
            etag: fs::read_to_string(notes_of(partial)).ok(),
        };
        if transfer.etag.is_some() {
            transfer.take_up().map_err(io_error("reading", partial))?;
        } else {
            transfer.restart().map_err(io_error("writing", partial))?;
        }
        Ok(transfer)
    }

    /// Bytes in the partial file.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Hashes what is there already.
    fn take_up(&mut self) -> std::io::Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = self.file.read(&mut buffer)?;
            if n == 0 {
                return Ok(());
            }
            self.count(&buffer[..n]);
        }
    }

    fn count(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.blake3.update(bytes);
        self.sha256.update(bytes);
    }

    /// Forgets what is there.
    fn restart(&mut self) -> std::io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        (self.bytes, self.etag) = (0, None);
        self.blake3.reset();
        self.sha256.reset();
        match fs::remove_file(notes_of(self.partial)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Fetches what is missing. The file stays under its partial name.
    pub(super) fn run(
        &mut self,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<Origin, Failure> {
        let disk = |error: std::io::Error| Failure::new(format!("writing it failed: {error}"));
        let (mut response, sha256_wanted) = self.ask()?;
        if response.status() == 416 {
            // The part is longer than the file is now.
            self.restart().map_err(disk)?;
            (response, _) = self.ask()?;
        }
        let status = response.status();
        let header = |name: &str| -> Option<String> {
            response.headers().get(name)?.to_str().ok().map(str::to_owned)
        };
        match status.as_u16() {
            206 if self.bytes > 0 => {
                let range = header("content-range").unwrap_or_default();
                if !range.starts_with(&format!("bytes {}-", self.bytes)) {
                    return Err(Failure::new(format!("the server sends another part: {range:?}")));
                }
            }
            200 => self.restart().map_err(disk)?,
            code => {
                let cause = format!("the server answers {status}");
                return Err(Failure { status: code, ..Failure::new(cause) });
            }
        }
        let left: Option<u64> = header("content-length").and_then(|text| text.parse().ok());
        let all = left.map(|left| self.bytes + left);
        // A weak one does not promise the same bytes.
        self.etag = header("etag").filter(|etag| !etag.starts_with("W/"));
        if let Some(etag) = &self.etag {
            fs::write(notes_of(self.partial), etag).map_err(disk)?;
        }
        self.receive(response.into_body(), all, progress)?;
        self.prove(all, sha256_wanted)
    }

    /// Asks for the file, or for the rest of it, through redirections. Also what its SHA-256 must
    /// be, where the hub says it.
    fn ask(&self) -> Result<(Response<Body>, Option<String>), Failure> {
        let mut at = self.address.clone();
        let mut sha256 = None;
        for _ in 0..=REDIRECTIONS_MAX {
            let mut request = self.agent.get(&at.url);
            if let Some(token) = self.token.filter(|_| at.is_hub()) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(etag) = self.etag.as_ref().filter(|_| self.bytes > 0) {
                let range = format!("bytes={}-", self.bytes);
                request = request.header("range", range).header("if-range", etag);
            }
            let response = request.call().map_err(|error| Failure::new(error.to_string()))?;
            let header = |name: &str| response.headers().get(name)?.to_str().ok();
            if at.is_hub() || at.is_this_machine() {
                let linked = header("x-linked-etag").map(|etag| etag.trim_matches('"'));
                let is_sha256 = |etag: &&str| {
                    etag.len() == 64 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())
                };
                sha256 = linked.filter(is_sha256).map(str::to_ascii_lowercase).or(sha256);
            }
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok((response, sha256));
            }
            let location = header("location").unwrap_or_default();
            at = at
                .redirected(location)
                .map_err(|error| Failure::new(format!("the server sends us on to {error}")))?;
        }
        Err(Failure::new(format!("more than {REDIRECTIONS_MAX} redirections")))
    }

    fn receive(
        &mut self,
        body: Body,
        all: Option<u64>,
        progress: &mut dyn FnMut(u64, Option<u64>),
    ) -> Result<(), Failure> {
        let mut body = body.into_reader();
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let n = body.read(&mut buffer).map_err(|error| {
                Failure::cut(format!("the transfer was cut after {} bytes: {error}", self.bytes))
            })?;
            if n == 0 {
                return Ok(());
            }
            let written = self.file.write_all(&buffer[..n]);
            written.map_err(|error| Failure::new(format!("writing it failed: {error}")))?;
            self.count(&buffer[..n]);
            progress(self.bytes, all);
        }
    }

    /// Checks size and hash, and syncs.
    fn prove(&mut self, all: Option<u64>, wanted: Option<String>) -> Result<Origin, Failure> {
        if let Some(all) = all.filter(|all| *all != self.bytes) {
            let got = self.bytes;
            return Err(Failure::cut(format!("the transfer was cut after {got} of {all} bytes")));
        }
        let sha256 = format!("{:x}", self.sha256.clone().finalize());
        if let Some(wanted) = wanted.as_ref().filter(|wanted| **wanted != sha256) {
            // Nothing of it can be trusted.
            let _ = self.restart();
            let cause = format!("its SHA-256 is {sha256}, the hub says {wanted}");
            return Err(Failure::new(cause));
        }
        let synced = self.file.sync_all();
        synced.map_err(|error| Failure::new(format!("writing it failed: {error}")))?;
        Ok(Origin {
            address: String::new(),
            bytes: self.bytes,
            blake3: self.blake3.finalize().to_hex().to_string(),
            sha256: wanted,
            etag: self.etag.clone(),
        })
    }
}
