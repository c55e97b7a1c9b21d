use bunny_postgres::introspect::{
    HeldLook, Member, PublicationState, ReplicaIdentity, TableKind, TableLook,
};

use bunny_postgres::Lsn;

use super::facts::Publications;
use super::*;

const ALL: u32 = 100;
const INSERTS: u32 = 200;
const TABLE: u32 = 7;

fn publication(oid: u32, name: &str, updates: bool) -> PublicationState {
    PublicationState {
        oid,
        name: name.into(),
        inserts: true,
        updates,
        deletes: updates,
        truncates: true,
        via_root: true,
    }
}

/// `public.t` with a key, in the publication of all changes.
fn sound() -> Look {
    let name = TableName::new("public", "t");
    Look {
        lsn: Lsn(1000),
        publications: vec![
            publication(ALL, "all", true),
            publication(INSERTS, "ins", false),
        ],
        tables: vec![TableLook {
            name: name.clone(),
            oid: TABLE,
            kind: TableKind::Ordinary,
            replica_identity: ReplicaIdentity::Default,
            identity_key: vec!["id".into()],
            held: vec![HeldLook {
                oid: TABLE,
                name: name.clone(),
                filenode: 1,
                filenode_by: "5".into(),
                attached: String::new(),
                columns: "x".into(),
                missing: String::new(),
                is_logged: true,
                has_rows: true,
                updates: 10,
                deletes: 0,
            }],
            foreign_leaves: Vec::new(),
            types: BTreeMap::new(),
            enums: BTreeMap::new(),
            horizon: 6,
        }],
        moved: Vec::new(),
        columns: Vec::new(),
        members: vec![Member {
            oid: 31,
            publication: ALL,
            table: TABLE,
            name,
        }],
    }
}

fn mapping() -> MirrorTable {
    MirrorTable {
        source: TableName::new("public", "t"),
        destination: TableName::new("public", "t"),
        partition_key: None,
        exclude_columns: Vec::new(),
        identity: None,
        request_id: None,
        retry_id: None,
        replay: None,
        since_request: None,
        checkpoint_id: None,
        beside: false,
    }
}

const OWN: Publications<'static> = Publications {
    all: "all",
    insert_only: Some("ins"),
};

/// What is said of a look that follows a sound one.
fn after(change: impl FnOnce(&mut Look)) -> Judged {
    let before = judge(&mapping(), None, false, &sound(), OWN);
    assert_eq!((&before.gap, &before.problem), (&None, &None));
    let mut look = sound();
    change(&mut look);
    judge(&mapping(), Some(&before.facts), false, &look, OWN)
}

fn lose_identity(look: &mut Look) {
    look.tables[0].replica_identity = ReplicaIdentity::Nothing;
    look.tables[0].identity_key.clear();
}

#[test]
fn what_stays_as_it_was_needs_nothing() {
    let judged = after(|_| {});
    assert_eq!((judged.gap, judged.problem), (None, None));
    assert!(!judged.insert_only && !judged.to_be_moved);
    // Another identity that carries updates loses nothing.
    let judged = after(|look| look.tables[0].replica_identity = ReplicaIdentity::Full);
    assert_eq!(judged.gap, None);
}

#[test]
fn an_identity_lost_is_moved_first_and_a_gap_then() {
    let judged = after(lose_identity);
    assert!(judged.to_be_moved);
    assert_eq!(
        judged.gap, None,
        "the source refuses updates: none is missed"
    );
    let judged = after(|look| {
        lose_identity(look);
        look.members[0].publication = INSERTS;
        look.members[0].oid = 32;
    });
    assert!(judged.insert_only && !judged.to_be_moved);
    assert!(judged.gap.unwrap().contains("lost its replica identity"));
    assert_eq!(judged.problem, None);
}

#[test]
fn tables_gone_renamed_recreated_or_taken_out_miss_changes() {
    type Change = fn(&mut Look);
    let cases: [(&str, Change); 9] = [
        ("public.far", |look| {
            look.tables[0].foreign_leaves = vec![TableName::new("public", "far")]
        }),
        ("UNLOGGED", |look| look.tables[0].held[0].is_logged = false),
        ("is gone", |look| look.tables.clear()),
        ("renamed to public.other", |look| {
            look.tables.clear();
            look.moved = vec![(TABLE, TableName::new("public", "other"))];
        }),
        ("another one", |look| {
            look.tables[0].oid = 8;
            look.members[0].table = 8;
        }),
        ("another one", |look| look.tables[0].oid = 8),
        ("taken out", |look| look.members.clear()),
        ("put back", |look| look.members[0].oid = 99),
        ("lost updates", |look| look.publications[0].updates = false),
    ];
    for (expected, change) in cases {
        let judged = after(change);
        let gap = judged.gap.expect(expected);
        assert!(gap.contains(expected), "{gap}");
        // Said once: what is known then is what is.
        let mut look = sound();
        change(&mut look);
        let again = judge(&mapping(), Some(&judged.facts), false, &look, OWN);
        assert_eq!(again.gap, None, "{expected}");
        assert_eq!(again.problem, judged.problem);
    }
}

#[test]
fn a_table_nothing_is_known_of_must_be_published() {
    let mut look = sound();
    look.members.clear();
    assert!(judge(&mapping(), None, false, &look, OWN).gap.is_some());
    assert!(judge(&mapping(), None, true, &look, OWN).gap.is_none());
    assert!(judge(&mapping(), None, false, &sound(), OWN).gap.is_none());
}

#[test]
fn a_given_publication_is_never_altered() {
    let given = Publications {
        all: "all",
        insert_only: None,
    };
    let before = judge(&mapping(), None, false, &sound(), given);
    let mut look = sound();
    lose_identity(&mut look);
    let judged = judge(&mapping(), Some(&before.facts), false, &look, given);
    assert!(!judged.to_be_moved);
    assert_eq!(judged.gap, None);
    assert!(judged.problem.unwrap().contains("refuses its updates"));
}

#[test]
fn drift_is_counted_from_the_sync_on() {
    let insert_only = |updates: i64, before: Option<&TableFacts>, table: &MirrorTable| {
        let mut look = sound();
        lose_identity(&mut look);
        look.members[0].publication = INSERTS;
        look.tables[0].held[0].updates = updates;
        judge(table, before, false, &look, OWN).facts
    };
    let first = insert_only(10, None, &mapping());
    let second = insert_only(14, Some(&first), &mapping());
    assert_eq!(second.drift.unwrap().updates, 4);
    let synced = MirrorTable {
        request_id: Some(uuid::Uuid::from_u128(3)),
        ..mapping()
    };
    let third = insert_only(15, Some(&second), &synced);
    assert_eq!(third.drift.unwrap().updates, 0);
}
