//! `/metrics` for Prometheus, on this machine's loopback only.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::net::TcpListener;

/// Prometheus's text format.
const FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers `GET /metrics` with `text` until the process ends; port 0 takes any free one. Returns
/// where it listens.
pub(crate) async fn serve<T>(port: u16, text: T) -> anyhow::Result<SocketAddr>
where
    T: Fn() -> String + Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.with_context(|| {
        format!("opening port {port} for metrics: choose another with spec.metrics.port")
    })?;
    let address = listener.local_addr().context("asking for the port of metrics")?;
    let answer = move || {
        let body = text();
        async move { ([(CONTENT_TYPE, FORMAT)], body) }
    };
    let router = Router::new().route("/metrics", get(answer));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::warn!(%error, "metrics are no longer served");
        }
    });
    Ok(address)
}
