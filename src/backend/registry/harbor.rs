//! Harbor: repositories live in projects, and a push to a project that does not exist is refused.
//! Projects are made through Harbor's own API (`/api/v2.0`), with the credentials for the registry.

use reqwest::{
    Method, Response, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::json;

use super::{Registry, failure, session::Session};
use crate::{
    backend::{Kind, Result},
    image::Repository,
};

impl Registry {
    /// Makes sure that the project in which `repository` is exists: the first component of its
    /// path. Tells whether it had to be made, which it is as a private one.
    pub async fn ensure_project(&self, repository: &Repository) -> Result<bool> {
        let session = self.session(repository).await?;
        let project = repository.path().split('/').next().unwrap_or_default();
        let doing = format!("creating the project {project}");
        if !repository.path().contains('/') {
            let reason = "a repository of Harbor is in a project: its name needs another component";
            return Err(session.wire.error(&doing, Kind::Config(reason.into())));
        }
        let mut url = session.wire.url(repository, "");
        url.set_path("/api/v2.0/projects");
        let mut named = url.clone();
        named.query_pairs_mut().append_pair("project_name", project);
        let make = || async {
            let there = ask(&session, Method::HEAD, named.clone(), None, &doing).await?;
            match there.status() {
                StatusCode::OK => return Ok(false),
                StatusCode::NOT_FOUND => {}
                // An answer to HEAD cannot say why.
                status => {
                    let told = ask(&session, Method::GET, named.clone(), None, &doing).await?;
                    let is_refusal = told.status() == status;
                    let answer = if is_refusal { told } else { there };
                    return Err(refused(&session, answer, &doing).await);
                }
            }
            let body = json!({"project_name": project, "metadata": {"public": "false"}});
            let answer =
                ask(&session, Method::POST, url.clone(), Some(body.to_string()), &doing).await?;
            match answer.status() {
                StatusCode::CREATED => Ok(true),
                // Somebody else was faster.
                StatusCode::CONFLICT => Ok(false),
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => {
                    let reason = "it has no API of Harbor; leave out --create-projects";
                    Err(session.wire.error(&doing, Kind::Config(reason.into())))
                }
                _ => Err(refused(&session, answer, &doing).await),
            }
        };
        session.wire.repeat(make).await
    }
}

async fn ask(
    session: &Session,
    method: Method,
    url: reqwest::Url,
    body: Option<String>,
    doing: &str,
) -> Result<Response> {
    let mut request = session.wire.request(method, &url, doing).await?;
    if let Some(authorization) = session.auth.basic().await {
        request = request.header(AUTHORIZATION, authorization);
    }
    if let Some(body) = body {
        request = request.header(CONTENT_TYPE, "application/json").body(body);
    }
    session.wire.send(request, doing).await
}

async fn refused(session: &Session, answer: Response, doing: &str) -> crate::backend::Error {
    let status = answer.status().as_u16();
    let retry_after = failure::retry_after(answer.headers());
    let (message, _) = session.wire.reason(answer, doing).await;
    let kind = match status {
        401 => Kind::Unauthorized(message),
        403 => Kind::Denied(message),
        _ => Kind::Status { status, message, retry_after },
    };
    session.wire.error(doing, kind)
}
