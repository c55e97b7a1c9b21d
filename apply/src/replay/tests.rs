use bunny_catalog::RetainedSync;
use bunny_postgres::{Lsn, ReplicaIdentity, TableKind};
use bunny_schemas::control::{SyncRecord, SyncState};

use super::*;
use crate::bookkeeping::State;

fn name() -> TableName {
    TableName::new("public", "t")
}

fn column(attnum: i16, name: &str, not_null: bool) -> ColumnDefinition {
    ColumnDefinition {
        name: name.into(),
        attnum,
        type_oid: 25,
        type_name: "text".into(),
        typmod: -1,
        type_schema: "pg_catalog".into(),
        not_null,
        default: None,
        identity: None,
        generated: None,
        collation: None,
    }
}

fn definition(columns: &[(i16, &str, bool)], key: &[&str]) -> TableDefinition {
    TableDefinition {
        oid: 1,
        name: name(),
        kind: TableKind::Ordinary,
        persistence: 'p',
        columns: columns
            .iter()
            .map(|(n, name, not_null)| column(*n, name, *not_null))
            .collect(),
        primary_key: key.iter().map(|name| (*name).to_owned()).collect(),
        primary_key_name: (!key.is_empty()).then(|| "t_pkey".to_owned()),
        key_is_deferrable: false,
        replica_identity: ReplicaIdentity::Default,
        identity_key: key.iter().map(|name| (*name).to_owned()).collect(),
        row_estimate: 0,
        size_bytes: 0,
        pages: 0,
        leaves: Vec::new(),
        objects: None,
    }
}

fn mine(attnum: i16, name: &str, not_null: bool) -> Ours {
    Ours {
        attnum,
        name: name.into(),
        not_null,
    }
}

#[test]
fn a_table_that_is_as_it_was_is_left_alone() {
    let then = definition(&[(1, "id", true), (2, "v", false)], &["id"]);
    let ours = [mine(1, "id", true), mine(2, "v", false)];
    assert_eq!(undo(&then, &then, &ours, false, &name()), Undo::default());
}

#[test]
fn what_came_later_is_taken_back() {
    let then = definition(
        &[(1, "id", true), (2, "v", false), (3, "w", false)],
        &["id"],
    );
    // v was renamed, w refuses NULL, x was added; the user has added "own".
    let now = definition(
        &[
            (1, "id", true),
            (2, "value", false),
            (3, "w", true),
            (5, "x", false),
            (4, "own", true),
        ],
        &["id"],
    );
    let ours = [
        mine(1, "id", true),
        mine(2, "value", false),
        mine(3, "w", true),
        mine(4, "x", false),
    ];
    assert_eq!(
        undo(&then, &now, &ours, false, &name()).statements,
        [
            r#"ALTER TABLE "public"."t" RENAME COLUMN "value" TO "v""#,
            r#"ALTER TABLE "public"."t" ALTER COLUMN "w" DROP NOT NULL"#,
            r#"ALTER TABLE "public"."t" DROP COLUMN "x""#,
        ]
    );
}

#[test]
fn what_others_have_made_of_the_table_stays() {
    let then = definition(&[(1, "id", false), (2, "v", false)], &[]);
    let now = definition(&[(1, "id", true), (2, "v", true)], &["id"]);
    let ours = [mine(1, "id", false), mine(2, "v", false)];
    assert_eq!(undo(&then, &now, &ours, false, &name()), Undo::default());
}

#[test]
fn a_key_that_was_followed_is_taken_back() {
    let then = definition(&[(1, "a", true), (2, "b", true)], &["a"]);
    let now = definition(&[(1, "a", true), (2, "b", true)], &["b"]);
    let ours = [mine(1, "a", true), mine(2, "b", true)];
    let found = undo(&then, &now, &ours, true, &name());
    assert_eq!(
        found.statements,
        [r#"ALTER TABLE "public"."t" DROP CONSTRAINT "t_pkey""#]
    );
    assert_eq!(found.primary_key, ["a"]);
}

fn replay(sync: u128) -> Replay {
    Replay {
        request_id: Uuid::from_u128(50),
        of: RetainedSync {
            sync: Uuid::from_u128(sync),
            attempt: 2,
            lsn: Lsn(10),
            changes_offset: 7,
            rows: 0,
            bytes: 0,
        },
        until: None,
        beside: false,
        former: None,
    }
}

#[test]
fn only_what_the_topics_hold_whole_is_begun() {
    let generation = Uuid::from_u128(7);
    let sync = SyncRecord {
        request_id: Uuid::from_u128(1),
        attempt: 2,
        schema: "public".into(),
        table: "t".into(),
        state: SyncState::Finished,
        lsn: Lsn(10),
        start_offsets: vec![0],
        generation,
        changes_offset: 7,
        taken_at_us: 0,
        rows: 0,
        bytes: 0,
    };
    let retained = Retained {
        syncs: vec![sync],
        changes: (7, 9),
        snapshot: vec![(0, 100)],
        ..Retained::default()
    };
    assert!(is_held(&replay(1), &retained, generation));
    assert!(!is_held(&replay(2), &retained, generation));
    assert!(!is_held(&replay(1), &retained, Uuid::from_u128(8)));
    let trimmed = Retained {
        changes: (8, 9),
        ..retained
    };
    assert!(!is_held(&replay(1), &trimmed, generation));
}

#[test]
fn records_of_the_retained_sync_are_taken_for_the_replay() {
    let mapping = MirrorTable {
        source: name(),
        destination: name(),
        partition_key: None,
        exclude_columns: Vec::new(),
        identity: None,
        request_id: Some(Uuid::from_u128(1)),
        retry_id: None,
        beside: false,
        replay: Some(replay(1)),
        since_request: None,
        checkpoint_id: None,
    };
    assert_eq!(mapping.wanted_request(), Some(Uuid::from_u128(50)));
    assert_eq!(changes_offset(&mapping), Some(7));
    let state = |request: u128| TableState {
        state: State::Live,
        ..TableState::wanted(name(), name(), Some(Uuid::from_u128(request)))
    };
    let unknown = |present: &[TableState]| {
        let mappings = std::slice::from_ref(&mapping);
        not_begun_of(mappings, present)
    };
    assert_eq!(unknown(&[state(1)]), [Uuid::from_u128(50)]);
    assert!(unknown(&[state(50)]).is_empty());
}
