//! `/metrics` at an address of its own, for a server and for a mount.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CONTENT_TYPE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{sync::Semaphore, task::JoinHandle, time::timeout};

use super::listen::{Address, Listener};
use crate::util::{METRICS_TYPE, Metrics};

/// Connections at once. A monitoring system needs one.
const MAX_CONNECTIONS: usize = 16;

/// How long the head of a request may take, and how long a connection may last.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// Answers `GET /metrics` until it is dropped.
pub struct MetricsEndpoint {
    address: Address,
    task: JoinHandle<()>,
}

impl MetricsEndpoint {
    /// Listens at `address`. What is counted from then on is shown as well. Has to be called in a runtime.
    ///
    /// Fails if the address cannot be listened at.
    ///
    /// ```
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// use imgfs::{serve::{Address, MetricsEndpoint}, util::Metrics};
    ///
    /// let endpoint = MetricsEndpoint::start(&"127.0.0.1:0".parse()?, Metrics::default()).await?;
    /// assert!(matches!(endpoint.address(), Address::Tcp(address) if address.port() != 0));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # }).unwrap();
    /// ```
    pub async fn start(address: &Address, metrics: Metrics) -> io::Result<Self> {
        let listener = address.bind().await?;
        let address = listener.address()?;
        Ok(Self { address, task: tokio::spawn(serve(listener, metrics)) })
    }

    /// Where it listens, with the port that was taken.
    pub fn address(&self) -> &Address {
        &self.address
    }
}

impl Drop for MetricsEndpoint {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: Listener, metrics: Metrics) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files, for one: it may pass.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let metrics = metrics.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| {
                std::future::ready(Ok::<_, Infallible>(answer(&request, &metrics)))
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            // Whoever goes away, or says what makes no sense, has had his answer.
            let _ =
                timeout(CONNECTION_TIMEOUT, http.serve_connection(TokioIo::new(stream), answer))
                    .await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, metrics: &Metrics) -> Response<Full<Bytes>> {
    let (status, header, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics" | "/") => {
            (StatusCode::OK, (CONTENT_TYPE, METRICS_TYPE), metrics.text())
        }
        (_, "/metrics" | "/") => {
            (StatusCode::METHOD_NOT_ALLOWED, (ALLOW, "GET, HEAD"), String::new())
        }
        _ => (StatusCode::NOT_FOUND, (CONTENT_TYPE, "text/plain"), "see /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header.0, hyper::header::HeaderValue::from_static(header.1));
    response
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(endpoint: &MetricsEndpoint, line: &str) -> String {
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        let mut text = String::new();
        match endpoint.address() {
            Address::Tcp(address) => {
                let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.read_to_string(&mut text).await.unwrap();
            }
            Address::Unix(path) => {
                let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
                stream.write_all(request.as_bytes()).await.unwrap();
                stream.read_to_string(&mut text).await.unwrap();
            }
        }
        text
    }

    #[tokio::test]
    async fn what_is_counted_is_shown_over_tcp_and_at_a_socket() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = Metrics::default();
        let counter = metrics.counter("imgfs_things", "Things");
        for address in
            ["127.0.0.1:0".parse().unwrap(), Address::Unix(dir.path().join("metrics.sock"))]
        {
            let endpoint = MetricsEndpoint::start(&address, metrics.clone()).await.unwrap();
            counter.inc();
            let text = ask(&endpoint, "GET /metrics").await;
            assert!(text.starts_with("HTTP/1.1 200 "), "{text}");
            assert!(text.contains("text/plain; version=0.0.4"), "{text}");
            assert!(text.contains(&format!("imgfs_things_total {}\n", counter.get())), "{text}");
            assert!(ask(&endpoint, "GET /other").await.starts_with("HTTP/1.1 404 "));
            assert!(ask(&endpoint, "POST /metrics").await.starts_with("HTTP/1.1 405 "));
        }
    }
}
