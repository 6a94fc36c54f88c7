//! What a rig asks the coordinator about itself and its links.

use std::time::Duration;

use shoal_proto::wire::raw::rigs_client::RigsClient;
use shoal_proto::wire::raw::{Chunk, NeighboursWanted, ProbeWanted, Words};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;

use super::words::{Look, Neighbour, Seen};
use super::{BYTES_MAX, GRACE, Rate, TIME, noise};
use crate::client::{ANSWER, Client, ClientError, failed, told};
use crate::server::ORDER_BYTES_MAX;

impl Client {
    /// What the coordinator thinks of this rig, and how long it took to say so.
    ///
    /// # Errors
    /// It does not want to, or nobody answers.
    pub async fn look(&self, look: &Look) -> Result<(Seen, Duration), ClientError> {
        let json = serde_json::to_string(look).map_err(|error| self.misunderstood(&error))?;
        let mut client = RigsClient::new(self.channel.clone());
        let since = Instant::now();
        let answer = timeout(ANSWER, client.look(Words { json, term: 0 })).await;
        let words = told(&self.address, answer)?;
        let took = since.elapsed();
        let seen = serde_json::from_str(&words.json).map_err(|error| self.misunderstood(&error))?;
        Ok((seen, took))
    }

    /// The other rigs that are here.
    ///
    /// # Errors
    /// As `look`.
    pub async fn neighbours(&self) -> Result<Vec<Neighbour>, ClientError> {
        let mut client =
            RigsClient::new(self.channel.clone()).max_decoding_message_size(ORDER_BYTES_MAX);
        let answer = timeout(ANSWER, client.neighbours(NeighboursWanted {})).await;
        let words = told(&self.address, answer)?;
        serde_json::from_str(&words.json).map_err(|error| self.misunderstood(&error))
    }

    /// How fast bytes get to the coordinator, as it has counted them.
    ///
    /// # Errors
    /// As `look`.
    pub async fn probe_up(&self) -> Result<Rate, ClientError> {
        let (chunks, outgoing) = mpsc::channel(2);
        tokio::spawn(async move {
            let (noise, since, mut sent) = (noise(), Instant::now(), 0);
            while sent < BYTES_MAX && since.elapsed() < TIME {
                let chunk = Chunk { bytes: noise.clone() };
                sent += chunk.bytes.len() as u64;
                if chunks.send(chunk).await.is_err() {
                    return;
                }
            }
        });
        let mut client = RigsClient::new(self.channel.clone());
        let probed = client.probe_up(ReceiverStream::new(outgoing));
        let probed = told(&self.address, timeout(TIME + GRACE * 2, probed).await)?;
        Ok(Rate { bytes: probed.bytes, seconds: probed.microseconds as f64 / 1e6 })
    }

    /// How fast they come back.
    ///
    /// # Errors
    /// As `look`.
    pub async fn probe_down(&self) -> Result<Rate, ClientError> {
        let mut client = RigsClient::new(self.channel.clone());
        let wanted = client.probe_down(ProbeWanted { bytes: BYTES_MAX });
        let mut chunks = told(&self.address, timeout(GRACE, wanted).await)?;
        let count = async {
            let (mut since, mut rate) = (None, Rate { bytes: 0, seconds: 0.0 });
            while let Some(chunk) = chunks.message().await? {
                // The first is there when the clock starts.
                let since = since.get_or_insert_with(Instant::now);
                rate.bytes += chunk.bytes.len() as u64;
                rate.seconds = since.elapsed().as_secs_f64();
            }
            Ok(rate)
        };
        match timeout(TIME + GRACE, count).await {
            Ok(rate) => rate.map_err(|status| failed(self.address.clone(), &status)),
            Err(_) => Err(self.silent(TIME + GRACE)),
        }
    }

    fn misunderstood(&self, error: &serde_json::Error) -> ClientError {
        let why = format!("an answer that cannot be understood: {error}");
        ClientError::Refused { address: self.address.clone(), why }
    }

    fn silent(&self, time: Duration) -> ClientError {
        let why = format!("it stopped sending for {} s", time.as_secs());
        ClientError::Unreachable { address: self.address.clone(), why }
    }
}
