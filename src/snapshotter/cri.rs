//! Kubernetes' image service, passed on to containerd: containerd gives a snapshotter no credentials, but whoever
//! asks it to pull an image sends them.

use std::{io, path::Path};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::{
    Request, Response, Status,
    body::Body,
    client,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{http, http::uri::PathAndQuery},
    server::{Grpc, UnaryService},
    transport::{Channel, Endpoint},
};

use super::{
    Snapshotter,
    messages::{AuthConfig, PullImageRequest},
};
use crate::{
    backend::registry::{Credentials, GivenCredentials},
    image::Reference,
    store::wire::Login,
};

/// The calls that are passed on, below these.
const SERVICES: [&str; 2] = ["/runtime.v1.ImageService/", "/runtime.v1alpha2.ImageService/"];

/// The largest message that is passed on, in bytes: what containerd takes.
const MAX_MESSAGE: usize = 16 << 20;

/// Whether a call is one of the image service.
pub(super) fn is_image_service(path: &str) -> bool {
    SERVICES.iter().any(|service| path.starts_with(service))
}

/// The image service of containerd. Clones are the same.
#[derive(Clone)]
pub(super) struct ImageService {
    channel: Channel,
    given: GivenCredentials,
}

impl ImageService {
    /// That at the socket `path`, which need not be there yet.
    pub(super) fn new(path: &Path, snapshotter: &Snapshotter) -> io::Result<Self> {
        let endpoint = Endpoint::try_from(format!("unix:{}", path.display()));
        let channel = endpoint.map_err(io::Error::other)?.connect_lazy();
        Ok(Self { channel, given: snapshotter.inner.options.given.clone() })
    }

    /// Passes a call on, and its answer back.
    pub(super) async fn pass_on(&self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path().to_owned();
        let mut grpc = Grpc::new(Unread)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        grpc.unary(PassOn { service: self.clone(), path }, request).await
    }

    /// Keeps the credentials of a request to pull an image.
    fn keep_credentials(&self, request: &Bytes) {
        let Ok(PullImageRequest { image: Some(image), auth: Some(auth) }) =
            PullImageRequest::decode(request.clone())
        else {
            return;
        };
        if let (Ok(name), Some(credentials)) = (image.image.parse::<Reference>(), credentials(auth))
        {
            self.given.give(name.repository(), credentials);
        }
    }
}

/// What a request logs in with, in whichever of its forms.
fn credentials(auth: AuthConfig) -> Option<Credentials> {
    let AuthConfig { username, password, auth, identity_token } = auth;
    if let Some(given) = (Login { username, password, identity_token }).credentials() {
        return Some(given);
    }
    let text = String::from_utf8(STANDARD.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    let password = password.trim_end_matches('\0');
    Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// A call that is passed on.
struct PassOn {
    service: ImageService,
    path: String,
}

impl UnaryService<Bytes> for PassOn {
    type Response = Bytes;
    type Future = futures_util::future::BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let (service, path) = (self.service.clone(), self.path.clone());
        Box::pin(async move {
            if path.ends_with("/PullImage") {
                service.keep_credentials(request.get_ref());
            }
            let path: PathAndQuery =
                path.parse().map_err(|_| Status::invalid_argument("the call has no name"))?;
            let mut client = client::Grpc::new(service.channel)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE);
            client.ready().await.map_err(|e| Status::unavailable(e.to_string()))?;
            client.unary(request, path, Unread).await
        })
    }
}

/// Messages as they are.
#[derive(Clone, Copy)]
struct Unread;

impl Codec for Unread {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Unread {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        into.put(message);
        Ok(())
    }
}

impl Decoder for Unread {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_come_in_three_forms() {
        let basic = |username: &str, password: &str| {
            Some(Credentials::Basic { username: username.into(), password: password.into() })
        };
        let of = |username: &str, password: &str, auth: &str, token: &str| {
            credentials(AuthConfig {
                username: username.into(),
                password: password.into(),
                auth: auth.into(),
                identity_token: token.into(),
            })
        };
        assert!(of("u", "p", "", "") == basic("u", "p"));
        assert!(of("", "", &STANDARD.encode("u:p:q"), "") == basic("u", "p:q"));
        assert!(of("", "", "", "t") == Some(Credentials::IdentityToken("t".into())));
        assert!(of("", "", "", "").is_none() && of("", "", "%%", "").is_none());
    }

    #[test]
    fn only_the_image_service_is_passed_on() {
        for (path, is_passed_on) in [
            ("/runtime.v1.ImageService/PullImage", true),
            ("/runtime.v1alpha2.ImageService/ListImages", true),
            ("/runtime.v1.RuntimeService/Version", false),
            ("/x/runtime.v1.ImageService/PullImage", false),
        ] {
            assert_eq!(is_image_service(path), is_passed_on, "{path}");
        }
    }
}
