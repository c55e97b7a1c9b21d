//! The shell around [`Entry`]: tasks, the catalog, and time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::postgres::PgListener;
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;
use uuid::Uuid;

use super::entry::{Action, Entry, Stand, Trouble};
use super::task::{MirrorContext, Outcome, Reporter, TaskFailure};
use super::{Finished, SuperviseOptions};
use crate::crash_points::{ROLE_STARTED, crash_point};
use crate::leases::Role;
use crate::logs::LogLevel;
use crate::mirrors::{Desired, Mirror};
use crate::peers::Peer;
use crate::reports::Failure;
use crate::{Catalog, Result};

/// After so long without an answer the catalog counts as away.
const CATALOG_TIMEOUT: Duration = Duration::from_secs(6);
/// How long all tasks together may take to end at shutdown.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long giving the leases back may take at shutdown.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// A worker with its fair share leaves a free mirror to others for so long.
const COURTESY: Duration = Duration::from_secs(3);
/// Renewals that are remembered of a catalog that is away.
const RENEWALS_MAX: usize = 1000;
/// Of failures in a row the first and every so manieth goes to the mirror's log.
const LOGGED_EVERY: u32 = 20;

/// A mirror whose lease is ours, as far as we know.
struct Held {
    entry: Entry,
    /// The lease was renewed since it is held.
    is_renewed: bool,
    task: Option<RunningTask>,
    updates: watch::Sender<Arc<Mirror>>,
    failing_since: Option<DateTime<Utc>>,
    /// What the catalog has still to be told: a failure, or that it is over.
    unsaved: Option<Option<Failure>>,
    /// Where the task that failed stood, as far as it has said.
    failed_at: Option<Value>,
    /// Whether the catalog has been told (or will be) that there is no failure.
    cleared: bool,
    /// A start that the catalog has still to be told of.
    unsaved_start: Option<Start>,
}

/// What a task was started for.
#[derive(Clone, Copy)]
struct Start {
    /// [`Mirror::version_of`] the role.
    version: i64,
    /// The same, if the task is to do the role's work.
    settles: Option<i64>,
}

struct RunningTask {
    abort: AbortHandle,
    cancel: CancellationToken,
    reporter: Reporter,
}

pub(super) struct Worker<F> {
    catalog: Catalog,
    role: Role,
    holder: String,
    options: SuperviseOptions,
    run_task: F,
    tasks: JoinSet<Outcome>,
    mirror_of_task: HashMap<Id, Uuid>,
    held: HashMap<Uuid, Held>,
    peers: HashMap<String, Peer>,
    renewed_at: Option<Instant>,
    /// With what leases were renewed: the last time that the catalog answered, and since.
    renewals: Vec<Uuid>,
    workers_alive: usize,
    away_since: Option<Instant>,
    listener: Option<PgListener>,
}

impl<F, Fut> Worker<F>
where
    F: Fn(Mirror, MirrorContext) -> Fut + Send + Sync,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    pub(super) fn new(
        catalog: Catalog,
        role: Role,
        holder: String,
        options: SuperviseOptions,
        run_task: F,
    ) -> Worker<F> {
        Worker {
            catalog,
            role,
            holder,
            options,
            run_task,
            tasks: JoinSet::new(),
            mirror_of_task: HashMap::new(),
            held: HashMap::new(),
            peers: HashMap::new(),
            renewed_at: None,
            renewals: Vec::new(),
            workers_alive: 1,
            away_since: None,
            listener: None,
        }
    }

    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let poll = self.options.poll.min(self.renew_every());
        let mut ticks = tokio::time::interval(poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Some(joined) = self.tasks.join_next_with_id() => self.task_ended(joined),
                () = woken(&mut self.listener) => {}
                _ = ticks.tick() => {}
            }
            self.act();
            tokio::select! {
                () = cancel.cancelled() => break,
                () = self.exchange() => {}
            }
            self.act();
        }
        self.drain().await;
    }

    /// A third of the lease: two renewals may fail before it runs out.
    fn renew_every(&self) -> Duration {
        self.options.lease_ttl / 3
    }

    /// Does what the entries ask for. No I/O.
    fn act(&mut self) {
        while let Some(joined) = self.tasks.try_join_next_with_id() {
            self.task_ended(joined);
        }
        let now = Instant::now();
        let ids: Vec<Uuid> = self.held.keys().copied().collect();
        for id in ids {
            let Some(held) = self.held.get_mut(&id) else {
                continue;
            };
            if held
                .task
                .as_ref()
                .is_some_and(|task| task.reporter.has_recovered())
            {
                held.recovered();
            }
            match held.entry.next(now) {
                Action::None => {}
                Action::Start => self.start(id),
                Action::Stop => held.stop(),
                Action::Abort => held.abort(),
                Action::Forget => {
                    self.held.remove(&id);
                }
            }
        }
    }

    fn start(&mut self, id: Uuid) {
        let Some(held) = self.held.get_mut(&id) else {
            return;
        };
        let mirror = held.entry.mirror.clone();
        let peers = (
            self.peers.get(&mirror.source_peer),
            self.peers.get(&mirror.destination_peer),
        );
        let (Some(source), Some(destination)) = peers else {
            let failure = TaskFailure::transient("the mirror's peers could not be read yet");
            held.end(Err(failure), Instant::now());
            return;
        };
        let own = match self.role {
            Role::Capture => source,
            Role::Apply => destination,
        };
        // Before anything is done for the mirror. One that is deleted is, though, with what
        // cannot be reached left behind if so asked.
        if mirror.desired_of(self.role) != Desired::Deleted
            && let Err(error) = own.connect_options()
        {
            held.end(Err(TaskFailure::fatal(error)), Instant::now());
            return;
        }
        let reporter = Reporter::new(id, self.role, held.entry.epoch);
        let cancel = CancellationToken::new();
        let context = MirrorContext {
            cancel: cancel.clone(),
            reporter: reporter.clone(),
            lease_epoch: held.entry.epoch,
            catalog: self.catalog.clone(),
            source: source.clone(),
            destination: destination.clone(),
            updates: held.updates.subscribe(),
        };
        tracing::info!(mirror = %mirror.name, role = %self.role, version = mirror.version, "starting mirror");
        let span = tracing::info_span!("mirror", mirror = %mirror.name, role = %self.role);
        let work = Box::pin((self.run_task)((*mirror).clone(), context));
        let background = reporter.clone();
        let catalog = self.catalog.clone();
        let task = async move {
            let outcome = tokio::select! {
                outcome = work => outcome,
                never = background.flush_forever(&catalog) => match never {},
            };
            background.flush_last(&catalog).await;
            outcome
        };
        let abort = self.tasks.spawn(task.instrument(span));
        self.mirror_of_task.insert(abort.id(), id);
        held.unsaved_start = Some(Start {
            version: held.entry.stand.version,
            settles: (mirror.desired_of(self.role) == Desired::Running)
                .then_some(held.entry.stand.version),
        });
        held.task = Some(RunningTask {
            abort,
            cancel,
            reporter,
        });
    }

    fn task_ended(&mut self, joined: std::result::Result<(Id, Outcome), JoinError>) {
        let (task_id, outcome) = match joined {
            Ok((task_id, outcome)) => (task_id, outcome),
            Err(error) if error.is_cancelled() => (error.id(), Ok(Finished::Idle)),
            Err(error) => (error.id(), Err(TaskFailure::transient(panic_text(error)))),
        };
        let Some(mirror_id) = self.mirror_of_task.remove(&task_id) else {
            return;
        };
        if let Some(held) = self.held.get_mut(&mirror_id) {
            held.end(outcome, Instant::now());
        }
    }

    /// Tells the catalog what it should know and reads what it wants. An error
    /// ends this round; the next one begins anew.
    async fn exchange(&mut self) {
        let answer = tokio::time::timeout(CATALOG_TIMEOUT, self.exchange_all()).await;
        let problem = match answer {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {} s", CATALOG_TIMEOUT.as_secs())),
        };
        match (problem, self.away_since) {
            (None, None) | (Some(_), Some(_)) => {}
            (None, Some(since)) => {
                self.away_since = None;
                let away_seconds = since.elapsed().as_secs();
                tracing::info!(role = %self.role, away_seconds, "the catalog can be used again");
            }
            (Some(error), None) => {
                self.away_since = Some(Instant::now());
                tracing::warn!(role = %self.role, %error, "the catalog cannot be used, running mirrors go on");
            }
        }
    }

    async fn exchange_all(&mut self) -> Result<()> {
        if self.listener.is_none() {
            self.listener = Some(self.catalog.listen().await?);
        }
        let due = |at: Instant| at.elapsed() >= self.renew_every();
        if self.renewed_at.is_none_or(due) {
            self.renew().await?;
        }
        let mirrors_total = self.read_mirrors().await?;
        self.take_leases(mirrors_total).await?;
        self.save().await
    }

    async fn renew(&mut self) -> Result<()> {
        let asked_at = Instant::now();
        let ttl = self.options.lease_ttl;
        let renewal = Uuid::new_v4();
        self.renewals.push(renewal);
        if self.renewals.len() > RENEWALS_MAX {
            self.renewals.remove(1);
        }
        let ours = self
            .catalog
            .renew_leases(self.role, &self.holder, ttl, renewal)
            .await?;
        self.renewed_at = Some(asked_at);
        // Of those before, any may have been the last that came through.
        let sent = std::mem::replace(&mut self.renewals, vec![renewal]);
        for (id, held) in &mut self.held {
            let renewed = ours.iter().find(|ours| ours.mirror_id == *id);
            match renewed.filter(|renewed| renewed.epoch == held.entry.epoch) {
                // Not by what it says of the mirror: versions are given anew, and the task may run
                // for one of the same number.
                Some(renewed)
                    if held.is_renewed && renewed.former.is_none_or(|of| !sent.contains(&of)) =>
                {
                    tracing::warn!(mirror = %held.entry.mirror.name, role = %self.role, "the catalog does not know what it was last told, it was restored or failed over: starting anew");
                    held.forget_unsaved();
                    held.entry.lease_lost();
                }
                Some(_) => {
                    held.is_renewed = true;
                    held.entry.lease_confirmed(asked_at);
                }
                _ if held.entry.is_lost() => {}
                _ => {
                    tracing::warn!(mirror = %held.entry.mirror.name, role = %self.role, "another worker has the lease now");
                    held.entry.lease_lost();
                }
            }
        }
        self.workers_alive = self
            .catalog
            .worker_alive(self.role, &self.holder, ttl)
            .await?;
        // A lease that was taken in a round that did not get to its end.
        for lease in ours {
            if !self.held.contains_key(&lease.mirror_id)
                && let Some(mirror) = self.catalog.get_mirror_by_id(lease.mirror_id).await?
            {
                self.hold(mirror, lease.epoch);
                if let Some(held) = self.held.get_mut(&lease.mirror_id) {
                    held.is_renewed = true;
                }
            }
        }
        Ok(())
    }

    /// Reads what is wanted; returns for how many mirrors the role has work.
    async fn read_mirrors(&mut self) -> Result<usize> {
        let mirrors = self.catalog.list_mirrors().await?;
        let peers = self.catalog.list_peers().await?;
        self.peers = peers
            .into_iter()
            .map(|peer| (peer.name.clone(), peer))
            .collect();
        for (id, held) in &mut self.held {
            match mirrors.iter().find(|mirror| mirror.id == *id) {
                Some(mirror) => held.update(mirror, Stand::of(mirror, self.role, &self.peers)),
                None => held.entry.lease_lost(),
            }
        }
        let has_work = |mirror: &&Mirror| self.role == Role::Apply || mirror.owner.is_none();
        Ok(mirrors.iter().filter(has_work).count())
    }

    /// Takes what is free: at once up to this worker's fair share, the rest when
    /// nobody else has wanted it for a moment.
    async fn take_leases(&mut self, mirrors_total: usize) -> Result<()> {
        let share = mirrors_total.div_ceil(self.workers_alive);
        for id in self.catalog.free_mirrors(self.role).await? {
            if self.held.contains_key(&id) {
                continue;
            }
            let left_for = if self.held.len() < share {
                Duration::ZERO
            } else {
                COURTESY
            };
            let ttl = self.options.lease_ttl;
            let lease = self
                .catalog
                .acquire_lease_left_for(id, self.role, &self.holder, ttl, left_for)
                .await?;
            let Some(lease) = lease else { continue };
            if let Some(mirror) = self.catalog.get_mirror_by_id(id).await? {
                self.hold(mirror, lease.epoch);
            }
        }
        Ok(())
    }

    fn hold(&mut self, mirror: Mirror, epoch: i64) {
        tracing::info!(mirror = %mirror.name, role = %self.role, epoch, "have the lease of mirror");
        let mirror = Arc::new(mirror);
        let stand = Stand::of(&mirror, self.role, &self.peers);
        let held = Held {
            entry: Entry::new(mirror.clone(), stand, epoch, Instant::now()),
            is_renewed: false,
            task: None,
            updates: watch::Sender::new(mirror.clone()),
            failing_since: None,
            unsaved: None,
            failed_at: None,
            cleared: false,
            unsaved_start: None,
        };
        self.held.insert(mirror.id, held);
    }

    /// Tells the catalog of failures, recoveries, starts and deletions.
    async fn save(&mut self) -> Result<()> {
        for (id, held) in &mut self.held {
            let epoch = held.entry.epoch;
            if let Some(failure) = held.unsaved.clone() {
                self.catalog
                    .put_failure(*id, self.role, epoch, failure.as_ref())
                    .await?;
                held.unsaved = None;
                if let Some(failure) = failure.filter(worth_logging) {
                    let (level, details) = log_entry(self.role, &failure, held.failed_at.as_ref());
                    self.catalog
                        .log(*id, level, &failure.message, details)
                        .await?;
                }
            }
            if let Some(start) = held.unsaved_start {
                crash_point(ROLE_STARTED);
                self.catalog
                    .note_restarted(*id, self.role, start.version)
                    .await?;
                if let Some(version) = start.settles {
                    self.catalog
                        .side_settled(*id, self.role, version, Desired::Running)
                        .await?;
                }
                held.unsaved_start = None;
            }
            if held.entry.is_deletion_unrecorded() {
                let gone = self.catalog.side_removed(*id, self.role).await?;
                held.entry.deletion_recorded();
                tracing::info!(mirror = %held.entry.mirror.name, role = %self.role, gone, "took down this side of mirror");
            }
        }
        Ok(())
    }

    /// Ends every task, then gives the leases back.
    async fn drain(mut self) {
        for held in self.held.values() {
            held.stop();
        }
        let all_ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, all_ended)
            .await
            .is_err()
        {
            let left = self.tasks.len();
            tracing::warn!(role = %self.role, left, "mirrors did not stop in time and are cut off");
            self.tasks.shutdown().await;
        }
        let given_back = self.catalog.worker_gone(self.role, &self.holder);
        match tokio::time::timeout(RELEASE_TIMEOUT, given_back).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(role = %self.role, %error, "leases run out by themselves")
            }
            Err(_) => {
                tracing::warn!(role = %self.role, "leases run out by themselves: the catalog does not answer")
            }
        }
    }
}

impl Held {
    fn update(&mut self, mirror: &Mirror, stand: Stand) {
        self.entry.stand = stand;
        if *self.entry.mirror == *mirror {
            return;
        }
        let mirror = Arc::new(mirror.clone());
        self.entry.mirror = mirror.clone();
        self.updates.send_replace(mirror);
    }

    fn stop(&self) {
        if let Some(task) = &self.task {
            task.cancel.cancel();
        }
    }

    fn abort(&self) {
        if let Some(task) = &self.task {
            tracing::warn!(mirror = %self.entry.mirror.name, "mirror did not stop in time and is cut off");
            task.abort.abort();
        }
    }

    fn recovered(&mut self) {
        if self.cleared {
            return;
        }
        self.cleared = true;
        self.entry.recovered();
        self.failing_since = None;
        self.unsaved = Some(None);
    }

    /// What a catalog is not told that was restored since.
    fn forget_unsaved(&mut self) {
        self.unsaved = None;
        self.unsaved_start = None;
    }

    fn end(&mut self, outcome: Outcome, now: Instant) {
        // One that ends before its first report has got no further than its predecessor.
        let task = self.task.take();
        // One that was told to stop may have got no further than its predecessor either.
        let was_stopped = task.as_ref().is_some_and(|task| task.cancel.is_cancelled());
        let place = task.and_then(|task| task.reporter.place());
        self.failed_at = place.or(self.failed_at.take());
        let finished_well = outcome.is_ok() && !was_stopped;
        match self.entry.ended(outcome, now) {
            Some(trouble) => self.trouble(trouble),
            None if finished_well => self.recovered(),
            None => {}
        }
    }

    fn trouble(&mut self, trouble: Trouble) {
        let mirror = &self.entry.mirror.name;
        let delay_seconds = trouble.delay.map(|delay| delay.as_secs());
        if trouble.fatal {
            tracing::error!(%mirror, error = %trouble.message, "mirror failed and waits for a person");
        } else {
            tracing::warn!(%mirror, error = %trouble.message, count = trouble.count, delay_seconds, "mirror failed and is tried again");
        }
        let at = Utc::now();
        let next_try = trouble
            .delay
            .and_then(|delay| TimeDelta::from_std(delay).ok())
            .map(|delay| at + delay);
        self.cleared = false;
        self.unsaved = Some(Some(Failure {
            message: trouble.message,
            fatal: trouble.fatal,
            lost_generation: trouble.lost_generation,
            count: trouble.count,
            since: *self.failing_since.get_or_insert(at),
            next_try,
        }));
    }
}

fn worth_logging(failure: &Failure) -> bool {
    failure.fatal || failure.count % LOGGED_EVERY == 1
}

fn log_entry(role: Role, failure: &Failure, failed_at: Option<&Value>) -> (LogLevel, Value) {
    let level = if failure.fatal {
        LogLevel::Error
    } else {
        LogLevel::Warn
    };
    let details = json!({
        "role": role.as_str(),
        "fatal": failure.fatal,
        "count": failure.count,
        "next_try": failure.next_try,
        "since": failure.since,
        "last_report": failed_at,
    });
    (level, details)
}

/// Waits for a notification; for ever without a listener. A listener that fails
/// is dropped, and made again in the next round with the catalog.
async fn woken(listener: &mut Option<PgListener>) {
    let Some(listening) = listener.as_mut() else {
        return std::future::pending().await;
    };
    match listening.recv().await {
        Ok(_) => while listening.next_buffered().is_some() {},
        Err(error) => {
            tracing::debug!(%error, "lost the listener for notifications");
            *listener = None;
        }
    }
}

fn panic_text(error: JoinError) -> String {
    let reason = match error.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "no message".to_owned()),
        Err(error) => error.to_string(),
    };
    format!("the mirror's task panicked, which is a defect of this program: {reason}")
}
