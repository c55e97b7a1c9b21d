use bunny_postgres::{ColumnDefinition, Lsn, ReplicaIdentity, TableKind, TableName};
use bunny_schemas::Position;
use bunny_schemas::control::SyncState;
use serde_json::json;

use super::*;
use crate::bookkeeping::State;

const GENERATION: Uuid = Uuid::from_u128(1);
const REQUEST: Uuid = Uuid::from_u128(2);

fn mapping(excluded: &[&str]) -> MirrorTable {
    serde_json::from_value(json!({
        "source": {"schema": "public", "name": "t"}, "destination": {"schema": "public", "name": "t"},
        "partition_key": null, "exclude_columns": excluded, "identity": null, "request_id": Uuid::from_u128(9),
    }))
    .unwrap()
}

/// A copy of a table with columns a and b that carries `columns`.
fn held(columns: &[&str]) -> TableState {
    let name = TableName::new("public", "t");
    let column = |name: &str, attnum: i16| ColumnDefinition {
        name: name.into(),
        attnum,
        type_oid: 25,
        type_name: "text".into(),
        typmod: -1,
        type_schema: "pg_catalog".into(),
        not_null: false,
        default: None,
        identity: None,
        generated: None,
        collation: None,
    };
    let definition = TableDefinition {
        oid: 1,
        name: name.clone(),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns: vec![column("a", 1), column("b", 2)],
        primary_key: Vec::new(),
        primary_key_name: None,
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: Vec::new(),
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: None,
    };
    TableState {
        state: State::Live,
        generation: Some(GENERATION),
        definition: Some(serde_json::to_value(definition).unwrap()),
        columns: columns.iter().map(|&name| name.to_owned()).collect(),
        ..TableState::wanted(name.clone(), name, Some(REQUEST))
    }
}

fn sync(generation: Uuid) -> HashMap<Uuid, SyncRecord> {
    let record = SyncRecord {
        request_id: REQUEST,
        attempt: 1,
        schema: "public".into(),
        table: "t".into(),
        state: SyncState::Finished,
        lsn: Lsn(1),
        start_offsets: vec![],
        generation,
        changes_offset: 0,
        taken_at_us: 0,
        rows: 0,
        bytes: 0,
    };
    HashMap::from([(REQUEST, record)])
}

fn adopted(held: TableState, syncs: &HashMap<Uuid, SyncRecord>, excluded: &[&str]) -> Option<Uuid> {
    let found = Found {
        present: &[held],
        syncs,
        generation: GENERATION,
        is_copied: true,
    };
    found.of(&mapping(excluded)).request_id
}

#[test]
fn a_copy_that_the_log_knows_is_adopted() {
    let syncs = sync(GENERATION);
    assert_eq!(adopted(held(&["a", "b"]), &syncs, &[]), Some(REQUEST));
    assert_eq!(adopted(held(&["a"]), &syncs, &["b"]), Some(REQUEST));
}

#[test]
fn a_copy_that_is_not_what_is_mapped_is_made_anew() {
    let syncs = sync(GENERATION);
    let elsewhere = TableState {
        destination: TableName::new("public", "u"),
        ..held(&["a", "b"])
    };
    for (held, syncs, excluded) in [
        (held(&["a"]), &syncs, &[][..]),
        (held(&["a", "b"]), &syncs, &["b"]),
        (elsewhere, &syncs, &[]),
        (held(&["a", "b"]), &HashMap::new(), &[]),
        (held(&["a", "b"]), &sync(Uuid::from_u128(7)), &[]),
    ] {
        let request = adopted(held, syncs, excluded);
        assert!(
            request.is_some() && request != Some(REQUEST) && request != Some(Uuid::from_u128(9))
        );
    }
}

#[test]
fn a_destination_of_another_generation_is_refused() {
    let progress = Progress {
        generation: GENERATION,
        position: Position::default(),
        next_offset: 0,
    };
    let log = |generation| FoundLog {
        generation,
        wish: None,
    };
    assert_eq!(not_of_log(Some(&progress), log(GENERATION)), None);
    assert_eq!(not_of_log(None, log(GENERATION)), None);
    let why = not_of_log(Some(&progress), log(Uuid::from_u128(7))).unwrap();
    assert!(why.contains("resync the mirror"), "{why}");
}
