//! How imgfs proves to a registry who it is: basic authentication, and tokens from token servers.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use lru::LruCache;
use reqwest::{
    Response,
    header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE},
};
use tokio::{sync::MutexGuard, task};

use super::{
    auths::Auths,
    challenge::{self, Scheme, Token},
    config::{Credentials, RegistryConfig},
    credentials, failure, scopes,
    token_server::TokenServer,
    wire::Wire,
};
use crate::{
    backend::{Kind, Result},
    image::Repository,
    util::{SingleFlight, locked},
};

/// So many values of `WWW-Authenticate` are read.
const MAX_OFFERS: usize = 16;

/// Tokens that are kept. There is one for each repository, and one that was dropped costs a request
/// to the token server: a mount that reads from more repositories at a time is not usual.
pub(super) const KEPT_TOKENS: NonZeroUsize = NonZeroUsize::new(512).unwrap();

/// Credentials that could not be looked up (a credential helper failed) are looked up again when
/// somebody needs them, but not more often than this.
const FAILED_LOOKUP_HOLDS: Duration = Duration::from_secs(10);

/// The credentials of one registry, and the tokens that they have brought.
pub(super) struct Auth {
    lookup: Arc<Lookup>,
    /// The credentials, as far as they have been looked up.
    known: Mutex<Option<(Arc<Found>, Instant)>>,
    lookups: SingleFlight<Occasion, Arc<Found>>,
    scheme: Mutex<Option<Scheme>>,
    /// Held by the request that finds out the scheme, so that the others need not fail first.
    probe: tokio::sync::Mutex<()>,
    probe_failed: AtomicBool,
    tokens: Mutex<LruCache<String, Slot>>,
    /// Scopes that the registry has asked for beyond those that follow from what is needed.
    demands: Mutex<LruCache<String, Vec<String>>>,
}

/// A token, locked while it is fetched, so that many requests with the same need make one request to
/// the token server.
type Slot = Arc<tokio::sync::Mutex<Option<Token>>>;

/// What a lookup of credentials has brought: there may be none. An error says why they could not be
/// looked up.
pub(super) type Found = std::result::Result<Option<Credentials>, String>;

/// Whether credentials are looked up for the first time, or because they have been refused.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Occasion {
    First,
    Refused,
}

/// Where the credentials of a registry come from.
struct Lookup {
    config: Arc<RegistryConfig>,
    registry: String,
    /// The entry of the configuration for it.
    entry: Option<usize>,
    /// The part of the registry for which a credential file has an entry of its own.
    stored_under: Option<String>,
    /// The repository for which credentials have been given.
    given: Option<Repository>,
}

/// What a request has to be allowed to do.
pub(super) struct Need<'a> {
    /// The scopes that a token is asked for.
    pub(super) scopes: &'a [String],
    /// For error messages.
    pub(super) doing: &'a str,
}

impl Lookup {
    /// The newest credentials that have been given for the repository.
    fn given(&self) -> Option<Credentials> {
        self.config.given.get(self.given.as_ref()?)
    }

    async fn first(&self) -> Found {
        match self.given() {
            Some(given) => Ok(Some(given)),
            None => self.configured().await,
        }
    }

    async fn configured(&self) -> Found {
        if let Some(entry) = self.entry.and_then(|index| self.config.entries.get(index))
            && let Some(given) = &entry.credentials
        {
            return Ok(Some(given.clone()));
        }
        let (files, part) = (&self.config.credential_files, self.stored_under.as_deref());
        credentials::lookup(files, &self.registry, part, self.config.patience()).await
    }

    /// Looks up what has been refused: whoever has changed a password has given it, or written it down, too.
    async fn again(&self, refused: &Found) -> Found {
        match self.given() {
            Some(given) if !matches!(refused, Ok(Some(refused)) if *refused == given) => {
                Ok(Some(given))
            }
            _ => self.written().await,
        }
    }

    async fn written(&self) -> Found {
        let entry = self.entry.and_then(|index| self.config.entries.get(index));
        let Some(entry) = entry.filter(|entry| entry.credentials.is_some()) else {
            return self.configured().await;
        };
        let Some(file) = self.config.auths_file.clone() else { return self.configured().await };
        let prefix = entry.prefix.clone();
        let read = task::spawn_blocking(move || {
            let auths = Auths::load(&file).ok()?;
            auths.entries.into_iter().find(|entry| entry.prefix == prefix)?.credentials
        });
        match read.await {
            Ok(Some(again)) => Ok(Some(again)),
            _ => self.configured().await,
        }
    }
}

impl Auth {
    /// For `registry`, with the credentials of the configuration's `entry`, or those that other
    /// tools have stored, maybe for a part of the registry only. Before all of them go those that have been given
    /// for the repository `given`.
    pub(super) fn new(
        config: Arc<RegistryConfig>,
        registry: &str,
        entry: Option<usize>,
        stored_under: Option<String>,
        given: Option<Repository>,
    ) -> Self {
        let registry = registry.to_owned();
        Self {
            lookup: Arc::new(Lookup { config, registry, entry, stored_under, given }),
            known: Mutex::default(),
            lookups: SingleFlight::default(),
            scheme: Mutex::default(),
            probe: tokio::sync::Mutex::default(),
            probe_failed: AtomicBool::new(false),
            tokens: Mutex::new(LruCache::new(KEPT_TOKENS)),
            demands: Mutex::new(LruCache::new(KEPT_TOKENS)),
        }
    }

    /// Whether the registry has asked for credentials, as far as it has been asked.
    pub(super) fn asks_for_credentials(&self) -> bool {
        !matches!(self.scheme(), None | Some(Scheme::None))
    }

    /// Whether it is for a repository for which credentials have been given.
    pub(super) fn is_of_given(&self) -> bool {
        self.lookup.given.is_some()
    }

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
    pub(super) async fn probe_if_unknown(&self, wire: &Wire) -> Option<MutexGuard<'_, ()>> {
        if self.scheme().is_some()
            || self.probe_failed.load(Ordering::Relaxed)
            || (!wire.is_https() && !matches!(*self.credentials().await, Ok(Some(_))))
        {
            return None;
        }
        let guard = self.probe.lock().await;
        self.scheme().is_none().then_some(guard)
    }

    /// The request that went ahead has failed: those that waited need not fail one after another.
    pub(super) fn probe_has_failed(&self) {
        self.probe_failed.store(true, Ordering::Relaxed);
    }

    /// The credentials. They are looked up once for all who need them.
    pub(super) async fn credentials(&self) -> Arc<Found> {
        if let Some((found, at)) = locked(&self.known).as_ref()
            && (found.is_ok() || at.elapsed() < FAILED_LOOKUP_HOLDS)
        {
            return found.clone();
        }
        let found = self.look_up(Occasion::First, &Ok(None)).await;
        let mut known = locked(&self.known);
        match &*known {
            // Others have been there before, and know more by now.
            Some((newer, _)) if newer.is_ok() => newer.clone(),
            _ => {
                *known = Some((found.clone(), Instant::now()));
                found
            }
        }
    }

    /// Looks the credentials up again, since `refused` have been. Tells whether there are others
    /// now, as there are after a password has been changed.
    async fn refresh_credentials(&self, refused: &Found) -> bool {
        let is_other = |found: &Found| matches!(found, Ok(Some(_))) && found != refused;
        if locked(&self.known).as_ref().is_some_and(|(found, _)| is_other(found)) {
            return true;
        }
        let fresh = self.look_up(Occasion::Refused, refused).await;
        let has_others = is_other(&fresh);
        if has_others {
            *locked(&self.known) = Some((fresh, Instant::now()));
        }
        has_others
    }

    async fn look_up(&self, occasion: Occasion, refused: &Found) -> Arc<Found> {
        let (lookup, refused) = (self.lookup.clone(), refused.clone());
        let flight = self.lookups.run(occasion, || async move {
            Arc::new(match occasion {
                Occasion::First => lookup.first().await,
                Occasion::Refused => lookup.again(&refused).await,
            })
        });
        let found = flight.await.unwrap_or_else(|died| Arc::new(Err(died.to_string())));
        match &*found {
            Ok(Some(credentials)) if credentials.are_empty() => Arc::new(Ok(None)),
            _ => found,
        }
    }

    fn slot(&self, scopes: &[String]) -> Slot {
        let mut tokens = locked(&self.tokens);
        tokens.get_or_insert_mut(scopes.join(" "), Slot::default).clone()
    }

    /// The scopes of a token for `need`: what follows from that, and what the registry wants besides.
    fn scopes(&self, need: &Need<'_>) -> Vec<String> {
        let mut demands = locked(&self.demands);
        let demanded = demands.get(&need.scopes.join(" ")).into_iter().flatten();
        need.scopes.iter().chain(demanded).cloned().collect()
    }

    /// Notes what scopes the registry has asked for in a challenge. A registry behind another name may call its
    /// repositories in another way than the name says.
    fn demand(&self, need: &Need<'_>, challenge: &[String]) {
        let beyond = scopes::beyond(need.scopes, challenge);
        // Whoever needs nothing is let in with any token.
        if need.scopes.is_empty() || beyond.is_empty() {
            return;
        }
        let mut demands = locked(&self.demands);
        let known = demands.get_or_insert_mut(need.scopes.join(" "), Vec::new);
        scopes::add(known, beyond);
    }

    /// What to send in `Authorization`, fetching a token first if one is needed.
    pub(super) async fn authorization(
        &self,
        wire: &Wire,
        need: &Need<'_>,
    ) -> Result<Option<HeaderValue>> {
        match self.scheme() {
            None | Some(Scheme::None) => Ok(None),
            Some(Scheme::Basic) => Ok(self.basic().await),
            Some(Scheme::Bearer { realm, service }) => {
                if let Some(token) = self.registry_token().await {
                    return Ok(Some(token));
                }
                let scopes = self.scopes(need);
                let need = &Need { scopes: &scopes, doing: need.doing };
                let slot = self.slot(&scopes);
                let mut slot = slot.lock().await;
                if let Some(token) = slot.as_ref().filter(|token| token.is_fresh()) {
                    return Ok(Some(token.header.clone()));
                }
                let server = TokenServer { wire, realm: &realm, service: service.as_deref() };
                let token = wire.repeat(|| async {
                    let used = self.credentials().await;
                    match server.fetch(&used, need).await {
                        Err(error)
                            if matches!(error.kind(), Kind::Unauthorized(_))
                                && self.refresh_credentials(&used).await =>
                        {
                            server.fetch(&*self.credentials().await, need).await
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

    /// The header of basic authentication, if there are credentials for it.
    pub(super) async fn basic(&self) -> Option<HeaderValue> {
        let found = self.credentials().await;
        found.as_ref().as_ref().ok()?.as_ref().and_then(challenge::basic)
    }

    /// The header with a token that is sent as it is, if the credentials are one.
    async fn registry_token(&self) -> Option<HeaderValue> {
        let found = self.credentials().await;
        found.as_ref().as_ref().ok()?.as_ref().and_then(challenge::registry_token)
    }

    /// A 401: learns what is asked for, and drops the token that was refused. Gives the response
    /// back if it asks for nothing, which makes it a refusal like any other. An error if there is
    /// nothing else to try.
    pub(super) async fn challenged(
        &self,
        wire: &Wire,
        response: Response,
        need: &Need<'_>,
        sent: Option<HeaderValue>,
    ) -> Result<Option<Response>> {
        let offered: Vec<String> = offered(response.headers()).collect();
        let refused = async |response: Response, reason: &str| {
            let (said, _) = wire.reason(response, need.doing).await;
            let reason = failure::joined([reason, &said]);
            wire.error(need.doing, Kind::Unauthorized(reason))
        };
        let Some((scheme, scopes)) = Scheme::with_scopes(&offered) else {
            // Harbor asks for nothing where a project does not exist, and says so in the body.
            if offered.iter().all(String::is_empty) {
                return Ok(Some(response));
            }
            let reason = "it asks for an authentication that imgfs does not know";
            return Err(refused(response, reason).await);
        };
        let used = self.credentials().await;
        if scheme == Scheme::Basic {
            let reason = match (&*used, sent) {
                (used, Some(sent)) if self.has_others(used, &sent).await => None,
                (_, Some(_)) => Some("the user name or password is wrong"),
                (Ok(Some(Credentials::Basic { .. })), None) => None,
                (Ok(Some(Credentials::IdentityToken(_))), None) => {
                    Some("it wants a user name and password, and there is only an identity token")
                }
                (Ok(Some(Credentials::RegistryToken(_))), None) => {
                    Some("it wants a user name and password, and there is only a registry token")
                }
                (Ok(None), None) => Some("it wants a user name and password"),
                (Err(reason), None) => Some(reason.as_str()),
            };
            if let Some(reason) = reason {
                return Err(refused(response, reason).await);
            }
        } else if let Some(sent) = sent {
            if self.registry_token().await.is_some_and(|token| token == sent)
                && !self.refresh_credentials(&used).await
            {
                return Err(refused(response, "the registry token is refused").await);
            }
            let slot = self.slot(&self.scopes(need));
            let mut slot = slot.lock().await;
            // Unless somebody has fetched a new one in the meantime.
            if slot.as_ref().is_some_and(|token| token.header == sent) {
                *slot = None;
            }
        }
        self.demand(need, &scopes);
        self.learn(scheme);
        Ok(None)
    }

    /// Whether there are other credentials than those in the header `sent`, which has been refused.
    async fn has_others(&self, known: &Found, sent: &HeaderValue) -> bool {
        let header = |found: &Found| found.as_ref().ok()?.as_ref().and_then(challenge::basic);
        header(known).is_some_and(|header| header != *sent) || self.refresh_credentials(known).await
    }
}

/// What a 401 offers, as text.
pub(super) fn offered(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let values = headers.get_all(WWW_AUTHENTICATE).iter().take(MAX_OFFERS);
    values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
