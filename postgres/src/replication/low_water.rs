//! How much has to arrive before the kernel wakes who waits for a socket.
//!
//! A socket of the runtime is watched whether somebody reads it or not: each message that a
//! walsender flushes would wake a thread that finds nothing to do, and take the processor
//! from the walsender to do so.

use socket2::{SockRef, Socket};
use tokio::net::TcpStream;

/// What may gather unannounced: more than comes within a pause of the reader, or while it is busy with
/// what it read. Beyond it each message would wake again.
const GATHERED_BYTES: libc::c_int = 1024 * 1024;

/// SO_RCVLOWAT of the stream's socket, below whatever TLS there is. What cannot be set is
/// left alone: it costs wake-ups, nothing else.
pub(super) struct LowWater {
    /// The same socket by another descriptor; `None` for a Unix socket, which knows no such mark.
    socket: Option<Socket>,
    is_raised: bool,
}

impl LowWater {
    pub(super) fn of(tcp: &TcpStream) -> LowWater {
        LowWater {
            socket: SockRef::from(tcp).try_clone().ok(),
            is_raised: false,
        }
    }

    pub(super) fn none() -> LowWater {
        LowWater {
            socket: None,
            is_raised: false,
        }
    }

    /// Lets bytes gather unannounced.
    pub(super) fn raise(&mut self) {
        if !std::mem::replace(&mut self.is_raised, true) {
            self.set(GATHERED_BYTES);
        }
    }

    /// The first byte is told of, and what is there already at once.
    pub(super) fn lower(&mut self) {
        if std::mem::replace(&mut self.is_raised, false) {
            self.set(1);
        }
    }

    fn set(&self, bytes: libc::c_int) {
        if let Some(socket) = &self.socket {
            set_low_water(socket, bytes);
        }
    }
}

fn set_low_water(socket: &Socket, bytes: libc::c_int) {
    use std::os::fd::AsRawFd;

    // Its size is four bytes wherever this runs.
    let size = std::mem::size_of_val(&bytes) as libc::socklen_t;
    #[allow(unsafe_code)]
    // SAFETY: the descriptor is open for as long as the socket is borrowed, and the kernel reads
    // `size` bytes of a value that lives until the call returns.
    let _ = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            std::ptr::from_ref(&bytes).cast(),
            size,
        )
    };
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn what_gathers_is_told_of_once_the_mark_is_lowered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (far, near) = tokio::join!(TcpStream::connect(address), listener.accept());
        let (mut far, near) = (far.unwrap(), near.unwrap().0);
        let mut low_water = LowWater::of(&near);
        let mut read = vec![0; 2000];
        // The runtime takes a new socket for readable until it has tried.
        near.try_read(&mut read).unwrap_err();

        low_water.raise();
        far.write_all(&[0; 1000]).await.unwrap();
        assert!(timeout(MOMENT, near.readable()).await.is_err());
        low_water.lower();
        timeout(LONG, near.readable()).await.unwrap().unwrap();
        assert_eq!(near.try_read(&mut read).unwrap(), 1000);

        // As much as may gather, and the end, are told of in any case.
        low_water.raise();
        near.try_read(&mut read).unwrap_err();
        assert!(timeout(MOMENT, near.readable()).await.is_err());
        let much = vec![0; 4 * GATHERED_BYTES as usize];
        let _ = timeout(MOMENT, far.write_all(&much)).await;
        timeout(LONG, near.readable()).await.unwrap().unwrap();
        while near.try_read(&mut read).is_ok() {}
        drop(far);
        timeout(LONG, near.readable()).await.unwrap().unwrap();
    }
}
