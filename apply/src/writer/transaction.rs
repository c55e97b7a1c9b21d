//! The destination transaction that a writer has open: how it begins, where its savepoint stands, and
//! how it ends, with the progress it makes (I3).

use std::collections::BTreeMap;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bunny_postgres::TableName;
use tokio_postgres::Client;

use super::Writer;
use super::blame::missing_from;
use super::drift::Drifts;
use crate::bookkeeping::{Counts, Progress};
use crate::error::{Error, Result};

/// The open destination transaction.
pub(super) struct Open {
    pub(super) counts: BTreeMap<TableName, Counts>,
    pub(super) drifts: Drifts,
    /// Offset of the first event in it.
    pub(super) first_offset: i64,
    /// What is staged is of the part that is written next, with which the transaction begins;
    /// the owner epoch has not been checked yet.
    pub(super) is_ahead: bool,
    pub(super) savepoint: Savepoint,
}

/// Where the savepoint stands that a refused part is undone to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Savepoint {
    None,
    /// Nothing was done since.
    Fresh,
    /// A part was written since.
    Used,
}

impl Open {
    pub(super) fn at(first_offset: i64) -> Open {
        Open {
            counts: BTreeMap::new(),
            drifts: Drifts::new(),
            first_offset,
            is_ahead: false,
            savepoint: Savepoint::None,
        }
    }
}

impl Writer {
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Begins the destination transaction in which `first_offset` is the first event.
    pub async fn begin(&mut self, first_offset: i64) -> Result<()> {
        let client: &Client = &self.session;
        // One flight: the fence is checked in the transaction that BEGIN opens.
        let (begun, fenced, entered) = tokio::join!(
            client.batch_execute("BEGIN"),
            self.prepared.fence(client, self.mirror_id, self.epoch),
            client.batch_execute("SAVEPOINT part"),
        );
        begun.map_err(Error::sql("beginning a batch"))?;
        fenced?;
        entered.map_err(Error::sql("beginning a batch (SAVEPOINT part)"))?;
        self.open = Some(Open {
            savepoint: Savepoint::Fresh,
            ..Open::at(first_offset)
        });
        Ok(())
    }

    /// What follows can be undone and written again with care. Its savepoint is left when the next
    /// is needed, or by the end of the transaction.
    pub(super) async fn enter_part(&mut self) -> Result<()> {
        let (is_ahead, savepoint) = match &mut self.open {
            None => (false, Savepoint::None),
            Some(open) => {
                let savepoint = std::mem::replace(&mut open.savepoint, Savepoint::Used);
                (std::mem::take(&mut open.is_ahead), savepoint)
            }
        };
        if is_ahead {
            let (fenced, entered) = tokio::join!(
                self.prepared
                    .fence(&self.session, self.mirror_id, self.epoch),
                self.run("SAVEPOINT part"),
            );
            fenced?;
            return entered;
        }
        match savepoint {
            Savepoint::None => self.run("SAVEPOINT part").await,
            Savepoint::Fresh => Ok(()),
            Savepoint::Used => self.run("RELEASE SAVEPOINT part; SAVEPOINT part").await,
        }
    }

    /// What follows stays when the next part is undone.
    pub(super) async fn leave_part(&mut self) -> Result<()> {
        let leave = |open: &mut Open| std::mem::replace(&mut open.savepoint, Savepoint::None);
        match self.open.as_mut().map_or(Savepoint::None, leave) {
            Savepoint::None => Ok(()),
            Savepoint::Fresh | Savepoint::Used => self.run("RELEASE SAVEPOINT part").await,
        }
    }

    /// Commits what was written, with the progress it makes.
    pub async fn commit(&mut self, progress: &Progress, caught_up: &[TableName]) -> Result<()> {
        let open = self.take_open(progress.next_offset);
        self.finish(&open).await?;
        for table in caught_up {
            self.prepared
                .set_live(&self.session, self.mirror_id, table)
                .await?;
        }
        crate::crash_points::reached(crate::crash_points::BEFORE_COMMIT);
        let ended = self.record_and_commit(&open, progress).await;
        self.ended(open, ended)
    }

    /// One flight. If anything before it fails, COMMIT rolls back, and the error says so: it is
    /// sent only when the rest has been sent, and what fails at the server fails the transaction.
    async fn record_and_commit(&self, open: &Open, progress: &Progress) -> Result<()> {
        let mut recorded = pin!(async {
            tokio::try_join!(
                biased;
                self.add_counts(open),
                self.prepared
                    .set_progress(&self.session, self.mirror_id, progress),
            )
        });
        match futures_util::poll!(recorded.as_mut()) {
            Poll::Ready(recorded) => {
                recorded?;
                self.run("COMMIT").await
            }
            Poll::Pending => {
                let (recorded, committed) = tokio::join!(recorded, self.run("COMMIT"));
                recorded?;
                committed
            }
        }
    }

    /// Commits what was written for tables that are behind main, with their own progress.
    pub(crate) async fn commit_behind(
        &mut self,
        next_offset: i64,
        tables: &[TableName],
    ) -> Result<()> {
        let open = self.take_open(next_offset);
        self.finish(&open).await?;
        self.add_counts(&open).await?;
        let client: &Client = &self.session;
        crate::catch_up::advance(client, self.ledger, tables, next_offset).await?;
        crate::crash_points::reached(crate::crash_points::CATCH_UP_BEFORE_COMMIT);
        let ended = self.run("COMMIT").await;
        self.ended(open, ended)
    }

    /// Runs what of schema changes waits for the end of the transaction.
    async fn finish(&mut self, open: &Open) -> Result<()> {
        let finished = self.follower.finish(&self.session).await;
        finished.map_err(|error| missing_from(open.first_offset, error))
    }

    /// For the open transaction: how long its statements wait for someone else's lock.
    pub(crate) async fn wait_for_locks(&mut self, at_most: Duration) -> Result<()> {
        self.leave_part().await?;
        self.session
            .batch_execute(&format!("SET LOCAL lock_timeout = {}", at_most.as_millis()))
            .await
            .map_err(Error::sql("limiting the wait for locks"))
    }

    fn take_open(&mut self, first_offset: i64) -> Open {
        self.open.take().unwrap_or(Open::at(first_offset))
    }

    async fn add_counts(&self, open: &Open) -> Result<()> {
        self.prepared
            .add_counts(&self.session, self.ledger, &open.counts)
            .await
    }

    fn ended(&mut self, open: Open, ended: Result<()>) -> Result<()> {
        ended.map_err(|error| self.attributed(error, open.first_offset))?;
        for target in self.targets.values_mut() {
            target.staged = false;
        }
        for (of, rows) in open.drifts {
            *self.drifted.entry(of).or_default() += rows;
        }
        Ok(())
    }

    /// A constraint checked at commit only names its table in the error.
    fn attributed(&self, error: Error, first_offset: i64) -> Error {
        if error.is_transient() {
            return error;
        }
        let named = error.db_error().and_then(|db| {
            Some(TableName {
                schema: db.schema()?.to_owned(),
                name: db.table()?.to_owned(),
            })
        });
        match named.and_then(|named| self.routes.source_of(&named)) {
            Some(source) => Error::Table {
                table: source.clone(),
                reason: error.to_string(),
                restart_offset: Some(first_offset),
            },
            None => error,
        }
    }
}
