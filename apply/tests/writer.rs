//! The writer on a real destination, against a model of what the source holds:
//!
//! ```text
//! DESTINATION_URL=… cargo test -p bunny-apply --test writer -- --ignored
//! ```
//!
//! Each test uses a mirror and a schema of its own.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bunny_apply::Error;
use bunny_apply::batch::{Assembler, Limits, Part};
use bunny_apply::bookkeeping::{self, Epoch, Progress, State, TableState};
use bunny_apply::event::{Before, Body, Change, Event, Row, TableVersion};
use bunny_apply::routes::Routes;
use bunny_apply::writer::{Policy, Writer};
use bunny_postgres::{Lsn, Session, TableName};
use bunny_schemas::Position;
use bunny_schemas::envelope::ColumnSchema;
use uuid::Uuid;

mod support;
use support::destination;

/// One mirror's destination.
struct Stage {
    session: Session,
    schema: String,
    mirror_id: Uuid,
    epoch: Epoch,
    tables: Vec<TableState>,
    has_initial_snapshot: bool,
    next_offset: i64,
    position: Position,
}

impl Stage {
    /// `ddl` creates the tables; `{s}` in it is the schema. `tables` with their primary keys.
    async fn new(ddl: &str, tables: &[(&str, &[&str])]) -> Stage {
        let session = Session::connect(&destination(), "bunny writer test")
            .await
            .unwrap();
        bookkeeping::install(&session).await.unwrap();
        let mirror_id = Uuid::new_v4();
        let schema = format!("writer {}", &mirror_id.simple().to_string()[..8]);
        let quoted = format!("\"{schema}\"");
        session
            .batch_execute(&format!(
                "CREATE SCHEMA {quoted}; {}",
                ddl.replace("{s}", &quoted)
            ))
            .await
            .unwrap();
        session
            .execute(
                "INSERT INTO _bunny.owner VALUES ($1, 'm', 7)",
                &[&mirror_id],
            )
            .await
            .unwrap();
        let mut states = Vec::new();
        for (name, primary_key) in tables {
            let state = TableState {
                state: State::Live,
                lsn: Some(Lsn(0)),
                in_main: true,
                definition: Some(serde_json::json!({ "primary_key": primary_key })),
                ..TableState::wanted(
                    TableName::new("public", *name),
                    TableName::new(schema.as_str(), *name),
                    None,
                )
            };
            bookkeeping::put_table(&*session, mirror_id, &state)
                .await
                .unwrap();
            states.push(state);
        }
        Stage {
            session,
            schema,
            mirror_id,
            epoch: Epoch(7),
            tables: states,
            has_initial_snapshot: true,
            next_offset: 0,
            position: Position::default(),
        }
    }

    async fn writer(&self) -> Writer {
        let session = Session::connect(&destination(), "bunny writer test")
            .await
            .unwrap();
        Writer::new(
            session,
            self.mirror_id,
            self.epoch,
            Arc::new(Routes::of(&self.tables)),
            Policy {
                has_initial_snapshot: self.has_initial_snapshot,
                creates_tables: !self.has_initial_snapshot,
            },
        )
        .await
        .unwrap()
    }

    /// Bodies as the events of one source transaction.
    fn transaction(&mut self, bodies: Vec<Body>) -> Vec<Event> {
        let commit_lsn = Lsn(self.position.commit_lsn.0 + 1);
        let count = bodies.len() as u64;
        let events = (1..)
            .zip(bodies)
            .map(|(seq, body)| {
                self.position = Position { commit_lsn, seq };
                self.next_offset += 1;
                Event {
                    offset: self.next_offset - 1,
                    position: self.position,
                    commit_ts_us: 0,
                    last: seq == count,
                    body,
                }
            })
            .collect();
        self.next_offset += 1;
        events
    }

    /// Writes transactions in batches of so many changes, as the applier does.
    async fn apply(
        &mut self,
        transactions: Vec<Vec<Body>>,
        changes_max: usize,
    ) -> Result<(), Error> {
        let mut writer = self.writer().await;
        let mut assembler = Assembler::new(Limits {
            changes_max,
            bytes_max: usize::MAX,
        });
        let mut parts: Vec<Part> = Vec::new();
        for bodies in transactions {
            for event in self.transaction(bodies) {
                parts.extend(assembler.push(event));
            }
        }
        parts.extend(assembler.flush());
        for part in parts {
            if !writer.is_open() {
                writer.begin(part.first_offset).await?;
            }
            writer.write(&part).await?;
            if part.complete {
                let progress = Progress {
                    generation: Uuid::nil(),
                    position: part.position,
                    next_offset: part.next_offset,
                };
                writer.commit(&progress, &[]).await?;
            }
        }
        Ok(())
    }

    async fn rows(&self, select: &str) -> Vec<String> {
        let quoted = format!("\"{}\"", self.schema);
        let rows = self
            .session
            .query(&select.replace("{s}", &quoted), &[])
            .await
            .unwrap();
        rows.iter().map(|row| row.get::<_, String>(0)).collect()
    }

    async fn execute(&self, sql: &str) {
        let quoted = format!("\"{}\"", self.schema);
        self.session
            .batch_execute(&sql.replace("{s}", &quoted))
            .await
            .unwrap();
    }

    async fn counts(&self, table: &str) -> (i64, i64, i64) {
        let state = bookkeeping::table(
            &*self.session,
            self.mirror_id,
            &TableName::new("public", table),
        )
        .await
        .unwrap()
        .unwrap();
        (state.rows_inserted, state.rows_updated, state.rows_deleted)
    }
}

fn version(schema_id: u32, table: &str, columns: &[(&str, bool)]) -> Arc<TableVersion> {
    let columns = (1..)
        .zip(columns)
        .map(|(attnum, (name, key))| ColumnSchema {
            name: (*name).to_owned(),
            attnum,
            type_oid: 25,
            type_name: "text".to_owned(),
            typmod: -1,
            not_null: *key,
            key: *key,
        });
    Arc::new(TableVersion {
        schema_id,
        source: TableName::new("public", table),
        columns: columns.collect(),
    })
}

fn row(cells: &[Option<&str>]) -> Row {
    Row::from_values(cells.iter().map(|cell| cell.map(str::as_bytes)))
}

fn some(cells: &[&str]) -> Row {
    Row::from_values(cells.iter().map(|cell| Some(cell.as_bytes())))
}

fn body(version: &Arc<TableVersion>, change: Change) -> Body {
    Body::Change {
        version: version.clone(),
        change,
    }
}

/// A small generator of its own, so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

const KEYED: &str = r#"
CREATE TABLE {s}.keyed (
    "ID" int PRIMARY KEY,
    code text NOT NULL UNIQUE,
    amount numeric(12,3),
    big text,
    doubled int GENERATED ALWAYS AS ("ID" * 2) STORED
);"#;

fn keyed() -> Arc<TableVersion> {
    let columns = [
        ("ID", true),
        ("code", false),
        ("amount", false),
        ("big", false),
    ];
    version(1, "keyed", &columns)
}

/// Columns: ID, code, amount, big.
type Source = BTreeMap<u64, (String, String, Option<String>)>;

fn source_row(
    id: u64,
    (code, amount, big): &(String, String, Option<String>),
    with_big: bool,
) -> Row {
    let id = id.to_string();
    let big = big.as_deref().filter(|_| with_big);
    row(&[Some(&id), Some(code), Some(amount), big])
}

fn old_key(id: u64) -> Before {
    Before::Key(row(&[Some(&id.to_string()), None, None, None]))
}

/// One random change that the source, as it is, could make.
fn random_change(source: &mut Source, random: &mut Random, serial: &mut u64) -> Vec<Change> {
    *serial += 1;
    let id = random.below(12);
    let unchanged = vec![false, false, false, true];
    let fresh = (
        format!("code\t{serial}\\"),
        format!("{}.500", random.below(1000)),
        (random.below(4) > 0).then(|| format!("big\n{serial}")),
    );
    match (random.below(7), source.contains_key(&id)) {
        (0..=2, false) => {
            let change = Change::Insert(source_row(id, &fresh, true));
            source.insert(id, fresh);
            vec![change]
        }
        (0 | 1, true) => {
            let change = Change::update(None, source_row(id, &fresh, true), Vec::new());
            source.insert(id, fresh);
            vec![change]
        }
        (2, true) => {
            let kept = (fresh.0, fresh.1, source[&id].2.clone());
            let change = Change::update(None, source_row(id, &kept, false), unchanged);
            source.insert(id, kept);
            vec![change]
        }
        (3, true) => {
            source.remove(&id);
            vec![Change::Delete(old_key(id))]
        }
        (4, true) => {
            let to = random.below(12);
            if source.contains_key(&to) {
                return Vec::new();
            }
            let kept = (fresh.0, fresh.1, source.remove(&id).unwrap().2);
            let with_big = random.below(2) == 0;
            let change = Change::update(
                Some(old_key(id)),
                source_row(to, &kept, with_big),
                if with_big { Vec::new() } else { unchanged },
            );
            source.insert(to, kept);
            vec![change]
        }
        (5, true) => {
            // Two rows swap their unique code, by way of a third value.
            let other = random.below(12);
            if other == id || !source.contains_key(&other) {
                return Vec::new();
            }
            let (mut one, mut two) = (source[&id].clone(), source[&other].clone());
            let mut changes = Vec::new();
            let codes = (one.0.clone(), two.0.clone());
            one.0 = format!("between {serial}");
            changes.push(Change::update(None, source_row(id, &one, true), Vec::new()));
            two.0 = codes.0;
            changes.push(Change::update(
                None,
                source_row(other, &two, true),
                Vec::new(),
            ));
            one.0 = codes.1;
            changes.push(Change::update(None, source_row(id, &one, true), Vec::new()));
            source.insert(id, one);
            source.insert(other, two);
            changes
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn random_histories_end_as_the_source_stands() {
    for seed in 1..20 {
        let mut random = Random(seed * 0x9E37_79B9);
        let own_column = seed % 2 == 0;
        let mut ddl = KEYED.to_owned();
        if own_column {
            // Then key changes are written as such, and the column stays with its row.
            ddl.push_str("ALTER TABLE {s}.keyed ADD COLUMN own text DEFAULT 'fresh';");
        }
        let mut stage = Stage::new(&ddl, &[("keyed", &["ID"])]).await;
        let table = keyed();
        let (mut source, mut serial) = (Source::new(), 0);
        let mut transactions = Vec::new();
        for _ in 0..60 {
            let size = 1 + random.below(9);
            let bodies: Vec<Body> = (0..size)
                .flat_map(|_| random_change(&mut source, &mut random, &mut serial))
                .map(|change| body(&table, change))
                .collect();
            if !bodies.is_empty() {
                transactions.push(bodies);
            }
        }
        let batch = 1 + random.below(40) as usize;
        stage.apply(transactions, batch).await.unwrap();
        let found = stage
            .rows(r#"SELECT concat_ws('|', "ID", code, amount, coalesce(big, 'NULL'), doubled) FROM {s}.keyed ORDER BY "ID""#)
            .await;
        let expected: Vec<String> = source
            .iter()
            .map(|(id, (code, amount, big))| {
                let big = big.as_deref().unwrap_or("NULL");
                format!("{id}|{code}|{amount}|{big}|{}", id * 2)
            })
            .collect();
        assert_eq!(found, expected, "seed {seed}, batches of {batch}");
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_column_of_the_destinations_own_stays_with_its_row() {
    let ddl = format!("{KEYED} ALTER TABLE {{s}}.keyed ADD COLUMN own text DEFAULT 'fresh';");
    let mut stage = Stage::new(&ddl, &[("keyed", &["ID"])]).await;
    stage
        .execute(r#"INSERT INTO {s}.keyed ("ID", code, own) VALUES (1, 'a', 'mine'), (2, 'b', 'mine'), (3, 'c', 'mine')"#)
        .await;
    let table = keyed();
    let changes = vec![
        body(
            &table,
            Change::update(None, some(&["1", "a2", "1", "x"]), Vec::new()),
        ),
        body(
            &table,
            Change::update(Some(old_key(2)), some(&["20", "b2", "1", "x"]), Vec::new()),
        ),
        body(&table, Change::Delete(old_key(3))),
        body(&table, Change::Insert(some(&["3", "c2", "1", "x"]))),
    ];
    stage.apply(vec![changes], 100).await.unwrap();
    assert_eq!(
        stage
            .rows(r#"SELECT concat_ws('|', "ID", code, own) FROM {s}.keyed ORDER BY "ID""#)
            .await,
        ["1|a2|mine", "3|c2|fresh", "20|b2|mine"]
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn rows_without_a_key_are_a_multiset() {
    let ddl = "CREATE TABLE {s}.bag (a int, b text); CREATE TABLE {s}.log (a int, b text);";
    let mut stage = Stage::new(ddl, &[("bag", &[]), ("log", &[])]).await;
    let bag = version(1, "bag", &[("a", false), ("b", false)]);
    let log = version(2, "log", &[("a", false), ("b", false)]);
    let one = || some(&["1", "x\ty"]);
    let null = || row(&[Some("1"), None]);
    let mut transactions = vec![
        vec![
            body(&bag, Change::Insert(one())),
            body(&bag, Change::Insert(one())),
            body(&log, Change::Insert(one())),
        ],
        vec![
            body(&bag, Change::Insert(null())),
            body(&bag, Change::Insert(one())),
            body(&log, Change::Insert(one())),
        ],
    ];
    transactions.push(vec![
        body(&bag, Change::Delete(Before::Row(one()))),
        body(
            &bag,
            Change::update(Some(Before::Row(one())), some(&["2", "z"]), Vec::new()),
        ),
        body(
            &bag,
            Change::update(
                Some(Before::Row(null())),
                row(&[Some("3"), None]),
                vec![false, true],
            ),
        ),
    ]);
    for batch in [1, 3, 100] {
        stage.execute("TRUNCATE {s}.bag, {s}.log").await;
        stage.apply(transactions.clone(), batch).await.unwrap();
        assert_eq!(
            stage
                .rows("SELECT concat_ws('|', a, coalesce(b, 'NULL')) FROM {s}.bag ORDER BY 1")
                .await,
            ["1|x\ty", "2|z", "3|NULL"],
            "batches of {batch}"
        );
        assert_eq!(stage.rows("SELECT a::text FROM {s}.log").await.len(), 2);
    }
    assert_eq!(stage.counts("bag").await, (12, 6, 3));
}

#[tokio::test]
#[ignore = "needs a server"]
async fn truncate_empties_in_order_and_keeps_to_its_tables() {
    let ddl = "CREATE TABLE {s}.parent (id serial PRIMARY KEY);
               CREATE TABLE {s}.child (id int PRIMARY KEY, parent int REFERENCES {s}.parent);
               CREATE TABLE {s}.plain (id int PRIMARY KEY);
               INSERT INTO {s}.parent SELECT nextval('{s}.parent_id_seq') FROM generate_series(1, 9);
               INSERT INTO {s}.plain VALUES (1);";
    let mut stage = Stage::new(
        ddl,
        &[("parent", &["id"]), ("child", &["id"]), ("plain", &["id"])],
    )
    .await;
    let parent = version(1, "parent", &[("id", true)]);
    let plain = version(2, "plain", &[("id", true)]);
    let truncate = |tables: &[&str], restart_identity| Body::Truncate {
        tables: tables
            .iter()
            .map(|name| TableName::new("public", *name))
            .collect(),
        restart_identity,
    };
    let transaction = vec![
        body(&plain, Change::Insert(some(&["2"]))),
        truncate(&["plain"], false),
        body(&plain, Change::Insert(some(&["3"]))),
        // The child's foreign key forbids TRUNCATE of the parent.
        truncate(&["parent"], true),
        body(&parent, Change::Insert(some(&["77"]))),
    ];
    stage.apply(vec![transaction], 100).await.unwrap();
    assert_eq!(stage.rows("SELECT id::text FROM {s}.plain").await, ["3"]);
    assert_eq!(stage.rows("SELECT id::text FROM {s}.parent").await, ["77"]);
    assert_eq!(
        stage
            .rows("SELECT nextval('{s}.parent_id_seq')::text")
            .await,
        ["1"]
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn drift_is_resolved_towards_the_source() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    stage
        .execute(r#"INSERT INTO {s}.keyed ("ID", code) VALUES (1, 'here already')"#)
        .await;
    let table = keyed();
    let changes = vec![
        body(&table, Change::Insert(some(&["1", "a", "1", "x"]))),
        body(
            &table,
            Change::update(None, some(&["2", "b", "1", "x"]), Vec::new()),
        ),
        body(&table, Change::Delete(old_key(3))),
        body(
            &table,
            Change::update(Some(old_key(4)), some(&["5", "e", "1", "x"]), Vec::new()),
        ),
    ];
    stage.apply(vec![changes], 100).await.unwrap();
    assert_eq!(
        stage
            .rows(r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#)
            .await,
        ["1|a", "2|b", "5|e"]
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn only_inserts_over_present_rows_overwrite_them() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    stage
        .execute(r#"INSERT INTO {s}.keyed ("ID", code) VALUES (1, 'here already')"#)
        .await;
    let table = keyed();
    let inserts = |ids: [&str; 2]| {
        vec![
            body(&table, Change::Insert(some(&[ids[0], ids[0], "1", "x"]))),
            body(&table, Change::Insert(some(&[ids[1], ids[1], "1", "x"]))),
        ]
    };
    stage
        .apply(vec![inserts(["1", "2"]), inserts(["3", "4"])], 2)
        .await
        .unwrap();
    assert_eq!(
        stage
            .rows(r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#)
            .await,
        ["1|1", "2|2", "3|3", "4|4"]
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_patch_without_its_row_stops_the_table_by_name_and_key() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    let table = keyed();
    let patch = vec![body(
        &table,
        Change::update(
            None,
            row(&[Some("41"), Some("a"), Some("1"), None]),
            vec![false, false, false, true],
        ),
    )];
    let error = stage.apply(vec![patch.clone()], 100).await.unwrap_err();
    let Error::Table {
        table: name,
        reason,
        restart_offset,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(name.name, "keyed");
    assert!(reason.contains("(41)"), "{reason}");
    assert_eq!(restart_offset, Some(0));
    assert!(
        bookkeeping::progress(&*stage.session, stage.mirror_id)
            .await
            .unwrap()
            .is_none()
    );

    stage.has_initial_snapshot = false;
    stage.apply(vec![patch], 100).await.unwrap();
    assert!(
        stage.rows(r#"SELECT code FROM {s}.keyed"#).await.is_empty(),
        "not ours"
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn one_tables_bad_data_is_that_tables_error() {
    let ddl = "CREATE TABLE {s}.good (id int PRIMARY KEY); CREATE TABLE {s}.bad (id int PRIMARY KEY, v int CHECK (v < 5));";
    let mut stage = Stage::new(ddl, &[("good", &["id"]), ("bad", &["id"])]).await;
    let good = version(1, "good", &[("id", true)]);
    let bad = version(2, "bad", &[("id", true), ("v", false)]);
    for value in ["9", "no number"] {
        let transaction = vec![
            body(&good, Change::Insert(some(&["1"]))),
            body(&bad, Change::Insert(some(&["1", value]))),
        ];
        let error = stage.apply(vec![transaction], 100).await.unwrap_err();
        let Error::Table { table, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(table.name, "bad");
        assert!(
            stage.rows("SELECT id::text FROM {s}.good").await.is_empty(),
            "rolled back"
        );
    }
    stage.execute("DROP TABLE {s}.bad").await;
    let error = stage
        .apply(
            vec![vec![body(&bad, Change::Insert(some(&["1", "1"])))]],
            100,
        )
        .await
        .unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
}

#[tokio::test]
#[ignore = "needs a server"]
async fn identities_keys_and_types_of_every_kind() {
    let ddl = r#"
        CREATE TYPE {s}.mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN {s}.percent AS int NOT NULL CHECK (VALUE <= 100);
        CREATE TABLE {s}.kinds (
            id int GENERATED ALWAYS AS IDENTITY,
            mood {s}.mood,
            share {s}.percent,
            name text COLLATE "C",
            n bigint, op text, mask text,
            PRIMARY KEY (mood, name, id));"#;
    let mut stage = Stage::new(ddl, &[("kinds", &["id", "mood", "name"])]).await;
    let columns = [
        ("id", true),
        ("mood", true),
        ("share", false),
        ("name", true),
        ("n", false),
        ("op", false),
        ("mask", false),
    ];
    let kinds = version(1, "kinds", &columns);
    let key = |id: &str, mood: &str, name: &str| {
        Before::Key(row(&[
            Some(id),
            Some(mood),
            None,
            Some(name),
            None,
            None,
            None,
        ]))
    };
    let transaction = vec![
        body(
            &kinds,
            Change::Insert(some(&["5", "sad", "10", "é", "1", "o", "m"])),
        ),
        body(
            &kinds,
            Change::Insert(some(&["6", "ok", "20", "", "1", "o", "m"])),
        ),
    ];
    let second = vec![
        body(
            &kinds,
            Change::update(
                None,
                some(&["5", "sad", "11", "é", "2", "p", "m"]),
                Vec::new(),
            ),
        ),
        body(&kinds, Change::Delete(key("6", "ok", ""))),
        body(
            &kinds,
            Change::Insert(some(&["7", "ok", "30", "7", "1", "o", "m"])),
        ),
        body(
            &kinds,
            Change::update(
                Some(key("7", "ok", "7")),
                some(&["8", "sad", "31", "8", "1", "o", "m"]),
                Vec::new(),
            ),
        ),
    ];
    stage.apply(vec![transaction, second], 2).await.unwrap();
    assert_eq!(
        stage.rows("SELECT concat_ws('|', id, mood, share, name, n, op, mask) FROM {s}.kinds ORDER BY id").await,
        ["5|sad|11|é|2|p|m", "8|sad|31|8|1|o|m"]
    );
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_taken_over_writer_changes_nothing() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    stage.epoch = Epoch(6);
    let insert = body(&keyed(), Change::Insert(some(&["1", "a", "1", "x"])));
    let error = stage.apply(vec![vec![insert]], 100).await.unwrap_err();
    assert!(
        matches!(error, Error::Fenced { ours: 6, found: 7 }),
        "{error}"
    );
    assert!(stage.rows("SELECT code FROM {s}.keyed").await.is_empty());
}

#[tokio::test]
#[ignore = "needs a server"]
async fn triggers_and_foreign_keys_do_not_act() {
    let ddl = "CREATE TABLE {s}.parent (id int PRIMARY KEY);
               CREATE TABLE {s}.child (id int PRIMARY KEY, parent int REFERENCES {s}.parent);
               CREATE FUNCTION {s}.refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'fired'; END $$;
               CREATE TRIGGER refuse BEFORE INSERT ON {s}.child FOR EACH ROW EXECUTE FUNCTION {s}.refuse();";
    let mut stage = Stage::new(ddl, &[("parent", &["id"]), ("child", &["id"])]).await;
    let parent = version(1, "parent", &[("id", true)]);
    let child = version(2, "child", &[("id", true), ("parent", false)]);
    let transaction = vec![
        body(&child, Change::Insert(some(&["1", "10"]))),
        body(&parent, Change::Insert(some(&["10"]))),
    ];
    stage.apply(vec![transaction], 100).await.unwrap();
    assert_eq!(stage.rows("SELECT id::text FROM {s}.child").await, ["1"]);
}

#[tokio::test]
#[ignore = "needs a server"]
async fn a_table_without_a_snapshot_is_created_from_its_first_event() {
    let mut stage = Stage::new("", &[("made", &[])]).await;
    stage.tables[0].definition = None;
    let made = version(1, "made", &[("id", true), ("note", false)]);
    let insert = || vec![body(&made, Change::Insert(some(&["1", "a"])))];
    let error = stage.apply(vec![insert()], 100).await.unwrap_err();
    assert!(error.to_string().contains("does not exist"), "{error}");
    stage.has_initial_snapshot = false;
    stage.apply(vec![insert()], 100).await.unwrap();
    assert_eq!(stage.rows("SELECT id || note FROM {s}.made").await, ["1a"]);
    let key = stage
        .rows("SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = '{s}.made'::regclass AND indisprimary")
        .await;
    assert!(key[0].ends_with("(id)"), "{key:?}");
}
