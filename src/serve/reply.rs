//! Answers: errors as the distribution specification has them, and headers.

use std::{fmt::Display, time::Duration};

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER},
};
use serde_json::{Value, json};

use super::body::Body;
use crate::backend::{Error, Kind};

/// An answer.
pub(super) type Reply = Response<Body>;

/// What a handler comes to.
pub(super) type Result<T> = std::result::Result<T, Problem>;

/// How long a client that met `prune` at work is asked to wait, in seconds.
const RETRY_SECONDS: u64 = 5;

/// An answer that is an error. Boxed: it is large, and rare.
#[derive(Debug)]
pub(super) struct Problem(Box<Parts>);

#[derive(Debug)]
struct Parts {
    status: StatusCode,
    code: &'static str,
    message: String,
    detail: Value,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Display) -> Self {
        let message = message.to_string();
        Self(Box::new(Parts { status, code, message, detail: Value::Null, headers: Vec::new() }))
    }

    /// With something that programs can read.
    pub(super) fn detail(mut self, detail: Value) -> Self {
        self.0.detail = detail;
        self
    }

    pub(super) fn header(mut self, name: HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.0.headers.push((name, value));
        }
        self
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.0.status
    }

    pub(super) fn bad_request(code: &'static str, message: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    pub(super) fn manifest_unknown(what: impl Display) -> Self {
        let message = format!("the manifest {what} is not known here");
        Self::new(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", message)
    }

    pub(super) fn blob_unknown(digest: impl Display) -> Self {
        let message = format!("the blob {digest} is not known to this repository");
        Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message)
            .detail(json!({ "digest": digest.to_string() }))
    }

    pub(super) fn name_unknown(name: &str) -> Self {
        let message = format!("the repository {name} is not known here");
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message).detail(json!({ "name": name }))
    }

    /// `allowed` are the methods that are: an answer with this status has to say so (RFC 9110, section 15.5.6).
    pub(super) fn method_not_allowed(allowed: &str, message: impl Display) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message).header(ALLOW, allowed)
    }

    pub(super) fn unavailable(message: impl Display) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
            .header(RETRY_AFTER, &RETRY_SECONDS.to_string())
    }

    /// What has gone wrong in the tree or the cache.
    pub(super) fn local(error: &Error) -> Self {
        if error.is_in_use() {
            return Self::unavailable(error);
        }
        if let Kind::Store(_) = error.kind() {
            tracing::error!("{error}");
            return Self::unavailable(
                "the object store does not answer; the server's log says more",
            );
        }
        if error.is_no_space() {
            let status = StatusCode::INSUFFICIENT_STORAGE;
            return Self::new(status, "UNAVAILABLE", "there is no space left on the disk");
        }
        tracing::error!("{error}");
        // The text names paths of this machine.
        let message = "something went wrong here; the server's log says what";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    /// What an upstream says, or does not say.
    pub(super) fn upstream(error: &Error) -> Self {
        match error.kind() {
            Kind::NotFound(_) | Kind::Offline => {
                Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", error)
            }
            Kind::Unauthorized(_) | Kind::Denied(_) => {
                Self::new(StatusCode::FORBIDDEN, "DENIED", error)
            }
            Kind::WaitTooLong { wait, .. } => Self::too_many(error, Some(*wait)),
            Kind::Status { status: 429, retry_after, .. } => Self::too_many(error, *retry_after),
            Kind::Stalled(_) => Self::new(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", error),
            Kind::Status { status: 504, .. } => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", error)
            }
            Kind::Io(_) | Kind::Memory(_) | Kind::InUse(_) => Self::local(error),
            _ => Self::new(StatusCode::BAD_GATEWAY, "UNAVAILABLE", error),
        }
    }

    /// Whether it says that an upstream gives no answer.
    pub(super) fn is_upstream_away(&self) -> bool {
        matches!(self.0.status, StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT)
    }

    fn too_many(error: &Error, wait: Option<Duration>) -> Self {
        let seconds = wait.map_or(RETRY_SECONDS, |wait| wait.as_secs().max(1));
        Self::new(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", error)
            .header(RETRY_AFTER, &seconds.to_string())
    }

    pub(super) fn into_reply(self) -> Reply {
        let Parts { status, code, message, detail, headers } = *self.0;
        let mut error = json!({ "code": code, "message": message });
        if !detail.is_null() {
            error["detail"] = detail;
        }
        let mut reply = json_reply(status, &json!({ "errors": [error] }));
        for (name, value) in headers {
            reply.headers_mut().append(name, value);
        }
        reply
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = status;
    reply
}

/// An answer with a body.
pub(super) fn full(status: StatusCode, media_type: &str, body: Bytes) -> Reply {
    let length = body.len();
    let mut reply = Response::new(Body::full(body));
    *reply.status_mut() = status;
    set(&mut reply, CONTENT_TYPE, media_type);
    set(&mut reply, CONTENT_LENGTH, length);
    reply
}

pub(super) fn json_reply(status: StatusCode, body: &Value) -> Reply {
    full(status, "application/json", body.to_string().into())
}

/// Sets a header; what cannot be one is left out.
pub(super) fn set(reply: &mut Reply, name: HeaderName, value: impl Display) {
    if let Ok(value) = HeaderValue::from_str(&value.to_string()) {
        reply.headers_mut().insert(name, value);
    }
}

/// The headers of this API that have no constants.
pub(super) mod header {
    use hyper::header::HeaderName;

    pub(in crate::serve) const API_VERSION: HeaderName =
        HeaderName::from_static("docker-distribution-api-version");
    pub(in crate::serve) const CONTENT_DIGEST: HeaderName =
        HeaderName::from_static("docker-content-digest");
    pub(in crate::serve) const UPLOAD_UUID: HeaderName =
        HeaderName::from_static("docker-upload-uuid");
    pub(in crate::serve) const OCI_NAMESPACE: HeaderName = HeaderName::from_static("oci-namespace");
    pub(in crate::serve) const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
    pub(in crate::serve) const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
    pub(in crate::serve) const OCI_FILTERS: HeaderName =
        HeaderName::from_static("oci-filters-applied");
}
