//! Replays: tables rebuilt from the topics, without their source.
//!
//! A wish is a row of `bunny.mirror_tables`: `replay` names a retained sync and a request of
//! its own, under which the destination loads that sync again. Capture has no part in it and
//! is not started anew: for it `request_id` stays what it was. The command only shows how it
//! goes; apply ends it when every table of it has settled.

use bunny_postgres::{Lsn, TableName};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sqlx::PgConnection;
use sqlx::types::Json;
use uuid::Uuid;

use crate::commands::{self, Command};
use crate::logs::{self, LogLevel};
use crate::mirrors::{Desired, Mirror, MirrorTable, PauseScope, ResyncStrategy, notify};
use crate::schema_sync::{SYNC_SCHEMA, under_way};
use crate::tables::{AwaitedTable, RESYNC, TABLES};
use crate::{Catalog, Error, Result, last_wish, pausing};

/// The command of tables rebuilt from the topics.
pub const REPLAY: &str = "replay";

/// Among a replay's arguments: whether a paused mirror runs for it.
pub(crate) const WAKES: &str = "wakes";

/// Up to where a replay goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// Every transaction whose commit LSN is smaller.
    Lsn(Lsn),
    /// Every transaction before the first that committed later than this.
    Timestamp(DateTime<Utc>),
}

impl Until {
    /// As people read it, within a sentence.
    pub(crate) fn in_words(&self) -> String {
        match self {
            Until::Lsn(lsn) => format!("before LSN {lsn}"),
            Until::Timestamp(time) => format!(
                "at {}",
                time.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true)
            ),
        }
    }
}

/// A retained sync, as the position topic records it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetainedSync {
    /// The request under which capture published it.
    pub sync: Uuid,
    /// The attempt of it that finished.
    pub attempt: i32,
    /// L: it holds exactly what committed before.
    pub lsn: Lsn,
    /// From this offset of the change topic on, all changes since L are found.
    pub changes_offset: i64,
    /// Rows of all its chunks.
    pub rows: i64,
    /// Bytes of COPY text of all its chunks.
    pub bytes: i64,
}

/// What a mapping asks for: this sync is to be loaded again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Replay {
    /// Names this replay, as a sync's request names that.
    pub request_id: Uuid,
    /// What is loaded.
    #[serde(flatten)]
    pub of: RetainedSync,
    /// Where the table stands still afterwards; none: it goes on with the others.
    #[serde(default)]
    pub until: Option<Until>,
    /// It is loaded beside the table, which keeps its rows until they are exchanged.
    #[serde(default)]
    pub beside: bool,
    /// The replay by which the table has what it has; it is what is wanted if this one is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub former: Option<Box<Replay>>,
}

impl Replay {
    /// What a table's next replay remembers of this one, none before which matters any more. Pure.
    fn as_former(&self) -> Box<Replay> {
        Box::new(Replay {
            former: None,
            ..self.clone()
        })
    }
}

/// A replay as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewReplay {
    /// The tables that were named; none means all.
    pub named: Option<Vec<TableName>>,
    /// Every table concerned: the request it had when this was found, and what to load.
    pub tables: Vec<(TableName, Option<Uuid>, RetainedSync)>,
    /// How the tables are rebuilt.
    pub strategy: ResyncStrategy,
    /// Where they stand still afterwards.
    pub until: Option<Until>,
}

impl NewReplay {
    fn args(&self) -> Value {
        let names = |names: &Vec<TableName>| names.iter().map(TableName::to_string).collect();
        let named: Option<Vec<String>> = self.named.as_ref().map(names);
        json!({ "tables": named, "strategy": self.strategy, "until": self.until })
    }
}

impl Catalog {
    /// Asks for tables to be rebuilt; returns the `replay` command, which ends when they are
    /// LIVE, stand where they are to, or have failed. Asked again while the same is under way,
    /// the same command. [`Error::Conflict`] while another command loads one of the tables, or
    /// if one's mapping or sync has changed since it was looked at.
    pub async fn request_replay(
        &self,
        name: &str,
        replay: &NewReplay,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("asking for a replay", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        if mirror.desired == Desired::Paused && mirror.pause_scope == PauseScope::All {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is PAUSED as a whole, capture included: resume it first"
            )));
        }
        // Nobody acts for this catalog, so the wish would wait for what never comes.
        if last_wish::has_unknown(&mut transaction, mirror.id).await? {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" was asked for something that this catalog, restored from an older backup, does not know: nothing is rebuilt before it is decided what goes on. Its error message names the ways"
            )));
        }
        let mut args = replay.args();
        args[WAKES] = json!(replay.until.is_some() && mirror.desired == Desired::Paused);
        for open in commands::open(&mut *transaction, mirror.id).await? {
            if open.kind == SYNC_SCHEMA {
                return Err(under_way(name, &open));
            }
            if ![RESYNC, TABLES, REPLAY].contains(&&*open.kind) {
                continue;
            }
            let same = |what: &str| open.args[what] == args[what];
            if open.kind == REPLAY && ["tables", "strategy", "until"].into_iter().all(same) {
                return Ok(open.id);
            }
            let loading = AwaitedTable::of(&open);
            let is_meant =
                |table: &TableName| replay.tables.iter().any(|(meant, ..)| meant == table);
            if let Some(both) = loading.iter().find(|awaited| is_meant(&awaited.table)) {
                return Err(Error::conflict(format!(
                    "table {} is being loaded already by the {} command {}: wait for it to end",
                    both.table, open.kind, open.id
                )));
            }
        }
        let mut awaited = Vec::new();
        for (table, seen_request, of) in &replay.tables {
            let mut mapped = mirror.tables.iter();
            let is_as_seen = |mapped: &&MirrorTable| {
                mapped.source == *table && mapped.wanted_request() == *seen_request
            };
            let mapped = mapped.find(is_as_seen).ok_or_else(|| {
                Error::conflict(format!(
                    "what is wanted of table {table} has changed meanwhile; ask again"
                ))
            })?;
            let wish = Replay {
                request_id: Uuid::new_v4(),
                of: of.clone(),
                until: replay.until,
                beside: replay.strategy == ResyncStrategy::Swap,
                former: mapped.replay.as_ref().map(Replay::as_former),
            };
            set_replay(&mut transaction, mirror.id, table, &wish).await?;
            awaited.push(AwaitedTable {
                table: table.clone(),
                request_id: Some(wish.request_id),
            });
        }
        args["awaited"] = json!(awaited);
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            REPLAY,
            &args,
            requested_by,
        )
        .await?;
        wake_apply(&mut transaction, &mirror, replay).await?;
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }

    /// Replays that cannot be had after all, each with what is wrong: of their commands, which
    /// fail, nothing is done that is among `not_begun`. What was wanted before is wanted again,
    /// and apply begins anew with it; a mirror that was woken for nothing else is paused again.
    /// Doing so twice is nothing.
    pub async fn refuse_replays(
        &self,
        mirror: &Mirror,
        refused: &[(Uuid, String)],
        not_begun: &[Uuid],
    ) -> Result<()> {
        let failed = |error| Error::database("refusing a replay", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_mirror(&mut transaction, &mirror.name).await?;
        let mut withdrawn: Vec<Uuid> = refused.iter().map(|(request, _)| *request).collect();
        let (mut pauses, mut goes_to_a_moment) = (None, false);
        for command in commands::open(&mut *transaction, mirror.id).await? {
            let awaited = AwaitedTable::of(&command);
            let requests: Vec<Uuid> = awaited.iter().filter_map(|one| one.request_id).collect();
            let of_it = refused.iter().filter(|(of, _)| requests.contains(of));
            let reasons: Vec<&str> = of_it.map(|(_, why)| why.as_str()).collect();
            if command.kind != REPLAY || reasons.is_empty() {
                goes_to_a_moment |= command.kind == REPLAY && command.args["until"].is_object();
                continue;
            }
            let (waiting, begun): (Vec<Uuid>, Vec<Uuid>) = requests
                .into_iter()
                .partition(|request| not_begun.contains(request));
            withdrawn.extend(waiting);
            if begun.is_empty() && command.args[WAKES] == json!(true) {
                pauses = Some(command.requested_by.clone());
            }
            sqlx::query(
                "UPDATE bunny.commands
                 SET state = 'failed', error = $2,
                     updated_at = clock_timestamp(), finished_at = clock_timestamp()
                 WHERE id = $1",
            )
            .bind(command.id)
            .bind(reasons.join("; "))
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
        }
        sqlx::query(
            "UPDATE bunny.mirror_tables SET replay = replay -> 'former'
             WHERE mirror_id = $1 AND (replay ->> 'request_id')::uuid = ANY ($2)",
        )
        .bind(mirror.id)
        .bind(&withdrawn)
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        match pauses.filter(|_| mirror.desired == Desired::Running) {
            Some(by) => pausing::pause_apply(&mut transaction, &mirror, &by).await?,
            None => {
                // What stood at a moment was to go on by another replay when the mirror was resumed.
                if mirror.desired == Desired::Running && !goes_to_a_moment {
                    let_go_on(&mut transaction, mirror.id).await?;
                }
                begin_anew(&mut transaction, &mirror, mirror.desired).await?;
            }
        }
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }
}

impl Catalog {
    /// The tables of these replays stand where they are to: the mirror is paused there, and
    /// the command ends, well unless one of its tables has failed. Doing so twice is nothing.
    pub async fn end_replay_until(&self, mirror_id: Uuid, requests: &[Uuid]) -> Result<()> {
        let failed = |error| Error::database("ending a replay", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mut open = commands::open(&mut *transaction, mirror_id).await?;
        open.retain(|command| command.kind == REPLAY && command.args["until"].is_object());
        for command in open {
            let awaited = AwaitedTable::of(&command);
            let is_there = |awaited: &&AwaitedTable| {
                awaited.request_id.is_some_and(|id| requests.contains(&id))
            };
            if !awaited.iter().any(|awaited| is_there(&awaited)) {
                continue;
            }
            let absent = awaited.iter().filter(|awaited| !is_there(awaited));
            let absent: Vec<String> = absent.map(|awaited| awaited.table.to_string()).collect();
            let ended = sqlx::query(
                "UPDATE bunny.commands
                 SET state = CASE WHEN $2 = '' THEN 'done' ELSE 'failed' END, error = nullif($2, ''),
                     updated_at = clock_timestamp(), finished_at = clock_timestamp()
                 WHERE id = $1 AND state IN ('pending', 'running')",
            )
            .bind(command.id)
            .bind(match absent.is_empty() {
                true => String::new(),
                false => format!(
                    "not rebuilt: {}; the others stand where they were to, and the mirror is paused",
                    absent.join(", ")
                ),
            })
            .execute(&mut *transaction)
            .await
            .map_err(failed)?;
            let mirror = self
                .lock_mirror(&mut transaction, &command.mirror_name)
                .await?;
            if ended.rows_affected() == 1 && absent.is_empty() {
                log_end(&mut transaction, &command, mirror_id).await?;
            }
            if ended.rows_affected() == 1 && mirror.desired == Desired::Running {
                pausing::pause_apply(&mut transaction, &mirror, &command.requested_by).await?;
            }
        }
        notify(&mut transaction).await?;
        transaction.commit().await.map_err(failed)
    }
}

/// Says in the mirror's log where a replay has ended.
async fn log_end(connection: &mut PgConnection, command: &Command, mirror_id: Uuid) -> Result<()> {
    let until: Until = serde_json::from_value(command.args["until"].clone())
        .map_err(|error| Error::internal("reading where a replay ends", error))?;
    let message = format!(
        "the replay has reached its end, {}: the mirror is paused there, and goes on when it is resumed",
        until.in_words()
    );
    let details = json!({ "command_id": command.id, "until": until });
    logs::insert(connection, mirror_id, LogLevel::Info, &message, details).await
}

/// What stood still goes on when the mirror does; not what is still on its way there. The log from
/// the copy on leads to the present only if no sync was asked for since: a sync may have brought over
/// what no event carries, and then its copy is loaded again. A table that never was to be copied has
/// the log alone to follow.
pub(crate) async fn let_go_on(connection: &mut PgConnection, mirror_id: Uuid) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirror_tables t
         SET replay = CASE WHEN standing.is_behind THEN NULL ELSE t.replay - 'until' END,
             beside = t.beside AND NOT standing.is_behind
         FROM (
             SELECT s.source_schema, s.source_table,
                 s.request_id IS NOT NULL
                     AND s.request_id::text IS DISTINCT FROM s.replay ->> 'sync' AND EXISTS (
                     SELECT FROM bunny.commands later
                     WHERE later.args -> 'awaited' @> jsonb_build_array(
                               jsonb_build_object('request_id', s.request_id))
                       AND NOT EXISTS (
                           SELECT FROM bunny.commands of_copy
                           WHERE of_copy.created_at > later.created_at
                             AND of_copy.args -> 'awaited' @> jsonb_build_array(
                                     jsonb_build_object('request_id', s.replay ->> 'sync')))) AS is_behind
             FROM bunny.mirror_tables s WHERE s.mirror_id = $1) AS standing
         WHERE t.mirror_id = $1 AND t.replay ? 'until'
           AND standing.source_schema = t.source_schema AND standing.source_table = t.source_table
           AND NOT EXISTS (
             SELECT FROM bunny.commands c
             WHERE c.mirror_id = $1 AND c.kind = 'replay' AND c.state IN ('pending', 'running')
               AND c.args -> 'awaited' @> jsonb_build_array(
                       jsonb_build_object('request_id', t.replay ->> 'request_id')))",
    )
    .bind(mirror_id)
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("letting tables go on", error))
}

async fn set_replay(
    connection: &mut PgConnection,
    mirror_id: Uuid,
    table: &TableName,
    wish: &Replay,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirror_tables SET replay = $4
         WHERE mirror_id = $1 AND source_schema = $2 AND source_table = $3",
    )
    .bind(mirror_id)
    .bind(&table.schema)
    .bind(&table.name)
    .bind(Json(wish))
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("asking for a table's replay", error))
}

/// A replay up to a moment runs also in a paused mirror, and pauses it when it is done.
async fn wake_apply(
    connection: &mut PgConnection,
    mirror: &Mirror,
    replay: &NewReplay,
) -> Result<()> {
    let desired = match replay.until {
        Some(_) => Desired::Running,
        None => mirror.desired,
    };
    begin_anew(connection, mirror, desired).await
}

/// Apply begins anew.
async fn begin_anew(
    connection: &mut PgConnection,
    mirror: &Mirror,
    desired: Desired,
) -> Result<()> {
    sqlx::query(
        "UPDATE bunny.mirrors SET apply_version = apply_version + 1, desired = $2,
             updated_at = clock_timestamp() WHERE id = $1",
    )
    .bind(mirror.id)
    .bind(desired.as_str())
    .execute(connection)
    .await
    .map(|_| ())
    .map_err(|error| Error::database("waking apply", error))
}
