//! Tables synced anew because rows of theirs changed outside the stream.

use bunny_postgres::TableName;
use serde_json::json;
use sqlx::Row as _;
use sqlx::types::Json;
use uuid::Uuid;

use crate::logs::{self, LogLevel};
use crate::mirrors::{self, Mirror, MirrorTable, ResyncStrategy, notify};
use crate::replay::REPLAY;
use crate::schema_sync::SYNC_SCHEMA;
use crate::tables::{AwaitedTable, RESYNC, TABLES};
use crate::{Catalog, Error, Result, commands};

/// Who such a sync is asked for by: the option that says so.
const REQUESTED_BY: &str = "untracked_changes";

/// A table whose rows changed outside the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UntrackedChange {
    /// At the source.
    pub table: TableName,
    /// The sync that was wanted of it when it was noticed.
    pub request_id: Option<Uuid>,
    /// How its rows are to be replaced.
    pub strategy: ResyncStrategy,
    /// What happened, a sentence for the mirror's log.
    pub reason: String,
}

/// A sync that brought over what had changed outside the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cure {
    /// At the source.
    pub table: TableName,
    /// The sync's.
    pub request_id: Uuid,
    /// What happened, a sentence.
    pub reason: String,
}

impl Catalog {
    /// The syncs that changes outside the stream have led to, of those who read the topics that a
    /// mirror reads: of itself, and of whoever captures for it.
    pub async fn cures(&self, mirror: &Mirror) -> Result<Vec<Cure>> {
        let owner = mirror.owner.as_ref().map_or(mirror.id, |owner| owner.id);
        let failed = |error| Error::database("reading what changed outside the stream", error);
        let rows = sqlx::query(
            "SELECT args -> 'awaited' AS awaited, args ->> 'reason' AS reason FROM bunny.commands
             WHERE mirror_id IN ($1, $2) AND kind = $3 AND requested_by = $4 ORDER BY created_at, id",
        )
        .bind(mirror.id)
        .bind(owner)
        .bind(RESYNC)
        .bind(REQUESTED_BY)
        .fetch_all(self.pool())
        .await
        .map_err(failed)?;
        let mut cures: Vec<Cure> = Vec::new();
        for row in rows {
            let awaited: Json<Vec<AwaitedTable>> = row.try_get("awaited").map_err(failed)?;
            let reason: String = row.try_get("reason").map_err(failed)?;
            for AwaitedTable { table, request_id } in awaited.0 {
                let Some(request_id) = request_id else {
                    continue;
                };
                // Those who share a sync have a command each.
                if cures.iter().all(|known| known.request_id != request_id) {
                    let reason = reason.clone();
                    cures.push(Cure {
                        table,
                        request_id,
                        reason,
                    });
                }
            }
        }
        Ok(cures)
    }

    /// Asks for a new sync of each table, under a `resync` command of its own, and says why
    /// in the mirror's log, all in one transaction. Returns the tables that will be synced
    /// anew; the others have a command under way that has to end first. A table of which
    /// something newer is wanted already is left at that.
    pub async fn resync_untracked(
        &self,
        name: &str,
        generation: Uuid,
        changes: &[UntrackedChange],
    ) -> Result<Vec<TableName>> {
        let failed = |error| Error::database("asking for a sync of changed tables", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_living(&mut transaction, name).await?;
        let mut asked = Vec::new();
        let mut is_asked_now = false;
        let mut busy: Vec<AwaitedTable> = Vec::new();
        let mut is_held = false;
        for open in commands::open(&mut *transaction, mirror.id).await? {
            match &*open.kind {
                TABLES | RESYNC | REPLAY => busy.extend(AwaitedTable::of(&open)),
                // It works on the tables as they are.
                SYNC_SCHEMA => is_held = true,
                _ => {}
            }
        }
        for change in changes {
            let mut tables = mirror.tables.iter();
            let Some(present) = tables.find(|present| present.source == change.table) else {
                asked.push(change.table.clone());
                continue;
            };
            if mirror.generation != generation || present.request_id != change.request_id {
                asked.push(change.table.clone());
                continue;
            }
            if is_held || busy.iter().any(|busy| busy.table == change.table) {
                continue;
            }
            let wanted = MirrorTable {
                request_id: Some(Uuid::new_v4()),
                beside: change.strategy == ResyncStrategy::Swap,
                ..present.clone()
            };
            mirrors::set_request(&mut transaction, mirror.id, &wanted).await?;
            let awaited = [AwaitedTable {
                table: wanted.source.clone(),
                request_id: wanted.request_id,
            }];
            // Whoever is fed by the same capture has missed the same change.
            let (table, request_id) = (&wanted.source, wanted.request_id.unwrap_or_default());
            let mut concerned =
                mirrors::share_request(&mut transaction, mirror.id, table, request_id, true)
                    .await?;
            for (attached, _) in &concerned {
                mirrors::raise_version(&mut transaction, *attached).await?;
            }
            concerned.push((mirror.id, mirror.name.clone()));
            let args = json!({
                "table_name": change.table.to_string(), "strategy": change.strategy,
                "awaited": awaited, "reason": change.reason,
            });
            let message = format!("{}; it is synced again", change.reason);
            for (id, name) in concerned {
                commands::insert(&mut transaction, id, &name, RESYNC, &args, REQUESTED_BY).await?;
                let details = json!({ "table": change.table.to_string() });
                logs::insert(&mut transaction, id, LogLevel::Warn, &message, details).await?;
            }
            asked.push(change.table.clone());
            is_asked_now = true;
        }
        if is_asked_now {
            mirrors::raise_version(&mut transaction, mirror.id).await?;
            notify(&mut transaction).await?;
        }
        transaction.commit().await.map_err(failed)?;
        Ok(asked)
    }
}
