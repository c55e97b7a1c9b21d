//! A TCP proxy between a process and a server, to break connections on purpose.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

const BUFFER_BYTES: usize = 16 * 1024;

/// What the proxy does with connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Passes bytes on.
    Forward,
    /// Keeps connections open and passes nothing on, as a dead network path does.
    Frozen,
    /// Closes every new connection at once.
    Refusing,
}

#[derive(Debug, Clone, Copy)]
struct Order {
    mode: Mode,
    /// Connections opened under a lower number are closed.
    epoch: u64,
}

/// Forwards connections to one server until told otherwise. Ends when dropped.
pub struct Proxy {
    port: u16,
    orders: watch::Sender<Order>,
    accepted: Arc<AtomicU64>,
    _acceptor: JoinSet<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub async fn start(target: &str) -> anyhow::Result<Proxy> {
        let target: SocketAddr = target
            .parse()
            .with_context(|| format!("the proxy's target '{target}'"))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (orders, watching) = watch::channel(Order {
            mode: Mode::Forward,
            epoch: 0,
        });
        let accepted = Arc::new(AtomicU64::new(0));
        let mut acceptor = JoinSet::new();
        acceptor.spawn(accept(listener, target, watching, accepted.clone()));
        Ok(Proxy {
            port,
            orders,
            accepted,
            _acceptor: acceptor,
        })
    }

    /// Where to connect instead of the server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Connections accepted so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Closes all present connections; new ones are served.
    pub fn cut(&self) {
        self.orders.send_modify(|order| order.epoch += 1);
    }

    /// Passes nothing on, in either direction, on old and new connections.
    pub fn freeze(&self) {
        self.orders.send_modify(|order| order.mode = Mode::Frozen);
    }

    /// Closes all connections and refuses new ones.
    pub fn refuse(&self) {
        self.orders.send_modify(|order| {
            order.mode = Mode::Refusing;
            order.epoch += 1;
        });
    }

    /// Forwards again.
    pub fn heal(&self) {
        self.orders.send_modify(|order| order.mode = Mode::Forward);
    }
}

async fn accept(
    listener: TcpListener,
    target: SocketAddr,
    orders: watch::Receiver<Order>,
    accepted: Arc<AtomicU64>,
) {
    // Dropping the set with this task closes every connection.
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        accepted.fetch_add(1, Ordering::Relaxed);
        if orders.borrow().mode == Mode::Refusing {
            continue;
        }
        connections.spawn(serve(client, target, orders.clone()));
    }
}

async fn serve(client: TcpStream, target: SocketAddr, orders: watch::Receiver<Order>) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    // Latency is part of what tests measure.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let epoch = orders.borrow().epoch;
    let mut cutting = orders.clone();
    let cut = cutting.wait_for(|order| order.epoch != epoch);
    let (client_in, client_out) = client.into_split();
    let (server_in, server_out) = server.into_split();
    tokio::select! {
        _ = cut => {}
        () = pump(client_in, server_out, orders.clone()) => {}
        () = pump(server_in, client_out, orders.clone()) => {}
    }
}

/// Copies one direction until it ends; holds its breath while frozen.
async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut orders: watch::Receiver<Order>,
) {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let Ok(length) = from.read(&mut buffer).await else {
            return;
        };
        if length == 0 {
            return;
        }
        if orders
            .wait_for(|order| order.mode != Mode::Frozen)
            .await
            .is_err()
        {
            return;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    async fn echo_server() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn echoes(stream: &mut TcpStream) -> bool {
        let mut answer = [0; 4];
        stream.write_all(b"ping").await.is_ok()
            && matches!(
                timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await,
                Ok(Ok(4))
            )
    }

    #[tokio::test]
    async fn forwards_freezes_cuts_and_refuses() {
        let proxy = Proxy::start(&echo_server().await).await.unwrap();
        let connect = || TcpStream::connect(("127.0.0.1", proxy.port()));
        let mut stream = connect().await.unwrap();
        assert!(echoes(&mut stream).await);

        proxy.freeze();
        assert!(!echoes(&mut stream).await);
        proxy.heal();
        let mut late = [0; 4];
        stream.read_exact(&mut late).await.unwrap();
        assert!(echoes(&mut stream).await);

        proxy.cut();
        assert!(!echoes(&mut stream).await);
        assert!(echoes(&mut connect().await.unwrap()).await);

        proxy.refuse();
        assert!(!echoes(&mut connect().await.unwrap()).await);
        proxy.heal();
        assert!(echoes(&mut connect().await.unwrap()).await);
    }
}
