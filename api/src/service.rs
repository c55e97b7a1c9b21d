//! The service as a whole: what it is made of, and its listener's life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bunny_catalog::{Catalog, User};
use bunny_schemas::kafka::KafkaConfig;
use bunny_schemas::topics::Topics;
use secrecy::SecretString;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::auth::passwords::Passwords;
use crate::auth::token::Tokens;
use crate::error::Error;
use crate::health::Readiness;
use crate::refusal::Refusal;
use crate::registry::Schemas;
use crate::router::router;

/// How long requests under way may take to end once the service is told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(8);
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

/// The REST service, not started yet.
pub struct Service {
    options: Options,
}

impl Service {
    /// A service with these options. Nothing is opened yet.
    #[must_use]
    pub fn new(options: Options) -> Self {
        Self { options }
    }

    /// Listens and serves until `cancel`, then lets requests under way end, for 8 s at most.
    ///
    /// # Errors
    /// [`Error::WeakSecret`] and [`Error::Listen`] at once; [`Error::Serve`] if the listener breaks.
    pub async fn run(self, cancel: CancellationToken) -> Result<(), Error> {
        let address = self.options.listen;
        let api = Api::new(&self.options)?;
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| Error::Listen { address, source })?;
        tracing::info!(%address, "the REST API listens");
        let app = router(api).into_make_service_with_connect_info::<SocketAddr>();
        let serving = axum::serve(listener, app)
            .with_graceful_shutdown(cancel.clone().cancelled_owned())
            .into_future();
        let overdue = async {
            cancel.cancelled().await;
            tokio::time::sleep(DRAIN_MAX).await;
        };
        tokio::select! {
            served = serving => served?,
            () = overdue => {
                tracing::warn!("requests still under way were cut off at shutdown");
            }
        }
        Ok(())
    }
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
