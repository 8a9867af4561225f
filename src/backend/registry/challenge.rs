//! Authentication: what a registry asks for in `WWW-Authenticate`, and the tokens that answer it
//! (distribution specification, "Token Authentication"; OAuth2 for identity tokens).

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::{Url, header::HeaderValue};
use serde::Deserialize;
use serde_json::Value;

use super::{config::Credentials, scopes::MAX_SCOPES};

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
    /// Reads the values of a 401's `WWW-Authenticate` headers.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn parse<T: AsRef<str>>(headers: impl IntoIterator<Item = T>) -> Option<Self> {
        Some(Self::with_scopes(headers)?.0)
    }

    /// The same with the scopes that a token has to have, where the registry says that. A token server is
    /// preferred to basic authentication; `None` if nothing usable is offered.
    pub(super) fn with_scopes<T: AsRef<str>>(
        headers: impl IntoIterator<Item = T>,
    ) -> Option<(Self, Vec<String>)> {
        let mut found = None;
        for challenge in headers.into_iter().flat_map(|header| challenges(header.as_ref())) {
            if challenge.scheme == "bearer" {
                let realm = challenge.param("realm").and_then(|realm| realm.parse::<Url>().ok());
                if let Some(realm) = realm.filter(|r| matches!(r.scheme(), "http" | "https")) {
                    let service = challenge.param("service").map(str::to_owned);
                    let scopes = challenge.param("scope").unwrap_or_default().split_whitespace();
                    let scopes = scopes.take(MAX_SCOPES).map(str::to_owned).collect();
                    return Some((Self::Bearer { realm, service }, scopes));
                }
            } else if challenge.scheme == "basic" {
                found = Some((Self::Basic, Vec::new()));
            }
        }
        found
    }
}

/// Why a token has been refused, as `WWW-Authenticate` says it (RFC 6750, section 3).
/// Empty if they do not say it.
pub(super) fn complaint<T: AsRef<str>>(headers: impl IntoIterator<Item = T>) -> String {
    let mut all = headers.into_iter().flat_map(|header| challenges(header.as_ref()));
    let said = all.find_map(|challenge| {
        let said = challenge.param("error_description").or_else(|| challenge.param("error"));
        said.map(str::to_owned)
    });
    said.unwrap_or_default()
}

/// Longer headers are not read, in bytes.
const MAX_CHALLENGES: usize = 8192;

/// What a server offers in `WWW-Authenticate`.
struct Challenge {
    /// In lower case.
    scheme: String,
    /// Their names are in lower case.
    params: Vec<(String, String)>,
}

impl Challenge {
    fn param(&self, name: &str) -> Option<&str> {
        let (_, value) = self.params.iter().find(|(key, _)| key == name)?;
        Some(value)
    }
}

/// Reads the challenges of a header (RFC 9110, section 11.6.1), and what is meant where servers and
/// those that stand before them do not keep to its grammar: any white space, semicolons or nothing in
/// place of commas, addresses without quotation marks. Strict parsers give up at these.
fn challenges(header: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = if header.len() <= MAX_CHALLENGES { header } else { "" };
    loop {
        rest = rest.trim_start_matches(is_gap);
        if rest.is_empty() {
            return found;
        }
        let (word, after) =
            rest.split_at(rest.find(|c| is_gap(c) || c == '=').unwrap_or(rest.len()));
        match after.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, after) = param_value(value.trim_start());
                rest = after;
                if let Some(challenge) = found.last_mut() {
                    challenge.params.push((word.to_ascii_lowercase(), value));
                }
            }
            None => {
                rest = after;
                found.push(Challenge { scheme: word.to_ascii_lowercase(), params: Vec::new() });
            }
        }
    }
}

fn is_gap(c: char) -> bool {
    c.is_whitespace() || matches!(c, ',' | ';')
}

/// The value at the beginning of `text`, and what is behind it.
fn param_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_at(text.find(is_gap).unwrap_or(text.len()));
        return (value.trim_matches('\'').to_owned(), rest);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
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
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    /// A number of seconds; some write it as a text.
    #[serde(default)]
    expires_in: Value,
}

impl TokenAnswer {
    fn lifetime(&self) -> Option<f64> {
        let seconds = self.expires_in.as_f64();
        seconds.or_else(|| self.expires_in.as_str()?.trim().parse().ok()).filter(|s| s.is_finite())
    }
}

/// Reads a token server's answer.
pub(crate) fn parse_token(body: &[u8]) -> Result<Token, String> {
    let answer: TokenAnswer = serde_json::from_slice(body)
        .map_err(|_| "the token server's answer is not what the specification says".to_owned())?;
    let lifetime = answer.lifetime();
    let token = answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token)
        .filter(|t| !t.is_empty())
        .filter(|t| t.len() <= MAX_TOKEN)
        .ok_or("the token server's answer has no token, or one of unreasonable length")?;
    // The specification: 60 seconds where nothing is said, and clients should not count on less.
    let lifetime = lifetime.unwrap_or(60.0).clamp(0.0, 86_400.0);
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

/// The header with a token that goes to the registry as it is.
pub(super) fn registry_token(credentials: &Credentials) -> Option<HeaderValue> {
    let Credentials::RegistryToken(token) = credentials else { return None };
    secret(&format!("Bearer {token}")).ok()
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
            (
                &["Bearer  realm = \"http://a/t\" ,\t service=\"s\""],
                bearer("http://a/t", Some("s")),
            ),
            (&[r#"Bearer   service="s", realm="http://a/t" "#], bearer("http://a/t", Some("s"))),
            (&["BEARER REALM=http://a/t,SERVICE=s"], bearer("http://a/t", Some("s"))),
            (&[r#"Bearer realm="http://a/t" service="s""#], bearer("http://a/t", Some("s"))),
            (&[r#"Bearer realm='http://a/t';service='s'"#], bearer("http://a/t", Some("s"))),
            (&[r#",Bearer,realm=" http://a/t","#], bearer("http://a/t", None)),
            (
                &[r#"Bearer realm="http://a/t",service="a \"b\", c""#],
                bearer("http://a/t", Some(r#"a "b", c"#)),
            ),
            (&[r#"Negotiate YII=, Bearer realm="http://a/t""#], bearer("http://a/t", None)),
            (&["Negotiate", r#"Bearer realm="http://a/t""#, "Basic"], bearer("http://a/t", None)),
            (&[r#"Bearer scope="a,b=c",realm="http://a/t""#], bearer("http://a/t", None)),
            (&[r#"Bearer realm="x", Basic realm="y""#], Some(Scheme::Basic)),
            (&[r#"Bearer realm="file:///etc/passwd""#], None),
            (&["Bearer"], None),
            (&["Negotiate"], None),
            (&["", "\"", "Bearer realm=", ",,,=\"\\", "=", "é=\"ü"], None),
            (&[], None),
        ] {
            assert_eq!(Scheme::parse(headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn scopes_of_challenges() {
        let scopes = |header| Scheme::with_scopes([header]).unwrap().1;
        let header =
            r#"Bearer realm="http://a/t",scope="repository:a:pull,push  repository:b:pull""#;
        assert_eq!(scopes(header), ["repository:a:pull,push", "repository:b:pull"]);
        for none in
            [r#"Bearer realm="http://a/t",scope="""#, r#"Bearer realm="http://a/t""#, "Basic"]
        {
            assert!(scopes(none).is_empty(), "{none}");
        }
        let many = format!(r#"Bearer realm="http://a/t",scope="{}""#, "x ".repeat(100));
        assert_eq!(scopes(&many).len(), MAX_SCOPES);
    }

    #[test]
    fn complaints() {
        let header =
            r#"Bearer realm="http://a/t",error="invalid_token",error_description="it has expired""#;
        assert_eq!(complaint([header]), "it has expired");
        let header = r#"Bearer realm="http://a/t",error="insufficient_scope""#;
        assert_eq!(complaint(["Basic", header]), "insufficient_scope");
        assert_eq!(complaint([r#"Bearer realm="http://a/t""#, ""]), "");
    }

    #[test]
    fn tokens() {
        let fresh = parse_token(br#"{"token":"abc","expires_in":300}"#).unwrap();
        assert_eq!(fresh.header.to_str().unwrap(), "Bearer abc");
        assert!(fresh.is_fresh() && fresh.header.is_sensitive());
        assert!(parse_token(br#"{"access_token":"x","token":""}"#).unwrap().is_fresh());
        for lifetime in ["null", "\"300\"", "300.5", "\"soon\"", "-1", "1e999"] {
            let text = format!(r#"{{"token":"x","access_token":null,"expires_in":{lifetime}}}"#);
            assert!(parse_token(text.as_bytes()).is_ok() || lifetime == "1e999", "{lifetime}");
        }
        for bad in [&b""[..], b"{}", br#"{"token":""}"#, b"[]", br#"{"token":"a\nb"}"#] {
            assert!(parse_token(bad).is_err());
        }
    }
}
