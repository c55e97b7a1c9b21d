//! The guard before every route. Order matters: a token is checked by its signature, then its role
//! against the route, and only then is the catalog asked whether it was revoked, so that strangers
//! cannot make the service query the catalog.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts, Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;
use axum::http::{Extensions, HeaderMap};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bunny_catalog::UserRole;
use secrecy::SecretString;

use super::{Access, Caller};
use crate::refusal::{Refusal, Result};
use crate::registry::schemas;
use crate::state::Api;

const LOG_IN: &str =
    "get a token with POST /v1/auth/login and send it as 'Authorization: Bearer <token>'";

/// Lets a request through to its route, with its [`Caller`] known, or refuses it.
pub(crate) async fn guard(
    State((api, access)): State<(Arc<Api>, Access)>,
    mut request: Request,
    next: Next,
) -> Response {
    if access == Access::Open {
        return next.run(request).await;
    }
    let address = client_address(request.extensions());
    match identify(&api, access, request.headers(), address).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(refusal) if access == Access::Registry => schemas::refused(&refusal),
        Err(refusal) => refusal.into_response(),
    }
}

async fn identify(
    api: &Api,
    access: Access,
    headers: &HeaderMap,
    address: IpAddr,
) -> Result<Caller> {
    let Some(header) = headers.get(AUTHORIZATION) else {
        return Err(Refusal::unauthorized(format!(
            "no token was sent; {LOG_IN}"
        )));
    };
    let unreadable =
        || Refusal::unauthorized(format!("the Authorization header cannot be read; {LOG_IN}"));
    let (scheme, credentials) = header
        .to_str()
        .ok()
        .and_then(|text| text.trim().split_once(' '))
        .ok_or_else(unreadable)?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return by_token(api, access, credentials.trim()).await;
    }
    if scheme.eq_ignore_ascii_case("basic") && access == Access::Registry {
        let (username, password) = basic(credentials.trim()).ok_or_else(unreadable)?;
        let user = api
            .passwords
            .check(&api.catalog, &username, password, address)
            .await?;
        return Ok(Caller {
            username: user.username,
            role: user.role,
        });
    }
    Err(Refusal::unauthorized(format!(
        "the Authorization scheme is not accepted here; {LOG_IN}"
    )))
}

async fn by_token(api: &Api, access: Access, token: &str) -> Result<Caller> {
    let Some(claims) = api.tokens.read(token) else {
        return Err(Refusal::unauthorized(format!(
            "the token is not valid or has expired; {LOG_IN}"
        )));
    };
    require(access, claims.role)?;
    let user = api.user(&claims.sub).await?;
    let Some(user) = user.filter(|user| user.token_version == claims.ver) else {
        return Err(Refusal::unauthorized(format!(
            "the token was revoked: the user was deleted or changed the password; {LOG_IN}"
        )));
    };
    require(access, user.role)?;
    Ok(Caller {
        username: user.username,
        role: user.role,
    })
}

fn require(access: Access, role: UserRole) -> Result<()> {
    if access == Access::Admin && role != UserRole::Admin {
        return Err(Refusal::forbidden(
            "this needs the role admin; ask an administrator or log in as one",
        ));
    }
    Ok(())
}

fn basic(credentials: &str) -> Option<(String, SecretString)> {
    let decoded = String::from_utf8(STANDARD.decode(credentials).ok()?).ok()?;
    let (username, password) = decoded.split_once(':')?;
    Some((username.to_owned(), SecretString::from(password)))
}

/// The address the connection comes from. Headers such as `X-Forwarded-For` are not believed: anyone
/// can send them, and the login throttle relies on the address.
pub(crate) fn client_address(extensions: &Extensions) -> IpAddr {
    extensions
        .get::<ConnectInfo<SocketAddr>>()
        .map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |ConnectInfo(address)| {
            address.ip()
        })
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| {
            Refusal::internal("asking who is calling", "an open route has no caller")
        })
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn basic_credentials_may_hold_colons_in_the_password() {
        let (username, password) = basic(&STANDARD.encode("ann:a:b")).unwrap();
        assert_eq!(
            (username.as_str(), password.expose_secret()),
            ("ann", "a:b")
        );
        assert!(basic("%%%").is_none());
        assert!(basic(&STANDARD.encode("no colon")).is_none());
    }
}
