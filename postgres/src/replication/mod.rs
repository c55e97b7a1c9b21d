//! The replication ("walsender") session: slots, exported snapshots and the stream.
//!
//! A session is opened first and asked about the server ([`Replication`]), then either
//! turned into a stream ([`WalStream`]) or kept for its snapshot ([`ExportedSnapshot`]).
//! Each closes its connection when dropped. The wire client that logs in and runs the
//! commands is hidden here; nothing else names it. The stream is read by this module
//! itself, in the consumer's own task.
//!
//! **Memory.** A stream holds what one read gave, 256 KiB at most, or one larger event (the
//! server's own limit on one is 1 GiB).
//!
//! **Silence.** A peer that vanished ends the stream within 15 s. A peer that lives and
//! says nothing is taken to have nothing to say.

mod commands;
mod gulp;
mod link;
mod low_water;
mod status;
mod stream;
mod wire;

use std::time::Duration;

use pgwire_replication::{QueryRow, ReplicationClient, ReplicationConfig};
use secrecy::ExposeSecret;

pub use stream::{WalEvent, WalStream};

use crate::session::{CONNECT_TIMEOUT, TRANSACTION_TIMEOUT_SINCE};
use crate::{ConnectOptions, Error, Lsn, Result, pinned_options};
use commands::Snapshot;
use link::Link;

/// How long a command that only looks something up may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

/// What IDENTIFY_SYSTEM says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemId {
    /// The cluster's identity, an unsigned 64-bit number as text.
    pub system_id: String,
    /// The timeline written now.
    pub timeline: u32,
    /// How far the log is flushed.
    pub flush_lsn: Lsn,
}

/// An open replication session that does not stream yet.
pub struct Replication {
    wire: Wire,
    link: Link,
    target: Target,
    backend_pid: i32,
    server_version_num: i32,
}

/// What a session is opened for.
#[derive(Debug)]
struct Target {
    slot: String,
    publications: Vec<String>,
}

/// The wire client; closes the socket at once when dropped, even in the middle of a
/// command (by itself it would finish the command first).
struct Wire(ReplicationClient);

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Replication {
    /// Opens a session. `slot` and `publications` are what [`Replication::start`] will
    /// stream; both may be empty for a session that only runs commands.
    ///
    /// # Errors
    /// [`Error::Timeout`] after 10 s; [`Error::Replication`] when the server cannot be
    /// reached or refuses.
    pub async fn connect(
        options: &ConnectOptions,
        application_name: &str,
        slot: &str,
        publications: &[String],
    ) -> Result<Replication> {
        let target = Target {
            slot: slot.to_owned(),
            publications: publications.to_vec(),
        };
        let doing = format!("opening a replication session to {}", options.target());
        let opening = Box::pin(Self::open(options, application_name, target, &doing));
        match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
            Ok(opened) => opened.map_err(|error| commands::with_cure(error, &options.user)),
            Err(_) => Err(Error::Timeout {
                doing,
                seconds: CONNECT_TIMEOUT.as_secs(),
            }),
        }
    }

    async fn open(
        options: &ConnectOptions,
        application_name: &str,
        target: Target,
        doing: &str,
    ) -> Result<Replication> {
        let link = Link::open(options, doing).await?;
        let config = wire_config(options, application_name, &link);
        let client = ReplicationClient::connect_gated(config)
            .await
            .map_err(|error| commands::error(doing, error))?;
        let mut session = Replication {
            wire: Wire(client),
            link,
            target,
            backend_pid: 0,
            server_version_num: 0,
        };
        // The wire client logs in in the background; the first command waits for it.
        session.introduce(doing).await?;
        Ok(session)
    }

    /// Learns who serves the session, and pins what the start-up packet could not.
    async fn introduce(&mut self, doing: &str) -> Result<()> {
        let sql = "SELECT pg_backend_pid(), current_setting('server_version_num')";
        let rows = self.run(sql, doing).await?;
        self.backend_pid = commands::cell(&rows, 0, doing)?;
        self.server_version_num = commands::cell(&rows, 1, doing)?;
        if self.server_version_num >= TRANSACTION_TIMEOUT_SINCE {
            self.run("SET transaction_timeout = 0", doing).await?;
        }
        Ok(())
    }

    /// The pid of the server process behind this session: where `pg_stat_activity`
    /// and `pg_blocking_pids` tell what a slot being created waits for.
    pub fn backend_pid(&self) -> i32 {
        self.backend_pid
    }

    /// `server_version_num`, for example 150010.
    pub fn server_version_num(&self) -> i32 {
        self.server_version_num
    }

    /// Asks which cluster this is and how far its log is flushed.
    pub async fn identify_system(&mut self) -> Result<SystemId> {
        let doing = "asking for the system's identity";
        let asked = tokio::time::timeout(COMMAND_TIMEOUT, self.wire.0.identify_system()).await;
        let answer = within(asked, doing, COMMAND_TIMEOUT)?;
        Ok(SystemId {
            system_id: answer.system_id,
            timeline: answer.timeline,
            flush_lsn: Lsn(answer.xlogpos.as_u64()),
        })
    }

    /// The timelines that led to `timeline`, oldest first, each with the position at
    /// which it was left. `None` when the server has no history of it, as for timeline
    /// 1, which has none.
    pub async fn timeline_history(&mut self, timeline: u32) -> Result<Option<Vec<(u32, Lsn)>>> {
        if timeline <= 1 {
            return Ok(None);
        }
        let doing = format!("reading the history of timeline {timeline}");
        let asked =
            tokio::time::timeout(COMMAND_TIMEOUT, self.wire.0.timeline_history(timeline)).await;
        match within(asked, &doing, COMMAND_TIMEOUT) {
            Ok(history) => commands::parse_timeline_history(&history.content, &doing).map(Some),
            // undefined_file
            Err(error) if error.sqlstate() == Some("58P01") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Creates a permanent logical slot for `pgoutput` and returns its consistent
    /// point: it will stream every transaction that commits after it.
    ///
    /// Waits, without limit, until every transaction that was open when it began has
    /// ended; [`Replication::backend_pid`] tells whom to ask what it waits for.
    /// Dropping the future closes the connection, but the server notices only when it
    /// has done: the slot may still come into being.
    pub async fn create_slot(&mut self, name: &str) -> Result<Lsn> {
        let doing = format!("creating replication slot {name:?}");
        let sql = commands::create_slot(name, self.server_version_num, Snapshot::Nothing);
        let rows = self.run(&sql, &doing).await?;
        commands::cell(&rows, 1, &doing)
    }

    /// Drops a slot; `false` when there is none of that name. A slot that is in use is
    /// an error that passes ([`Error::is_transient`]).
    pub async fn drop_slot(&mut self, name: &str) -> Result<bool> {
        let doing = format!("dropping replication slot {name:?}");
        let sql = commands::drop_slot(name);
        let asked = tokio::time::timeout(COMMAND_TIMEOUT, self.wire.0.simple_query(&sql)).await;
        match within(asked, &doing, COMMAND_TIMEOUT) {
            Ok(_) => Ok(true),
            // undefined_object
            Err(error) if error.sqlstate() == Some("42704") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Creates a temporary slot and exports the snapshot of its consistent point.
    ///
    /// The session then only serves to keep both, since any other command would end
    /// the snapshot; so it is taken over by what is returned. Waits as
    /// [`Replication::create_slot`] does.
    pub async fn create_temporary_slot_exporting(mut self, name: &str) -> Result<ExportedSnapshot> {
        let doing = format!("creating temporary replication slot {name:?}");
        let sql = commands::create_slot(name, self.server_version_num, Snapshot::Export);
        let rows = self.run(&sql, &doing).await?;
        Ok(ExportedSnapshot {
            lsn: commands::cell(&rows, 1, &doing)?,
            snapshot_name: commands::cell(&rows, 2, &doing)?,
            session: self,
        })
    }

    /// Starts streaming the slot from `start_lsn`: transactions that commit before it
    /// are not sent. A position before the slot's own is moved up to that by the server.
    pub async fn start(self, start_lsn: Lsn) -> Result<WalStream> {
        let Replication {
            wire,
            link,
            target,
            backend_pid,
            ..
        } = self;
        let doing = format!("streaming replication slot {:?}", target.slot);
        if target.slot.is_empty() || target.publications.is_empty() {
            return Err(Error::Invalid(format!(
                "{doing}: no slot or no publication was given"
            )));
        }
        let server = link.take_over(&doing).await?;
        drop(wire);
        let sql = commands::start_replication(&target.slot, &target.publications, start_lsn);
        let starting = WalStream::start(server, &sql, doing.clone(), backend_pid, start_lsn);
        match tokio::time::timeout(COMMAND_TIMEOUT, starting).await {
            Ok(started) => started,
            Err(_) => Err(Error::Timeout {
                doing,
                seconds: COMMAND_TIMEOUT.as_secs(),
            }),
        }
    }

    async fn run(&mut self, sql: &str, doing: &str) -> Result<Vec<QueryRow>> {
        self.wire
            .0
            .simple_query(sql)
            .await
            .map_err(|error| commands::error(doing, error))
    }
}

/// An exported snapshot, importable by other sessions of the same database with
/// `SET TRANSACTION SNAPSHOT`, as long as this exists. Dropping it closes the session
/// that exported it: the snapshot can no longer be imported and the temporary slot is
/// gone a moment later; transactions that have imported it keep it.
pub struct ExportedSnapshot {
    /// The consistent point: the snapshot sees exactly the transactions that a slot
    /// created here would not stream.
    pub lsn: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`, as a literal.
    pub snapshot_name: String,
    session: Replication,
}

impl ExportedSnapshot {
    /// The pid of the server process that holds the slot.
    pub fn backend_pid(&self) -> i32 {
        self.session.backend_pid
    }
}

impl std::fmt::Debug for ExportedSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExportedSnapshot")
            .field("lsn", &self.lsn)
            .field("snapshot_name", &self.snapshot_name)
            .finish_non_exhaustive()
    }
}

/// Turns a limited wait for the wire client into a result of ours.
fn within<T>(
    waited: Result<pgwire_replication::Result<T>, tokio::time::error::Elapsed>,
    doing: &str,
    limit: Duration,
) -> Result<T> {
    match waited {
        Ok(result) => result.map_err(|error| commands::error(doing, error)),
        Err(_) => Err(Error::Timeout {
            doing: doing.to_owned(),
            seconds: limit.as_secs(),
        }),
    }
}

/// The wire client's configuration. It prints the password in its `Debug`, so it must
/// not leave this function's caller. The client never streams.
fn wire_config(options: &ConnectOptions, application_name: &str, link: &Link) -> ReplicationConfig {
    ReplicationConfig::unix(
        link.socket_directory(),
        options.port,
        &options.user,
        options.password.expose_secret(),
        &options.database,
        String::new(),
        Vec::<String>::new(),
    )
    .with_options(pinned_options())
    .with_application_name(application_name)
}
