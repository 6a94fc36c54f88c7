//! The thread that computes: takes requests in, moves all texts on round by round, and sends out what
//! they gained. A text whose receiver is gone is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use rayon::ThreadPool;
use shoal_infer::{InferError, Reason, Request, Tally, Text, Voice};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Texts that are computed together; the others wait.
const TOGETHER: usize = 32;

/// What becomes of a text.
#[derive(Debug)]
pub(super) enum Event {
    Piece(String),
    End { reason: Reason, tally: Tally },
    Failed(String),
}

/// A place in the queue, given back when the text is done.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Waiting {
    text: Text,
    events: UnboundedSender<Event>,
    /// Held for as long as the text is.
    _place: Place,
}

/// The way in.
pub(super) struct Writer {
    voice: Arc<Voice>,
    speculate: bool,
    queue: usize,
    taken: Arc<AtomicUsize>,
    texts: Sender<Waiting>,
}

/// Why a request was not taken.
#[derive(Debug)]
pub(super) enum Refused {
    Full { queue: usize },
    Request(InferError),
    Gone,
}

impl Writer {
    pub(super) fn start(voice: Voice, pool: ThreadPool, speculate: bool, queue: usize) -> Self {
        let (texts, incoming) = channel();
        let voice = Arc::new(voice);
        let writing = Arc::clone(&voice);
        thread::spawn(move || pool.install(move || run(&writing, incoming)));
        Self { voice, speculate, queue, taken: Arc::default(), texts }
    }

    pub(super) fn voice(&self) -> &Voice {
        &self.voice
    }

    /// Takes all requests or none; what happens to each comes out of its receiver.
    pub(super) fn take(
        &self,
        requests: Vec<Request>,
    ) -> Result<Vec<UnboundedReceiver<Event>>, Refused> {
        let n = requests.len();
        let has_room = |taken: usize| (taken + n <= self.queue).then_some(taken + n);
        self.taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room)
            .map_err(|_| Refused::Full { queue: self.queue })?;
        let places: Vec<Place> = (0..n).map(|_| Place(Arc::clone(&self.taken))).collect();
        let mut receivers = Vec::with_capacity(n);
        let mut waiting = Vec::with_capacity(n);
        for (request, place) in requests.into_iter().zip(places) {
            let text = self.voice.begin(request, self.speculate).map_err(Refused::Request)?;
            let (events, receiver) = unbounded_channel();
            receivers.push(receiver);
            waiting.push(Waiting { text, events, _place: place });
        }
        for text in waiting {
            self.texts.send(text).map_err(|_| Refused::Gone)?;
        }
        Ok(receivers)
    }
}

/// Until every sender is gone.
fn run(voice: &Voice, incoming: Receiver<Waiting>) {
    let mut live: Vec<Waiting> = Vec::new();
    loop {
        if live.is_empty() {
            let Ok(text) = incoming.recv() else { return };
            live.push(text);
        }
        live.extend(incoming.try_iter().take(TOGETHER.saturating_sub(live.len())));
        live.retain(|text| !text.events.is_closed());
        let mut texts: Vec<&mut Text> = live.iter_mut().map(|waiting| &mut waiting.text).collect();
        if let Err(error) = voice.round(&mut texts) {
            for Waiting { events, .. } in live.drain(..) {
                // The receiver may be gone: then nobody needs to know.
                let _ = events.send(Event::Failed(error.to_string()));
            }
        }
        live.retain_mut(tell);
    }
}

/// Sends what the text gained; whether it goes on.
fn tell(Waiting { text, events, _place }: &mut Waiting) -> bool {
    let piece = text.take_output();
    if !piece.is_empty() && events.send(Event::Piece(piece)).is_err() {
        return false;
    }
    if let Some(reason) = text.ended() {
        // As above.
        let _ = events.send(Event::End { reason, tally: text.tally() });
        return false;
    }
    true
}
