//! Checks of the source: server, privileges, room for a slot, and every mapped table.

use bunny_catalog::NewMirrorTable;
use bunny_postgres::TableDefinition;
use bunny_postgres::introspect::refuse_as_a_standby;

use super::Findings;
use super::facts::{FoundTable, Publication, SourceFacts, TableFacts};
use crate::mirrors::request::{CreateRequest, IDENTIFIER_BYTES_MAX};

/// The oldest server that is supported.
const VERSION_NUM_MIN: i32 = 140_000;

/// Their input functions refuse every text (pg_proc.dat: "I/O", `cannot accept a value of type …`).
const UNREADABLE_TYPES: [&str; 7] = [
    "pg_node_tree",
    "pg_ndistinct",
    "pg_dependencies",
    "pg_mcv_list",
    "pg_brin_bloom_summary",
    "pg_brin_minmax_multi_summary",
    "gtsvector",
];

/// What a relation that is not a table is called (`pg_class.relkind`).
pub(super) fn relation_kind(relkind: char) -> Option<&'static str> {
    match relkind {
        'r' | 'p' => None,
        'v' => Some("a view"),
        'm' => Some("a materialized view"),
        'f' => Some("a foreign table"),
        'S' => Some("a sequence"),
        'i' | 'I' => Some("an index"),
        'c' => Some("a composite type"),
        't' => Some("a TOAST table"),
        _ => Some("no table"),
    }
}

pub(super) fn check(request: &CreateRequest, source: &SourceFacts, findings: &mut Findings) {
    server(source, findings);
    slot(request, source, findings);
    let tables = request.tables.iter().zip(&source.tables);
    for (mapping, facts) in tables.clone() {
        table(request, source, mapping, facts, findings);
    }
    if let Some(publication) = &source.publication {
        given_publication(request, source, publication, findings);
    }
    partitions(source, findings);
}

/// What stands in the way of each table by itself.
pub(super) fn check_tables(request: &CreateRequest, source: &SourceFacts) -> Vec<Findings> {
    let tables = request.tables.iter().zip(&source.tables);
    tables
        .map(|(mapping, facts)| {
            let mut findings = Findings::default();
            table(request, source, mapping, facts, &mut findings);
            if let Some(publication) = &source.publication
                && !publication.tables.contains(&mapping.source)
            {
                findings.refuse(
                    "given_publication",
                    format!(
                        "publication \"{}\" does not hold {}; add it with ALTER PUBLICATION",
                        publication.name, mapping.source
                    ),
                );
            }
            findings
        })
        .collect()
}

fn server(source: &SourceFacts, findings: &mut Findings) {
    let peer = &source.server.peer;
    let info = &source.server.info;
    if info.version_num < VERSION_NUM_MIN {
        findings.refuse(
            "source_version",
            format!(
                "source peer '{peer}' is PostgreSQL {}; 14 or newer is needed: upgrade it",
                info.version
            ),
        );
    }
    if info.in_recovery {
        findings.refuse(
            "source_in_recovery",
            format!("source peer '{peer}' is a standby in recovery; point the peer at the primary"),
        );
    }
    if info.wal_level != "logical" {
        findings.refuse(
            "wal_level",
            format!(
                "source peer '{peer}' has wal_level = {}; run ALTER SYSTEM SET wal_level = 'logical' there and restart it",
                info.wal_level
            ),
        );
    }
    if let Some(reason) = refuse_as_a_standby(&info.synchronous_standby_names) {
        findings.refuse(
            "synchronous_standby_names",
            format!("source peer '{peer}': {reason}"),
        );
    }
    if info.server_encoding == "SQL_ASCII" {
        findings.refuse(
            "source_encoding",
            format!(
                "database \"{}\" of source peer '{peer}' has the encoding SQL_ASCII, whose text has no known meaning; move the data into a UTF8 database",
                source.server.database
            ),
        );
    }
    if !info.can_replicate {
        findings.refuse(
            "replication_privilege",
            format!(
                "user \"{0}\" of source peer '{peer}' lacks the REPLICATION privilege; run ALTER ROLE \"{0}\" REPLICATION as a superuser",
                source.server.user
            ),
        );
    }
    if source.publication.is_none() && !source.server.can_create_in_database {
        findings.refuse(
            "source_create",
            format!(
                "user \"{}\" of source peer '{peer}' may not create publications; run GRANT CREATE ON DATABASE \"{}\" TO \"{0}\"",
                source.server.user, source.server.database
            ),
        );
    }
}

fn slot(request: &CreateRequest, source: &SourceFacts, findings: &mut Findings) {
    let peer = &source.server.peer;
    let info = &source.server.info;
    // A table sync takes a temporary slot and its own walsender next to the mirror's.
    let for_sync = i64::from(request.config.do_initial_snapshot);
    let for_stream = i64::from(source.slot.is_none() && !request.adopt);
    let slots_needed = for_stream + for_sync;
    if info.slots_free < slots_needed {
        findings.refuse(
            "replication_slots",
            format!(
                "source peer '{peer}' has {} free replication slots and {slots_needed} are needed; drop unused slots or raise max_replication_slots and restart it",
                info.slots_free
            ),
        );
    }
    let senders_needed = 1 + for_sync;
    if info.senders_free < senders_needed {
        findings.refuse(
            "wal_senders",
            format!(
                "source peer '{peer}' has {} free walsenders and {senders_needed} are needed; raise max_wal_senders and restart it",
                info.senders_free
            ),
        );
    }
    let Some(slot) = &source.slot else { return };
    if source.publication.is_none() {
        // A publication made after the slot's position makes its decoding fail for good.
        findings.refuse(
            "given_slot",
            format!(
                "replication slot \"{}\" exists already, so its publication must be older than it: give the publication_name it was made for, or leave replication_slot_name out",
                slot.name
            ),
        );
    }
    if slot.plugin.as_deref() != Some("pgoutput") || slot.database != source.server.database {
        findings.refuse(
            "given_slot",
            format!(
                "replication slot \"{}\" exists and is not a pgoutput slot of database \"{}\"; give another replication_slot_name or leave it out",
                slot.name, source.server.database
            ),
        );
    } else if slot.active {
        findings.refuse(
            "given_slot",
            format!(
                "replication slot \"{}\" is in use by another session; stop that one, or give another replication_slot_name",
                slot.name
            ),
        );
    }
}

fn table(
    request: &CreateRequest,
    source: &SourceFacts,
    mapping: &NewMirrorTable,
    facts: &TableFacts,
    findings: &mut Findings,
) {
    let peer = &source.server.peer;
    let name = &mapping.source;
    let Some(found) = &facts.found else {
        findings.refuse(
            "source_table",
            format!(
                "table {name} does not exist on source peer '{peer}'; check the spelling (names are taken as written, upper and lower case differ) and that the peer's database is \"{}\"",
                source.server.database
            ),
        );
        return;
    };
    if let Some(kind) = relation_kind(found.relkind) {
        findings.refuse(
            "source_kind",
            format!("{name} on source peer '{peer}' is {kind}; only tables can be mirrored: leave it out or map the tables behind it"),
        );
        return;
    }
    if found.system {
        findings.refuse(
            "source_kind",
            format!("{name} is a system table; leave it out"),
        );
        return;
    }
    // Its own CREATE EXTENSION makes and fills it wherever the extension is; a mirror of it would stand in the way of that.
    if let Some(extension) = &found.extension {
        findings.refuse(
            "source_extension",
            format!("table {name} on source peer '{peer}' belongs to extension \"{extension}\", which brings it along at the destination; leave it out, and copy rows of your own in it by hand"),
        );
        return;
    }
    match found.persistence {
        'u' => findings.refuse(
            "source_persistence",
            format!("table {name} on source peer '{peer}' is unlogged, so its changes are not in the WAL; run ALTER TABLE {} SET LOGGED or leave it out", name.quoted()),
        ),
        't' => findings.refuse(
            "source_persistence",
            format!("table {name} on source peer '{peer}' is temporary; leave it out"),
        ),
        _ => {
            // Of a root, the definition tells what its leaves are.
            let definition = found.definition.as_ref();
            if definition.is_some_and(|definition| definition.persistence == 'u') {
                findings.refuse(
                    "source_persistence",
                    format!("a partition of table {name} on source peer '{peer}' is unlogged, so its changes are not in the WAL; run ALTER TABLE … SET LOGGED on it or leave the table out"),
                );
            }
        }
    }
    for leaf in &found.foreign_leaves {
        if request.adopt {
            findings.warn(format!("partition {leaf} of table {name} on source peer '{peer}' is a foreign table, whose rows nobody captures"));
            continue;
        }
        findings.refuse(
            "source_kind",
            format!("partition {leaf} of table {name} on source peer '{peer}' is a foreign table, whose rows and changes are not in the WAL; run ALTER TABLE {} DETACH PARTITION {}, or map the other partitions one by one", name.quoted(), leaf.quoted()),
        );
    }
    privileges(request, source, mapping, found, findings);
    if let Some(definition) = &found.definition {
        columns(mapping, definition, findings);
        values(mapping, definition, &found.large_object_columns, findings);
        identity(mapping, definition, findings);
    }
}

fn privileges(
    request: &CreateRequest,
    source: &SourceFacts,
    mapping: &NewMirrorTable,
    found: &FoundTable,
    findings: &mut Findings,
) {
    let peer = &source.server.peer;
    let user = &source.server.user;
    let name = &mapping.source;
    if request.config.do_initial_snapshot && !found.may_select {
        findings.refuse(
            "source_select",
            format!("user \"{user}\" of source peer '{peer}' may not read {name}; run GRANT USAGE ON SCHEMA and GRANT SELECT ON {} TO \"{user}\"", name.quoted()),
        );
    }
    if source.publication.is_none() && !found.owned {
        findings.refuse(
            "source_owner",
            format!("user \"{user}\" of source peer '{peer}' does not own {name}, and only an owner may publish a table; make the user a member of the owning role, or create the publication yourself and give its publication_name"),
        );
    }
    if found.row_security {
        findings.refuse(
            "row_security",
            format!("row level security hides rows of {name} from user \"{user}\" of source peer '{peer}'; run ALTER ROLE \"{user}\" BYPASSRLS"),
        );
    }
}

fn columns(mapping: &NewMirrorTable, definition: &TableDefinition, findings: &mut Findings) {
    let name = &mapping.source;
    if let Some(key) = &mapping.partition_key
        && definition.column(key).is_none()
    {
        findings.refuse(
            "partition_key",
            format!("partition_key \"{key}\" is not a column of {name}; name one of its columns or leave it out"),
        );
    }
    for excluded in &mapping.exclude_columns {
        if definition.column(excluded).is_none() {
            findings.refuse(
                "exclude_columns",
                format!(
                    "excluded column \"{excluded}\" is not a column of {name}; check the spelling"
                ),
            );
        }
        let in_key =
            definition.primary_key.contains(excluded) || definition.identity_key.contains(excluded);
        if in_key {
            findings.refuse(
                "excluded_key",
                format!("column \"{excluded}\" belongs to the key of {name}, by which its rows are found; do not exclude it"),
            );
        }
    }
    for column in &definition.columns {
        if column.name.len() > IDENTIFIER_BYTES_MAX
            && !mapping.exclude_columns.contains(&column.name)
        {
            findings.refuse(
                "column_name",
                format!("the name of column \"{0}\" of {name} is longer than {IDENTIFIER_BYTES_MAX} bytes in UTF8, and would be cut; rename it at the source, or put \"{0}\" into exclude_columns", column.name),
            );
        }
    }
    let nothing_left = !definition.columns.is_empty()
        && definition
            .columns
            .iter()
            .all(|column| mapping.exclude_columns.contains(&column.name));
    if nothing_left {
        findings.refuse(
            "exclude_columns",
            format!("every column of {name} is excluded; leave the table out instead"),
        );
    }
}

/// Columns whose values mean nothing elsewhere, or cannot be read back from their text.
fn values(
    mapping: &NewMirrorTable,
    definition: &TableDefinition,
    large_objects: &[String],
    findings: &mut Findings,
) {
    let name = &mapping.source;
    for column in &definition.columns {
        if mapping.exclude_columns.contains(&column.name) {
            continue;
        }
        let is_lo = column.type_schema != "pg_catalog"
            && (column.type_name == "lo" || column.type_name.ends_with(".lo"));
        if is_lo || large_objects.contains(&column.name) {
            findings.refuse(
                "large_objects",
                format!("column \"{}\" of {name} names large objects, which no stream carries; move them into a column of type bytea, or put the column into exclude_columns", column.name),
            );
        }
        if UNREADABLE_TYPES.contains(&column.type_name.as_str()) {
            findings.refuse(
                "source_type",
                format!("column \"{}\" of {name} has the type {}, whose text PostgreSQL does not read back; put the column into exclude_columns", column.name, column.type_name),
            );
        }
    }
}

fn identity(mapping: &NewMirrorTable, definition: &TableDefinition, findings: &mut Findings) {
    if definition.can_carry_updates() {
        return;
    }
    let name = &mapping.source;
    let cure = format!(
        "add a primary key or run ALTER TABLE {} REPLICA IDENTITY FULL",
        name.quoted()
    );
    if mapping.identity.as_deref() == Some("refuse") {
        findings.refuse(
            "identity",
            format!("table {name} has no usable identity and its mapping says \"identity\": \"refuse\"; {cure}"),
        );
    } else {
        findings.warn(format!(
            "table {name} has no usable identity and is mirrored insert-only: updates and deletes are not captured; to capture them, {cure}"
        ));
    }
}

fn given_publication(
    request: &CreateRequest,
    source: &SourceFacts,
    publication: &Publication,
    findings: &mut Findings,
) {
    let name = &publication.name;
    let wants = [
        (publication.inserts, "insert"),
        (publication.updates, "update"),
        (publication.deletes, "delete"),
        (publication.truncates, "truncate"),
    ];
    for (published, operation) in wants {
        if !published {
            findings.refuse(
                "given_publication",
                format!("publication \"{name}\" does not publish {operation}; run ALTER PUBLICATION with publish = 'insert, update, delete, truncate', or leave publication_name out"),
            );
        }
    }
    if !publication.via_root
        && source
            .found()
            .any(|table| table.relkind == 'p' || !table.ancestors.is_empty())
    {
        findings.refuse(
            "given_publication",
            format!("publication \"{name}\" does not publish partitioned tables as one; run ALTER PUBLICATION with publish_via_partition_root = true"),
        );
    }
    for mapping in &request.tables {
        if !publication.tables.contains(&mapping.source) {
            findings.refuse(
                "given_publication",
                format!("publication \"{name}\" does not hold {}; add it with ALTER PUBLICATION or leave publication_name out", mapping.source),
            );
        } else if publication.filtered.contains(&mapping.source) {
            findings.refuse(
                "given_publication",
                format!("publication \"{name}\" has a row filter or a column list for {}; remove it, or leave publication_name out", mapping.source),
            );
        }
    }
}

pub(super) fn partitions(source: &SourceFacts, findings: &mut Findings) {
    for table in &source.tables {
        let Some(found) = &table.found else { continue };
        for ancestor in &found.ancestors {
            if source.tables.iter().any(|other| &other.name == ancestor) {
                findings.refuse(
                    "partition_with_root",
                    format!("{} is a partition of {ancestor}, which is mapped too; map the root, which carries all partitions, or the partitions, not both", table.name),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn each_type_whose_text_is_not_read_back_is_refused() {
        let request = testing::request(&["public.t"]);
        for type_name in UNREADABLE_TYPES {
            let mut facts = testing::facts(&request);
            let found = facts.source.tables[0].found.as_mut();
            let definition = found.and_then(|found| found.definition.as_mut()).unwrap();
            definition.columns.push(testing::column("odd", type_name));
            let mut findings = Findings::default();
            check(&request, &facts.source, &mut findings);
            let said: Vec<&str> = findings
                .problems
                .iter()
                .map(|problem| problem.message.as_str())
                .collect();
            let cause = format!("column \"odd\" of public.t has the type {type_name}, whose");
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with(&cause), "{said:?}");
        }
    }
}
