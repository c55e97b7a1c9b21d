//! The service as a whole: its listener's life.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::router::router;
use crate::state::{Api, Options};

/// How long requests under way may take to end once the service is told to stop.
const DRAIN_MAX: Duration = Duration::from_secs(8);
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
