//! One text under way: its tokens, what the model remembers of them, and where it ends.

use shoal_data::Tokenizer;
use shoal_kernels::compare::Random;
use shoal_model::{Cache, Decoder};

use crate::drafts::Drafts;
use crate::error::InferError;
use crate::sampling::Sampling;
use crate::stops::Stops;
use crate::stream::{Characters, Spelling};

/// What to write.
#[derive(Clone, Debug)]
pub struct Request {
    /// Tokens of the prompt. An empty one begins with the tokenizer's end token.
    pub prompt: Vec<u32>,
    /// At most so many new ones.
    pub tokens: usize,
    pub sampling: Sampling,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
}

/// Why a text ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The end token, or a stop string.
    Stop,
    /// As many tokens as were asked for, or as the model has positions.
    Length,
}

impl Reason {
    /// Its word in `OpenAI`'s interface.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// What writing took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// New tokens, the end token not counted.
    pub tokens: u64,
    /// Passes of the main model, the prompt's pieces not counted but for the last.
    pub passes: u64,
    /// Passes that verified a draft of the first module, and how often it was right.
    pub drafted: u64,
    pub accepted: u64,
}

/// One text. `Voice::round` moves it on.
#[derive(Debug)]
pub struct Text {
    pub(crate) tokens: Vec<u32>,
    n_prompt: usize,
    pub(crate) cache: Cache,
    /// `None`: no drafts.
    pub(crate) drafts: Option<Drafts>,
    pub(crate) random: Random,
    pub(crate) sampling: Sampling,
    /// New tokens still wanted.
    left: usize,
    positions: usize,
    spelling: Spelling,
    stops: Stops,
    characters: Characters,
    output: String,
    ended: Option<Reason>,
    pub(crate) tally: Tally,
}

impl Text {
    pub(crate) fn new(
        request: Request,
        decoder: &Decoder,
        tokenizer: &Tokenizer,
        speculate: bool,
    ) -> Result<Self, InferError> {
        request.sampling.check()?;
        let mut tokens = request.prompt;
        if tokens.is_empty() {
            tokens.push(tokenizer.end_token().ok_or(InferError::EmptyPrompt)?);
        }
        let (got, want) = (tokens.len(), decoder.positions());
        if want < got {
            return Err(InferError::PromptTooLong { got, want });
        }
        Ok(Self {
            n_prompt: tokens.len(),
            cache: decoder.cache(),
            drafts: speculate.then(|| Drafts::new(decoder)),
            random: Random::new(request.sampling.seed),
            sampling: request.sampling,
            left: request.tokens,
            positions: want,
            spelling: Spelling::after(&tokens),
            stops: Stops::new(&request.stop),
            characters: Characters::default(),
            output: String::new(),
            ended: (request.tokens == 0).then_some(Reason::Length),
            tally: Tally::default(),
            tokens,
        })
    }

    /// Why it ended; `None` while it goes on.
    pub fn ended(&self) -> Option<Reason> {
        self.ended
    }

    /// What was written since the last call: whole characters, and nothing that may be the start of a
    /// stop string.
    pub fn take_output(&mut self) -> String {
        std::mem::take(&mut self.output)
    }

    /// The new tokens, without an end token.
    pub fn new_tokens(&self) -> &[u32] {
        &self.tokens[self.n_prompt..]
    }

    pub fn prompt_tokens(&self) -> usize {
        self.n_prompt
    }

    pub fn tally(&self) -> Tally {
        self.tally
    }

    /// How many tokens may be drafted: what is verified must fit, and so must the token after it.
    pub(crate) fn room(&self) -> usize {
        let positions = self.positions.saturating_sub(self.tokens.len());
        positions.min(self.left.saturating_sub(1))
    }

    /// Takes up the token that follows; whether the text goes on.
    pub(crate) fn push(&mut self, token: u32, tokenizer: &Tokenizer) -> bool {
        if Some(token) == tokenizer.end_token() {
            self.end(Reason::Stop, tokenizer);
            return false;
        }
        self.tokens.push(token);
        self.tally.tokens += 1;
        self.left -= 1;
        let bytes = self.spelling.push(token, tokenizer);
        let (bytes, met) = self.stops.push(&bytes);
        self.output += &self.characters.push(&bytes);
        if met {
            self.output += &self.characters.finish();
            self.ended = Some(Reason::Stop);
        } else if self.left == 0 || self.positions < self.tokens.len() {
            self.end(Reason::Length, tokenizer);
        }
        self.ended.is_none()
    }

    fn end(&mut self, reason: Reason, tokenizer: &Tokenizer) {
        let (mut bytes, met) = self.stops.push(&self.spelling.finish(tokenizer));
        if !met {
            bytes.extend(self.stops.finish());
        }
        self.output += &self.characters.push(&bytes);
        self.output += &self.characters.finish();
        self.ended = Some(if met { Reason::Stop } else { reason });
    }
}
