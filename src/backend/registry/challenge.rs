//! Authentication: what a registry asks for in `WWW-Authenticate`, and the tokens that answer it
//! (distribution specification, "Token Authentication"; OAuth2 for identity tokens).

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Url, header::HeaderValue};
use serde::Deserialize;

use super::config::Credentials;

/// What a registry wants to see in `Authorization`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// Nothing has been asked for.
    None,
    /// User name and password with every request.
    Basic,
    /// A token from `realm`.
    Bearer {
        /// The token server.
        realm: Url,
        /// Its name for the registry.
        service: Option<String>,
    },
}

impl Scheme {
    /// Reads the values of a 401's `WWW-Authenticate` headers. A token server is preferred to
    /// basic authentication; `None` if nothing usable is offered.
    pub(crate) fn parse<'a>(headers: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for header in headers.into_iter().filter(|h| h.len() <= 8192) {
            // What cannot be parsed (`Negotiate` with its odd payload) is not for us.
            for challenge in http_auth::parser::ChallengeParser::new(header).map_while(Result::ok) {
                let param = |name: &str| {
                    let (_, value) =
                        challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
                    Some(value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    let realm = param("realm").and_then(|realm| realm.parse::<Url>().ok());
                    if let Some(realm) = realm.filter(|r| matches!(r.scheme(), "http" | "https")) {
                        return Some(Self::Bearer { realm, service: param("service") });
                    }
                } else if challenge.scheme.eq_ignore_ascii_case("basic") {
                    found = Some(Self::Basic);
                }
            }
        }
        found
    }
}

/// No server takes a header that is longer than this, in bytes.
const MAX_TOKEN: usize = 64 << 10;

/// A token and when it ends.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    expires: Instant,
}

impl Token {
    /// Whether it will still be good when a request that starts now arrives.
    pub(crate) fn is_fresh(&self) -> bool {
        self.expires > Instant::now()
    }
}

/// A token server's answer. Docker's servers say `token`, OAuth2 `access_token`, some both.
#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<f64>,
}

/// Reads a token server's answer.
pub(crate) fn parse_token(body: &[u8]) -> Result<Token, String> {
    let answer: TokenAnswer = serde_json::from_slice(body)
        .map_err(|_| "the token server's answer is not what the specification says".to_owned())?;
    let token = answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token)
        .filter(|t| !t.is_empty())
        .filter(|t| t.len() <= MAX_TOKEN)
        .ok_or("the token server's answer has no token, or one of unreasonable length")?;
    // The specification: 60 seconds where nothing is said, and clients should not count on less.
    let lifetime = answer.expires_in.unwrap_or(60.0).clamp(0.0, 86_400.0);
    // A token that ends while a request is on its way is a wasted round trip.
    let usable = Duration::from_secs_f64(lifetime * 0.9);
    Ok(Token {
        header: secret(&format!("Bearer {token}"))?,
        expires: Instant::now() + usable.min(Duration::from_secs_f64((lifetime - 2.0).max(0.5))),
    })
}

/// The header for basic authentication.
pub(crate) fn basic(credentials: &Credentials) -> Option<HeaderValue> {
    let Credentials::Basic { username, password } = credentials else { return None };
    let encoded = STANDARD.encode(format!("{username}:{password}"));
    secret(&format!("Basic {encoded}")).ok()
}

fn secret(text: &str) -> Result<HeaderValue, String> {
    let mut value = HeaderValue::from_str(text)
        .map_err(|_| "the token has characters that cannot stand in a header".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Scheme> {
        Some(Scheme::Bearer { realm: realm.parse().unwrap(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/nginx:pull""#;
        for (headers, expected) in [
            (&[hub][..], bearer("https://auth.docker.io/token", Some("registry.docker.io"))),
            (&[r#"bearer Realm="http://a/t""#], bearer("http://a/t", None)),
            (
                &[r#"Basic realm="x""#, hub],
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (&[r#"Basic realm="x", Bearer realm="https://a/t""#], bearer("https://a/t", None)),
            (&[r#"Basic realm="Registry Realm""#], Some(Scheme::Basic)),
            (&["Basic"], Some(Scheme::Basic)),
            (&[r#"Bearer realm="file:///etc/passwd""#], None),
            (&["Bearer"], None),
            (&["Negotiate"], None),
            (&["", "\"", "Bearer realm=", ",,,=\"\\"], None),
            (&[], None),
        ] {
            assert_eq!(Scheme::parse(headers.iter().copied()), expected, "{headers:?}");
        }
    }

    #[test]
    fn tokens() {
        let fresh = parse_token(br#"{"token":"abc","expires_in":300}"#).unwrap();
        assert_eq!(fresh.header.to_str().unwrap(), "Bearer abc");
        assert!(fresh.is_fresh() && fresh.header.is_sensitive());
        assert!(parse_token(br#"{"access_token":"x","token":""}"#).unwrap().is_fresh());
        for bad in [&b""[..], b"{}", br#"{"token":""}"#, b"[]", br#"{"token":"a\nb"}"#] {
            assert!(parse_token(bad).is_err());
        }
    }
}
