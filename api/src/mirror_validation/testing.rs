//! Facts of a healthy pair of servers, for tests to spoil one at a time.

use bunny_catalog::{MirrorConfig, NewMirrorTable};
use bunny_postgres::{
    ColumnDefinition, ReplicaIdentity, ServerInfo, TableDefinition, TableKind, TableName,
};

use super::facts::{
    DestinationFacts, Facts, FoundTable, PeerFacts, Place, ServerFacts, SourceFacts, TableFacts,
};
use crate::mirrors::request::CreateRequest;

pub(crate) fn place(system_id: &str) -> Place {
    Place::Known {
        system_id: system_id.to_owned(),
        started_at: "2026-01-01 00:00:00+00".to_owned(),
        database: "shop".to_owned(),
    }
}

pub(crate) fn server(peer: &str, system_id: &str) -> ServerFacts {
    ServerFacts {
        peer: peer.to_owned(),
        user: "repl".to_owned(),
        database: "shop".to_owned(),
        place: place(system_id),
        identity: format!("{system_id}/5"),
        info: ServerInfo {
            version_num: 150_013,
            version: "15.13".to_owned(),
            system_id: system_id.to_owned(),
            timeline: 1,
            server_encoding: "UTF8".to_owned(),
            wal_level: "logical".to_owned(),
            in_recovery: false,
            is_superuser: true,
            can_replicate: true,
            slots_free: 10,
            senders_free: 10,
            max_slot_wal_keep_size: "-1".to_owned(),
            synchronous_standby_names: String::new(),
        },
        can_create_in_database: true,
    }
}

pub(crate) fn peer_facts() -> PeerFacts {
    PeerFacts {
        server: server("a", "1"),
        may_keep_books: true,
        may_be_replica: true,
    }
}

pub(crate) fn column(name: &str, type_name: &str) -> ColumnDefinition {
    ColumnDefinition {
        name: name.to_owned(),
        attnum: 1,
        type_oid: 25,
        type_name: type_name.to_owned(),
        typmod: -1,
        type_schema: "pg_catalog".to_owned(),
        not_null: false,
        default: None,
        identity: None,
        generated: None,
        collation: None,
    }
}

/// `id bigint primary key, note text`.
pub(crate) fn definition(name: &TableName) -> TableDefinition {
    let mut id = column("id", "bigint");
    id.not_null = true;
    TableDefinition {
        oid: 16_384,
        name: name.clone(),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns: vec![id, column("note", "text")],
        primary_key: vec!["id".to_owned()],
        primary_key_name: Some("pk".to_owned()),
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: vec!["id".to_owned()],
        row_estimate: 1_000,
        size_bytes: 65_536,
        pages: 8,
        leaves: Vec::new(),
        objects: None,
    }
}

pub(crate) fn found(name: &TableName) -> FoundTable {
    FoundTable {
        relkind: 'r',
        persistence: 'p',
        system: false,
        extension: None,
        owned: true,
        may_select: true,
        row_security: false,
        ancestors: Vec::new(),
        foreign_leaves: Vec::new(),
        missing_privileges: Vec::new(),
        fires: false,
        has_rows: false,
        is_ours: false,
        nondeterministic_columns: Vec::new(),
        large_object_columns: Vec::new(),
        definition: Some(definition(name)),
    }
}

/// A request that maps each table to itself.
pub(crate) fn request(tables: &[&str]) -> CreateRequest {
    CreateRequest {
        name: "m".to_owned(),
        attach: None,
        source_peer: "a".to_owned(),
        destination_peer: "b".to_owned(),
        config: MirrorConfig::default(),
        tables: tables
            .iter()
            .map(|text| {
                let name = TableName::parse(text).unwrap();
                NewMirrorTable {
                    source: name.clone(),
                    destination: name,
                    partition_key: None,
                    exclude_columns: Vec::new(),
                    identity: None,
                }
            })
            .collect(),
        replication_slot_name: None,
        publication_name: None,
        adopt: false,
        dry_run: false,
    }
}

/// Facts under which `request` has no problem: every table there on both sides, empty at the
/// destination.
pub(crate) fn facts(request: &CreateRequest) -> Facts {
    let side = |pick: fn(&NewMirrorTable) -> &TableName| -> Vec<TableFacts> {
        request
            .tables
            .iter()
            .map(|mapping| TableFacts {
                name: pick(mapping).clone(),
                found: Some(found(pick(mapping))),
                may_create: true,
            })
            .collect()
    };
    Facts {
        source: SourceFacts {
            server: server("a", "1"),
            tables: side(|mapping| &mapping.source),
            publication: None,
            slot: None,
        },
        destination: DestinationFacts {
            server: server("b", "2"),
            tables: side(|mapping| &mapping.destination),
            may_keep_books: true,
            may_be_replica: true,
            extensions: std::collections::BTreeMap::new(),
            closed_types: std::collections::BTreeSet::new(),
            missing_types: std::collections::BTreeSet::new(),
        },
    }
}
