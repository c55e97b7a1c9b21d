//! Checking passwords without letting anyone guess them fast or fill the memory with checks: each
//! check costs tens of milliseconds and about 20 MB (argon2), so few run at once.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bunny_catalog::{Catalog, User};
use secrecy::SecretString;
use tokio::sync::Semaphore;

use super::throttle::{Throttle, Turn};
use crate::refusal::{Refusal, Result};

/// Checks that run at once; the others wait in line.
const CHECKS_AT_ONCE: usize = 2;
/// Longer names and passwords are refused unread.
pub(crate) const CREDENTIAL_BYTES_MAX: usize = 1024;

/// The password check with its throttle.
pub(crate) struct Passwords {
    throttle: Mutex<Throttle>,
    checks: Semaphore,
}

impl Passwords {
    pub(crate) fn new() -> Self {
        Self {
            throttle: Mutex::new(Throttle::default()),
            checks: Semaphore::new(CHECKS_AT_ONCE),
        }
    }

    /// The user, if name and password belong together.
    ///
    /// # Errors
    /// 401 when they do not (which of the two is wrong is not said), 429 when too many attempts are
    /// waiting, 503 when the catalog is away.
    pub(crate) async fn check(
        &self,
        catalog: &Catalog,
        username: &str,
        password: SecretString,
        address: IpAddr,
    ) -> Result<User> {
        // The turn is taken while holding a permit: attempts sent in parallel then see the failures
        // of those before them.
        let mut permit = self.permit().await?;
        let wait = self.take_turn(username, address)?;
        if !wait.is_zero() {
            drop(permit);
            tokio::time::sleep(wait).await;
            permit = self.permit().await?;
        }
        let user = catalog.verify_user(username, &password).await?;
        drop(permit);
        {
            let mut throttle = self.throttle.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(user) = user {
                throttle.succeeded(username, address);
                return Ok(user);
            }
            throttle.failed(username, address, Instant::now());
        }
        tracing::info!(%address, "a login failed");
        // Who asked is answered all the same.
        if let Err(error) = catalog.login_failed(username, &address.to_string()).await {
            tracing::warn!(%error, "a failed login could not be recorded");
        }
        Err(Refusal::unauthorized(
            "the user name or the password is wrong; check both",
        ))
    }

    async fn permit(&self) -> Result<tokio::sync::SemaphorePermit<'_>> {
        self.checks
            .acquire()
            .await
            .map_err(|error| Refusal::internal("waiting for a password check", error))
    }

    fn take_turn(&self, username: &str, address: IpAddr) -> Result<Duration> {
        let turn = self
            .throttle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take_turn(username, address, Instant::now());
        match turn {
            Turn::After(wait) => Ok(wait),
            Turn::TurnedAway(wait) => {
                let seconds = wait.as_secs() + 1;
                Err(Refusal::too_many(
                    format!("too many failed logins; try again in {seconds} seconds"),
                    seconds,
                ))
            }
        }
    }
}
