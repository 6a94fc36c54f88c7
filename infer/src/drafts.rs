//! What the multi-token-prediction modules know of one text.
//!
//! Module k at position i reads the hidden state of depth k - 1 at i and token i + k, and predicts
//! token i + k + 1. With n tokens the main model has seen all but the last, positions up to n - 2, so
//! module 1 drafts token n, module 2 reads that draft and drafts token n + 1, and so on. When drafts
//! turn out wrong, what modules read of them is forgotten.

use shoal_model::{Cache, Decoder};

use crate::sampling::Draft;

/// Hidden states of neighbouring positions.
#[derive(Clone, Debug)]
struct Trail {
    /// Position of the first.
    first: usize,
    width: usize,
    /// [positions, D].
    rows: Vec<f32>,
}

impl Trail {
    fn end(&self) -> usize {
        self.first + self.rows.len() / self.width
    }

    /// Forgets the positions from `end` on.
    fn truncate(&mut self, end: usize) {
        self.rows.truncate(end.saturating_sub(self.first) * self.width);
    }

    /// Forgets the positions before `start`.
    fn forget(&mut self, start: usize) {
        let start = start.clamp(self.first, self.end());
        self.rows.drain(..(start - self.first) * self.width);
        self.first = start;
    }
}

/// The modules' memory of one text.
#[derive(Debug)]
pub(crate) struct Drafts {
    /// By depth, from 1.
    caches: Vec<Cache>,
    /// By depth, from 0: what the module of the next depth has still to read.
    trails: Vec<Trail>,
    /// Tokens proposed to follow the text.
    pub(crate) proposed: Vec<Draft>,
}

/// What a module has to read.
pub(crate) struct Reading<'a> {
    pub(crate) cache: &'a mut Cache,
    pub(crate) tokens: Vec<u32>,
    pub(crate) hidden: Vec<f32>,
}

impl Drafts {
    pub(crate) fn new(decoder: &Decoder) -> Self {
        let (n, width) = (decoder.n_modules(), decoder.config().hidden_size as usize);
        let trail = Trail { first: 0, width, rows: Vec::new() };
        Self {
            caches: (0..n).map(|_| decoder.module_cache()).collect(),
            trails: vec![trail; n],
            proposed: Vec::new(),
        }
    }

    /// The proposed tokens.
    pub(crate) fn tokens(&self) -> impl Iterator<Item = u32> {
        self.proposed.iter().map(|draft| draft.token)
    }

    /// Takes hidden states [_, D] of the depth before `depth`, of the positions that come next.
    pub(crate) fn extend(&mut self, depth: usize, hidden: &[f32]) {
        if let Some(trail) = self.trails.get_mut(depth - 1) {
            trail.rows.extend_from_slice(hidden);
        }
    }

    /// The text has `n` tokens now: what was read of drafts that are not among them is forgotten.
    pub(crate) fn settle(&mut self, n: usize) {
        // Hidden states of the main model are those of all tokens but the last.
        self.trails.iter_mut().take(1).for_each(|trail| trail.truncate(n - 1));
        // The last token is never one that a module has read: it was not proposed, or is new.
        for (depth, cache) in (1..).zip(&mut self.caches) {
            let known = (n - 1).saturating_sub(depth);
            cache.truncate(known);
            if let Some(trail) = self.trails.get_mut(depth) {
                trail.truncate(known);
            }
        }
        self.proposed.clear();
    }

    /// What the module of `depth` has to read next of `tokens` and the drafts behind them.
    pub(crate) fn reading(&mut self, depth: usize, tokens: &[u32]) -> Option<Reading<'_>> {
        let cache = &mut self.caches[depth - 1];
        let trail = &mut self.trails[depth - 1];
        trail.forget(cache.len());
        let n_known = tokens.len() + self.proposed.len();
        let end = trail.end().min(n_known.saturating_sub(depth));
        if end <= cache.len() {
            return None;
        }
        let token = |at: usize| match tokens.get(at) {
            Some(token) => *token,
            None => self.proposed[at - tokens.len()].token,
        };
        let positions = cache.len()..end;
        let hidden = trail.rows[..positions.len() * trail.width].to_vec();
        Some(Reading { tokens: positions.map(|at| token(at + depth)).collect(), hidden, cache })
    }

    /// Positions that the module of `depth` has read.
    pub(crate) fn read(&self, depth: usize) -> usize {
        self.caches[depth - 1].len()
    }
}
