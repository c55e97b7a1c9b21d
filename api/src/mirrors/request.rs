//! The body of POST /v1/mirrors, read into plain values. Pure: no server is asked.

use bunny_catalog::{
    ApplyMode, MirrorConfig, NewMirrorTable, OnExistingRows, OnTableError, ResyncStrategy,
    SchemaChanges, TableTopics, UntrackedChanges, check_name,
};
use bunny_postgres::TableName;

use super::attach::AttachRequest;
use crate::refusal::Result;
use crate::request::Fields;

/// Longest identifier of Postgres in bytes (`NAMEDATALEN` - 1). Longer ones are cut by the server, so
/// that two of them could become one.
pub(crate) const IDENTIFIER_BYTES_MAX: usize = 63;
/// Most tables in one mirror.
const TABLES_MAX: usize = 10_000;

/// The words of `apply_mode`.
pub(super) const APPLY_MODES: [(&str, ApplyMode); 2] = [
    ("eager", ApplyMode::Eager),
    ("interval", ApplyMode::Interval),
];
/// The words of `resync_strategy`.
pub(super) const RESYNC_STRATEGIES: [(&str, ResyncStrategy); 2] = [
    ("truncate", ResyncStrategy::Truncate),
    ("swap", ResyncStrategy::Swap),
];
/// The words of `on_table_error`.
pub(super) const ON_TABLE_ERROR: [(&str, OnTableError); 2] = [
    ("quarantine", OnTableError::Quarantine),
    ("stop", OnTableError::Stop),
];

/// A mirror as it is asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CreateRequest {
    pub(crate) name: String,
    /// It is to be fed by another mirror's capture.
    pub(crate) attach: Option<AttachRequest>,
    /// The owner's, if it is to be fed by another.
    pub(crate) source_peer: String,
    pub(crate) destination_peer: String,
    pub(crate) config: MirrorConfig,
    pub(crate) tables: Vec<NewMirrorTable>,
    pub(crate) replication_slot_name: Option<String>,
    pub(crate) publication_name: Option<String>,
    /// Go on with what is left of a mirror of this name that another catalog had.
    pub(crate) adopt: bool,
    /// Only validate.
    pub(crate) dry_run: bool,
}

impl CreateRequest {
    /// Reads the body.
    ///
    /// # Errors
    /// 400 that names every bad field.
    pub(crate) fn read(mut fields: Fields) -> Result<Self> {
        let name = fields.required_text("name");
        if !name.is_empty()
            && let Err(why) = check_name("name", &name)
        {
            fields.sentence(why);
        }
        let attach = AttachRequest::read(&mut fields);
        let source_peer = match &attach {
            Some(_) => fields.text("source_peer").unwrap_or_default(),
            None => fields.text_unless("source_peer", "source_mirror"),
        };
        let destination_peer = fields.required_text("destination_peer");
        let config = config(&mut fields);
        for problem in config.problems() {
            fields.sentence(problem);
        }
        let tables = mappings(&mut fields);
        if let Some(attach) = &attach {
            attach.check(&mut fields, config.do_initial_snapshot, &tables);
        }
        let replication_slot_name = fields.text("replication_slot_name");
        if let Some(slot) = &replication_slot_name
            && !is_slot_name(slot)
        {
            fields.problem(
                "replication_slot_name",
                "must be 1 to 63 lower case letters, digits and \"_\"",
            );
        }
        let publication_name = fields.text("publication_name");
        if let Some(publication) = &publication_name
            && !is_identifier(publication)
        {
            fields.problem("publication_name", "must be 1 to 63 bytes");
        }
        let adopt = fields.boolean("adopt", false);
        let dry_run = fields.boolean("dry_run", false);
        fields.finish()?;
        Ok(Self {
            name,
            attach,
            source_peer,
            destination_peer,
            config,
            tables,
            replication_slot_name,
            publication_name,
            adopt,
            dry_run,
        })
    }
}

/// What is accepted and stored but has no effect yet, a sentence each for the mirror's log.
pub(crate) fn without_effect_yet(config: &MirrorConfig) -> Vec<String> {
    let mut sentences = Vec::new();
    let mut say = |concerns: bool, sentence: &str| {
        if concerns {
            sentences.push(sentence.to_owned());
        }
    };
    say(
        !config.do_initial_snapshot && (config.replicate_indexes || config.replicate_foreign_keys),
        "do_initial_snapshot is false: tables are created from their first events, with their keys only; indexes, foreign keys and other objects must be created at the destination by hand",
    );
    sentences
}

fn config(fields: &mut Fields) -> MirrorConfig {
    let defaults = MirrorConfig::default();
    // The ranges are `MirrorConfig::problems`' own.
    let any = 0..=u32::MAX;
    MirrorConfig {
        do_initial_snapshot: fields.boolean("do_initial_snapshot", defaults.do_initial_snapshot),
        snapshot_num_rows_per_partition: fields
            .integer("snapshot_num_rows_per_partition", 0..=u64::MAX)
            .unwrap_or(defaults.snapshot_num_rows_per_partition),
        snapshot_max_parallel_workers: fields.small(
            "snapshot_max_parallel_workers",
            any.clone(),
            defaults.snapshot_max_parallel_workers,
        ),
        snapshot_num_tables_in_parallel: fields.small(
            "snapshot_num_tables_in_parallel",
            any.clone(),
            defaults.snapshot_num_tables_in_parallel,
        ),
        max_batch_size: fields.small("max_batch_size", any.clone(), defaults.max_batch_size),
        idle_timeout_seconds: fields.small(
            "idle_timeout_seconds",
            any.clone(),
            defaults.idle_timeout_seconds,
        ),
        apply_mode: fields
            .choice("apply_mode", &APPLY_MODES)
            .unwrap_or(defaults.apply_mode),
        replicate_indexes: fields.boolean("replicate_indexes", defaults.replicate_indexes),
        replicate_foreign_keys: fields
            .boolean("replicate_foreign_keys", defaults.replicate_foreign_keys),
        resync_strategy: fields
            .choice("resync_strategy", &RESYNC_STRATEGIES)
            .unwrap_or(defaults.resync_strategy),
        schema_changes: fields
            .choice(
                "schema_changes",
                &[
                    ("additive", SchemaChanges::Additive),
                    ("all", SchemaChanges::All),
                    ("manual", SchemaChanges::Manual),
                ],
            )
            .unwrap_or(defaults.schema_changes),
        on_table_error: fields
            .choice("on_table_error", &ON_TABLE_ERROR)
            .unwrap_or(defaults.on_table_error),
        on_existing_rows: fields
            .choice(
                "on_existing_rows",
                &[
                    ("refuse", OnExistingRows::Refuse),
                    ("truncate", OnExistingRows::Truncate),
                    ("upsert", OnExistingRows::Upsert),
                ],
            )
            .unwrap_or(defaults.on_existing_rows),
        untracked_changes: fields
            .choice(
                "untracked_changes",
                &[
                    ("resync", UntrackedChanges::Resync),
                    ("warn", UntrackedChanges::Warn),
                ],
            )
            .unwrap_or(defaults.untracked_changes),
        create_destination_tables: fields.boolean(
            "create_destination_tables",
            defaults.create_destination_tables,
        ),
        topic_retention_hours: fields.small(
            "topic_retention_hours",
            any,
            defaults.topic_retention_hours,
        ),
        topic_max_bytes: fields.integer("topic_max_bytes", 0..=u64::MAX),
        checkpoint_interval_hours: fields
            .integer("checkpoint_interval_hours", 0..=u64::from(u32::MAX))
            .and_then(|hours| u32::try_from(hours).ok()),
        table_topics: fields
            .choice(
                "table_topics",
                &[
                    ("off", TableTopics::Off),
                    ("debezium", TableTopics::Debezium),
                    ("debezium_avro", TableTopics::DebeziumAvro),
                ],
            )
            .unwrap_or(defaults.table_topics),
    }
}

/// The list `table_mappings`.
pub(crate) fn mappings(fields: &mut Fields) -> Vec<NewMirrorTable> {
    let Some(objects) = fields.objects("table_mappings", true) else {
        if !fields.faulty("table_mappings") {
            fields.problem(
                "table_mappings",
                "is required; give a list of {\"source_table\": \"schema.table\", \"destination_table\": \"schema.table\"}",
            );
        }
        return Vec::new();
    };
    if objects.is_empty() && !fields.faulty("table_mappings") {
        fields.problem("table_mappings", "must hold at least one table");
    }
    if objects.len() > TABLES_MAX {
        fields.problem(
            "table_mappings",
            format!("holds more than {TABLES_MAX} tables; split the mirror"),
        );
    }
    let mut mappings = Vec::with_capacity(objects.len());
    for mut object in objects {
        mappings.push(mapping(&mut object));
        fields.absorb(object);
    }
    mappings
}

fn mapping(object: &mut Fields) -> NewMirrorTable {
    let source = table(object, "source_table", "source_schema");
    let destination = table(object, "destination_table", "destination_schema");
    let partition_key = object.text("partition_key").filter(|key| !key.is_empty());
    let mut exclude_columns = object.texts("exclude_columns");
    let mut seen = std::collections::BTreeSet::new();
    exclude_columns.retain(|column| seen.insert(column.clone()));
    let identity = object
        .choice("identity", &[("refuse", "refuse")])
        .map(str::to_owned);
    NewMirrorTable {
        source,
        destination,
        partition_key,
        exclude_columns,
        identity,
    }
}

/// `"public.users"` in one field, or schema and table in two. Parts are taken verbatim unless quoted.
fn table(object: &mut Fields, table_field: &'static str, schema_field: &'static str) -> TableName {
    let table = object.required_text(table_field);
    let schema = object.text(schema_field);
    let nameless = TableName {
        schema: String::new(),
        name: String::new(),
    };
    if table.is_empty() {
        return nameless;
    }
    let name = match schema {
        Some(schema) => match (part(&schema), part(&table)) {
            (Some(schema), Some(name)) => TableName { schema, name },
            _ => {
                object.problem(
                    schema_field,
                    format!("and {table_field} must each be one name, in double quotes throughout or not at all"),
                );
                return nameless;
            }
        },
        None => match TableName::parse(&table) {
            Ok(name) => name,
            Err(error) => {
                object.problem(table_field, error.to_string());
                return nameless;
            }
        },
    };
    if !is_identifier(&name.schema) || !is_identifier(&name.name) {
        object.problem(
            table_field,
            format!(
                "each part of {name} must be 1 to {IDENTIFIER_BYTES_MAX} bytes, as in Postgres"
            ),
        );
    }
    name
}

/// A table of the mirror, by its source name, in one field that may be missing.
pub(crate) fn table_name(fields: &mut Fields, field: &'static str) -> Option<TableName> {
    let text = fields.text(field)?;
    match TableName::parse(&text) {
        Ok(name) => Some(name),
        Err(error) => {
            fields.problem(field, error.to_string());
            None
        }
    }
}

/// One part of the split form: verbatim, or unquoted if it is quoted.
fn part(text: &str) -> Option<String> {
    let Some(open) = text.strip_prefix('"') else {
        return (!text.is_empty()).then(|| text.to_owned());
    };
    let inner = open.strip_suffix('"')?;
    let without_pairs = inner.replace("\"\"", "");
    (!inner.is_empty() && !without_pairs.contains('"')).then(|| inner.replace("\"\"", "\""))
}

fn is_identifier(name: &str) -> bool {
    (1..=IDENTIFIER_BYTES_MAX).contains(&name.len())
}

fn is_slot_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    is_identifier(name) && name.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;

    use super::*;

    fn read(body: &str) -> Result<CreateRequest> {
        CreateRequest::read(Fields::parse(body.as_bytes()).unwrap())
    }

    /// The request of the published guide, word for word.
    const GUIDE: &str = r#"{
        "name": "prod_to_staging", "source_peer": "source_db", "destination_peer": "dest_db",
        "do_initial_snapshot": true, "max_batch_size": 1000, "idle_timeout_seconds": 60,
        "snapshot_num_rows_per_partition": 250000, "snapshot_max_parallel_workers": 8,
        "snapshot_num_tables_in_parallel": 4, "replicate_indexes": true,
        "replicate_foreign_keys": true, "resync_strategy": "truncate",
        "table_mappings": [
            {"source_table": "public.users", "destination_table": "public.users", "partition_key": "id"},
            {"source_table": "public.orders", "destination_table": "public.orders", "partition_key": "user_id"}
        ]}"#;

    #[test]
    fn the_request_of_the_guide_is_read() {
        let request = read(GUIDE).unwrap();
        assert_eq!(request.config, MirrorConfig::default());
        assert_eq!(request.tables.len(), 2);
        assert_eq!(request.tables[1].source, TableName::new("public", "orders"));
        assert_eq!(request.tables[1].partition_key.as_deref(), Some("user_id"));
        assert!(!request.dry_run);
    }

    #[test]
    fn every_option_of_the_catalog_can_be_given() {
        for name in MirrorConfig::field_names() {
            let body = GUIDE.replacen('{', &format!("{{\"{name}\": null, "), 1);
            let refusal = read(&body).err().map(|refusal| refusal.message);
            assert_eq!(refusal, None, "{name}");
        }
    }

    #[test]
    fn the_split_form_and_quoted_names_are_read() {
        let body = r#"{"name": "m", "source_peer": "a", "destination_peer": "b", "table_mappings": [
            {"source_schema": "public", "source_table": "users.old", "destination_table": "\"Odd\".\"a.b\""},
            {"source_schema": "\"S\"\"x\"", "source_table": "\"T\"", "destination_schema": "s", "destination_table": "t"}]}"#;
        let tables = read(body).unwrap().tables;
        assert_eq!(tables[0].source, TableName::new("public", "users.old"));
        assert_eq!(tables[0].destination, TableName::new("Odd", "a.b"));
        assert_eq!(tables[1].source, TableName::new("S\"x", "T"));
        assert_eq!(tables[1].destination, TableName::new("s", "t"));
    }

    #[test]
    fn every_bad_field_is_named() {
        let body = r#"{"name": "no spaces", "destination_peer": 3, "max_batch_size": 0,
            "apply_mode": "lazy", "do_initial_snapshott": true, "replication_slot_name": "Upper",
            "table_mappings": [{"source_table": "users", "exclude": []}]}"#;
        let refusal = read(body).unwrap_err();
        assert_eq!(refusal.status, StatusCode::BAD_REQUEST);
        for expected in [
            "no spaces",
            "source_peer: is required",
            "destination_peer: is a number",
            "max_batch_size",
            "apply_mode: is \"lazy\"",
            "do_initial_snapshott: is not a known field",
            "replication_slot_name",
            "table_mappings[0].source_table: ",
            "table_mappings[0].destination_table: is required",
            "table_mappings[0].exclude: is not a known field",
        ] {
            assert!(
                refusal.message.contains(expected),
                "{expected:?} missing in {:?}",
                refusal.message
            );
        }
    }

    #[test]
    fn names_longer_than_postgres_keeps_are_refused() {
        let long = "t".repeat(64);
        let body = GUIDE.replace("public.users", &format!("public.{long}"));
        assert!(read(&body).unwrap_err().message.contains("63 bytes"));
    }

    #[test]
    fn options_without_effect_are_listed() {
        let config = MirrorConfig {
            do_initial_snapshot: false,
            ..MirrorConfig::default()
        };
        let sentences = without_effect_yet(&config).join("\n");
        assert!(sentences.contains("foreign keys"));
        let sentences = without_effect_yet(&MirrorConfig::default()).join("\n");
        assert!(!sentences.contains("foreign keys"));
    }
}
