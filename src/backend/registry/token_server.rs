//! Asking a token server for a token (distribution specification, "Token Authentication"; OAuth2 for identity
//! tokens), wherever it leads.

use reqwest::{
    Method, Response, Url,
    header::{AUTHORIZATION, HeaderValue},
};

use super::{
    auth::{Found, Need},
    challenge::{self, Token},
    config::Credentials,
    failure,
    wire::Wire,
};
use crate::backend::{Kind, Result};

/// More redirects of a token server than this are a loop.
const MAX_REDIRECTS: usize = 8;

/// How much of a token server's answer is read. Tokens with many scopes reach tens of kilobytes.
const MAX_TOKEN_BODY: usize = 1 << 20;

/// Whether what is a secret for `from` may be sent to `to`: it is the same place, or the same by HTTPS.
fn may_share(from: &Url, to: &Url) -> bool {
    let is_upgrade = (from.scheme(), to.scheme()) == ("http", "https")
        && from.host_str() == to.host_str()
        && (from.port(), to.port()) == (None, None);
    from.origin() == to.origin() || is_upgrade
}

/// Who gives tokens for a registry.
pub(super) struct TokenServer<'a> {
    pub(super) wire: &'a Wire,
    pub(super) realm: &'a Url,
    pub(super) service: Option<&'a str>,
}

impl TokenServer<'_> {
    /// Fetches a token with the credentials `found`, or without any.
    pub(super) async fn fetch(&self, found: &Found, need: &Need<'_>) -> Result<Token> {
        let Self { wire, realm, service } = self;
        let (scopes, doing) = (need.scopes, need.doing);
        let credentials = found.as_ref().ok().and_then(Option::as_ref);
        if credentials.is_some() && wire.is_https() && realm.scheme() != "https" {
            return Err(wire.error(
                doing,
                Kind::Config(
                    "its token server is reached by plain HTTP; credentials are not sent there"
                        .into(),
                ),
            ));
        }
        let in_one = scopes.join(" ");
        // A query repeats the parameter, a form has them in one (OAuth2).
        let mut form: Vec<(&str, &str)> = match credentials {
            Some(Credentials::IdentityToken(_)) => vec![("scope", &in_one)],
            _ => scopes.iter().map(|scope| ("scope", scope.as_str())).collect(),
        };
        form.extend(service.map(|service| ("service", service)));
        let ask = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                form.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.as_str()),
                    ("client_id", "imgfs"),
                ]);
                TokenAsk::Form(form)
            }
            Some(basic @ Credentials::Basic { username, .. }) => {
                form.push(("account", username));
                TokenAsk::Query(form, challenge::basic(basic))
            }
            // A token for the registry itself says nothing to a token server.
            Some(Credentials::RegistryToken(_)) | None => TokenAsk::Query(form, None),
        };
        let (response, url) = self.send(&ask, doing).await?;
        let status = response.status();
        let retry_after = failure::retry_after(response.headers());
        let body = wire.body(response, MAX_TOKEN_BODY, doing).await?.unwrap_or_default();
        let server = url.host_str().unwrap_or_default();
        let said = failure::error_message(&body);
        match status.as_u16() {
            200..=299 => challenge::parse_token(&body)
                .map_err(|e| wire.error(doing, Kind::Unauthorized(failure::joined([&e, &said])))),
            400 | 401 | 403 => {
                let trouble = found.as_ref().err().map(String::as_str).unwrap_or_default();
                let unsent = match ask.has_secret() && !may_share(realm, &url) {
                    true => "it is not the one that the registry names, and gets no credentials",
                    false => "",
                };
                let reason = match failure::joined([&said, trouble, unsent]) {
                    reason if reason.is_empty() => format!("the token server {server} refuses"),
                    reason => format!("the token server {server} refuses: {reason}"),
                };
                Err(wire.error(doing, Kind::Unauthorized(reason)))
            }
            status => {
                let message = failure::joined([&format!("from the token server {server}"), &said]);
                Err(wire.error(doing, Kind::Status { status, message, retry_after }))
            }
        }
    }

    /// Asks the token server, wherever it leads. Returns the answer and where it came from.
    async fn send(&self, ask: &TokenAsk<'_>, doing: &str) -> Result<(Response, Url)> {
        let Self { wire, realm, .. } = self;
        let mut url = (*realm).clone();
        if let TokenAsk::Query(parameters, _) = ask {
            url.query_pairs_mut().extend_pairs(parameters);
        }
        for _ in 0..MAX_REDIRECTS {
            let is_trusted = may_share(realm, &url);
            let request = match ask {
                TokenAsk::Query(_, authorization) => {
                    let request = wire.request(Method::GET, &url, doing).await?;
                    match authorization.as_ref().filter(|_| is_trusted) {
                        Some(header) => request.header(AUTHORIZATION, header.clone()),
                        None => request,
                    }
                }
                TokenAsk::Form(parameters) if is_trusted => {
                    wire.request(Method::POST, &url, doing).await?.form(parameters)
                }
                TokenAsk::Form(_) => {
                    let host = url.host_str().unwrap_or_default();
                    let reason = format!(
                        "its token server leads to {host}; the identity token is not sent there"
                    );
                    return Err(wire.error(doing, Kind::Config(reason)));
                }
            };
            let response = wire.send(request, doing).await?;
            let leads_on = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !leads_on {
                return Ok((response, url));
            }
            url = wire.location(&url, response.headers(), doing)?;
        }
        let reason = format!("its token server has more than {MAX_REDIRECTS} redirects");
        Err(wire.error(doing, Kind::Config(reason)))
    }
}

/// How a token is asked for.
enum TokenAsk<'a> {
    /// By parameters, and the credentials in a header, if there are any.
    Query(Vec<(&'a str, &'a str)>, Option<HeaderValue>),
    /// By a form with the credentials in it (OAuth2).
    Form(Vec<(&'a str, &'a str)>),
}

impl TokenAsk<'_> {
    fn has_secret(&self) -> bool {
        !matches!(self, Self::Query(_, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_stay_where_they_belong() {
        for (from, to, shared) in [
            ("https://a.io/token", "https://a.io:443/token/?x", true),
            ("http://a.io/token", "https://a.io/token", true),
            ("http://a.io:5000/token", "http://a.io:5000/", true),
            ("http://a.io:5000/token", "http://a.io:5001/", false),
            ("http://a.io:5000/token", "https://a.io:5000/", false),
            ("http://a.io:5000/token", "https://a.io/", false),
            ("https://a.io/token", "http://a.io/token", false),
            ("https://a.io/token", "https://b.a.io/token", false),
            ("https://a.io/token", "https://b.io/token", false),
        ] {
            assert_eq!(may_share(&from.parse().unwrap(), &to.parse().unwrap()), shared, "{to}");
        }
    }
}
