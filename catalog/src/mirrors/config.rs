//! A mirror's options, with the defaults of the REST contract.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// When apply flushes a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApplyMode {
    /// When the batch is full or the log has nothing more to give.
    #[default]
    Eager,
    /// When the batch is full or `idle_timeout_seconds` after its first change.
    Interval,
}

/// What to do with rows that a destination table holds before its first load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnExistingRows {
    /// Refuse to create the mirror.
    #[default]
    Refuse,
    /// Empty the table first.
    Truncate,
    /// Keep them; rows of the source overwrite rows of the same key.
    Upsert,
}

/// What an incurable error in one table does to its mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnTableError {
    /// The table is set aside (ERRORED), the rest flows.
    #[default]
    Quarantine,
    /// The mirror fails.
    Stop,
}

/// How far changes of the source's table definitions are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SchemaChanges {
    /// New columns are added.
    #[default]
    Additive,
    /// Columns are added, dropped, renamed and retyped.
    All,
    /// Nothing is changed by itself.
    Manual,
}

/// What happens after a change that the stream does not carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UntrackedChanges {
    /// The table is synced again.
    #[default]
    Resync,
    /// It is only said.
    Warn,
}

/// Topics of single tables, beside the change topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TableTopics {
    /// None.
    #[default]
    Off,
    /// One for each table, with the records that Debezium would write, as JSON with schemas.
    Debezium,
    /// The same records as Avro, their schemas in the registry.
    DebeziumAvro,
}

/// How a table is rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResyncStrategy {
    /// Empty the table, then load it.
    #[default]
    Truncate,
    /// Load a second table, then swap the two.
    Swap,
}

/// Every option of a mirror. As JSON: an object in which each field may be
/// left out (its default counts) and an unknown field is refused by name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorConfig {
    /// Copy the rows that are there before following changes.
    pub do_initial_snapshot: bool,
    /// Rows in one chunk of a snapshot.
    pub snapshot_num_rows_per_partition: u64,
    /// Chunks of one table copied at a time.
    pub snapshot_max_parallel_workers: u32,
    /// Tables copied at a time.
    pub snapshot_num_tables_in_parallel: u32,
    /// Changes in one batch of apply.
    pub max_batch_size: u32,
    /// Seconds after its first change at which a batch is flushed
    /// ([`ApplyMode::Interval`]).
    pub idle_timeout_seconds: u32,
    /// When apply flushes.
    pub apply_mode: ApplyMode,
    /// Create the source's indexes at the destination.
    pub replicate_indexes: bool,
    /// Create the source's foreign keys at the destination.
    pub replicate_foreign_keys: bool,
    /// How a resync rebuilds a table.
    pub resync_strategy: ResyncStrategy,
    /// How far source DDL is followed.
    pub schema_changes: SchemaChanges,
    /// What an incurable table error does.
    pub on_table_error: OnTableError,
    /// What to do with rows already at the destination.
    pub on_existing_rows: OnExistingRows,
    /// What a change outside the stream leads to.
    pub untracked_changes: UntrackedChanges,
    /// Create destination tables that are missing.
    pub create_destination_tables: bool,
    /// Hours for which applied changes stay in the topics.
    pub topic_retention_hours: u32,
    /// Bytes the change topic may hold; unlimited if absent.
    pub topic_max_bytes: Option<u64>,
    /// Hours between checkpoints; none if absent.
    pub checkpoint_interval_hours: Option<u32>,
    /// Topics of single tables.
    pub table_topics: TableTopics,
}

impl Default for MirrorConfig {
    fn default() -> Self {
        MirrorConfig {
            do_initial_snapshot: true,
            snapshot_num_rows_per_partition: 250_000,
            snapshot_max_parallel_workers: 8,
            snapshot_num_tables_in_parallel: 4,
            max_batch_size: 1_000,
            idle_timeout_seconds: 60,
            apply_mode: ApplyMode::default(),
            replicate_indexes: true,
            replicate_foreign_keys: true,
            resync_strategy: ResyncStrategy::default(),
            schema_changes: SchemaChanges::default(),
            on_table_error: OnTableError::default(),
            on_existing_rows: OnExistingRows::default(),
            untracked_changes: UntrackedChanges::default(),
            create_destination_tables: true,
            topic_retention_hours: 168,
            topic_max_bytes: None,
            checkpoint_interval_hours: None,
            table_topics: TableTopics::default(),
        }
    }
}

impl MirrorConfig {
    /// The names of all options, so that a request object can be split into
    /// options and the rest without losing the refusal of unknown fields.
    pub fn field_names() -> Vec<String> {
        match serde_json::to_value(MirrorConfig::default()) {
            Ok(Value::Object(fields)) => fields.keys().cloned().collect(),
            _ => Vec::new(),
        }
    }

    /// Reads what the catalog holds. Options of a newer release are passed over:
    /// while one process after another is upgraded, the older ones go on.
    pub(crate) fn from_stored(mut stored: Value) -> serde_json::Result<MirrorConfig> {
        let known = MirrorConfig::field_names();
        if let Value::Object(fields) = &mut stored {
            fields.retain(|name, _| known.contains(name));
        }
        serde_json::from_value(stored)
    }

    /// Every option whose value is out of range, one sentence each, naming it.
    pub fn problems(&self) -> Vec<String> {
        let ranges: [(&str, u64, u64, u64); 7] = [
            (
                "snapshot_num_rows_per_partition",
                self.snapshot_num_rows_per_partition,
                1,
                1_000_000_000,
            ),
            (
                "snapshot_max_parallel_workers",
                self.snapshot_max_parallel_workers.into(),
                1,
                64,
            ),
            (
                "snapshot_num_tables_in_parallel",
                self.snapshot_num_tables_in_parallel.into(),
                1,
                64,
            ),
            ("max_batch_size", self.max_batch_size.into(), 1, 1_000_000),
            (
                "idle_timeout_seconds",
                self.idle_timeout_seconds.into(),
                1,
                86_400,
            ),
            (
                "topic_retention_hours",
                self.topic_retention_hours.into(),
                // None: what is applied is not kept.
                0,
                24 * 366 * 10,
            ),
            (
                "checkpoint_interval_hours",
                self.checkpoint_interval_hours.unwrap_or(1).into(),
                1,
                24 * 366,
            ),
        ];
        let mut problems: Vec<String> = ranges
            .iter()
            .filter(|(_, value, low, high)| value < low || value > high)
            .map(|(name, value, low, high)| {
                format!("{name} must be between {low} and {high}, not {value}")
            })
            .collect();
        // Below this a single event of the largest size might not fit.
        let topic_bytes_min: u64 = 256 * 1024 * 1024;
        if let Some(bytes) = self.topic_max_bytes
            && bytes < topic_bytes_min
        {
            problems.push(format!(
                "topic_max_bytes must be at least {topic_bytes_min}, not {bytes}"
            ));
        }
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_object_is_the_documented_defaults() {
        let config: MirrorConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config, MirrorConfig::default());
        assert!(config.problems().is_empty());
        assert_eq!(config.snapshot_num_rows_per_partition, 250_000);
        assert_eq!(config.max_batch_size, 1_000);
        assert_eq!(config.idle_timeout_seconds, 60);
    }

    #[test]
    fn an_unknown_option_is_refused_by_name() {
        let error = serde_json::from_str::<MirrorConfig>(r#"{"max_batchsize": 5}"#).unwrap_err();
        assert!(error.to_string().contains("max_batchsize"), "{error}");
    }

    #[test]
    fn an_enum_value_is_refused_with_the_choices() {
        let error = serde_json::from_str::<MirrorConfig>(r#"{"apply_mode": "lazy"}"#).unwrap_err();
        assert!(error.to_string().contains("interval"), "{error}");
    }

    #[test]
    fn every_option_out_of_range_is_named() {
        let config = MirrorConfig {
            max_batch_size: 0,
            snapshot_max_parallel_workers: 1_000,
            topic_max_bytes: Some(1),
            checkpoint_interval_hours: Some(0),
            ..MirrorConfig::default()
        };
        let problems = config.problems().join("\n");
        for name in [
            "max_batch_size",
            "snapshot_max_parallel_workers",
            "topic_max_bytes",
            "checkpoint_interval_hours",
        ] {
            assert!(problems.contains(name), "{name} in {problems}");
        }
    }

    #[test]
    fn a_stored_option_of_a_newer_release_is_passed_over() {
        let stored = serde_json::json!({"max_batch_size": 5, "from_the_future": true});
        assert_eq!(MirrorConfig::from_stored(stored).unwrap().max_batch_size, 5);
    }

    #[test]
    fn field_names_hold_the_optional_ones_too() {
        let names = MirrorConfig::field_names();
        assert!(names.iter().any(|name| name == "topic_max_bytes"));
        assert_eq!(names.len(), 19);
    }
}
