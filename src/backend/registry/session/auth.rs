//! How a session proves who it is: basic authentication, and tokens from token servers.

use std::sync::{Arc, atomic::Ordering};

use reqwest::{
    Response, Url,
    header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
};

use super::{Ask, KnownCredentials, Session, failure, read_limited};
use crate::backend::{
    Kind, Result,
    registry::{
        auths::Auths,
        challenge::{self, Scheme},
        config::Credentials,
        credentials,
    },
};

use crate::util::locked;

/// How much of a token server's answer is read. Tokens with many scopes reach tens of kilobytes.
const MAX_TOKEN_BODY: usize = 1 << 20;

/// Whether credentials are looked up for the first time, or because they have been refused.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lookup {
    First,
    Again,
}

impl Session {
    fn scheme(&self) -> Option<Scheme> {
        locked(&self.scheme).clone()
    }

    /// Notes what the registry asks for; `Scheme::None` is only noted where nothing is known, as
    /// some registries let some requests pass without credentials.
    pub(super) fn learn(&self, scheme: Scheme) {
        let mut known = locked(&self.scheme);
        if known.is_none() || scheme != Scheme::None {
            *known = Some(scheme);
        }
    }

    /// Lets one request go ahead while nothing is known of the registry, and the others wait for
    /// what it learns. Without credentials and over plain HTTP there most likely is nothing to
    /// learn, and nobody waits.
    pub(super) async fn probe_if_unknown(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        if self.scheme().is_some()
            || self.probe_failed.load(Ordering::Relaxed)
            || (self.base.scheme() == "http" && self.credentials().await.0.is_none())
        {
            return None;
        }
        let guard = self.probe.lock().await;
        self.scheme().is_none().then_some(guard)
    }

    pub(in crate::backend::registry) async fn credentials(&self) -> Arc<KnownCredentials> {
        let mut known = self.credentials.lock().await;
        match &*known {
            Some(known) => known.clone(),
            None => known.insert(Arc::new(self.look_up_credentials(Lookup::First).await)).clone(),
        }
    }

    /// Looks the credentials up again, since these have been refused. Tells whether there are
    /// others now, as there are after a password has been changed.
    async fn refresh_credentials(&self) -> bool {
        let fresh = self.look_up_credentials(Lookup::Again).await;
        let mut known = self.credentials.lock().await;
        let is_other = fresh.0.is_some() && known.as_ref().is_none_or(|known| known.0 != fresh.0);
        if is_other {
            *known = Some(Arc::new(fresh));
        }
        is_other
    }

    async fn look_up_credentials(&self, lookup: Lookup) -> KnownCredentials {
        let entry = self.entry.and_then(|index| self.config.entries.get(index));
        if let Some(found) = entry.and_then(|entry| entry.credentials.clone()) {
            let file = self.config.auths_file.as_ref().filter(|_| lookup == Lookup::Again);
            let again = file.and_then(|file| Auths::load(file).ok());
            let prefix = entry.map(|entry| entry.prefix.as_str()).unwrap_or_default();
            let again = again.and_then(|auths| {
                let same = auths.entries.into_iter().find(|entry| entry.prefix == prefix);
                same.and_then(|entry| entry.credentials)
            });
            return (again.or(Some(found)), None);
        }
        let config = self.config.clone();
        let (registry, part) = (self.registry.clone(), self.stored_under.clone());
        // Credential helpers are programs that may ask the user for a key.
        let looked_up = tokio::task::spawn_blocking(move || {
            credentials::lookup(&config.credential_files, &registry, part.as_deref())
        });
        match looked_up.await {
            Ok(Ok(found)) => (found, None),
            Ok(Err(reason)) => (None, Some(reason)),
            Err(panic) => (None, Some(panic.to_string())),
        }
    }

    /// What to send in `Authorization`, fetching a token first if one is needed.
    pub(super) async fn authorization(&self, ask: &Ask<'_>) -> Result<Option<HeaderValue>> {
        match self.scheme() {
            None | Some(Scheme::None) => Ok(None),
            Some(Scheme::Basic) => {
                Ok(self.credentials().await.0.as_ref().and_then(challenge::basic))
            }
            Some(Scheme::Bearer { realm, service }) => {
                let scopes = ask.scope.names(ask.repository);
                let slot = self.tokens.slot(&scopes.join(" "));
                let mut slot = slot.lock().await;
                if let Some(token) = slot.as_ref().filter(|token| token.is_fresh()) {
                    return Ok(Some(token.header.clone()));
                }
                let fetch = || self.fetch_token(&realm, service.as_deref(), &scopes, ask.doing);
                let token = self.repeat(|| async {
                    match fetch().await {
                        Err(error)
                            if matches!(error.kind(), Kind::Unauthorized(_))
                                && self.refresh_credentials().await =>
                        {
                            fetch().await
                        }
                        fetched => fetched,
                    }
                });
                let token = token.await?;
                let header = token.header.clone();
                *slot = Some(token);
                Ok(Some(header))
            }
        }
    }

    async fn fetch_token(
        &self,
        realm: &Url,
        service: Option<&str>,
        scopes: &[String],
        doing: &str,
    ) -> Result<challenge::Token> {
        let known = self.credentials().await;
        let credentials = &known.0;
        if credentials.is_some() && self.base.scheme() == "https" && realm.scheme() != "https" {
            return Err(self.error(
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
        let request = match credentials {
            Some(Credentials::IdentityToken(token)) => {
                form.extend([
                    ("grant_type", "refresh_token"),
                    ("refresh_token", token.as_str()),
                    ("client_id", "imgfs"),
                ]);
                self.client.post(realm.clone()).form(&form)
            }
            Some(basic @ Credentials::Basic { username, .. }) => {
                form.push(("account", username));
                let request = self.client.get(realm.clone()).query(&form);
                match challenge::basic(basic) {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                }
            }
            None => self.client.get(realm.clone()).query(&form),
        };
        self.stats.count_request();
        let response = request.send().await.map_err(|e| self.failed(doing, e))?;
        let status = response.status();
        let retry_after = failure::retry_after(response.headers());
        let body = read_limited(response, MAX_TOKEN_BODY)
            .await
            .map_err(|e| self.failed(doing, e))?
            .unwrap_or_default();
        let server = realm.host_str().unwrap_or_default();
        match status.as_u16() {
            200 => {
                challenge::parse_token(&body).map_err(|e| self.error(doing, Kind::Unauthorized(e)))
            }
            400 | 401 | 403 => Err(self.error(
                doing,
                Kind::Unauthorized({
                    let said = failure::error_message(&body);
                    let trouble = known.1.as_deref().unwrap_or_default();
                    let all = [said.as_str(), trouble];
                    let all: Vec<&str> = all.into_iter().filter(|t| !t.is_empty()).collect();
                    match all.is_empty() {
                        true => format!("the token server {server} refuses"),
                        false => format!("the token server {server} refuses: {}", all.join("; ")),
                    }
                }),
            )),
            status => {
                let message = format!("from the token server {server}");
                Err(self.error(doing, Kind::Status { status, message, retry_after }))
            }
        }
    }

    /// A 401: learns what is asked for, and drops the token that was refused. An error if there
    /// is nothing else to try.
    pub(super) async fn challenged(
        &self,
        response: Response,
        ask: &Ask<'_>,
        sent: Option<HeaderValue>,
    ) -> Result<()> {
        let offered = response.headers().get_all(WWW_AUTHENTICATE);
        let scheme = Scheme::parse(offered.iter().filter_map(|value| value.to_str().ok()));
        let refused = |reason: String| self.error(ask.doing, Kind::Unauthorized(reason));
        let Some(scheme) = scheme else {
            // Harbor asks for nothing where a project does not exist, and says so in the body.
            if offered.iter().all(HeaderValue::is_empty) {
                return Err(self.refused(response, ask).await);
            }
            return Err(refused("it asks for an authentication that imgfs does not know".into()));
        };
        let known = self.credentials().await;
        let (credentials, trouble) = &*known;
        if scheme == Scheme::Basic {
            match (credentials, sent) {
                (_, Some(_)) if self.refresh_credentials().await => {}
                (_, Some(_)) => return Err(refused("the user name or password is wrong".into())),
                (Some(Credentials::Basic { .. }), None) => {}
                (Some(Credentials::IdentityToken(_)), None) => {
                    return Err(refused(
                        "it wants a user name and password, and there is only an identity token"
                            .into(),
                    ));
                }
                (None, None) => {
                    let reason = trouble
                        .clone()
                        .unwrap_or_else(|| "it wants a user name and password".into());
                    return Err(refused(reason));
                }
            }
        } else if let Some(sent) = sent {
            let slot = self.tokens.slot(&ask.scope.names(ask.repository).join(" "));
            let mut slot = slot.lock().await;
            // Unless somebody has fetched a new one in the meantime.
            if slot.as_ref().is_some_and(|token| token.header == sent) {
                *slot = None;
            }
        }
        self.learn(scheme);
        Ok(())
    }
}
