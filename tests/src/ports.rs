//! Free loopback ports.

use std::net::TcpListener;

/// A port nobody listens on, below the range from which the kernel takes ports for
/// outgoing connections, so that it is still free when a killed process comes back.
pub fn free_port() -> u16 {
    loop {
        let port = rand::random_range(20_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
