//! Why the service itself could not start or go on (what callers are told is [`crate::refusal`]).

use std::net::SocketAddr;

/// Failure of the REST service as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The address could not be listened on: in use, not ours, or not permitted.
    #[error(
        "cannot listen on {address}: {source}; free the port or set BUNNY_LISTEN to another address"
    )]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// The listener failed while serving.
    #[error("serving HTTP failed: {0}")]
    Serve(#[from] std::io::Error),
    /// The secret that signs tokens is too short to be safe.
    #[error(
        "the JWT secret has {found} bytes; at least {wanted} are needed: set BUNNY_JWT_SECRET to a longer one or leave it out"
    )]
    WeakSecret {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        wanted: usize,
    },
}

impl Error {
    /// Whether starting the service again later may work without anyone's help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Serve(_) => true,
            Self::Listen { .. } | Self::WeakSecret { .. } => false,
        }
    }
}
