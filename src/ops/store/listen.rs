//! The socket of a daemon.

use std::{io, sync::Arc, time::Duration};

use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::Semaphore,
    time::timeout,
};

use super::{Inner, Prepared, StoreDaemon};
use crate::{
    store::wire::{Answer, MAX_LINE, Order},
    util::{LocalListener, locked},
};

/// Connections at once.
const MAX_CONNECTIONS: usize = 256;

/// How long whoever has connected may take to say what he wants, and to take the answer.
const TURN: Duration = Duration::from_secs(10);

/// Gives the store up when it is dropped.
struct Leaves(Arc<Inner>);

impl Drop for Leaves {
    fn drop(&mut self) {
        drop(locked(&self.0.claim).take());
    }
}

impl StoreDaemon {
    /// Answers what is asked at the socket, and keeps the store as it should be, for ever. When this is dropped, the
    /// store is left to the next process, though this one may go on.
    pub async fn listen(self, listener: LocalListener) {
        let _leaves = Leaves(self.inner.clone());
        let (sizes, wrong) = (self.clone().correct_sizes(), self.clone().withdraw_what_is_wrong());
        tokio::join!(self.answer(listener), sizes, wrong);
    }

    async fn answer(&self, listener: LocalListener) {
        let listener = listener.into_inner();
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let Ok(place) = places.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Too many open files, for one: it may pass.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let daemon = self.clone();
            tokio::spawn(async move {
                // Whoever goes away needs no answer.
                let _ = daemon.converse(stream).await;
                drop(place);
            });
        }
    }

    async fn converse(&self, stream: UnixStream) -> io::Result<()> {
        let (read, mut write) = stream.into_split();
        let mut line = Vec::new();
        let mut read = BufReader::new(read.take(MAX_LINE));
        timeout(TURN, read.read_until(b'\n', &mut line)).await??;
        let answer = match serde_json::from_slice(&line) {
            Ok(order) => self.carry_out(order).await,
            Err(_) => Answer::Failed("the request is malformed".to_owned()),
        };
        let mut text = serde_json::to_vec(&answer)?;
        text.push(b'\n');
        timeout(TURN, write.write_all(&text)).await??;
        write.shutdown().await
    }

    async fn carry_out(&self, order: Order) -> Answer {
        let done = match order {
            Order::Prepare { image, login } => {
                self.prepare(&image, login).await.map(|prepared| match prepared {
                    Prepared::Lazy(digest) => json!({ "lazy": true, "digest": digest.to_string() }),
                    Prepared::Ordinary(reason) => json!({ "lazy": false, "reason": reason }),
                })
            }
            Order::Add { image } => {
                self.add(&image).await.map(|digest| json!({ "digest": digest.to_string() }))
            }
            Order::List => Ok(self.list()),
            Order::Remove { images, graphroots } => {
                let removed = self.remove(images, graphroots).await;
                removed.map(|report| report.to_json()).map_err(|e| e.to_string())
            }
            Order::Prune { graphroots, is_dry } => {
                let pruned = self.prune(graphroots, is_dry).await;
                pruned.map(|report| report.to_json()).map_err(|e| e.to_string())
            }
        };
        match done {
            Ok(value) => Answer::Done(value),
            Err(reason) => Answer::Failed(reason),
        }
    }
}
