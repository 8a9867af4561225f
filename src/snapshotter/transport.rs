//! The calls over gRPC, on a socket.

use std::{
    convert::Infallible,
    future::Future,
    io,
    marker::PhantomData,
    path::Path,
    pin::Pin,
    task::{Context, Poll},
};

use futures_util::{FutureExt, future::BoxFuture, stream};
use prost::Message;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, ServerStreamingService, UnaryService},
    transport::Server,
};
use tonic_prost::ProstCodec;

use super::{
    Snapshotter,
    cri::{self, ImageService},
    messages::{
        CleanupRequest, CommitRequest, KeyRequest, ListRequest, ListResponse, PrepareRequest,
        UpdateRequest,
    },
    state::Kind,
};
use crate::util::LocalListener;

/// The calls of the service, below this.
const SNAPSHOTS: &str = "/containerd.services.snapshots.v1.Snapshots/";

/// Snapshots in one part of a list: as many as containerd sends at once.
const LISTED_AT_ONCE: usize = 100;

/// Answers containerd at the socket, for ever. What is for Kubernetes' image service is passed on to the socket
/// `image_service`, if there is one.
pub async fn serve(
    snapshotter: Snapshotter,
    listener: LocalListener,
    image_service: Option<&Path>,
) -> io::Result<()> {
    let image_service =
        image_service.map(|path| ImageService::new(path, &snapshotter)).transpose()?;
    let calls = Calls { snapshotter, image_service };
    let served = Server::builder()
        .serve_with_incoming(calls, UnixListenerStream::new(listener.into_inner()));
    served.await.map_err(io::Error::other)
}

/// All calls, by their names.
#[derive(Clone)]
struct Calls {
    snapshotter: Snapshotter,
    image_service: Option<ImageService>,
}

impl Service<http::Request<Body>> for Calls {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let calls = self.clone();
        async move { Ok(calls.answer(request).await) }.boxed()
    }
}

impl Calls {
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().to_owned();
        if let Some(call) = path.strip_prefix(SNAPSHOTS) {
            return self.snapshots(call, request).await;
        }
        match &self.image_service {
            Some(service) if cri::is_image_service(&path) => service.pass_on(request).await,
            _ => Status::unimplemented(format!("{path} is not answered here")).into_http(),
        }
    }

    async fn snapshots(&self, call: &str, request: http::Request<Body>) -> http::Response<Body> {
        let of = self.snapshotter.clone();
        match call {
            "Prepare" => {
                let call = |r: PrepareRequest| async move { of.prepare(r, Kind::Active).await };
                unary(request, call).await
            }
            "View" => {
                let call = |r: PrepareRequest| async move { of.prepare(r, Kind::View).await };
                unary(request, call).await
            }
            "Mounts" => unary(request, |r: KeyRequest| async move { of.mounts(&r) }).await,
            "Commit" => unary(request, |r: CommitRequest| async move { of.commit(r).await }).await,
            "Remove" => unary(request, |r: KeyRequest| async move { of.remove(r).await }).await,
            "Stat" => unary(request, |r: KeyRequest| async move { of.stat(&r) }).await,
            "Update" => unary(request, |r: UpdateRequest| async move { of.update(r).await }).await,
            "Usage" => unary(request, |r: KeyRequest| async move { of.usage(r).await }).await,
            "Cleanup" => {
                unary(request, |r: CleanupRequest| async move { of.cleanup(r).await }).await
            }
            "List" => {
                let mut grpc = Grpc::new(ProstCodec::<ListResponse, ListRequest>::default());
                grpc.server_streaming(List(of), request).await
            }
            _ => Status::unimplemented(format!("{call} is not answered here")).into_http(),
        }
    }
}

async fn unary<Asked, Answer, F, Fut>(request: http::Request<Body>, call: F) -> http::Response<Body>
where
    Asked: Message + Default + 'static,
    Answer: Message + Default + 'static,
    F: FnOnce(Asked) -> Fut,
    Fut: Future<Output = Result<Answer, Status>>,
{
    let mut grpc = Grpc::new(ProstCodec::<Answer, Asked>::default());
    grpc.unary(Unary { call: Some(call), of: PhantomData }, request).await
}

/// A call that has one answer, made once.
struct Unary<F, Fut> {
    call: Option<F>,
    of: PhantomData<fn() -> Fut>,
}

impl<Asked, Answer, F, Fut> UnaryService<Asked> for Unary<F, Fut>
where
    F: FnOnce(Asked) -> Fut,
    Fut: Future<Output = Result<Answer, Status>>,
{
    type Response = Answer;
    type Future = Answering<Fut>;

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        Answering(self.call.take().map(|call| Box::pin(call(request.into_inner()))))
    }
}

/// An answer that is on its way.
struct Answering<Fut>(Option<Pin<Box<Fut>>>);

impl<Answer, Fut: Future<Output = Result<Answer, Status>>> Future for Answering<Fut> {
    type Output = Result<Response<Answer>, Status>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Some(answer) => answer.as_mut().poll(context).map_ok(Response::new),
            None => Poll::Ready(Err(Status::internal("it has been answered"))),
        }
    }
}

/// The one call whose answer comes in parts.
struct List(Snapshotter);

impl ServerStreamingService<ListRequest> for List {
    type Response = ListResponse;
    type ResponseStream = stream::Iter<std::vec::IntoIter<Result<ListResponse, Status>>>;
    type Future = std::future::Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<ListRequest>) -> Self::Future {
        let listed = self.0.list(request.get_ref()).map(|found| {
            let parts = found.chunks(LISTED_AT_ONCE);
            let parts: Vec<_> =
                parts.map(|part| Ok(ListResponse { info: part.to_vec() })).collect();
            Response::new(stream::iter(parts))
        });
        std::future::ready(listed)
    }
}
