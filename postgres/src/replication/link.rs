//! The connection under the wire client.
//!
//! The wire client connects by itself, without keepalives and with TLS rules of its own
//! (its `verify-ca` refuses a certificate for another name). So it is given a Unix socket
//! in a private directory instead, and this module carries the bytes between that and the
//! server, whose side has this crate's TLS, keepalives and `tcp_user_timeout`: a peer that
//! vanished ends the session within 15 s.
//!
//! The wire client logs in and runs commands. For the stream itself [`Link::take_over`]
//! gives the connection to the server away.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::low_water::LowWater;
use crate::session::keep_alive;
use crate::{ConnectOptions, Error, Result, SslMode, tls};

/// The request for TLS that precedes a start-up packet: length 8, code 80877103.
const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];

/// A byte stream to the server, whichever kind.
pub(super) trait Transport: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for T {}

/// An open connection to the server and the task that serves it. Dropping it closes
/// both sides.
pub(super) struct Link {
    /// The directory of the wire client's socket.
    directory: SocketDirectory,
    low_water: LowWater,
    release: oneshot::Sender<()>,
    /// Gives the connection back once it is released.
    carrier: AbortOnDropHandle<Option<Box<dyn Transport>>>,
}

impl Link {
    /// Connects to the server, and waits for the wire client at
    /// [`Link::socket_directory`] (and `port`).
    pub(super) async fn open(options: &ConnectOptions, doing: &str) -> Result<Link> {
        let (server, low_water) = connect(options, doing).await?;
        let local = |error| lost(doing, "cannot open a local socket", &error);
        let directory = SocketDirectory::create().map_err(local)?;
        let path = directory.path.join(format!(".s.PGSQL.{}", options.port));
        let listener = UnixListener::bind(path).map_err(local)?;
        let (release, released) = oneshot::channel();
        let carrier = AbortOnDropHandle::new(tokio::spawn(async move {
            // Only this process can reach the socket; the first to come is the wire client.
            let (client, _) = listener.accept().await.ok()?;
            drop(listener);
            carry(client, server, released).await
        }));
        Ok(Link {
            directory,
            low_water,
            release,
            carrier,
        })
    }

    /// What the wire client takes as its host.
    pub(super) fn socket_directory(&self) -> String {
        self.directory.path.display().to_string()
    }

    /// Takes the connection from the wire client, which must be between two commands.
    pub(super) async fn take_over(self, doing: &str) -> Result<(Box<dyn Transport>, LowWater)> {
        let _ = self.release.send(());
        let carried = self.carrier.await.ok().flatten();
        let server = carried.ok_or_else(|| {
            let error = std::io::Error::from(std::io::ErrorKind::ConnectionAborted);
            lost(doing, "the session has ended", &error)
        })?;
        Ok((server, self.low_water))
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

async fn connect(options: &ConnectOptions, doing: &str) -> Result<(Box<dyn Transport>, LowWater)> {
    if options.is_unix_socket() {
        let path = Path::new(&options.host).join(format!(".s.PGSQL.{}", options.port));
        let stream = UnixStream::connect(path)
            .await
            .map_err(|error| lost(doing, "cannot connect", &error))?;
        return Ok((Box::new(stream), LowWater::none()));
    }
    let mut tcp = TcpStream::connect((options.host.as_str(), options.port))
        .await
        .map_err(|error| lost(doing, "cannot connect", &error))?;
    tcp.set_nodelay(true)
        .and_then(|()| keep_alive(&tcp))
        .map_err(|error| lost(doing, "cannot set up the socket", &error))?;
    let low_water = LowWater::of(&tcp);
    let Some(config) = tls::client_config(options)? else {
        return Ok((Box::new(tcp), low_water));
    };
    let answer = ask_for_tls(&mut tcp)
        .await
        .map_err(|error| lost(doing, "cannot ask for TLS", &error))?;
    if answer != b'S' {
        return match options.effective_ssl_mode() {
            SslMode::Prefer => Ok((Box::new(tcp), low_water)),
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
    Ok((Box::new(stream), low_water))
}

/// Reads exactly the answer: whatever followed it in plain text would not be trusted.
async fn ask_for_tls(tcp: &mut TcpStream) -> std::io::Result<u8> {
    tcp.write_all(&SSL_REQUEST).await?;
    tcp.read_u8().await
}

/// Carries bytes both ways until the server's side ends, or until the connection to it is
/// released: then it is given back.
async fn carry(
    client: UnixStream,
    server: Box<dyn Transport>,
    mut released: oneshot::Receiver<()>,
) -> Option<Box<dyn Transport>> {
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = tokio::io::split(server);
    let is_released = {
        let upstream = async {
            // When the client has closed, the server is told, and what it still says is let
            // through.
            let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            let _ = to_server.shutdown().await;
            std::future::pending::<()>().await;
        };
        let downstream = async {
            let _ = tokio::io::copy(&mut from_server, &mut to_client).await;
            let _ = to_client.shutdown().await;
        };
        tokio::select! {
            () = upstream => false,
            () = downstream => false,
            Ok(()) = &mut released => true,
        }
    };
    is_released.then(|| from_server.unsplit(to_server))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_released_connection_is_given_back() {
        let (client, mut wire_client) = UnixStream::pair().unwrap();
        let (server, mut far) = UnixStream::pair().unwrap();
        let (release, released) = oneshot::channel();
        let carrier = tokio::spawn(carry(client, Box::new(server), released));
        let mut word = [0; 2];
        wire_client.write_all(b"ab").await.unwrap();
        far.read_exact(&mut word).await.unwrap();
        far.write_all(b"cd").await.unwrap();
        wire_client.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"cd");
        release.send(()).unwrap();
        let mut server = carrier.await.unwrap().unwrap();
        server.write_all(b"ef").await.unwrap();
        far.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"ef");
        assert_eq!(wire_client.read(&mut word).await.unwrap(), 0);
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
