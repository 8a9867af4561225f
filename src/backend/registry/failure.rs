//! What failures say: error answers of registries, and errors of the HTTP library.

use std::{
    error::Error as StdError,
    io,
    time::{Duration, SystemTime},
};

use reqwest::header::{HeaderMap, RETRY_AFTER};

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// An error body (distribution specification, "Error Codes").
#[derive(serde::Deserialize)]
struct Envelope {
    errors: Vec<Item>,
}

#[derive(serde::Deserialize)]
struct Item {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// Whether an error body says that the registry lacks what a manifest names.
pub(super) fn says_incomplete(body: &[u8]) -> bool {
    let missing = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"];
    serde_json::from_slice::<Envelope>(body)
        .is_ok_and(|e| e.errors.iter().any(|item| missing.contains(&item.code.as_str())))
}

/// What an error body says, in one printable line.
pub(super) fn error_message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Envelope>(body) {
        Ok(envelope) => {
            let items = envelope.errors.iter().take(3).map(|item| match item.message.as_str() {
                "" => item.code.clone(),
                message => message.to_owned(),
            });
            items.collect::<Vec<_>>().join("; ")
        }
        Err(_) => String::new(),
    };
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// The innermost cause, which is the one that says something.
pub(super) fn root_cause(error: &dyn StdError) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

/// The first cause of the type `T`.
pub(super) fn find<'a, T: StdError + 'static>(
    error: &'a (dyn StdError + 'static),
) -> Option<&'a T> {
    match error.downcast_ref() {
        Some(found) => Some(found),
        None => find(error.source()?),
    }
}

/// Whether a connection was made and then closed before a request could be sent on it. With TLS 1.3
/// that is how the refusal of a client without certificate arrives when the registry is quick.
pub(super) fn is_lost_connection(error: &(dyn StdError + 'static)) -> bool {
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return matches!(
            error.kind(),
            io::ErrorKind::ConnectionReset
                | io::ErrorKind::ConnectionAborted
                | io::ErrorKind::BrokenPipe
                | io::ErrorKind::UnexpectedEof
        );
    }
    match error.source() {
        Some(cause) => is_lost_connection(cause),
        // What the HTTP library's pool says, which counts it among the failures to connect. The
        // type is private to it.
        None => ["checked out connection was closed", "request was canceled"]
            .contains(&error.to_string().as_str()),
    }
}

/// If TLS is what failed: why, in the user's words.
pub(super) fn tls_failure(error: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(match tls {
            rustls::Error::InvalidMessage(_) => {
                "the other side does not speak TLS; is it plain HTTP?".to_owned()
            }
            other if other.to_string().contains("CaUsedAsEndEntity") => {
                "the registry's certificate is self-signed and marked as an authority".to_owned()
            }
            other => other.to_string(),
        });
    }
    // What an `io::Error` carries is not its source, but stands in its place.
    let carried = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
    carried.and_then(|inner| tls_failure(inner)).or_else(|| tls_failure(error.source()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_in_both_forms() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(parse("7"), Some(Duration::from_secs(7)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(parse(&soon).is_some_and(|wait| (55..=60).contains(&wait.as_secs())));
        assert_eq!(parse("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "99999999999999999999"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn error_bodies() {
        let body = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}},{"code":"X"}]}"#;
        assert_eq!(error_message(body), "manifest unknown; X");
        for other in [&b""[..], b"<html>", b"{}", b"[1]", b"\xff"] {
            assert_eq!(error_message(other), "");
        }
        let nasty = br#"{"errors":[{"message":"a\u001b[31mb"}]}"#;
        assert_eq!(error_message(nasty), "a[31mb");
    }
}
