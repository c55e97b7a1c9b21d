//! The parts that need a server, against the one that `SOURCE_URL` names
//! (`postgres://user:password@host:port/database`, a superuser, `wal_level =
//! logical`, nothing else using the schema `bunny_postgres_test`):
//!
//! ```text
//! SOURCE_URL=… cargo test -p bunny-postgres --test server -- --ignored
//! ```

// The whole file is tests and what they share.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bunny_postgres::introspect::{list_every_table, list_tables, server_info, table_definition};
use bunny_postgres::pgoutput::{Message, OldTuple, TupleValue, decode};
use bunny_postgres::replication::{Replication, WalEvent, WalStream};
use bunny_postgres::{
    ConnectOptions, IdentityKind, Lsn, NameMatch, ReplicaIdentity, Session, SslMode, TableKind,
    TableName, terminate_sessions,
};

const SCHEMA: &str = "bunny_postgres_test";

fn options() -> ConnectOptions {
    let url = std::env::var("SOURCE_URL").expect("SOURCE_URL names the server to test with");
    let config: tokio_postgres::Config = url.parse().expect("SOURCE_URL is a connection URL");
    let host = match &config.get_hosts()[0] {
        tokio_postgres::config::Host::Tcp(host) => host.clone(),
        tokio_postgres::config::Host::Unix(path) => path.display().to_string(),
    };
    let password = config.get_password().unwrap_or_default();
    ConnectOptions {
        host,
        port: config.get_ports().first().copied().unwrap_or(5432),
        user: config.get_user().unwrap_or("postgres").to_owned(),
        password: String::from_utf8_lossy(password).into_owned().into(),
        database: config.get_dbname().unwrap_or("postgres").to_owned(),
        ssl_mode: SslMode::Prefer,
        ssl_root_cert: None,
    }
}

/// The tests share a schema, and a slot being created waits for everybody's transactions:
/// one at a time.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// A session with an empty test schema, and the turn of its test.
struct Fresh {
    session: Session,
    _turn: tokio::sync::MutexGuard<'static, ()>,
}

impl std::ops::Deref for Fresh {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}

async fn fresh() -> Fresh {
    let turn = TURN.lock().await;
    let session = Session::connect(&options(), "bunny test").await.unwrap();
    session
        .batch(&format!(
            "SET client_min_messages = warning; DROP SCHEMA IF EXISTS {SCHEMA} CASCADE; CREATE SCHEMA {SCHEMA}"
        ))
        .await
        .unwrap();
    Fresh {
        session,
        _turn: turn,
    }
}

async fn connect(slot: &str, publications: &[&str]) -> Replication {
    let publications: Vec<String> = publications.iter().map(|&name| name.to_owned()).collect();
    Replication::connect(&options(), "bunny test walsender", slot, &publications)
        .await
        .unwrap()
}

fn table(name: &str) -> TableName {
    TableName::new(SCHEMA, name)
}

async fn count(session: &Session, sql: &str) -> i64 {
    session.query_one(sql, &[]).await.unwrap().get(0)
}

/// Waits until `sql` counts `wanted`.
async fn until_count(session: &Session, sql: &str, wanted: i64) {
    for _ in 0..100 {
        if count(session, sql).await == wanted {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("still not {wanted}: {sql}");
}

async fn next(stream: &mut WalStream) -> WalEvent {
    tokio::time::timeout(Duration::from_secs(10), stream.next())
        .await
        .expect("an event within 10 s")
        .unwrap()
}

/// The next event that is no keepalive.
async fn next_change(stream: &mut WalStream) -> WalEvent {
    loop {
        match next(stream).await {
            WalEvent::Keepalive { .. } => {}
            event => return event,
        }
    }
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn sessions_are_pinned_and_named() {
    let session = fresh().await;
    session
        .batch("ALTER ROLE CURRENT_USER SET DateStyle = 'German'; ALTER ROLE CURRENT_USER SET search_path = public; ALTER ROLE CURRENT_USER SET lock_timeout = '1s'")
        .await
        .unwrap();
    let pinned = Session::connect(&options(), "bunny pinned").await;
    session
        .batch("ALTER ROLE CURRENT_USER RESET DateStyle; ALTER ROLE CURRENT_USER RESET search_path; ALTER ROLE CURRENT_USER RESET lock_timeout")
        .await
        .unwrap();
    let pinned = pinned.unwrap();
    for (setting, value) in [
        ("DateStyle", "ISO, MDY"),
        ("IntervalStyle", "postgres"),
        ("extra_float_digits", "3"),
        ("TimeZone", "UTC"),
        ("search_path", "pg_catalog"),
        ("lock_timeout", "0"),
        ("default_transaction_isolation", "read committed"),
        ("application_name", "bunny pinned"),
    ] {
        let row = pinned
            .query_one("SELECT current_setting($1)", &[&setting])
            .await
            .unwrap();
        assert_eq!(row.get::<_, String>(0), value, "{setting}");
    }
    assert!(pinned.backend_pid() > 0);
    assert!(pinned.server_version_num() >= 140_000);

    let pid = pinned.backend_pid();
    assert_eq!(
        terminate_sessions(&session, "bunny pinn").await.unwrap(),
        Vec::<i32>::new()
    );
    let ended = terminate_sessions(&session, NameMatch::Prefix("bunny pinn"))
        .await
        .unwrap();
    assert_eq!(ended, [pid]);
    let error = pinned.batch("SELECT 1").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    session.session.close().await;
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn refusals_say_why_and_whether_to_try_again() {
    let session = fresh().await;
    let error = session.batch("SELECT * FROM nowhere").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("42P01"));
    assert!(!error.is_transient());

    let mut wrong = options();
    wrong.password = "not the password".into();
    let error = Session::connect(&wrong, "bunny test").await.unwrap_err();
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");
    assert!(!error.to_string().contains("not the password"));
    let error = Replication::connect(&wrong, "bunny test", "", &[])
        .await
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), Some("28P01"), "{error}");

    let mut closed = options();
    closed.port = 1;
    let error = Session::connect(&closed, "bunny test").await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    let error = Replication::connect(&closed, "bunny test", "", &[])
        .await
        .err()
        .unwrap();
    assert!(error.is_transient(), "{error}");

    let error = connect("no_such_slot", &["p"])
        .await
        .start(Lsn::ZERO)
        .await
        .err()
        .unwrap();
    assert_eq!(error.sqlstate(), Some("42704"), "{error}");
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn the_server_describes_itself_the_same_twice() {
    let session = fresh().await;
    let info = server_info(&session).await.unwrap();
    assert_eq!(info.wal_level, "logical");
    assert_eq!(info.version_num, session.server_version_num());
    assert!(!info.in_recovery && info.is_superuser && info.can_replicate);
    assert!(info.slots_free > 0 && info.senders_free > 0);

    let mut walsender = connect("", &[]).await;
    let identity = walsender.identify_system().await.unwrap();
    assert_eq!(identity.system_id, info.system_id);
    assert_eq!(identity.timeline, info.timeline);
    assert!(identity.flush_lsn > Lsn::ZERO);
    let history = walsender.timeline_history(identity.timeline).await.unwrap();
    assert_eq!(history.is_some(), identity.timeline > 1);
    assert_eq!(walsender.timeline_history(4000).await.unwrap(), None);
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn tables_are_read_as_they_are() {
    let session = fresh().await;
    session
        .batch(&format!(
            r#"
            CREATE TYPE {SCHEMA}."Mood" AS ENUM ('ok');
            CREATE TABLE {SCHEMA}."Odd ""T" (
                b int NOT NULL, gone int, "A" varchar(7) COLLATE "C" DEFAULT 'x'::varchar,
                mood {SCHEMA}."Mood"[], amount numeric(9,2),
                id bigint GENERATED ALWAYS AS IDENTITY, n int GENERATED BY DEFAULT AS IDENTITY,
                twice int GENERATED ALWAYS AS (b * 2) STORED,
                CONSTRAINT "the key" PRIMARY KEY (id, b));
            ALTER TABLE {SCHEMA}."Odd ""T" DROP COLUMN gone;
            CREATE TABLE {SCHEMA}.keyless (a int);
            CREATE TABLE {SCHEMA}.deferred (a int PRIMARY KEY DEFERRABLE);
            CREATE TABLE {SCHEMA}.by_full (a int); ALTER TABLE {SCHEMA}.by_full REPLICA IDENTITY FULL;
            CREATE TABLE {SCHEMA}.by_index (a int NOT NULL, b int NOT NULL, c int, UNIQUE (b, a) INCLUDE (c));
            ALTER TABLE {SCHEMA}.by_index REPLICA IDENTITY USING INDEX by_index_b_a_c_key;
            CREATE UNLOGGED TABLE {SCHEMA}.unlogged (a int PRIMARY KEY);
            CREATE TABLE {SCHEMA}.tree (a int, b int, PRIMARY KEY (a, b)) PARTITION BY RANGE (a);
            CREATE TABLE {SCHEMA}.tree_1 PARTITION OF {SCHEMA}.tree FOR VALUES FROM (0) TO (10) PARTITION BY LIST (b);
            CREATE TABLE {SCHEMA}.tree_1_1 PARTITION OF {SCHEMA}.tree_1 FOR VALUES IN (1);
            CREATE TABLE {SCHEMA}.tree_2 PARTITION OF {SCHEMA}.tree FOR VALUES FROM (10) TO (20);
            CREATE TABLE {SCHEMA}.nothing () ;
            CREATE VIEW {SCHEMA}.a_view AS SELECT 1 AS a;
            INSERT INTO {SCHEMA}.tree VALUES (1, 1), (11, 5), (12, 6);
            ANALYZE {SCHEMA}.tree; ANALYZE {SCHEMA}.tree_1_1; ANALYZE {SCHEMA}.tree_2;
            "#
        ))
        .await
        .unwrap();

    let odd = table_definition(&session, &table("Odd \"T"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(odd.kind, TableKind::Ordinary);
    assert_eq!(odd.persistence, 'p');
    assert_eq!(odd.primary_key, ["id", "b"]);
    assert_eq!(odd.primary_key_name.as_deref(), Some("the key"));
    assert_eq!(odd.identity_key, ["id", "b"]);
    assert_eq!(odd.replica_identity, ReplicaIdentity::Default);
    assert!(odd.can_carry_updates() && !odd.is_full());
    let names: Vec<_> = odd
        .columns
        .iter()
        .map(|c| (c.attnum, c.name.as_str()))
        .collect();
    assert_eq!(
        names,
        [
            (1, "b"),
            (3, "A"),
            (4, "mood"),
            (5, "amount"),
            (6, "id"),
            (7, "n"),
            (8, "twice")
        ]
    );
    let a = odd.column("A").unwrap();
    assert_eq!(a.type_name, "character varying(7)");
    assert_eq!((a.typmod, a.not_null), (11, false));
    assert_eq!(a.default.as_deref(), Some("'x'::character varying"));
    assert_eq!(a.collation.as_deref(), Some("pg_catalog.\"C\""));
    let mood = odd.column("mood").unwrap();
    assert_eq!(mood.type_name, format!("{SCHEMA}.\"Mood\"[]"));
    assert_eq!(mood.type_schema, SCHEMA);
    assert_eq!(mood.collation, None);
    assert_eq!(odd.column("amount").unwrap().type_name, "numeric(9,2)");
    assert_eq!(
        odd.column("id").unwrap().identity,
        Some(IdentityKind::Always)
    );
    assert_eq!(
        odd.column("n").unwrap().identity,
        Some(IdentityKind::ByDefault)
    );
    let twice = odd.column("twice").unwrap();
    assert_eq!(twice.generated.as_deref(), Some("(b * 2)"));
    assert_eq!(twice.default, None);
    let json = serde_json::to_string(&odd).unwrap();
    assert_eq!(
        serde_json::from_str::<bunny_postgres::TableDefinition>(&json).unwrap(),
        odd
    );

    let read = async |name: &str| table_definition(&session, &table(name)).await.unwrap();
    assert!(!read("keyless").await.unwrap().can_carry_updates());
    let deferred = read("deferred").await.unwrap();
    assert_eq!(deferred.primary_key, ["a"]);
    assert!(!deferred.can_carry_updates());
    assert!(read("by_full").await.unwrap().is_full());
    let by_index = read("by_index").await.unwrap();
    assert_eq!(by_index.replica_identity, ReplicaIdentity::Index);
    assert_eq!(by_index.identity_key, ["b", "a"]);
    assert_eq!(read("unlogged").await.unwrap().persistence, 'u');
    assert!(read("nothing").await.unwrap().columns.is_empty());
    assert_eq!(read("a_view").await, None);
    assert_eq!(read("absent").await, None);

    let tree = read("tree").await.unwrap();
    assert_eq!(tree.kind, TableKind::Partitioned);
    let leaves: Vec<_> = tree
        .leaves
        .iter()
        .map(|leaf| leaf.name.name.as_str())
        .collect();
    assert_eq!(leaves, ["tree_1_1", "tree_2"]);
    assert_eq!((tree.row_estimate, tree.pages), (3, 2));
    assert!(tree.size_bytes >= 2 * 8192);
    assert_eq!(tree.identity_key, ["a", "b"]);
    session
        .batch(&format!(
            "ALTER TABLE {SCHEMA}.tree_2 REPLICA IDENTITY NOTHING"
        ))
        .await
        .unwrap();
    let tree = read("tree").await.unwrap();
    assert_eq!(tree.replica_identity, ReplicaIdentity::Nothing);
    assert!(!tree.can_carry_updates());

    let listed = list_tables(&session).await.unwrap();
    let mine: Vec<_> = listed.iter().filter(|t| t.schema == SCHEMA).collect();
    let names: Vec<_> = mine.iter().map(|t| t.table_name.as_str()).collect();
    assert_eq!(
        names,
        [
            "Odd \"T", "by_full", "by_index", "deferred", "keyless", "nothing", "tree"
        ]
    );
    assert_eq!((mine[6].row_estimate, mine[6].has_primary_key), (3, true));
    assert_eq!(mine[1].replica_identity, "full");
    assert!(listed.iter().all(|t| !t.schema.starts_with("pg_")));
    let every = list_every_table(&session).await.unwrap();
    let more = every.iter().filter(|table| !listed.contains(table));
    let more: Vec<_> = more.filter(|t| t.schema == SCHEMA).collect();
    let names: Vec<_> = more.iter().map(|t| t.table_name.as_str()).collect();
    assert_eq!(names, ["unlogged"]);
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn a_slot_streams_what_was_committed_and_remembers_what_was_confirmed() {
    let session = fresh().await;
    let (slot, publication) = ("bunny_postgres_test", "Bunny, \"test's\" pub");
    let quoted = bunny_postgres::quote_ident(publication);
    session
        .batch(&format!(
            "DROP PUBLICATION IF EXISTS {quoted};
             CREATE TABLE {SCHEMA}.t (id int PRIMARY KEY, big text, note text);
             ALTER TABLE {SCHEMA}.t ALTER big SET STORAGE EXTERNAL;
             CREATE PUBLICATION {quoted} FOR TABLE {SCHEMA}.t WITH (publish_via_partition_root)"
        ))
        .await
        .unwrap();
    let mut walsender = connect(slot, &[publication]).await;
    walsender.drop_slot(slot).await.unwrap();
    assert!(!walsender.drop_slot(slot).await.unwrap());
    let consistent_point = walsender.create_slot(slot).await.unwrap();
    walsender.identify_system().await.unwrap();
    let mut stream = walsender.start(consistent_point).await.unwrap();

    session
        .batch(&format!(
            "INSERT INTO {SCHEMA}.t VALUES (1, repeat('x', 9000), E'a\\tb');
             SELECT pg_logical_emit_message(true, 'test', 'hello')"
        ))
        .await
        .unwrap();
    session
        .batch(&format!("UPDATE {SCHEMA}.t SET id = 2, note = NULL"))
        .await
        .unwrap();
    session
        .batch(&format!("DELETE FROM {SCHEMA}.t"))
        .await
        .unwrap();
    session
        .batch(&format!("TRUNCATE {SCHEMA}.t RESTART IDENTITY CASCADE"))
        .await
        .unwrap();

    let WalEvent::Begin {
        final_lsn,
        commit_ts_us,
        xid,
    } = next_change(&mut stream).await
    else {
        panic!("no begin");
    };
    let now_us = count(
        &session,
        "SELECT (extract(epoch FROM now()) * 1000000)::int8",
    )
    .await;
    assert!((now_us - commit_ts_us).abs() < 60_000_000, "{commit_ts_us}");
    assert!(final_lsn >= consistent_point && xid > 0);
    let WalEvent::Change { message: bytes, .. } = next_change(&mut stream).await else {
        panic!("no relation");
    };
    let Ok(Message::Relation(relation)) = decode(&bytes) else {
        panic!("{:?}", decode(&bytes));
    };
    assert_eq!(
        (relation.schema.as_str(), relation.name.as_str()),
        (SCHEMA, "t")
    );
    let keys: Vec<_> = relation.columns.iter().map(|c| c.key).collect();
    assert_eq!(keys, [true, false, false]);
    let WalEvent::Change { message: bytes, .. } = next_change(&mut stream).await else {
        panic!("no insert");
    };
    let Ok(Message::Insert { new, .. }) = decode(&bytes) else {
        panic!("{:?}", decode(&bytes));
    };
    let values: Vec<_> = new.iter().collect();
    assert_eq!(values[0], TupleValue::Text(b"1"));
    assert_eq!(values[2], TupleValue::Text(b"a\tb"));
    // What pg_logical_emit_message wrote is not asked for.
    let WalEvent::Commit {
        commit_lsn,
        end_lsn,
        ..
    } = next_change(&mut stream).await
    else {
        panic!("no commit");
    };
    assert_eq!(commit_lsn, final_lsn);
    assert!(end_lsn > commit_lsn);

    assert!(matches!(
        next_change(&mut stream).await,
        WalEvent::Begin { .. }
    ));
    let WalEvent::Change { message: bytes, .. } = next_change(&mut stream).await else {
        panic!("no update");
    };
    let Ok(Message::Update {
        old: Some(OldTuple::Key(old)),
        new,
        ..
    }) = decode(&bytes)
    else {
        panic!("{:?}", decode(&bytes));
    };
    assert_eq!(old.iter().next(), Some(TupleValue::Text(b"1")));
    assert_eq!(
        new.iter().collect::<Vec<_>>(),
        [
            TupleValue::Text(b"2"),
            TupleValue::Unchanged,
            TupleValue::Null
        ]
    );
    let WalEvent::Commit {
        end_lsn: confirmed, ..
    } = next_change(&mut stream).await
    else {
        panic!("no commit");
    };
    stream.confirm(confirmed);
    stream.stop().await;
    let row = session
        .query_one(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
            &[&slot],
        )
        .await
        .unwrap();
    assert_eq!(row.get::<_, String>(0).parse::<Lsn>().unwrap(), confirmed);

    // Again from there: the delete comes first, then the truncate.
    let active =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND active");
    until_count(&session, &active, 0).await;
    let mut stream = connect(slot, &[publication])
        .await
        .start(confirmed)
        .await
        .unwrap();
    let in_use = connect(slot, &[publication])
        .await
        .start(confirmed)
        .await
        .err()
        .unwrap();
    assert!(in_use.is_transient(), "{in_use}");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let WalEvent::Change { message: bytes, .. } = next_change(&mut stream).await else {
            continue;
        };
        match decode(&bytes).unwrap() {
            Message::Delete {
                old: OldTuple::Key(_),
                ..
            } => seen.push("delete"),
            Message::Truncate {
                relations,
                cascade,
                restart_identity,
            } => {
                assert_eq!(
                    (relations.len(), cascade, restart_identity),
                    (1, true, true)
                );
                seen.push("truncate");
            }
            Message::Relation(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, ["delete", "truncate"]);

    // An idle stream confirms within a second; a keepalive says how far it is.
    let flushed = count(
        &session,
        "SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::int8",
    )
    .await;
    loop {
        if let WalEvent::Keepalive { wal_end, .. } = next(&mut stream).await
            && wal_end.0 >= flushed as u64
        {
            stream.confirm(wal_end);
            break;
        }
    }
    let confirmed = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{slot}' AND confirmed_flush_lsn - '0/0'::pg_lsn >= {flushed}"
    );
    until_count(&session, &confirmed, 1).await;

    // Dropping it frees the slot.
    drop(stream);
    until_count(&session, &active, 0).await;
    assert!(connect("", &[]).await.drop_slot(slot).await.unwrap());
    session
        .batch(&format!("DROP PUBLICATION {quoted}"))
        .await
        .unwrap();
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn a_snapshot_outlives_the_session_that_exported_it() {
    let session = fresh().await;
    session
        .batch(&format!(
            "CREATE TABLE {SCHEMA}.t (id int); INSERT INTO {SCHEMA}.t VALUES (1)"
        ))
        .await
        .unwrap();
    let walsender = connect("", &[]).await;
    let exported = walsender
        .create_temporary_slot_exporting("bunny_postgres_test_tmp")
        .await
        .unwrap();
    assert!(exported.lsn > Lsn::ZERO);
    session
        .batch(&format!("INSERT INTO {SCHEMA}.t VALUES (2)"))
        .await
        .unwrap();

    let import = async |name: &str| {
        let importer = Session::connect(&options(), "bunny test importer")
            .await
            .unwrap();
        importer
            .batch(&format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}",
                bunny_postgres::quote_literal(name)
            ))
            .await
            .map(|()| importer)
    };
    let keeper = import(&exported.snapshot_name).await.unwrap();
    let again: String = keeper
        .query_one("SELECT pg_export_snapshot()", &[])
        .await
        .unwrap()
        .get(0);
    let first_name = exported.snapshot_name.clone();
    drop(exported);
    let slots =
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'bunny_postgres_test_tmp'";
    until_count(&session, slots, 0).await;

    assert!(import(&first_name).await.is_err());
    let worker = import(&again).await.unwrap();
    let rows = format!("SELECT count(*) FROM {SCHEMA}.t");
    assert_eq!(count(&worker, &rows).await, 1);
    assert_eq!(count(&session, &rows).await, 2);
}

#[tokio::test]
#[ignore = "needs the server named by SOURCE_URL"]
async fn a_slot_being_created_can_be_watched_and_left() {
    let session = fresh().await;
    session
        .batch(&format!("CREATE TABLE {SCHEMA}.t (id int)"))
        .await
        .unwrap();
    let blocker = Session::connect(&options(), "bunny test blocker")
        .await
        .unwrap();
    blocker
        .batch(&format!("BEGIN; INSERT INTO {SCHEMA}.t VALUES (1)"))
        .await
        .unwrap();
    let walsender = connect("", &[]).await;
    let pid = walsender.backend_pid();
    let creating = walsender.create_temporary_slot_exporting("bunny_postgres_test_wait");
    let waited = tokio::time::timeout(Duration::from_secs(2), async {
        tokio::pin!(creating);
        tokio::select! {
            made = &mut creating => panic!("{made:?}"),
            () = async {
                let waits = format!(
                    "SELECT count(*) FROM unnest(pg_blocking_pids({pid})) p WHERE p = {}",
                    blocker.backend_pid()
                );
                until_count(&session, &waits, 1).await;
            } => {}
        }
    })
    .await;
    assert!(waited.is_ok());
    drop(blocker);
    let left = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}");
    until_count(&session, &left, 0).await;
}
