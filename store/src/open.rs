//! From an address to a store that is known to answer.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};
use shoal_plan::store::StoreAddress;
use tokio_stream::StreamExt;

use crate::Store;
use crate::error::Error;

/// What is tried again within one request: errors of the server (5xx) and of the network.
const RETRIES: usize = 4;
const RETRY_FOR: Duration = Duration::from_mins(1);

const CONNECT_WITHIN: Duration = Duration::from_secs(10);

/// One request, of at most one part.
const REQUEST_WITHIN: Duration = Duration::from_mins(5);

/// Opens the store and asks for a first answer. `environment` looks up a variable: only `AWS_*` are
/// asked for, and only for S3.
///
/// # Errors
/// A directory that cannot be written to, missing keys, a missing bucket, keys that are not allowed
/// in, and a server that does not answer: each with what to do.
pub async fn open(
    address: &StoreAddress,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Store, Error> {
    let shown = address.to_string();
    match address {
        StoreAddress::Directory(path) => directory(path, shown),
        StoreAddress::S3 { bucket, prefix } => {
            let objects = s3(bucket, &shown, environment)?;
            let store = Store::over(objects, Key::from(prefix.as_str()), shown);
            store.answers().await?;
            Ok(store)
        }
    }
}

fn directory(path: &Path, shown: String) -> Result<Store, Error> {
    let store = shown.clone();
    let failed = |doing| move |source| Error::Directory { store, doing, source };
    fs::create_dir_all(path).map_err(failed.clone()("making the directory"))?;
    // Whether it can be written to shows only when it is.
    let probe = path.join(".shoal-probe");
    let written = fs::write(&probe, "").and_then(|()| fs::remove_file(&probe));
    written.map_err(failed.clone()("writing to the directory"))?;
    let objects = LocalFileSystem::new_with_prefix(path)
        .map_err(|error| failed("opening the directory")(std::io::Error::other(error)))?
        // What is said to be stored has to be there after a power cut.
        .with_fsync(true)
        .with_automatic_cleanup(true);
    Ok(Store::over(Arc::new(objects), Key::default(), shown))
}

fn s3(
    bucket: &str,
    shown: &str,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Arc<dyn ObjectStore>, Error> {
    // The first of several names that is set and not empty.
    let of = |names: &[&str]| {
        names.iter().find_map(|name| environment(name).filter(|value| !value.is_empty()))
    };
    let needed = |name: &'static str| {
        let store = shown.to_owned();
        of(&[name]).ok_or(Error::NoCredentials { store, missing: name })
    };
    let endpoint = of(&["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
    if let Some(endpoint) = &endpoint
        && !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme))
    {
        let why = format!("is {endpoint:?}: want http:// or https:// and a host");
        return Err(Error::Endpoint { store: shown.to_owned(), why });
    }
    // Whoever writes http:// asks for it: signatures keep the key secret, but not the data.
    let plain = endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    // One provider of cryptography serves the process; the reader of addresses on the web uses it, too.
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = ClientOptions::new()
        .with_connect_timeout(CONNECT_WITHIN)
        .with_timeout(REQUEST_WITHIN)
        .with_allow_http(plain);
    let retry = RetryConfig {
        backoff: BackoffConfig::default(),
        max_retries: RETRIES,
        retry_timeout: RETRY_FOR,
    };
    let region = of(&["AWS_REGION", "AWS_DEFAULT_REGION"]);
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
        .with_access_key_id(needed("AWS_ACCESS_KEY_ID")?)
        .with_secret_access_key(needed("AWS_SECRET_ACCESS_KEY")?)
        .with_client_options(client)
        .with_retry(retry);
    if let Some(token) = of(&["AWS_SESSION_TOKEN"]) {
        builder = builder.with_token(token);
    }
    if let Some(endpoint) = endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let built = builder.build().map_err(|error| Error::Endpoint {
        store: shown.to_owned(),
        why: format!("cannot be used: {error}"),
    })?;
    Ok(Arc::new(built))
}

impl Store {
    /// Asks what is there, for the sake of the answer.
    async fn answers(&self) -> Result<(), Error> {
        match self.objects.list(Some(&self.prefix)).next().await {
            None | Some(Ok(_)) => Ok(()),
            Some(Err(error)) => Err(self.unusable(&error)),
        }
    }

    /// What a first answer that is an error means.
    fn unusable(&self, error: &object_store::Error) -> Error {
        let (store, why) = (self.shown.clone(), in_full(error));
        if why.contains("NoSuchBucket") {
            return Error::NoBucket { store };
        }
        let names = ["InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied"];
        let denied = matches!(
            error,
            object_store::Error::PermissionDenied { .. }
                | object_store::Error::Unauthenticated { .. }
        );
        if denied || names.iter().any(|name| why.contains(name)) {
            return Error::Denied { store, why };
        }
        Error::Unreachable { store, why }
    }
}

/// An error with its sources, in one line, each only once.
fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text.replace('\n', " ")
}
