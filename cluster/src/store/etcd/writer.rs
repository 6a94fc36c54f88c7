//! Writes and reads what is known. Only one write is under way at a time.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Compare, CompareOp, DeleteOptions, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse,
};

use super::Shared;
use super::staged::{VALUE_BYTES_MAX, off_stage, on_stage, pieces};
use crate::clock;
use crate::election::Stand;
use crate::store::seal::{sealed, unsealed};
use crate::store::{Change, StoreError};

/// One transaction, and all of them for one write.
const TRANSACTION: Duration = Duration::from_millis(1_500);
const WRITE: Duration = Duration::from_secs(3);

/// Records that are read at a time.
const PAGE: i64 = 32;

/// A page of the largest records.
const PAGE_BYTES_MAX: usize = 64 << 20;

/// Of one transaction whose fate was not known.
const ATTEMPTS: u32 = 4;

pub(super) struct Writer {
    shared: Arc<Shared>,
    /// Revision of the write before; nothing where its fate is not known.
    sequence: Option<i64>,
    /// A promise may be there that was not kept yet.
    may_be_promised: bool,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared, sequence: None, may_be_promised: true }
    }

    /// All of these changes or none.
    pub(super) async fn write(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let until = clock::running() + WRITE;
        if let Some((key, value)) = changes.iter().find(|(_, value)| is_too_large(value.as_ref())) {
            let bytes = value.as_ref().map_or(0, Vec::len);
            return Err(StoreError::Unfit(format!(
                "{}: the record {key} has {bytes} bytes, and etcd takes at most {VALUE_BYTES_MAX}",
                self.shared.place.display()
            )));
        }
        if self.may_be_promised {
            self.keep_promise(until).await?;
        }
        let pieces = pieces(changes);
        if let [piece] = pieces[..] {
            return self.commit(self.in_place(piece), until).await;
        }
        self.stage(&pieces, until).await?;
        self.may_be_promised = true;
        let promise = changes.len().to_string();
        self.commit(vec![TxnOp::put(self.key("promise"), promise, None)], until).await?;
        self.keep_promise(until).await
    }

    async fn stage(&mut self, pieces: &[&[Change]], until: Duration) -> Result<(), StoreError> {
        // Left there by a write that was not promised.
        self.commit(vec![self.clear_stage()], until).await?;
        let mut number = 0;
        for piece in pieces {
            let put = |change: &Change| {
                let key = self.key(&format!("stage/{number:08}"));
                number += 1;
                TxnOp::put(key.clone(), sealed(&key, &on_stage(change)), None)
            };
            let staged = piece.iter().map(put).collect();
            self.commit(staged, until).await?;
        }
        Ok(())
    }

    /// Finishes what somebody has promised, this coordinator or one before.
    async fn keep_promise(&mut self, until: Duration) -> Result<(), StoreError> {
        let promise = self.read_one("promise").await?;
        if let Some(promise) = promise {
            let mut changes = Vec::new();
            for (key, value) in self.read_all("stage/").await? {
                let change = unsealed(&key, &value).ok().and_then(off_stage);
                changes.push(change.ok_or_else(|| self.damaged(&key, "it does not fit its hash"))?);
            }
            if promise.value() != changes.len().to_string().as_bytes() {
                let found = format!("{} changes are staged, not as many as it says", changes.len());
                return Err(self.damaged("promise", &found));
            }
            for piece in pieces(&changes) {
                self.commit(self.in_place(piece), until).await?;
            }
            let kept = vec![TxnOp::delete(self.key("promise"), None), self.clear_stage()];
            self.commit(kept, until).await?;
        }
        self.may_be_promised = false;
        Ok(())
    }

    /// Everything, in the order of keys.
    pub(super) async fn load(&mut self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.keep_promise(clock::running() + super::LOAD).await?;
        let head = self.key("facts/");
        let mut records = Vec::new();
        for (key, value) in self.read_all("facts/").await? {
            let name = key.strip_prefix(&head).unwrap_or(&key).to_owned();
            let opened = unsealed(&name, &value).map_err(|why| self.damaged(&name, why))?;
            records.push((name, opened.to_vec()));
        }
        Ok(records)
    }

    /// One transaction, if this coordinator is the active one and nothing was written since.
    async fn commit(&mut self, changes: Vec<TxnOp>, until: Duration) -> Result<(), StoreError> {
        let term = self.term()?;
        let (leader, sequence) = (self.key("leader"), self.key("sequence"));
        for _ in 0..ATTEMPTS {
            let known = match self.sequence {
                Some(known) => known,
                None => self.read_one("sequence").await?.map_or(0, |kv| kv.mod_revision()),
            };
            let mut operations = changes.clone();
            operations.push(TxnOp::put(sequence.clone(), "", None));
            let txn = Txn::new()
                .when([
                    Compare::create_revision(leader.clone(), CompareOp::Equal, term),
                    Compare::mod_revision(sequence.clone(), CompareOp::Equal, known),
                ])
                .and_then(operations)
                .or_else([TxnOp::get(leader.clone(), None), TxnOp::get(sequence.clone(), None)]);
            let left = until.saturating_sub(clock::running()).min(TRANSACTION);
            // Whatever comes of it, until it is known.
            self.sequence = None;
            let call = |mut node: etcd_client::Client| {
                let txn = txn.clone();
                async move { node.txn(txn).await }
            };
            let answered = self.shared.calls.call(left, call).await;
            let mut answered = answered.map_err(|why| self.shared.away(why))?;
            if answered.succeeded() {
                self.sequence = answered.take_header().map(|header| header.revision());
                return Ok(());
            }
            let found: Vec<Option<KeyValue>> = answered.op_responses().iter().map(first).collect();
            let holder = found.first().and_then(Option::as_ref).map(KeyValue::create_revision);
            if holder != Some(term) {
                return Err(self.deposed());
            }
            // One of ours had arrived after all: it is done again, which changes nothing.
            let last = found.get(1).and_then(Option::as_ref).map(KeyValue::mod_revision);
            self.sequence = Some(last.unwrap_or(0));
        }
        Err(self.shared.away("writes overtake each other".to_owned()))
    }

    fn term(&self) -> Result<i64, StoreError> {
        match self.shared.standing.borrow().stand.clone() {
            Stand::Active { term, .. } => Ok(term as i64),
            Stand::Standby { .. } => {
                let (place, why) = (self.shared.place.clone(), "it is a standby".to_owned());
                Err(StoreError::Fenced { place, why })
            }
            Stand::Deposed { why } => {
                Err(StoreError::Fenced { place: self.shared.place.clone(), why })
            }
        }
    }

    fn deposed(&self) -> StoreError {
        let why = "another coordinator is active: a write was refused".to_owned();
        // The driver ends with the process.
        let _ = self.shared.fenced.send(why.clone());
        StoreError::Fenced { place: self.shared.place.clone(), why }
    }

    fn damaged(&self, key: &str, why: &str) -> StoreError {
        let (path, key) = (self.shared.place.clone(), key.to_owned());
        StoreError::Damaged { path, key, why: why.to_owned() }
    }

    fn key(&self, what: &str) -> String {
        self.shared.keys.of(what)
    }

    fn in_place(&self, piece: &[Change]) -> Vec<TxnOp> {
        let put = |(name, value): &Change| {
            let key = self.key(&format!("facts/{name}"));
            match value {
                Some(value) => TxnOp::put(key, sealed(name, value), None),
                None => TxnOp::delete(key, None),
            }
        };
        piece.iter().map(put).collect()
    }

    fn clear_stage(&self) -> TxnOp {
        TxnOp::delete(self.key("stage/"), Some(DeleteOptions::new().with_prefix()))
    }

    async fn read_one(&self, what: &str) -> Result<Option<KeyValue>, StoreError> {
        let key = self.key(what);
        let call = |mut node: etcd_client::Client| {
            let key = key.clone();
            async move { node.get(key, None).await }
        };
        let found = self.shared.calls.call(TRANSACTION, call).await;
        let mut found = found.map_err(|why| self.shared.away(why))?;
        Ok(found.take_kvs().into_iter().next())
    }

    /// All keys that begin so, as they were at one revision.
    async fn read_all(&self, what: &str) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let head = self.key(what);
        let mut end = head.clone().into_bytes();
        // The first key behind all of these: `0` follows `/`.
        end.pop();
        end.push(b'0');
        let (mut from, mut revision, mut records) = (head.into_bytes(), 0, Vec::new());
        loop {
            let call = |node: etcd_client::Client| {
                let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
                let options = options.with_revision(revision);
                let mut node = node.kv_client().max_decoding_message_size(PAGE_BYTES_MAX);
                let from = from.clone();
                async move { node.get(from, Some(options)).await }
            };
            let page = self.shared.calls.call(super::OPEN, call).await;
            let mut page = page.map_err(|why| self.shared.away(why))?;
            revision = page.header().map_or(0, etcd_client::ResponseHeader::revision);
            let (found, more) = (page.take_kvs(), page.more());
            for record in found {
                let (key, value) = record.into_key_value();
                from.clone_from(&key);
                from.push(0);
                records.push((String::from_utf8_lossy(&key).into_owned(), value));
            }
            if !more {
                return Ok(records);
            }
        }
    }
}

fn is_too_large(value: Option<&Vec<u8>>) -> bool {
    value.is_some_and(|value| value.len() > VALUE_BYTES_MAX)
}

fn first(answer: &TxnOpResponse) -> Option<KeyValue> {
    match answer {
        TxnOpResponse::Get(get) => get.kvs().first().cloned(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => None,
    }
}
