//! Checks of the destination: server, privileges, types, and the tables that are there already.

use std::collections::BTreeSet;

use bunny_catalog::{NewMirrorTable, OnExistingRows};
use bunny_postgres::introspect::{self, Fit, TypeShape};
use bunny_postgres::{ColumnDefinition, TableDefinition, TableName, TableObjects, quote_ident};

use super::facts::{DestinationFacts, ExtensionState, Facts, FoundTable, TableFacts};
use super::source::relation_kind;
use super::{Findings, numeric_scale};
use crate::mirrors::request::CreateRequest;

/// The oldest server that is supported.
const VERSION_NUM_MIN: i32 = 140_000;

/// Without the tables of the mappings that lead `astray`.
pub(super) fn check(
    request: &CreateRequest,
    facts: &Facts,
    astray: &BTreeSet<usize>,
    findings: &mut Findings,
) {
    let destination = &facts.destination;
    server(facts, findings);
    for (index, mapping) in request.tables.iter().enumerate() {
        if astray.contains(&index) {
            continue;
        }
        let source = facts
            .source
            .tables
            .get(index)
            .and_then(|table| table.found.as_ref());
        let definition = source.and_then(|found| found.definition.as_ref());
        let Some(table) = destination.tables.get(index) else {
            continue;
        };
        match &table.found {
            Some(found) => existing_table(request, destination, mapping, found, source, findings),
            None => missing_table(request, destination, mapping, table, definition, findings),
        }
    }
    replica_role(facts, findings);
}

fn server(facts: &Facts, findings: &mut Findings) {
    let destination = &facts.destination;
    let peer = &destination.server.peer;
    let info = &destination.server.info;
    if info.version_num < VERSION_NUM_MIN {
        findings.refuse(
            "destination_version",
            format!(
                "destination peer '{peer}' is PostgreSQL {}; 14 or newer is needed: upgrade it",
                info.version
            ),
        );
    }
    if info.in_recovery {
        findings.refuse(
            "destination_in_recovery",
            format!("destination peer '{peer}' is a standby in recovery and cannot be written; point the peer at the primary"),
        );
    }
    if !destination.may_keep_books {
        findings.refuse(
            "destination_create",
            format!(
                "user \"{0}\" of destination peer '{peer}' may not create the schema _bunny, where progress is kept; run GRANT CREATE ON DATABASE \"{1}\" TO \"{0}\"",
                destination.server.user, destination.server.database
            ),
        );
    }
    let (source_encoding, encoding) = (
        &facts.source.server.info.server_encoding,
        &info.server_encoding,
    );
    if encoding != source_encoding && encoding != "UTF8" {
        findings.warn(format!(
            "the source's encoding is {source_encoding} and the destination's {encoding}: a character that {encoding} lacks will stop its table"
        ));
    }
}

/// A destination table that is there must be able to take every row of its source.
fn existing_table(
    request: &CreateRequest,
    destination: &DestinationFacts,
    mapping: &NewMirrorTable,
    found: &FoundTable,
    source: Option<&FoundTable>,
    findings: &mut Findings,
) {
    let peer = &destination.server.peer;
    let user = &destination.server.user;
    let name = &mapping.destination;
    if let Some(kind) = relation_kind(found.relkind) {
        findings.refuse(
            "destination_kind",
            format!("{name} on destination peer '{peer}' is {kind}; give another destination_table or drop it"),
        );
        return;
    }
    if found.system {
        findings.refuse(
            "destination_kind",
            format!("{name} belongs to the system; give another destination_table"),
        );
        return;
    }
    match found.persistence {
        'u' => findings.refuse(
            "destination_persistence",
            format!("table {name} on destination peer '{peer}' is unlogged and would be empty after a crash while its progress stays; run ALTER TABLE {} SET LOGGED", name.quoted()),
        ),
        't' => findings.refuse(
            "destination_persistence",
            format!("table {name} on destination peer '{peer}' is temporary; give another destination_table"),
        ),
        _ => {}
    }
    if !found.missing_privileges.is_empty() {
        findings.refuse(
            "destination_privileges",
            format!(
                "user \"{user}\" of destination peer '{peer}' lacks {0} on {name}; run GRANT {0} ON {1} TO \"{user}\" (and USAGE on its schema)",
                found.missing_privileges.join(", "),
                name.quoted()
            ),
        );
    }
    if found.row_security {
        findings.refuse(
            "row_security",
            format!("row level security of {name} applies to user \"{user}\" of destination peer '{peer}'; run ALTER ROLE \"{user}\" BYPASSRLS"),
        );
    }
    let of_source = source.and_then(|source| source.definition.as_ref());
    if found.has_rows && request.config.do_initial_snapshot && !request.adopt {
        existing_rows(request, peer, mapping, of_source, findings);
    }
    // Of what a mirror writes already, the log may hold the change that brings both sides together.
    let is_written = request.adopt || found.is_ours;
    if let (Some(definition), Some(target)) = (of_source, &found.definition) {
        shape(mapping, peer, definition, target, findings);
        nullability(mapping, peer, (definition, target), is_written, findings);
    }
    if let Some(source) = source.filter(|_| !is_written) {
        key_collations(mapping, peer, (source, found), findings);
    }
}

/// Rows are there that the copy will meet.
fn existing_rows(
    request: &CreateRequest,
    peer: &str,
    mapping: &NewMirrorTable,
    source: Option<&TableDefinition>,
    findings: &mut Findings,
) {
    let name = &mapping.destination;
    let has_key = source.is_some_and(|source| !source.row_key().is_empty());
    match request.config.on_existing_rows {
        OnExistingRows::Truncate => {}
        OnExistingRows::Upsert if has_key => {}
        OnExistingRows::Upsert => findings.refuse(
            "existing_rows",
            format!("table {name} on destination peer '{peer}' has rows already, and {} has no key by which \"on_existing_rows\": \"upsert\" could tell them apart; empty it, use \"truncate\" (its rows are deleted first), or add a primary key", mapping.source),
        ),
        OnExistingRows::Refuse => findings.refuse(
            "existing_rows",
            format!("table {name} on destination peer '{peer}' has rows already; empty it, or allow that with this line in the request: \"on_existing_rows\": \"truncate\" (its rows are deleted first) or \"upsert\" (rows of the same key are overwritten, others stay; for tables with a key). If they are of a mirror that a lost catalog had, \"adopt\": true goes on with it"),
        ),
    }
}

fn shape(
    mapping: &NewMirrorTable,
    peer: &str,
    source: &TableDefinition,
    destination: &TableDefinition,
    findings: &mut Findings,
) {
    let name = &mapping.destination;
    let excluded = |column: &str| mapping.exclude_columns.iter().any(|name| name == column);
    for column in &source.columns {
        if excluded(&column.name) || column.generated.is_some() {
            continue;
        }
        match destination.column(&column.name) {
            None => findings.refuse(
                "destination_columns",
                format!("table {name} on destination peer '{peer}' has no column \"{0}\", which {1} has; add it, or put \"{0}\" into exclude_columns", column.name, mapping.source),
            ),
            Some(target) if target.generated.is_some() => findings.refuse(
                "destination_columns",
                format!("column \"{0}\" of {name} on destination peer '{peer}' is generated and cannot be written; make it a plain column, or put \"{0}\" into exclude_columns", column.name),
            ),
            Some(target) => match introspect::fit(column, target) {
                Fit::Same => {}
                Fit::Wider => findings.warn(format!(
                    "column \"{}\" of {name} on destination peer '{peer}' is {}, and {} in {}: it takes all values and is used as it is",
                    column.name, target.type_name, column.type_name, mapping.source
                )),
                Fit::Differs => findings.refuse(
                    "destination_columns",
                    format!("column \"{0}\" of {name} on destination peer '{peer}' is {1}, which does not take every value of {2} as {3} has it; change its type, or put \"{0}\" into exclude_columns", column.name, target.type_name, column.type_name, mapping.source),
                ),
            },
        }
    }
    let keyless = destination.primary_key.is_empty() && destination.identity_key.is_empty();
    if keyless && !source.identity_key.is_empty() {
        findings.warn(format!(
            "table {name} on destination peer '{peer}' has no primary key: every update and delete looks through the whole table; add a key over {}",
            source.identity_key.join(", ")
        ));
    }
    for target in &destination.columns {
        let written = source
            .column(&target.name)
            .is_some_and(|column| column.generated.is_none())
            && !excluded(&target.name);
        if written || can_be_left_out(target) {
            continue;
        }
        let why = if excluded(&target.name) {
            "is excluded".to_owned()
        } else {
            format!("does not come from {}", mapping.source)
        };
        findings.refuse(
            "destination_not_null",
            format!("column \"{}\" of {name} on destination peer '{peer}' {why}, and is NOT NULL without a default, so inserts would fail; give it a default or drop its NOT NULL", target.name),
        );
    }
}

/// A NULL of the source must be able to arrive.
fn nullability(
    mapping: &NewMirrorTable,
    peer: &str,
    (source, destination): (&TableDefinition, &TableDefinition),
    is_written: bool,
    findings: &mut Findings,
) {
    let name = &mapping.destination;
    for column in &source.columns {
        let comes = column.generated.is_none() && !mapping.exclude_columns.contains(&column.name);
        let target = destination.column(&column.name);
        let Some(target) = target.filter(|target| target.not_null && comes && !column.not_null)
        else {
            continue;
        };
        // Of keys and identities it cannot be taken away.
        let has_to_be = target.identity.is_some()
            || destination.primary_key.contains(&column.name)
            || destination.identity_key.contains(&column.name);
        if is_written || has_to_be {
            findings.warn(format!(
                "column \"{}\" of {name} on destination peer '{peer}' is NOT NULL, and may be NULL in {}: the first NULL makes the table ERRORED",
                column.name, mapping.source
            ));
        } else {
            findings.refuse(
                "destination_not_null",
                format!("column \"{0}\" of {name} on destination peer '{peer}' is NOT NULL, and may be NULL in {1}; run ALTER TABLE {2} ALTER COLUMN {3} DROP NOT NULL there, or set it NOT NULL at the source", column.name, mapping.source, name.quoted(), quote_ident(&column.name)),
            );
        }
    }
}

/// Keys that differ at the source must differ at the destination, or a change of one row would meet another.
fn key_collations(
    mapping: &NewMirrorTable,
    peer: &str,
    (source, destination): (&FoundTable, &FoundTable),
    findings: &mut Findings,
) {
    let name = &mapping.destination;
    let Some(definition) = &source.definition else {
        return;
    };
    for key in definition.row_key() {
        if destination.nondeterministic_columns.contains(key)
            && !source.nondeterministic_columns.contains(key)
        {
            findings.refuse(
                "destination_collation",
                format!("column \"{key}\" of {name} on destination peer '{peer}' has a collation that takes different texts for equal, and in {0}, whose rows it identifies, it has not: one row would be taken for another; give it the collation that it has in {0}", mapping.source),
            );
        }
    }
}

fn can_be_left_out(column: &ColumnDefinition) -> bool {
    !column.not_null
        || column.default.is_some()
        || column.identity.is_some()
        || column.generated.is_some()
}

/// A destination table that is not there must be possible to create.
fn missing_table(
    request: &CreateRequest,
    destination: &DestinationFacts,
    mapping: &NewMirrorTable,
    table: &TableFacts,
    source: Option<&TableDefinition>,
    findings: &mut Findings,
) {
    let peer = &destination.server.peer;
    let user = &destination.server.user;
    let name = &mapping.destination;
    if !request.config.create_destination_tables {
        findings.refuse(
            "destination_table",
            format!("table {name} does not exist on destination peer '{peer}' and create_destination_tables is false; create it or set that to true"),
        );
        return;
    }
    if name.schema.starts_with("pg_") || name.schema == "information_schema" {
        findings.refuse(
            "destination_kind",
            format!("{name} would lie in a system schema; give another destination_table"),
        );
        return;
    }
    if !table.may_create {
        findings.refuse(
            "destination_create",
            format!(
                "user \"{user}\" of destination peer '{peer}' may not create {name}; run GRANT CREATE on schema \"{}\" (or on database \"{}\" if the schema is still to be created) TO \"{user}\", or create the table yourself",
                name.schema, destination.server.database
            ),
        );
    }
    let Some(source) = source else { return };
    let nothing = TableObjects::default();
    // Without a sync nothing of the definition reaches the destination.
    let objects = source
        .objects
        .as_ref()
        .filter(|_| request.config.do_initial_snapshot)
        .unwrap_or(&nothing);
    extensions(destination, mapping, objects, findings);
    for column in &source.columns {
        let excluded = mapping.exclude_columns.contains(&column.name);
        if !excluded
            && destination.missing_types.contains(&column.type_name)
            && !will_be_created(&column.type_name, &column.type_schema, objects, destination)
        {
            findings.refuse(
                "destination_types",
                format!("destination peer '{peer}' has no type {}, which column \"{}\" of {} needs; create the type or its extension there, or put the column into exclude_columns", column.type_name, column.name, mapping.source),
            );
        }
    }
    for column in &source.columns {
        let excluded = mapping.exclude_columns.contains(&column.name);
        if !excluded && !numeric_scale::is_known(&column.type_name, &destination.server.info) {
            findings.refuse(
                "destination_types",
                format!("column \"{}\" of {} is {}, a scale that destination peer '{peer}', PostgreSQL {}, does not know; create the table there with a type that takes its values (numeric), or put the column into exclude_columns", column.name, mapping.source, column.type_name, destination.server.info.version),
            );
        }
    }
    for definition in &objects.types {
        let schema = &definition.name.schema;
        if destination.closed_types.contains(&definition.name) {
            findings.refuse(
                "destination_create",
                format!(
                    "user \"{user}\" of destination peer '{peer}' may not create type {}, which {} uses; run GRANT CREATE on schema \"{schema}\" (or on database \"{}\" if the schema is still to be created) TO \"{user}\", or create the type yourself",
                    definition.name, mapping.source, destination.server.database
                ),
            );
        }
        if let TypeShape::Range {
            canonical: Some(function),
            ..
        } = &definition.shape
            && destination
                .missing_types
                .iter()
                .any(|missing| base_type(missing).as_ref() == Some(&definition.name))
        {
            findings.refuse(
                "destination_types",
                format!("type {}, which {} uses, needs its function {function} first; create both on destination peer '{peer}', or put the columns into exclude_columns", definition.name, mapping.source),
            );
        }
    }
}

/// Extensions that the table uses must be there or possible to create.
fn extensions(
    destination: &DestinationFacts,
    mapping: &NewMirrorTable,
    objects: &TableObjects,
    findings: &mut Findings,
) {
    let peer = &destination.server.peer;
    let user = &destination.server.user;
    for extension in &objects.extensions {
        let name = &extension.name;
        match destination.extensions.get(name) {
            Some(ExtensionState::Unavailable) => findings.refuse(
                "destination_extension",
                format!("destination peer '{peer}' has no extension \"{name}\", which {} uses; install its package on that server, or put the columns that need it into exclude_columns", mapping.source),
            ),
            Some(ExtensionState::NotAllowed) => findings.refuse(
                "destination_extension",
                format!("user \"{user}\" of destination peer '{peer}' may not create extension \"{name}\", which {} uses; run CREATE EXTENSION \"{name}\" SCHEMA \"{}\" there as a superuser", mapping.source, extension.schema),
            ),
            Some(ExtensionState::Installed | ExtensionState::Creatable) | None => {}
        }
    }
}

/// Whether a type that is missing comes with the table: from its definition, or with an
/// extension that is created into the type's schema.
fn will_be_created(
    type_name: &str,
    type_schema: &str,
    objects: &TableObjects,
    destination: &DestinationFacts,
) -> bool {
    let base = base_type(type_name);
    let is_defined = objects
        .types
        .iter()
        .any(|definition| base.as_ref() == Some(&definition.name));
    is_defined
        || objects.extensions.iter().any(|extension| {
            extension.schema == type_schema
                && destination.extensions.get(&extension.name) == Some(&ExtensionState::Creatable)
        })
}

/// The name in what `format_type` writes of a type that is not built in, without the
/// brackets of an array and the modifier.
fn base_type(type_name: &str) -> Option<TableName> {
    let element = type_name.trim_end_matches("[]");
    let bare = match element.rsplit_once('(') {
        Some((before, modifier)) if modifier.ends_with(')') && !modifier.contains('"') => before,
        _ => element,
    };
    TableName::parse(bare).ok()
}

/// Without the replica role, foreign keys and triggers of the destination would act on replicated
/// rows; then there must be none.
fn replica_role(facts: &Facts, findings: &mut Findings) {
    let destination = &facts.destination;
    if destination.may_be_replica {
        return;
    }
    let peer = &destination.server.peer;
    let user = &destination.server.user;
    let guarded: Vec<String> = destination
        .tables
        .iter()
        .filter(|table| table.found.as_ref().is_some_and(|found| found.fires))
        .map(|table| table.name.to_string())
        .collect();
    let cure = if destination.server.info.version_num >= 150_000 {
        format!("run GRANT SET ON PARAMETER session_replication_role TO \"{user}\" as a superuser")
    } else {
        "give the peer a superuser (PostgreSQL 14 cannot grant this alone)".to_owned()
    };
    if guarded.is_empty() {
        findings.warn(format!(
            "user \"{user}\" of destination peer '{peer}' may not set session_replication_role; that is fine while the destination tables have no foreign keys or triggers, else {cure}"
        ));
        return;
    }
    findings.refuse(
        "replica_role",
        format!(
            "user \"{user}\" of destination peer '{peer}' may not set session_replication_role, and foreign keys or triggers of {} would act on replicated rows; {cure}, or drop them",
            guarded.join(", ")
        ),
    );
}
