//! Bearer tokens: JWT, HS256 and nothing else. A token of another algorithm (`none` included), an
//! expired one and one signed with another key are all refused alike.

use std::time::Duration;

use chrono::{DateTime, TimeZone, Utc};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use crate::error::Error;
use bunny_catalog::UserRole;

/// 128 bits, so that the key cannot be guessed from a token at hand. Generated ones are longer.
const SECRET_BYTES_MIN: usize = 16;

/// What a token says of its bearer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    /// User name.
    pub(crate) sub: String,
    pub(crate) role: UserRole,
    /// The user's token version when it was issued; a newer one in the catalog revokes it.
    pub(crate) ver: i32,
    /// Issued at, Unix seconds.
    pub(crate) iat: i64,
    /// Expires at, Unix seconds.
    pub(crate) exp: i64,
}

/// Issues and reads tokens.
pub(crate) struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    lifetime: Duration,
}

impl Tokens {
    /// # Errors
    /// [`Error::WeakSecret`] when the secret is shorter than HS256 needs.
    pub(crate) fn new(secret: &SecretString, lifetime: Duration) -> Result<Self, Error> {
        let bytes = secret.expose_secret().as_bytes();
        if bytes.len() < SECRET_BYTES_MIN {
            return Err(Error::WeakSecret {
                found: bytes.len(),
                wanted: SECRET_BYTES_MIN,
            });
        }
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = 0;
        validation.set_required_spec_claims(&["exp", "sub"]);
        Ok(Self {
            encoding: EncodingKey::from_secret(bytes),
            decoding: DecodingKey::from_secret(bytes),
            validation,
            lifetime,
        })
    }

    /// A token for a user, and when it expires.
    ///
    /// # Errors
    /// Only when signing itself fails.
    pub(crate) fn issue(
        &self,
        username: &str,
        role: UserRole,
        token_version: i32,
        now: DateTime<Utc>,
    ) -> Result<(String, DateTime<Utc>), jsonwebtoken::errors::Error> {
        let lifetime_seconds = i64::try_from(self.lifetime.as_secs()).unwrap_or(i64::MAX / 4);
        let issued_at = now.timestamp();
        let claims = Claims {
            sub: username.to_owned(),
            role,
            ver: token_version,
            iat: issued_at,
            exp: issued_at.saturating_add(lifetime_seconds),
        };
        let token = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)?;
        let expires_at = Utc.timestamp_opt(claims.exp, 0).single().unwrap_or(now);
        Ok((token, expires_at))
    }

    /// The claims of a token that is ours and still valid; `None` for any other.
    pub(crate) fn read(&self, token: &str) -> Option<Claims> {
        jsonwebtoken::decode::<Claims>(token, &self.decoding, &self.validation)
            .map(|data| data.claims)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;

    use super::*;

    fn tokens(secret: &str) -> Tokens {
        Tokens::new(&SecretString::from(secret), Duration::from_secs(3600)).unwrap()
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_token_is_read_back() {
        let now = Utc::now();
        let (token, expires_at) = tokens(SECRET)
            .issue("ann", UserRole::Viewer, 7, now)
            .unwrap();
        let claims = tokens(SECRET).read(&token).unwrap();
        assert_eq!(
            (claims.sub.as_str(), claims.role, claims.ver),
            ("ann", UserRole::Viewer, 7)
        );
        assert_eq!(claims.exp, expires_at.timestamp());
    }

    #[test]
    fn expired_forged_and_unsigned_tokens_are_refused() {
        let now = Utc::now();
        let ours = tokens(SECRET);
        let past = now - chrono::Duration::hours(2);
        let (expired, _) = ours.issue("ann", UserRole::Admin, 0, past).unwrap();
        assert_eq!(ours.read(&expired), None);

        let other = tokens("another secret of more than 32 bytes");
        let (forged, _) = other.issue("ann", UserRole::Admin, 0, now).unwrap();
        assert_eq!(ours.read(&forged), None);

        let (valid, _) = ours.issue("ann", UserRole::Admin, 0, now).unwrap();
        let payload = valid.split('.').nth(1).unwrap();
        let none_header = URL_SAFE_NO_PAD.encode(br#"{"alg":"none","typ":"JWT"}"#);
        assert_eq!(ours.read(&format!("{none_header}.{payload}.")), None);

        let key = EncodingKey::from_secret(SECRET.as_bytes());
        let claims = ours.read(&valid).unwrap();
        let hs512 = jsonwebtoken::encode(&Header::new(Algorithm::HS512), &claims, &key).unwrap();
        assert_eq!(ours.read(&hs512), None);
        assert_eq!(ours.read("nonsense"), None);
    }

    #[test]
    fn a_short_secret_is_refused() {
        let short = SecretString::from("short");
        assert!(matches!(
            Tokens::new(&short, Duration::from_secs(1)),
            Err(Error::WeakSecret { found: 5, .. })
        ));
    }
}
