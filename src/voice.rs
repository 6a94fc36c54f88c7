//! What the verbs that let a model write have in common: loading it, threads, signals.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use rayon::ThreadPool;
use shoal_infer::{InferError, Options, Voice};
use shoal_plan::numerics::Scales;

use crate::cli::{Model, Speculate};
use crate::exit::Stopped;
use crate::signals::{Signal, Signals};

/// Loads the model of a command line.
pub(crate) fn open(model: &Model) -> Result<Voice, Stopped> {
    let precision = model.precision.into();
    let scales = Scales::default();
    let options = Options { precision, scales, tokenizer: model.tokenizer.clone() };
    Ok(Voice::open(&model.directory, &options)?)
}

/// Whether modules draft.
pub(crate) fn speculates(voice: &Voice, model: &Model, choice: Speculate) -> Result<bool, Stopped> {
    match choice {
        Speculate::Off => Ok(false),
        Speculate::Auto => Ok(voice.has_modules()),
        Speculate::Mtp if voice.has_modules() => Ok(true),
        Speculate::Mtp => Err(InferError::NoModule { path: model.directory.clone() }.into()),
    }
}

/// The threads that compute: as many as were asked for, or with 0 one for each core.
pub(crate) fn pool(threads: usize) -> Result<ThreadPool, Stopped> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    Ok(pool.context("starting compute threads")?)
}

impl From<InferError> for Stopped {
    fn from(error: InferError) -> Self {
        match error {
            InferError::Weights(error) => Self::Checkpoint(error.to_string()),
            InferError::Tokenizer(error) => error.into(),
            InferError::PromptTooLong { .. }
            | InferError::EmptyPrompt
            | InferError::Option { .. }
            | InferError::NoModule { .. }
            | InferError::Model(_) => Self::Input(error.to_string()),
        }
    }
}

/// The first signal, once there was one; the second ends the process at once.
#[derive(Clone, Default)]
pub(crate) struct Interrupted(Arc<Mutex<Option<Signal>>>);

impl Interrupted {
    /// Listens from now on, on a thread of its own.
    pub(crate) fn listen() -> anyhow::Result<Self> {
        let seen = Self::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("starting the thread for signals")?;
        let mut signals = runtime.block_on(async { Signals::listen() })?;
        let noted = seen.clone();
        thread::spawn(move || {
            runtime.block_on(async {
                let first = signals.next().await;
                *noted.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(first);
                let second = signals.next().await;
                std::process::exit(second.exit_code().into());
            });
        });
        Ok(seen)
    }

    pub(crate) fn signal(&self) -> Option<Signal> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
