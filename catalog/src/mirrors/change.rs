//! Changing a mirror's options while it runs.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::types::Json;
use uuid::Uuid;

use super::store::notify;
use super::{ApplyMode, Desired, MirrorConfig, OnTableError, ResyncStrategy, refuse_attached};
use crate::leases::Role;
use crate::{Catalog, Error, Result, commands};

/// Options to change; what is `None` stays. Of options that may be absent, `Some(None)`
/// takes them away.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct MirrorChange {
    /// Changes in one batch of apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_batch_size: Option<u32>,
    /// Seconds after its first change at which a batch is flushed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<u32>,
    /// When apply flushes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apply_mode: Option<ApplyMode>,
    /// Rows in one chunk of tables whose copy begins later.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_num_rows_per_partition: Option<u64>,
    /// Chunks of one table copied at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_max_parallel_workers: Option<u32>,
    /// Tables copied at a time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_num_tables_in_parallel: Option<u32>,
    /// How a resync rebuilds a table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resync_strategy: Option<ResyncStrategy>,
    /// What an incurable table error does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_table_error: Option<OnTableError>,
    /// Hours for which applied changes stay in the topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_retention_hours: Option<u32>,
    /// Bytes the change topic may hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub topic_max_bytes: Option<Option<u64>>,
    /// Hours between checkpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_hours: Option<Option<u32>>,
}

impl MirrorChange {
    /// Whether it names what only capture goes by. Pure.
    fn concerns_capture(&self) -> bool {
        self.snapshot_num_rows_per_partition.is_some()
            || self.snapshot_num_tables_in_parallel.is_some()
            || self.topic_max_bytes.is_some()
            || self.checkpoint_interval_hours.is_some()
    }

    /// The options as they are afterwards. Pure.
    pub fn applied_to(&self, config: &MirrorConfig) -> MirrorConfig {
        MirrorConfig {
            max_batch_size: self.max_batch_size.unwrap_or(config.max_batch_size),
            idle_timeout_seconds: self
                .idle_timeout_seconds
                .unwrap_or(config.idle_timeout_seconds),
            apply_mode: self.apply_mode.unwrap_or(config.apply_mode),
            snapshot_num_rows_per_partition: self
                .snapshot_num_rows_per_partition
                .unwrap_or(config.snapshot_num_rows_per_partition),
            snapshot_max_parallel_workers: self
                .snapshot_max_parallel_workers
                .unwrap_or(config.snapshot_max_parallel_workers),
            snapshot_num_tables_in_parallel: self
                .snapshot_num_tables_in_parallel
                .unwrap_or(config.snapshot_num_tables_in_parallel),
            resync_strategy: self.resync_strategy.unwrap_or(config.resync_strategy),
            on_table_error: self.on_table_error.unwrap_or(config.on_table_error),
            topic_retention_hours: self
                .topic_retention_hours
                .unwrap_or(config.topic_retention_hours),
            topic_max_bytes: self.topic_max_bytes.unwrap_or(config.topic_max_bytes),
            checkpoint_interval_hours: self
                .checkpoint_interval_hours
                .unwrap_or(config.checkpoint_interval_hours),
            ..config.clone()
        }
    }
}

/// Whether apply's task has to begin anew to follow the change. The rest is read by those
/// who need it when they need it.
fn concerns_apply(before: &MirrorConfig, after: &MirrorConfig) -> bool {
    let read_at_start = |config: &MirrorConfig| {
        (
            config.max_batch_size,
            config.idle_timeout_seconds,
            config.apply_mode,
            config.on_table_error,
        )
    };
    read_at_start(before) != read_at_start(after)
}

impl Catalog {
    /// Changes options of a mirror; returns the `update` command, which ends when the worker
    /// concerned, if any, works by them. [`Error::Invalid`] for values out of range;
    /// [`Error::Conflict`] while the mirror is being deleted.
    pub async fn request_update(
        &self,
        name: &str,
        change: &MirrorChange,
        requested_by: &str,
    ) -> Result<Uuid> {
        let failed = |error| Error::database("changing a mirror", error);
        let mut transaction = self.begin().await.map_err(failed)?;
        let mirror = self.lock_mirror(&mut transaction, name).await?;
        if mirror.desired == Desired::Deleted {
            return Err(Error::conflict(format!(
                "mirror \"{name}\" is TERMINATING: it is being deleted and cannot be changed"
            )));
        }
        if change.concerns_capture() {
            let what = "snapshot_num_rows_per_partition, snapshot_num_tables_in_parallel, topic_max_bytes and checkpoint_interval_hours are changed there";
            refuse_attached(&mirror, what)?;
        }
        let config = change.applied_to(&mirror.config);
        let problems = config.problems();
        if !problems.is_empty() {
            return Err(Error::Invalid(problems.join("; ")));
        }
        let restarts_apply = concerns_apply(&mirror.config, &config);
        sqlx::query(
            "UPDATE bunny.mirrors
             SET config = $2, apply_version = apply_version + $3, updated_at = clock_timestamp()
             WHERE id = $1",
        )
        .bind(mirror.id)
        .bind(Json(&config))
        .bind(i64::from(restarts_apply))
        .execute(&mut *transaction)
        .await
        .map_err(failed)?;
        let mut versions = Map::new();
        if restarts_apply {
            let version = mirror.version_of(Role::Apply) + 1;
            versions.insert(Role::Apply.as_str().to_owned(), Value::from(version));
        }
        let args = json!({ "options": change, "versions": versions });
        let command_id = commands::insert(
            &mut transaction,
            mirror.id,
            name,
            "update",
            &args,
            requested_by,
        )
        .await?;
        if !restarts_apply {
            commands::finish(&mut transaction, command_id).await?;
        }
        notify(&mut transaction).await?;
        commands::commit(transaction).await.map_err(failed)?;
        Ok(command_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_named_changes() {
        let before = MirrorConfig {
            topic_max_bytes: Some(1 << 30),
            checkpoint_interval_hours: Some(3),
            ..MirrorConfig::default()
        };
        assert_eq!(MirrorChange::default().applied_to(&before), before);
        let change = MirrorChange {
            max_batch_size: Some(7),
            topic_max_bytes: Some(None),
            ..MirrorChange::default()
        };
        let after = change.applied_to(&before);
        assert_eq!(
            (
                after.max_batch_size,
                after.topic_max_bytes,
                after.checkpoint_interval_hours
            ),
            (7, None, Some(3))
        );
        let named = serde_json::to_value(&change).unwrap();
        assert_eq!(named, json!({"max_batch_size": 7, "topic_max_bytes": null}));
    }

    #[test]
    fn apply_begins_anew_only_for_what_it_read_at_its_start() {
        let before = MirrorConfig::default();
        let after = |change: MirrorChange| change.applied_to(&before);
        let snapshot = MirrorChange {
            snapshot_max_parallel_workers: Some(1),
            topic_retention_hours: Some(1),
            ..MirrorChange::default()
        };
        assert!(!concerns_apply(&before, &after(snapshot)));
        let batch = MirrorChange {
            idle_timeout_seconds: Some(5),
            ..MirrorChange::default()
        };
        assert!(concerns_apply(&before, &after(batch)));
    }
}
