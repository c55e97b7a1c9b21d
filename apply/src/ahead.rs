//! The batch after the one that main is writing (docs/adr/0043).
//!
//! Main has two sessions at the destination when it is behind. While one writes a batch, the
//! other begins the next one's transaction and stages its net effects; it touches nothing else
//! before the first one's commit is known to have succeeded. Then they change over. What is here
//! only saves time: whatever goes wrong with the second session, it is closed, which rolls back
//! what it has prepared, and the batch is written as if nobody had tried.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::batch::Part;
use crate::context::MirrorRun;
use crate::crash_points::{self, reached};
use crate::error::Result;
use crate::main_stream::policy;
use crate::reader::Work;
use crate::routes::Routes;
use crate::writer::{Writer, is_worth_preparing};

/// After trouble with the second session main goes on with one for so long.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// The work for main, and the session in which it is prepared.
pub(crate) struct Ahead<'a> {
    run: &'a MirrorRun,
    routes: Arc<Routes>,
    incoming: mpsc::Receiver<Work>,
    /// Taken while a batch was written.
    taken: Option<Work>,
    /// The session that does not write now. It changes places with the other at each batch that
    /// was taken: so both get to know the tables.
    idle: Option<Writer>,
    changes_over: bool,
    not_before: Option<Instant>,
}

impl<'a> Ahead<'a> {
    pub(crate) fn new(
        run: &'a MirrorRun,
        routes: Arc<Routes>,
        incoming: mpsc::Receiver<Work>,
    ) -> Ahead<'a> {
        Ahead {
            run,
            routes,
            incoming,
            taken: None,
            idle: None,
            changes_over: false,
            not_before: None,
        }
    }

    pub(crate) fn has_work(&self) -> bool {
        self.taken.is_some()
    }

    /// What main is to do next; None when the reader is gone. Cancel safe.
    pub(crate) async fn work(&mut self) -> Option<Work> {
        match self.taken.take() {
            Some(work) => Some(work),
            None => self.incoming.recv().await,
        }
    }

    /// Takes work that comes while a batch is written, and waits for ever when the reader is
    /// gone. Cancel safe.
    pub(crate) async fn take(&mut self) {
        match self.incoming.recv().await {
            Some(work) => self.taken = Some(work),
            None => std::future::pending().await,
        }
    }

    /// Prepares what was taken, as far as that can be done.
    pub(crate) async fn prepare(&mut self) {
        let Some(Work::Part(part)) = &self.taken else {
            return;
        };
        let is_early = self.not_before.is_some_and(|at| Instant::now() < at);
        if is_early || !is_worth_preparing(part) {
            return;
        }
        let prepared = prepare(self.run, &self.routes, self.idle.take(), part).await;
        match prepared {
            Ok(writer) => {
                self.idle = Some(writer);
                self.changes_over = true;
            }
            Err(error) => {
                tracing::info!(mirror = %self.run.mirror.name, %error, "batches are not prepared for a while");
                self.not_before = Some(Instant::now() + AGAIN_AFTER);
            }
        }
    }

    /// Lets the other session write what is next, if it was to prepare it. Between two batches.
    pub(crate) fn change_over(&mut self, writer: &mut Writer) {
        if !std::mem::take(&mut self.changes_over) {
            return;
        }
        if let Some(idle) = &mut self.idle {
            std::mem::swap(idle, writer);
        }
    }

    /// A part is written. Where a table went on in another version in it, the other session
    /// knows what is not true any more: it is closed.
    pub(crate) fn written(&mut self, writer: &mut Writer) {
        let met = writer.met();
        let is_outdated = |idle: &mut Writer| idle.is_outdated_by(&met);
        self.idle.take_if(is_outdated);
    }

    /// Leaves nothing open at the destination.
    pub(crate) async fn undo(&mut self) {
        let Some(mut idle) = self.idle.take_if(|idle| idle.is_open()) else {
            return;
        };
        match idle.undo_prepared().await {
            Ok(()) => self.idle = Some(idle),
            Err(error) => {
                tracing::info!(mirror = %self.run.mirror.name, %error, "closing a session with a prepared batch");
            }
        }
    }
}

async fn prepare(
    run: &MirrorRun,
    routes: &Arc<Routes>,
    writer: Option<Writer>,
    part: &Part,
) -> Result<Writer> {
    let mut writer = match writer {
        Some(writer) => writer,
        None => {
            let session = run.connect().await?;
            Writer::new(
                session,
                run.mirror_id(),
                run.epoch,
                routes.clone(),
                policy(run),
            )
            .await?
        }
    };
    if writer.prepare(part).await? {
        reached(crash_points::PREPARED_AHEAD);
    }
    Ok(writer)
}
