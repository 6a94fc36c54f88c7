//! A store that fails one request, or all: before it is done, or after, so that the answer is lost.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use object_store::path::Path as Key;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use tokio_stream::{Stream, StreamExt};

type Keys<T> = Pin<Box<dyn Stream<Item = Result<T>> + Send>>;

/// Whether the request that fails is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum When {
    Before,
    After,
}

/// Counts requests down; shared with uploads of several parts.
#[derive(Debug)]
struct Countdown {
    /// Requests until the one that fails; `u32::MAX`: none does.
    left: AtomicU32,
    after: AtomicBool,
    failed: AtomicBool,
    /// Every request fails.
    down: AtomicBool,
    /// Runs with the next request.
    hook: Mutex<Option<Hook>>,
}

struct Hook(Box<dyn FnOnce() + Send>);

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a hook")
    }
}

#[derive(Debug)]
pub(super) struct Faulty<S> {
    inner: S,
    countdown: Arc<Countdown>,
}

#[derive(Debug)]
struct FaultyUpload {
    inner: Box<dyn MultipartUpload>,
    countdown: Arc<Countdown>,
}

fn error() -> object_store::Error {
    object_store::Error::Generic { store: "faulty", source: "503 of this test".into() }
}

impl Countdown {
    /// When this request fails, if it does.
    fn request(&self) -> Option<When> {
        if let Some(Hook(hook)) = self.hook.lock().unwrap().take() {
            hook();
        }
        if self.down.load(Ordering::SeqCst) {
            self.failed.store(true, Ordering::SeqCst);
            return Some(When::Before);
        }
        let less = |left: u32| (left != u32::MAX).then(|| left.wrapping_sub(1));
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        if before != Ok(0) {
            return None;
        }
        self.failed.store(true, Ordering::SeqCst);
        let after = self.after.load(Ordering::SeqCst);
        Some(if after { When::After } else { When::Before })
    }

    async fn around<T>(&self, request: impl Future<Output = Result<T>>) -> Result<T> {
        match self.request() {
            None => request.await,
            Some(When::Before) => Err(error()),
            Some(When::After) => {
                request.await?;
                Err(error())
            }
        }
    }
}

impl<S> Faulty<S> {
    pub(super) fn over(inner: S) -> Self {
        let countdown = Countdown {
            left: AtomicU32::new(u32::MAX),
            after: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            down: AtomicBool::new(false),
            hook: Mutex::new(None),
        };
        Self { inner, countdown: Arc::new(countdown) }
    }

    /// The request after `n` more fails, once.
    pub(super) fn fail_at(&self, n: u32, when: When) {
        self.countdown.after.store(when == When::After, Ordering::SeqCst);
        self.countdown.left.store(n, Ordering::SeqCst);
    }

    /// Every request fails from now on.
    pub(super) fn go_down(&self) {
        self.countdown.down.store(true, Ordering::SeqCst);
    }

    /// Does something in the midst of what is under way.
    pub(super) fn on_next_request(&self, hook: impl FnOnce() + Send + 'static) {
        *self.countdown.hook.lock().unwrap() = Some(Hook(Box::new(hook)));
    }

    pub(super) fn heal(&self) {
        self.countdown.down.store(false, Ordering::SeqCst);
        self.countdown.left.store(u32::MAX, Ordering::SeqCst);
    }

    pub(super) fn has_failed(&self) -> bool {
        self.countdown.failed.load(Ordering::SeqCst)
    }
}

impl<S: fmt::Display> fmt::Display for Faulty<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait::async_trait]
impl<S: ObjectStore> ObjectStore for Faulty<S> {
    async fn put_opts(
        &self,
        location: &Key,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.countdown.around(self.inner.put_opts(location, payload, opts)).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Key,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let countdown = Arc::clone(&self.countdown);
        let inner = countdown.around(self.inner.put_multipart_opts(location, opts)).await?;
        Ok(Box::new(FaultyUpload { inner, countdown }))
    }

    async fn get_opts(&self, location: &Key, options: GetOptions) -> Result<GetResult> {
        self.countdown.around(self.inner.get_opts(location, options)).await
    }

    fn delete_stream(&self, locations: Keys<Key>) -> Keys<Key> {
        let fault = self.countdown.request();
        let deleted = self.inner.delete_stream(locations);
        match fault {
            None => deleted,
            Some(When::Before) => Box::pin(tokio_stream::once(Err(error()))),
            Some(When::After) => Box::pin(deleted.map(|_| Err(error()))),
        }
    }

    fn list(&self, prefix: Option<&Key>) -> Keys<ObjectMeta> {
        match self.countdown.request() {
            None => self.inner.list(prefix),
            Some(_) => Box::pin(tokio_stream::once(Err(error()))),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Key>) -> Result<ListResult> {
        self.countdown.around(self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Key, to: &Key, options: CopyOptions) -> Result<()> {
        self.countdown.around(self.inner.copy_opts(from, to, options)).await
    }
}

#[async_trait::async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let (part, countdown) = (self.inner.put_part(data), Arc::clone(&self.countdown));
        Box::pin(async move { countdown.around(part).await })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let countdown = Arc::clone(&self.countdown);
        countdown.around(self.inner.complete()).await
    }

    async fn abort(&mut self) -> Result<()> {
        self.inner.abort().await
    }
}
