//! Carries out what `election` wants next, and tells how this coordinator stands.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, Error, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse,
    WatchOptions,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::remembered::{Known, Remembered};
use super::{FAREWELL, OPEN, Shared};
use crate::clock;
use crate::election::{Election, Event, Holder, Next, Stand, TTL_SECONDS};
use crate::store::StoreError;
use crate::store::remote::Candidate;

/// One call, over all nodes: a beat that takes longer is sent anew.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// After etcd did not answer.
const PAUSE: Duration = Duration::from_millis(200);

/// What etcd holds of the cluster: whose authority signs for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    name: String,
    pin: String,
}

/// What was read at one revision.
struct View {
    known: Known,
    holder: Option<Holder>,
    identity: Option<Identity>,
    coordinators: Vec<String>,
}

pub(super) struct Driver {
    shared: Arc<Shared>,
    identity: Identity,
    remembered: Remembered,
    refused: mpsc::UnboundedReceiver<String>,
    election: Election,
    coordinators: Vec<String>,
    /// Of the last view, and whether the cluster was known there.
    revision: i64,
    is_named: bool,
}

impl Driver {
    pub(super) fn new(
        shared: Arc<Shared>,
        candidate: Candidate,
        remembered: Remembered,
        refused: mpsc::UnboundedReceiver<String>,
    ) -> Self {
        let (name, pin) = candidate.cluster;
        Self {
            shared,
            coordinators: vec![candidate.address],
            identity: Identity { name, pin },
            remembered,
            refused,
            election: Election::default(),
            revision: 0,
            is_named: false,
        }
    }

    /// Sees whether this is the etcd, and the cluster, that it should be.
    pub(super) async fn begin(mut self) -> Result<Self, StoreError> {
        let view = self.view(OPEN).await.map_err(|why| self.shared.away(why))?;
        let place = self.shared.place.display().to_string();
        self.take_in(&view).map_err(|why| StoreError::Unfit(format!("{place}: {why}")))?;
        Ok(self)
    }

    pub(super) async fn run(mut self) {
        loop {
            let now = clock::running();
            let event = match self.election.next(now) {
                Next::Grant => self.grant(now).await,
                Next::Beat { lease } => self.beat(lease, now).await,
                Next::Look => self.look().await,
                Next::Campaign { lease } => self.campaign(lease).await,
                Next::Wait(time) => self.wait(time).await,
                Next::Over => return,
            };
            let is_unanswered = event == Event::Unanswered;
            self.election.apply(clock::running(), event);
            self.publish();
            if is_unanswered {
                sleep(PAUSE).await;
            }
        }
    }

    fn publish(&self) {
        let (stand, coordinators) = (self.election.stand(), self.coordinators.clone());
        self.shared.standing.send_if_modified(|known| {
            let is_new = known.stand != stand || known.coordinators != coordinators;
            (known.stand, known.coordinators) = (stand, coordinators);
            is_new
        });
    }

    async fn grant(&self, sent: Duration) -> Event {
        let granted = self.shared.calls.call(PATIENCE, |mut node: Client| async move {
            node.lease_grant(TTL_SECONDS, None).await
        });
        let Ok(granted) = granted.await else { return Event::Unanswered };
        let lease = granted.id();
        let key = self.shared.keys.of(&format!("coordinators/{}", self.shared.address));
        let put = self.shared.calls.call(PATIENCE, |mut node: Client| {
            let options = PutOptions::new().with_lease(lease);
            let (key, value) = (key.clone(), self.shared.address.clone());
            async move { node.put(key, value, Some(options)).await }
        });
        match put.await {
            Ok(_) => Event::Granted { lease, sent },
            Err(_) => Event::Unanswered,
        }
    }

    async fn beat(&mut self, lease: i64, sent: Duration) -> Event {
        let beaten = self.shared.calls.call(PATIENCE, |mut node: Client| async move {
            match node.lease_keep_alive(lease).await {
                Ok(_) => Ok(true),
                Err(Error::LeaseKeepAliveError(_)) => Ok(false),
                Err(error) => Err(error),
            }
        });
        let Ok(lives) = beaten.await else { return Event::Unanswered };
        let is_active = matches!(self.election.stand(), Stand::Active { .. });
        if lives
            && is_active
            && let Ok(view) = self.view(PATIENCE).await
        {
            if let Err(why) = self.take_in(&view) {
                return Event::Fenced(why);
            }
            if view.holder.is_none_or(|holder| holder.lease != lease) {
                return Event::Fenced("the leader's key is another one's".to_owned());
            }
        }
        Event::Beaten { sent, lives }
    }

    async fn look(&mut self) -> Event {
        let Ok(view) = self.view(PATIENCE).await else { return Event::Unanswered };
        match self.take_in(&view) {
            Ok(()) => Event::Seen(view.holder),
            Err(why) => Event::Fenced(why),
        }
    }

    async fn campaign(&mut self, lease: i64) -> Event {
        let (leader, cluster) = (self.shared.keys.of("leader"), self.shared.keys.of("cluster"));
        let json = |what: serde_json::Result<String>| what.unwrap_or_default();
        let identity = json(serde_json::to_string(&self.identity));
        let address = self.shared.address.clone();
        let holder = json(serde_json::to_string(&Holder { address, term: 0, lease: 0 }));
        // Whoever is first says whose cluster it is.
        let same = if self.is_named {
            Compare::value(cluster.clone(), CompareOp::Equal, identity.clone())
        } else {
            Compare::create_revision(cluster.clone(), CompareOp::Equal, 0)
        };
        let nobody = Compare::create_revision(leader.clone(), CompareOp::Equal, 0);
        let put = [
            TxnOp::put(leader, holder, Some(PutOptions::new().with_lease(lease))),
            TxnOp::put(cluster, identity, None),
        ];
        let txn = Txn::new().when([nobody, same]).and_then(put);
        let made = self.shared.calls.call(PATIENCE, |mut node: Client| {
            let txn = txn.clone();
            async move { node.txn(txn).await }
        });
        match made.await {
            Ok(made) if made.succeeded() => match made.header() {
                Some(header) => Event::Won { term: header.revision() as u64 },
                None => Event::Unanswered,
            },
            Ok(_) => Event::Lost,
            Err(_) => Event::Unanswered,
        }
    }

    /// Until the leader's key changes, a write is refused, or time is up.
    async fn wait(&mut self, time: Duration) -> Event {
        let is_standby = matches!(self.election.stand(), Stand::Standby { .. });
        let (key, from) = (self.shared.keys.of("leader"), self.revision + 1);
        let node = self.shared.calls.node();
        tokio::select! {
            () = sleep(time) => Event::Woken,
            () = changed(node, key, from), if is_standby => Event::Woken,
            Some(why) = self.refused.recv() => Event::Fenced(why),
        }
    }

    /// Everything that the election needs, at one revision.
    async fn view(&self, patience: Duration) -> Result<View, String> {
        let keys = &self.shared.keys;
        let get = |what: &str| TxnOp::get(keys.of(what), None);
        let there = TxnOp::get(keys.of("coordinators/"), Some(GetOptions::new().with_prefix()));
        let txn = Txn::new().and_then([get("leader"), get("cluster"), there]);
        let call = |mut node: Client| {
            let txn = txn.clone();
            async move { node.txn(txn).await }
        };
        let answer = self.shared.calls.call(patience, call).await?;
        let header = answer.header().ok_or("an answer without a head")?;
        let known = Known { id: header.cluster_id(), revision: header.revision() };
        let mut found = answer.op_responses().into_iter().map(found);
        let mut next = || found.next().unwrap_or_default();
        let (leader, cluster, there) = (next(), next(), next());
        let holder = leader.first().map(|kv| {
            // One of another version still has the key.
            let unknown = Holder { address: "?".to_owned(), term: 0, lease: 0 };
            let holder = serde_json::from_slice(kv.value()).unwrap_or(unknown);
            Holder { term: kv.create_revision() as u64, lease: kv.lease(), ..holder }
        });
        let identity = cluster.first().map(|kv| serde_json::from_slice(kv.value()));
        let identity = identity.transpose().map_err(|error| {
            format!("what it holds of the cluster cannot be understood: {error}")
        })?;
        let address = |kv: &KeyValue| String::from_utf8_lossy(kv.value()).into_owned();
        let coordinators = there.iter().map(address).collect();
        Ok(View { known, holder, identity, coordinators })
    }

    /// # Errors
    /// It is not the etcd, or not the cluster, that it should be.
    fn take_in(&mut self, view: &View) -> Result<(), String> {
        self.remembered.holds(view.known)?;
        if let Some(found) = view.identity.as_ref().filter(|found| **found != self.identity) {
            return Err(format!(
                "the cluster there is {} with another authority (pin {}) than this coordinator's. A second coordinator \
                 needs the first one's: copy `authority` and `name` from its state directory into an empty one (see \
                 docs/cluster.md). Or choose another prefix for a cluster of its own: etcd://…/PREFIX",
                found.name, found.pin
            ));
        }
        self.is_named = view.identity.is_some();
        self.revision = view.known.revision;
        self.coordinators.clone_from(&view.coordinators);
        if let Err(error) = self.remembered.keep(view.known) {
            tracing::warn!(%error, "how far etcd has come cannot be remembered");
        }
        Ok(())
    }
}

fn found(answer: TxnOpResponse) -> Vec<KeyValue> {
    match answer {
        TxnOpResponse::Get(mut get) => get.take_kvs(),
        TxnOpResponse::Put(_) | TxnOpResponse::Delete(_) | TxnOpResponse::Txn(_) => Vec::new(),
    }
}

/// Returns when a key changes. Where it cannot be watched, somebody else keeps the time.
async fn changed(mut node: Client, key: String, from: i64) {
    let options = WatchOptions::new().with_start_revision(from);
    if let Ok(mut watching) = node.watch(key, Some(options)).await {
        while let Ok(Some(news)) = watching.message().await {
            if !news.events().is_empty() {
                return;
            }
        }
    }
    std::future::pending::<()>().await;
}

/// Gives the lease back, with all that stands under it: whoever waits takes over at once.
pub(super) async fn give_back(shared: &Shared) {
    let key = shared.keys.of(&format!("coordinators/{}", shared.address));
    let gone = async {
        let mut node = shared.calls.node();
        let lease = node.get(key, None).await?.kvs().first().map_or(0, KeyValue::lease);
        if lease != 0 {
            node.lease_revoke(lease).await?;
        }
        Ok::<_, Error>(())
    };
    // Else it ends by itself, a little later.
    let _ = timeout(FAREWELL, gone).await;
}
