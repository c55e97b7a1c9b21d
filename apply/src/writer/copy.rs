//! Rows into a COPY, gathered to writes of a decent size.

use std::pin::Pin;

use bytes::Bytes;
use futures_util::SinkExt;
use tokio_postgres::{Client, CopyInSink, Statement};

use crate::error::{Error, Result};

/// Smaller writes cost a wake-up of the connection's task each.
const WRITE_BYTES: usize = 128 * 1024;

/// An open COPY … FROM STDIN. Dropped unfinished, it fails on the server.
pub(super) struct CopyIn {
    sink: Pin<Box<CopyInSink<Bytes>>>,
    buffer: Vec<u8>,
    doing: String,
}

impl CopyIn {
    pub(super) async fn begin(
        client: &Client,
        statement: &Statement,
        doing: String,
    ) -> Result<CopyIn> {
        let sink = client
            .copy_in(statement)
            .await
            .map_err(Error::sql(doing.as_str()))?;
        Ok(CopyIn {
            sink: Box::pin(sink),
            buffer: Vec::new(),
            doing,
        })
    }

    /// Where to append whole lines of COPY text.
    pub(super) fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buffer
    }

    /// Sends what has gathered, if it is worth a write.
    pub(super) async fn send_if_large(&mut self) -> Result<()> {
        if self.buffer.len() < WRITE_BYTES {
            return Ok(());
        }
        self.send_gathered().await
    }

    /// Sends whole lines of COPY text that were gathered elsewhere.
    pub(super) async fn send(&mut self, lines: Bytes) -> Result<()> {
        self.sink
            .send(lines)
            .await
            .map_err(Error::sql(self.doing.as_str()))
    }

    /// Sends the rest and ends the COPY; gives the rows copied. What the server has
    /// against a row is said here, not while sending.
    pub(super) async fn finish(mut self) -> Result<u64> {
        if !self.buffer.is_empty() {
            self.send_gathered().await?;
        }
        self.sink
            .as_mut()
            .finish()
            .await
            .map_err(Error::sql(self.doing))
    }

    async fn send_gathered(&mut self) -> Result<()> {
        let gathered = Bytes::from(std::mem::take(&mut self.buffer));
        self.send(gathered).await
    }
}
