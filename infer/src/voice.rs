//! A model that writes: a round moves every text on by a token, or by several when drafts were right.

use std::path::{Path, PathBuf};

use shoal_data::Tokenizer;
use shoal_model::{Decoder, Step};
use shoal_plan::job::Precision;
use shoal_plan::numerics::Scales;
use shoal_weights::Weights;

use crate::drafts::Drafts;
use crate::error::InferError;
use crate::text::{Request, Text};

/// Tokens of a prompt that one round takes up: other texts wait no longer than for these.
const PIECE: usize = 256;

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    pub precision: Precision,
    /// Of FP8 tiles; read in precision fp8 only.
    pub scales: Scales,
    /// A `tokenizer.json` in place of the model's own.
    pub tokenizer: Option<PathBuf>,
}

/// A model and its tokenizer.
#[derive(Debug)]
pub struct Voice {
    decoder: Decoder,
    tokenizer: Tokenizer,
}

/// Rows of a round whose logits are wanted: of which text, and how many.
struct Asked {
    text: usize,
    /// First row of the text, and first row with logits.
    first: usize,
    rows: usize,
}

impl Voice {
    /// Loads what `Weights::open` takes.
    pub fn open(directory: &Path, options: &Options) -> Result<Self, InferError> {
        let weights = Weights::open(directory)?;
        let config = weights.config();
        let tokenizer = match &options.tokenizer {
            Some(file) => Tokenizer::read(file)?.usual(config.vocab_size)?,
            None => Tokenizer::beside(weights.directory(), config.vocab_size)?,
        };
        let mut read = |name: &str, shape: &[usize]| weights.read(name, shape);
        let decoder = Decoder::load(config, options.precision, options.scales, &mut read)?;
        Ok(Self::new(decoder, tokenizer))
    }

    /// Of parts that are loaded already.
    pub fn new(decoder: Decoder, tokenizer: Tokenizer) -> Self {
        Self { decoder, tokenizer }
    }

    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Whether it can draft.
    pub fn has_modules(&self) -> bool {
        0 < self.decoder.n_modules()
    }

    /// Begins a text. With `speculate` its modules draft, if there are any.
    pub fn begin(&self, request: Request, speculate: bool) -> Result<Text, InferError> {
        Text::new(request, &self.decoder, &self.tokenizer, speculate && self.has_modules())
    }

    /// One pass of the main model over all texts that go on, and one of each module.
    pub fn round(&self, texts: &mut [&mut Text]) -> Result<(), InferError> {
        let mut live: Vec<&mut Text> = texts
            .iter_mut()
            .map(|text| &mut **text)
            .filter(|text| text.ended().is_none())
            .collect();
        if live.is_empty() {
            return Ok(());
        }
        self.verify(&mut live)?;
        live.retain(|text| text.ended().is_none() && text.drafts.is_some());
        for depth in 1..=self.decoder.n_modules() {
            self.draft(depth, &mut live)?;
        }
        Ok(())
    }

    /// Feeds what the main model has not seen, and the drafts; takes up the tokens that follow.
    fn verify(&self, texts: &mut [&mut Text]) -> Result<(), InferError> {
        let width = self.decoder.config().hidden_size as usize;
        let fed: Vec<Vec<u32>> = texts.iter().map(|text| feed(text)).collect();
        let mut steps: Vec<Step<'_>> = (texts.iter_mut().zip(&fed))
            .map(|(text, tokens)| Step { cache: &mut text.cache, tokens })
            .collect();
        let hidden = self.decoder.advance(&mut steps)?;
        let (mut asked, mut first, mut wanted) = (Vec::new(), 0, Vec::new());
        for (number, (text, fed)) in texts.iter_mut().zip(&fed).enumerate() {
            let rows = &hidden[first * width..][..fed.len() * width];
            first += fed.len();
            if let Some(drafts) = &mut text.drafts {
                drafts.extend(1, rows);
            }
            // A prompt that is not yet through asks for nothing.
            if text.tokens.len() <= text.cache.len() {
                let n = 1 + text.cache.len() - text.tokens.len();
                asked.push(Asked { text: number, first: wanted.len() / width, rows: n });
                wanted.extend_from_slice(&rows[rows.len() - n * width..]);
            }
        }
        let logits = self.decoder.logits(&wanted);
        let v = self.decoder.config().vocab_size as usize;
        for Asked { text, first, rows } in asked {
            self.take_up(texts[text], logits[first * v..][..rows * v].chunks_exact(v));
        }
        Ok(())
    }

    /// Chooses tokens from the logits of the last token and of each draft, up to the first draft that
    /// is wrong.
    fn take_up<'a>(&self, text: &mut Text, logits: impl Iterator<Item = &'a [f32]>) {
        let proposed = text.drafts.as_mut().map(|drafts| std::mem::take(&mut drafts.proposed));
        let proposed = proposed.unwrap_or_default();
        text.tally.passes += 1;
        for (place, logits) in logits.enumerate() {
            let known = &logits[..logits.len().min(self.tokenizer.n_tokens() as usize)];
            let draft = proposed.get(place);
            let (token, kept) = text.sampling.choose(known, draft, &mut text.random);
            if place == 0 && draft.is_some() {
                text.tally.drafted += 1;
                text.tally.accepted += u64::from(kept);
            }
            if !text.push(token, &self.tokenizer) || !kept {
                break;
            }
        }
        let n = text.tokens.len();
        text.cache.truncate(n - 1);
        if let Some(drafts) = &mut text.drafts {
            drafts.settle(n);
        }
    }

    /// Brings the modules of one depth up to date, and lets them propose a token each.
    fn draft(&self, depth: usize, texts: &mut [&mut Text]) -> Result<(), InferError> {
        let width = self.decoder.config().hidden_size as usize;
        let mut readings = Vec::new();
        for (number, text) in texts.iter_mut().enumerate() {
            let Text { drafts, tokens, .. } = &mut **text;
            let reading = drafts.as_mut().and_then(|drafts| drafts.reading(depth, tokens));
            readings.extend(reading.map(|reading| (number, reading)));
        }
        if readings.is_empty() {
            return Ok(());
        }
        let hidden: Vec<f32> =
            readings.iter().flat_map(|(_, reading)| &reading.hidden).copied().collect();
        let numbers: Vec<(usize, usize)> =
            readings.iter().map(|(number, reading)| (*number, reading.tokens.len())).collect();
        let mut steps: Vec<Step<'_>> = (readings.iter_mut())
            .map(|(_, reading)| Step { cache: reading.cache, tokens: &reading.tokens })
            .collect();
        let hidden = self.decoder.predict(depth, &hidden, &mut steps)?;
        let (mut rest, mut last, mut asked) = (&hidden[..], Vec::new(), Vec::new());
        for (number, n_rows) in numbers {
            let (rows, others) = rest.split_at(n_rows * width);
            rest = others;
            let room = texts[number].room();
            let Text { drafts: Some(drafts), tokens, cache, .. } = &mut *texts[number] else {
                continue;
            };
            drafts.extend(depth + 1, rows);
            // The prompt is through, the depth before proposed a token, and one more has room.
            let is_due = cache.len() + 1 == tokens.len() && drafts.read(depth) == cache.len();
            if is_due && drafts.proposed.len() + 1 == depth && depth <= room {
                asked.push(number);
                last.extend_from_slice(&rows[rows.len() - width..]);
            }
        }
        let logits = self.decoder.logits(&last);
        let v = self.decoder.config().vocab_size as usize;
        for (number, logits) in asked.into_iter().zip(logits.chunks_exact(v)) {
            let Text { drafts, sampling, random, .. } = &mut *texts[number];
            let known = &logits[..logits.len().min(self.tokenizer.n_tokens() as usize)];
            let draft = sampling.draft(known, random);
            if let Some(drafts) = drafts {
                drafts.proposed.push(draft);
            }
        }
        Ok(())
    }
}

/// What the main model sees of a text in this round.
fn feed(text: &Text) -> Vec<u32> {
    let unseen = &text.tokens[text.cache.len()..];
    if PIECE < unseen.len() {
        return unseen[..PIECE].to_vec();
    }
    let drafts = text.drafts.iter().flat_map(Drafts::tokens);
    unseen.iter().copied().chain(drafts).collect()
}
