//! Tokens for other hosts to which a registry leads, such as the registry behind a name of one's own. They are
//! those that everybody gets there: no credentials of the registry go anywhere else.

use std::sync::Mutex;

use lru::LruCache;
use reqwest::{Response, Url, header::HeaderValue};

use super::{
    auth::{KEPT_TOKENS, Need, offered},
    challenge::{Scheme, Token},
    token_server::TokenServer,
    wire::Wire,
};
use crate::{backend::Result, util::locked};

/// Anonymous tokens, by the origin that they are for and what they have to allow.
pub(super) struct Guests {
    tokens: Mutex<LruCache<String, Token>>,
    /// Held while a token is fetched, so that one is enough for all who wait.
    fetching: tokio::sync::Mutex<()>,
}

impl Guests {
    pub(super) fn new() -> Self {
        let tokens = Mutex::new(LruCache::new(KEPT_TOKENS));
        Self { tokens, fetching: tokio::sync::Mutex::default() }
    }

    /// What to send in `Authorization` to `url`; nothing where no token has been asked for.
    pub(super) fn authorization(&self, url: &Url, need: &Need<'_>) -> Option<HeaderValue> {
        let mut tokens = locked(&self.tokens);
        let token = tokens.get(&key(url, need)).filter(|token| token.is_fresh());
        token.map(|token| token.header.clone())
    }

    /// A 401 from `url`, to which `sent` was sent: fetches a token if it asks for one. Tells whether there is
    /// another one now.
    pub(super) async fn challenged(
        &self,
        wire: &Wire,
        url: &Url,
        response: &Response,
        need: &Need<'_>,
        sent: Option<&HeaderValue>,
    ) -> Result<bool> {
        let offered = offered(response.headers());
        let Some((Scheme::Bearer { realm, service }, scopes)) = Scheme::with_scopes(offered) else {
            return Ok(false);
        };
        // As with redirects.
        if url.scheme() == "https" && realm.scheme() != "https" {
            return Ok(false);
        }
        let _fetching = self.fetching.lock().await;
        if self.authorization(url, need).is_some_and(|token| Some(&token) != sent) {
            return Ok(true);
        }
        // The other registry knows best how it calls what is asked for.
        let scopes = if scopes.is_empty() { need.scopes } else { &scopes };
        let server = TokenServer { wire, realm: &realm, service: service.as_deref() };
        let token = server.fetch(&Ok(None), &Need { scopes, doing: need.doing }).await?;
        locked(&self.tokens).put(key(url, need), token);
        Ok(true)
    }
}

fn key(url: &Url, need: &Need<'_>) -> String {
    format!("{} {}", url.origin().ascii_serialization(), need.scopes.join(" "))
}
