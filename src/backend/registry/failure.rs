//! What failures say: error answers of registries, and errors of the HTTP library.

use std::{
    error::Error as StdError,
    io,
    time::{Duration, SystemTime},
};

use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde_json::Value;

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Whether an error body says that the registry lacks what a manifest names.
pub(super) fn says_incomplete(body: &[u8]) -> bool {
    let missing = ["MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"];
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let mut errors = body["errors"].as_array().into_iter().flatten();
    errors.any(|error| error["code"].as_str().is_some_and(|code| missing.contains(&code)))
}

/// What an error message may take of a line, in characters.
const MAX_MESSAGE: usize = 300;

/// Of a detail that is no text, so many characters are shown.
const MAX_DETAIL: usize = 120;

/// What an error body says, in one printable line; empty if it says nothing. Reads the form of the
/// distribution specification ("Error Codes") and those of token servers and way stations: OAuth2's,
/// Docker Hub's, Harbor's, problem details (RFC 9457), XML of object stores, pages in HTML, plain text.
pub(super) fn error_message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<Value>(body) {
        Ok(json) => said(&json),
        Err(_) => std::str::from_utf8(body).map(said_in_text).unwrap_or_default(),
    };
    printable(&text)
}

/// What a JSON value says; empty if nothing.
fn said(json: &Value) -> String {
    match json {
        Value::String(text) => text.trim().to_owned(),
        Value::Array(items) => {
            let items = items.iter().map(said).filter(|item| !item.is_empty());
            items.take(3).collect::<Vec<_>>().join("; ")
        }
        Value::Object(fields) => {
            let first = |names: &[&str], read: fn(&Value) -> String| {
                let values = names.iter().filter_map(|name| fields.get(*name));
                values.map(read).find(|text| !text.is_empty())
            };
            let of_message =
                ["errors", "message", "error_description", "title", "error", "reason", "code"];
            let message = first(&of_message, said);
            match (message, first(&["detail", "details"], said_in_detail)) {
                (Some(message), Some(detail)) if !message.contains(&detail) => {
                    format!("{message}: {detail}")
                }
                (Some(message), _) => message,
                (None, detail) => detail.unwrap_or_default(),
            }
        }
        _ => String::new(),
    }
}

/// What a detail says. There is no form for it; what is no text is shown as it is.
fn said_in_detail(json: &Value) -> String {
    let is_empty = match json {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(_) => false,
        _ => true,
    };
    match said(json) {
        said if said.is_empty() && !is_empty => json.to_string().chars().take(MAX_DETAIL).collect(),
        said => said,
    }
}

/// What a body says that is no JSON.
fn said_in_text(text: &str) -> String {
    let text = text.trim();
    if !text.starts_with('<') {
        return text.to_owned();
    }
    let element = |name: &str| {
        let lower = text.to_ascii_lowercase();
        let from = lower.find(&format!("<{name}"))?;
        let from = from + lower[from..].find('>')? + 1;
        let to = from + lower[from..].find("</")?;
        Some(text[from..to].trim().to_owned()).filter(|content| !content.is_empty())
    };
    let content = ["message", "title", "h1"].into_iter().find_map(element).unwrap_or_default();
    let entities = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&#39;", "'"), ("&amp;", "&")];
    entities.iter().fold(content, |text, (entity, plain)| text.replace(entity, plain))
}

/// Those of `texts` that say something, and each thing once.
pub(super) fn joined<const N: usize>(texts: [&str; N]) -> String {
    let mut all = String::new();
    for text in texts.map(printable) {
        if all.contains(&text) {
            continue;
        }
        if !all.is_empty() {
            all += "; ";
        }
        all += &text;
    }
    all
}

/// A text of anybody as part of a message: one line of bounded length, without characters that
/// control a terminal or change the direction of writing.
fn printable(text: &str) -> String {
    let is_shown = |c: char| {
        let is_format = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
        !c.is_control() && !is_format
    };
    let words = text.split_whitespace().map(|word| word.chars().filter(|c| is_shown(*c)));
    let words = words.map(String::from_iter).filter(|word| !word.is_empty());
    words.collect::<Vec<String>>().join(" ").chars().take(MAX_MESSAGE).collect()
}

/// The innermost cause, which is the one that says something.
pub(in crate::backend) fn root_cause(error: &dyn StdError) -> String {
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

/// Whether the other side has closed a connection that had been made before, or closes it now, without any
/// answer to the request.
pub(super) fn is_closed_connection(error: &reqwest::Error) -> bool {
    let is_incomplete =
        find::<hyper::Error>(error).is_some_and(|e| e.is_incomplete_message() || e.is_canceled());
    match error.is_connect() {
        true => is_pooled(error),
        false => is_incomplete || is_lost_connection(error),
    }
}

/// Whether it is the HTTP library's pool that says that a connection has been closed. It counts that among the
/// failures to connect, and the type is private to it.
fn is_pooled(error: &(dyn StdError + 'static)) -> bool {
    match error.source() {
        Some(cause) => is_pooled(cause),
        None => ["checked out connection was closed", "request was canceled"]
            .contains(&error.to_string().as_str()),
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
        None => is_pooled(error),
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
        for other in [&b""[..], b"<html>", b"{}", b"[1]", b"\xff", b"null", b"<x", b"<title"] {
            assert_eq!(error_message(other), "");
        }
        let nasty = br#"{"errors":[{"message":"a\u001b[31mb\u202e\nc"}]}"#;
        assert_eq!(error_message(nasty), "a[31mb c");
        let endless = format!(r#"{{"message":"{}"}}"#, "x".repeat(100_000));
        assert_eq!(error_message(endless.as_bytes()).len(), MAX_MESSAGE);
    }

    #[test]
    fn reasons_in_the_forms_that_they_have() {
        for (body, message) in [
            (r#"{"errors":[{"code":"DENIED","message":null,"detail":null}]}"#, "DENIED"),
            (r#"{"errors":[{"message":"denied","detail":"not yours"}]}"#, "denied: not yours"),
            (
                r#"{"errors":[{"message":"it is not yours","detail":"not yours"}]}"#,
                "it is not yours",
            ),
            (
                r#"{"errors":[{"code":"X","message":"no","detail":{"Tag":"1"}}]}"#,
                r#"no: {"Tag":"1"}"#,
            ),
            (r#"{"errors":[{"code":"X","message":"no","detail":[{"message":"why"}]}]}"#, "no: why"),
            (r#"{"errors":["no",null,{"message":"why"}]}"#, "no; why"),
            (r#"{"errors":"no"}"#, "no"),
            (r#"{"errors":{"message":"no"}}"#, "no"),
            (r#"{"errors":null,"message":"no"}"#, "no"),
            (r#"{"errors":[],"details":"it has expired"}"#, "it has expired"),
            (r#"{"error":"invalid_grant","error_description":"it has expired"}"#, "it has expired"),
            (r#"{"error":"invalid_grant","error_description":null}"#, "invalid_grant"),
            (r#"{"error":{"code":403,"message":"no","status":"DENIED"}}"#, "no"),
            (r#"{"code":404,"message":"no"}"#, "no"),
            (r#"{"title":"Forbidden","detail":"not from here"}"#, "Forbidden: not from here"),
            (r#""no""#, "no"),
            ("  no such\n thing  ", "no such thing"),
            ("<html><head><title>403 &amp; out</title></head>", "403 & out"),
            ("<html><body><H1 class='x'>Access denied</H1>", "Access denied"),
            (
                "<?xml version='1.0'?><Error><Code>A</Code><Message>Request has expired</Message><HostId>x</HostId></Error>",
                "Request has expired",
            ),
        ] {
            assert_eq!(error_message(body.as_bytes()), message, "{body}");
        }
    }

    #[test]
    fn reasons_are_told_once() {
        assert_eq!(joined(["no", "", "why", "no", "wh\ny"]), "no; why; wh y");
        assert_eq!(joined(["", "why"]), "why");
        assert_eq!(joined(["", ""]), "");
    }

    #[test]
    fn what_a_registry_lacks() {
        for (body, lacks) in [
            (r#"{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":null,"detail":{}}]}"#, true),
            (r#"{"errors":["x",{"code":null},{"code":"BLOB_UNKNOWN"}]}"#, true),
            (r#"{"errors":[{"code":"DENIED"}]}"#, false),
            (r#"{"errors":"BLOB_UNKNOWN"}"#, false),
            ("", false),
        ] {
            assert_eq!(says_incomplete(body.as_bytes()), lacks, "{body}");
        }
    }
}
