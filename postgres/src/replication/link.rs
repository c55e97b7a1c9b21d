//! The connection under the wire client.
//!
//! The wire client connects by itself, without keepalives, with TLS rules of its own
//! (its `verify-ca` refuses a certificate for another name), and it queues a number of
//! events whatever their size. So it is given a Unix socket in a private directory
//! instead, and this module carries the bytes between that and the server:
//!
//! - the server's side has this crate's TLS, keepalives and `tcp_user_timeout`, so a
//!   peer that vanished ends the stream within 15 s;
//! - bytes from the server pass only while fewer than [`QUEUED_BYTES_MAX`] wait for the
//!   consumer, or while the consumer waits for the rest of an event ([`Flow`]). So a
//!   stream holds at most that much and one event (and the fixed buffers on the way).

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use crate::session::keep_alive;
use crate::{ConnectOptions, Error, Result, SslMode, tls};

/// Bytes from the server that may wait for the consumer before the link stops reading.
pub(super) const QUEUED_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// How much is read from the server at a time.
const READ_BYTES: usize = 64 * 1024;

/// The request for TLS that precedes a start-up packet: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// A byte stream to the server, whichever kind.
trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// An open connection to the server and the task that serves it. Dropping it closes
/// both sides.
pub(super) struct Link {
    /// The directory of the wire client's socket.
    directory: SocketDirectory,
    flow: Arc<Flow>,
    carrier: AbortOnDropHandle<()>,
}

impl Link {
    /// Connects to the server, and waits for the wire client at
    /// [`Link::socket_directory`] (and `port`).
    pub(super) async fn open(options: &ConnectOptions, doing: &str) -> Result<Link> {
        let server = connect(options, doing).await?;
        let local = |error| lost(doing, "cannot open a local socket", &error);
        let directory = SocketDirectory::create().map_err(local)?;
        let path = directory.path.join(format!(".s.PGSQL.{}", options.port));
        let listener = UnixListener::bind(path).map_err(local)?;
        let flow = Arc::new(Flow::default());
        let carrier = AbortOnDropHandle::new(tokio::spawn({
            let flow = Arc::clone(&flow);
            async move {
                // Only this process can reach the socket; the first to come is the
                // wire client.
                if let Ok((client, _)) = listener.accept().await {
                    drop(listener);
                    carry(client, server, &flow).await;
                }
            }
        }));
        Ok(Link {
            directory,
            flow,
            carrier,
        })
    }

    /// What the wire client takes as its host.
    pub(super) fn socket_directory(&self) -> String {
        self.directory.path.display().to_string()
    }

    /// The gate between the server and the consumer's queue.
    pub(super) fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// Waits until the server has closed its side, once the wire client closed its own.
    pub(super) async fn closed(self) {
        self.flow.lift();
        let _ = self.carrier.await;
    }
}

/// A directory that only this user may enter, removed with its content on drop.
struct SocketDirectory {
    path: PathBuf,
}

impl SocketDirectory {
    fn create() -> std::io::Result<SocketDirectory> {
        // Short, since the path of a socket may have about a hundred bytes.
        let name = format!("bunny-{}", uuid::Uuid::new_v4().simple());
        let path = Path::new(&std::env::temp_dir()).join(name);
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(SocketDirectory { path })
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

fn lost(doing: &str, what: &str, error: &std::io::Error) -> Error {
    Error::Replication {
        doing: doing.to_owned(),
        message: format!("{what}: {error}"),
        sqlstate: None,
        // A certificate that does not verify comes as invalid data, and stays so.
        connection_lost: error.kind() != std::io::ErrorKind::InvalidData,
    }
}

async fn connect(options: &ConnectOptions, doing: &str) -> Result<Box<dyn Transport>> {
    if options.is_unix_socket() {
        let path = Path::new(&options.host).join(format!(".s.PGSQL.{}", options.port));
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| lost(doing, "cannot connect", &error))?;
        return Ok(Box::new(stream));
    }
    let mut tcp = TcpStream::connect((options.host.as_str(), options.port))
        .await
        .map_err(|error| lost(doing, "cannot connect", &error))?;
    tcp.set_nodelay(true)
        .and_then(|()| keep_alive(&tcp))
        .map_err(|error| lost(doing, "cannot set up the socket", &error))?;
    let Some(config) = tls::client_config(options)? else {
        return Ok(Box::new(tcp));
    };
    let answer = ask_for_tls(&mut tcp)
        .await
        .map_err(|error| lost(doing, "cannot ask for TLS", &error))?;
    if answer != b'S' {
        return match options.effective_ssl_mode() {
            SslMode::Prefer => Ok(Box::new(tcp)),
            mode => Err(Error::Tls(format!(
                "{} does not offer TLS, which ssl mode {mode} needs",
                options.target()
            ))),
        };
    }
    let name = ServerName::try_from(options.host.clone())
        .map_err(|_| Error::Tls(format!("{:?} is not a host name", options.host)))?;
    let stream = TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
        .map_err(|error| lost(doing, "TLS handshake failed", &error))?;
    Ok(Box::new(stream))
}

/// Reads exactly the answer: whatever followed it in plain text would not be trusted.
async fn ask_for_tls(tcp: &mut TcpStream) -> std::io::Result<u8> {
    tcp.write_all(&SSL_REQUEST).await?;
    tcp.read_u8().await
}

/// Carries bytes both ways until the server's side ends.
async fn carry(client: UnixStream, server: Box<dyn Transport>, flow: &Flow) {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let upstream = async {
        // Confirmations and commands: small, never held back. When the client has
        // closed, the server is told, and what it still says is let through.
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
        let _ = to_server.shutdown().await;
        flow.lift();
        std::future::pending::<()>().await;
    };
    let downstream = async {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            flow.admitted().await;
            let read = match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => break,
                Ok(read) => read,
            };
            flow.forwarded.fetch_add(read as u64, Ordering::Relaxed);
            if to_client.write_all(&buffer[..read]).await.is_err() {
                break;
            }
        }
        let _ = to_client.shutdown().await;
    };
    tokio::select! {
        () = upstream => {}
        () = downstream => {}
    }
}

/// Counts what is on its way from the server to the consumer, and holds the server
/// back when that is too much.
#[derive(Default)]
pub(super) struct Flow {
    /// Bytes read from the server.
    forwarded: AtomicU64,
    /// Bytes the consumer has taken, framing included.
    taken: AtomicU64,
    /// Whether the gate works: not before the stream runs, nor while it is stopped.
    gated: AtomicBool,
    /// The consumer has nothing and waits: what it waits for must come, at any size.
    starving: AtomicBool,
    changed: Notify,
}

impl Flow {
    /// Lets the gate work, from an empty queue.
    pub(super) fn gate(&self) {
        self.caught_up();
        self.gated.store(true, Ordering::Release);
    }

    /// Opens the gate for good.
    pub(super) fn lift(&self) {
        self.gated.store(false, Ordering::Release);
        self.changed.notify_one();
    }

    /// The consumer took an event of `bytes`.
    pub(super) fn took(&self, bytes: u64) {
        let forwarded = self.forwarded.load(Ordering::Acquire);
        let before = self.taken.load(Ordering::Acquire);
        // Never more than came: part of the event may have been forgotten already.
        let taken = (before + bytes).min(forwarded);
        // Only the consumer writes here, so nothing is lost in between.
        self.taken.store(taken, Ordering::Release);
        // Wakes the link when half is free, not at each event.
        let half = QUEUED_BYTES_MAX / 2;
        if forwarded - taken < half && forwarded.saturating_sub(before) >= half {
            self.changed.notify_one();
        }
    }

    /// The consumer found its queue empty and waits, until the guard is dropped.
    pub(super) fn starve(&self) -> Starving<'_> {
        self.caught_up();
        self.starving.store(true, Ordering::Release);
        self.changed.notify_one();
        Starving { flow: self }
    }

    /// Nothing is queued but part of an event: forget what the count got wrong.
    fn caught_up(&self) {
        let forwarded = self.forwarded.load(Ordering::Acquire);
        self.taken.store(forwarded, Ordering::Release);
    }

    fn is_open(&self) -> bool {
        let taken = self.taken.load(Ordering::Acquire);
        let queued = self.forwarded.load(Ordering::Acquire).saturating_sub(taken);
        queued < QUEUED_BYTES_MAX
            || self.starving.load(Ordering::Acquire)
            || !self.gated.load(Ordering::Acquire)
    }

    /// Waits until more may be read from the server.
    async fn admitted(&self) {
        // One waiter only, so a notification between the check and the wait is kept.
        while !self.is_open() {
            self.changed.notified().await;
        }
    }
}

/// While it lives, the gate is open; see [`Flow::starve`].
pub(super) struct Starving<'a> {
    flow: &'a Flow,
}

impl Drop for Starving<'_> {
    fn drop(&mut self) {
        self.flow.starving.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn admitted_soon(flow: &Flow) -> bool {
        tokio::time::timeout(Duration::from_millis(20), flow.admitted())
            .await
            .is_ok()
    }

    fn full() -> Flow {
        let flow = Flow::default();
        flow.gate();
        flow.forwarded
            .fetch_add(QUEUED_BYTES_MAX, Ordering::Relaxed);
        flow
    }

    #[tokio::test]
    async fn a_full_queue_holds_the_server_back() {
        let flow = Flow::default();
        flow.forwarded
            .fetch_add(QUEUED_BYTES_MAX, Ordering::Relaxed);
        assert!(admitted_soon(&flow).await, "before the stream runs");
        flow.gate();
        assert!(admitted_soon(&flow).await, "with an empty queue");
        flow.forwarded
            .fetch_add(QUEUED_BYTES_MAX, Ordering::Relaxed);
        assert!(!admitted_soon(&flow).await);
    }

    #[tokio::test]
    async fn taking_half_of_it_wakes_the_link() {
        let flow = Arc::new(full());
        let waiting = tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { flow.admitted().await }
        });
        tokio::task::yield_now().await;
        let mut left = QUEUED_BYTES_MAX;
        while left > QUEUED_BYTES_MAX / 4 {
            flow.took(1000);
            left -= 1000;
        }
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn a_waiting_consumer_gets_an_event_of_any_size() {
        let flow = full();
        let starving = flow.starve();
        flow.forwarded
            .fetch_add(10 * QUEUED_BYTES_MAX, Ordering::Relaxed);
        assert!(admitted_soon(&flow).await);
        drop(starving);
        assert!(!admitted_soon(&flow).await);
        flow.took(10 * QUEUED_BYTES_MAX);
        assert!(admitted_soon(&flow).await);
        // A part of it came before the wait; that earns no credit.
        flow.took(QUEUED_BYTES_MAX);
        flow.forwarded
            .fetch_add(QUEUED_BYTES_MAX, Ordering::Relaxed);
        assert!(!admitted_soon(&flow).await);
    }

    #[tokio::test]
    async fn a_lifted_gate_lets_everything_through() {
        let flow = full();
        flow.lift();
        assert!(admitted_soon(&flow).await);
    }

    #[test]
    fn the_socket_directory_is_private_and_vanishes() {
        use std::os::unix::fs::PermissionsExt;
        let directory = SocketDirectory::create().unwrap();
        let path = directory.path.clone();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(directory);
        assert!(!path.exists());
    }
}
