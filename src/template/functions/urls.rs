//! sprig's `urlParse` and `urlJoin`, with the rules of Go's `net/url`. Those are not the ones of
//! browsers, which the crate `url` has: a relative reference is a URL, and nothing is normalised.

use super::{Call, Function, function};
use crate::template::{Value, error::Cause};

pub(super) const FUNCTIONS: &[Function] = &[
    function("urlParse", "s", |call| {
        let text = call.text(0);
        call.run.work(text.len().saturating_mul(4))?;
        let url = parse(&text).map_err(|reason| {
            let shown: String = text.chars().take(200).collect();
            format!("unable to parse url: parse {shown:?}: {reason}")
        })?;
        let entries = [
            ("scheme", url.scheme),
            ("host", url.host.clone()),
            ("hostname", hostname(&url.host).to_owned()),
            ("path", url.path),
            ("query", url.query),
            ("opaque", url.opaque),
            ("fragment", url.fragment),
            ("userinfo", url.userinfo),
        ];
        Ok(entries.into_iter().map(|(key, text)| (key.to_owned(), text.into())).collect())
    }),
    function("urlJoin", "m", join),
];

#[derive(Default)]
struct Url {
    scheme: String,
    opaque: String,
    /// Escaped, as `name` or `name:password`.
    userinfo: String,
    host: String,
    path: String,
    query: String,
    fragment: String,
}

/// Where a text stands in a URL; that decides which characters are written as they are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Path,
    Host,
    Userinfo,
    Fragment,
}

fn is_plain(byte: u8, place: Place) -> bool {
    match byte {
        _ if byte.is_ascii_alphanumeric() => true,
        b'-' | b'_' | b'.' | b'~' => true,
        b'$' | b'&' | b'+' | b',' | b';' | b'=' => true,
        b':' => place != Place::Userinfo,
        b'/' | b'@' => matches!(place, Place::Path | Place::Fragment),
        b'?' => place == Place::Fragment,
        b'!' | b'(' | b')' | b'*' => matches!(place, Place::Host | Place::Fragment),
        b'\'' | b'[' | b']' | b'<' | b'>' | b'"' => place == Place::Host,
        _ => false,
    }
}

fn escape(text: &str, place: Place) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match is_plain(byte, place) {
            true => escaped.push(byte.into()),
            false => escaped += &format!("%{byte:02X}"),
        }
    }
    escaped
}

fn unescape(text: &str, place: Place) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        if *byte != b'%' {
            if place == Place::Host && byte.is_ascii() && !is_plain(*byte, place) {
                return Err(format!("invalid character {:?} in host name", char::from(*byte)));
            }
            bytes.push(*byte);
            continue;
        }
        let digits = rest.split_at_checked(2);
        let code = digits.and_then(|(digits, after)| {
            let code = std::str::from_utf8(digits).ok().filter(|d| !d.starts_with('+'))?;
            Some((u8::from_str_radix(code, 16).ok()?, after))
        });
        // In a host, only what is not ASCII may be escaped.
        let code = code.filter(|(code, _)| place != Place::Host || *code >= 0x80 || *code == b'%');
        let Some((code, after)) = code else {
            let shown = String::from_utf8_lossy(&rest[..rest.len().min(2)]);
            return Err(format!("invalid URL escape \"%{shown}\""));
        };
        bytes.push(code);
        rest = after;
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(text: &str) -> Result<Url, String> {
    let mut url = Url::default();
    let (text, fragment) = text.split_once('#').unwrap_or((text, ""));
    if text.bytes().any(|b| b < b' ' || b == 0x7f) {
        return Err("net/url: invalid control character in URL".into());
    }
    url.fragment = unescape(fragment, Place::Fragment)?;
    let (scheme, rest) = scheme(text)?;
    url.scheme = scheme.to_ascii_lowercase();
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    url.query = query.to_owned();
    if !rest.starts_with('/') {
        if !scheme.is_empty() {
            url.opaque = rest.to_owned();
            return Ok(url);
        }
        if rest.split('/').next().is_some_and(|segment| segment.contains(':')) {
            return Err("first path segment in URL cannot contain colon".into());
        }
    }
    let has_authority = !scheme.is_empty() || !rest.starts_with("///");
    let path = match rest.strip_prefix("//").filter(|_| has_authority) {
        Some(rest) => {
            let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            let (userinfo, host) = authority.rsplit_once('@').unwrap_or(("", authority));
            url.host = unescape(checked_host(host)?, Place::Host)?;
            url.userinfo = self::userinfo(userinfo)?;
            path
        }
        None => rest,
    };
    url.path = unescape(path, Place::Path)?;
    Ok(url)
}

/// The scheme without its colon, and what follows it.
fn scheme(text: &str) -> Result<(&str, &str), String> {
    let is_of_scheme = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    let end = text.bytes().position(|b| !is_of_scheme(b)).unwrap_or(text.len());
    match (text[end..].strip_prefix(':'), text.bytes().next()) {
        (Some(_), Some(b':')) => Err("missing protocol scheme".into()),
        (Some(rest), Some(first)) if first.is_ascii_alphabetic() => Ok((&text[..end], rest)),
        _ => Ok(("", text)),
    }
}

/// A host whose port, if it has one, is a number.
fn checked_host(host: &str) -> Result<&str, String> {
    let port = match host.strip_prefix('[') {
        Some(inner) => match inner.rfind(']') {
            Some(end) => &inner[end + 1..],
            None => return Err("missing ']' in host".into()),
        },
        None => host.rfind(':').map_or("", |colon| &host[colon..]),
    };
    let digits = port.strip_prefix(':').unwrap_or(port);
    if !port.is_empty() && !port.starts_with(':') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("invalid port {port:?} after host"));
    }
    Ok(host)
}

fn hostname(host: &str) -> &str {
    let is_port = |port: &str| port.bytes().all(|b| b.is_ascii_digit());
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) => name,
        _ => host,
    };
    name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name)
}

/// A name and perhaps a password, escaped where that is needed and nowhere else.
fn userinfo(text: &str) -> Result<String, String> {
    let is_valid = |b: u8| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b);
    if !text.bytes().all(is_valid) {
        return Err("net/url: invalid userinfo".into());
    }
    let again =
        |part: &str| unescape(part, Place::Userinfo).map(|plain| escape(&plain, Place::Userinfo));
    Ok(match text.split_once(':') {
        Some((name, password)) => format!("{}:{}", again(name)?, again(password)?),
        None => again(text)?,
    })
}

fn join(call: &mut Call<'_>) -> Result<Value, Cause> {
    let part = |key: &str| match call.entries(0).get(key) {
        None => Ok(String::new()),
        Some(Value::String(text)) => {
            call.run.work(text.len().saturating_mul(4))?;
            Ok(text.to_string())
        }
        Some(other) => Err(Cause::from(format!(
            "unable to parse {key} key, must be of type string, but {} found",
            super::kind(other)
        ))),
    };
    let (scheme, opaque, host) = (part("scheme")?, part("opaque")?, part("host")?);
    let (path, query, fragment) = (part("path")?, part("query")?, part("fragment")?);
    let given = part("userinfo")?;
    let userinfo =
        userinfo(&given).map_err(|reason| format!("unable to parse userinfo in dict: {reason}"))?;
    let mut url = String::new();
    if !scheme.is_empty() {
        url = scheme.clone() + ":";
    }
    if opaque.is_empty() {
        let has_authority = !host.is_empty() || !userinfo.is_empty();
        if has_authority || !scheme.is_empty() && !path.is_empty() {
            url += "//";
        }
        if !userinfo.is_empty() {
            url += &(userinfo + "@");
        }
        url += &escape(&host, Place::Host);
        let path = if path == "*" { path } else { escape(&path, Place::Path) };
        if !path.is_empty() && !path.starts_with('/') && !host.is_empty() {
            url.push('/');
        }
        if url.is_empty() && path.split('/').next().is_some_and(|first| first.contains(':')) {
            url += "./";
        }
        url += &path;
    } else {
        url += &opaque;
    }
    if !query.is_empty() {
        url += &format!("?{query}");
    }
    if !fragment.is_empty() {
        url += &format!("#{}", escape(&fragment, Place::Fragment));
    }
    crate::template::run::check_output(url.len())?;
    Ok(url.into())
}
