//! What all handlers share: the way to the catalog and to Kafka, tokens, passwords, schemas.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{Catalog, User};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::topics::Topics;
use secrecy::SecretString;

use crate::auth::passwords::Passwords;
use crate::auth::token::Tokens;
use crate::error::Error;
use crate::readiness::Readiness;
use crate::refusal::Refusal;
use crate::registry::schemas::Schemas;

/// How long a token is valid.
pub(crate) const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// What the service needs.
#[derive(Clone)]
pub struct Options {
    /// The control plane's state.
    pub catalog: Catalog,
    /// How Kafka is reached; used for readiness and the schema registry only.
    pub kafka: KafkaConfig,
    /// Topic names of this installation.
    pub topics: Topics,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Signs tokens; the same for all replicas.
    pub jwt_secret: SecretString,
}

/// What the handlers share.
pub struct Api {
    pub(crate) catalog: Catalog,
    pub(crate) kafka: KafkaConfig,
    pub(crate) topics: Topics,
    pub(crate) tokens: Tokens,
    pub(crate) passwords: Passwords,
    pub(crate) schemas: Schemas,
    pub(crate) readiness: Readiness,
}

impl Api {
    /// # Errors
    /// [`Error::WeakSecret`].
    pub fn new(options: &Options) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(Self {
            catalog: options.catalog.clone(),
            kafka: options.kafka.clone(),
            topics: options.topics.clone(),
            tokens: Tokens::new(&options.jwt_secret, TOKEN_LIFETIME)?,
            passwords: Passwords::new(),
            schemas: Schemas::new(options.kafka.clone(), options.topics.clone()),
            readiness: Readiness::default(),
        }))
    }

    /// The user of that name, if there is one.
    pub(crate) async fn user(&self, username: &str) -> Result<Option<User>, Refusal> {
        match self.catalog.get_user(username).await {
            Ok(user) => Ok(Some(user)),
            Err(bunny_catalog::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
