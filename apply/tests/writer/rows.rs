//! Rows, keys and truncates of every kind.

use bunny_apply::event::{Before, Body, Change};
use bunny_postgres::TableName;

use crate::stage::{KEYED, Stage, body, keyed, old_key, row, some, version};

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

/// What rounds the keys of the table rounds those of deletes and updates, however few they are.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_key_that_was_rounded_is_found_again() {
    let ddl = "CREATE TABLE {s}.rounded (id numeric(10,2) PRIMARY KEY, v text);";
    let mut stage = Stage::new(ddl, &[("rounded", &["id"])]).await;
    let table = version(1, "rounded", &[("id", true), ("v", false)]);
    let inserts =
        ["1.2345", "2.3456", "3.4567"].map(|id| body(&table, Change::Insert(some(&[id, "a"]))));
    stage.apply(vec![inserts.into()], 100).await.unwrap();
    let others = [
        Change::Delete(Before::Key(row(&[Some("1.2345"), None]))),
        Change::update(None, some(&["2.3456", "b"]), Vec::new()),
    ];
    // By themselves: what is refused of one would have the other written with care.
    for change in others {
        let batch = vec![vec![body(&table, change)]];
        stage.apply(batch, 100).await.unwrap();
        assert!(stage.drifted.is_empty(), "{:?}", stage.drifted);
    }
    let rows = "SELECT concat_ws('|', id, v) FROM {s}.rounded ORDER BY id";
    assert_eq!(stage.rows(rows).await, ["2.35|b", "3.46|a"]);
}

/// Many rows that go, alone and with others, written at once and prepared ahead: their keys find them,
/// whatever these are made of, and those that are not there are counted.
#[tokio::test]
#[ignore = "needs a server"]
async fn rows_that_go_are_named_by_their_keys() {
    named_by_their_keys(&["name", "mood", "raw"]).await;
}

/// The same where the key is one column, and given as an array.
#[tokio::test]
#[ignore = "needs a server"]
async fn rows_that_go_are_named_by_an_array_of_their_keys() {
    named_by_their_keys(&["name"]).await;
    named_by_their_keys(&["raw"]).await;
}

async fn named_by_their_keys(keys: &[&str]) {
    let ddl = r#"CREATE TYPE {s}.mood AS ENUM ('sad', 'ok');
        CREATE DOMAIN {s}.calm AS {s}.mood;
        CREATE TABLE {s}.going (name text COLLATE "C", mood {s}.calm, raw bytea, v text, PRIMARY KEY ({keys}));"#;
    let ddl = ddl.replace("{keys}", &keys.join(", "));
    let mut stage = Stage::new(&ddl, &[("going", keys)]).await;
    let columns = ["name", "mood", "raw", "v"].map(|column| (column, keys.contains(&column)));
    let table = version(1, "going", &columns);
    // Quotes, braces, a backslash, a line feed, the word NULL, nothing.
    let names = [r#"a"b"#, "{x,y}", r"back\slash", "two\nlines", "NULL", ""];
    let key = |n: usize| {
        let name = match n {
            4 | 5 => names[n].to_owned(),
            _ => format!("{}{n}", names[n % names.len()]),
        };
        let raw = format!(r"\x{n:08x}");
        let mood = ["sad", "ok"][n % 2];
        (name, mood, raw)
    };
    let insert = |n: usize, v: &str| {
        let (name, mood, raw) = key(n);
        body(&table, Change::Insert(some(&[&name, mood, &raw, v])))
    };
    let delete = |n: usize| {
        let (name, mood, raw) = key(n);
        let cells = [("name", &*name), ("mood", mood), ("raw", &*raw), ("v", "")];
        // Of what goes only the key is known.
        let cells = cells.map(|(column, value)| keys.contains(&column).then_some(value));
        body(&table, Change::Delete(Before::Key(row(&cells))))
    };
    let update = |n: usize| {
        let (name, mood, raw) = key(n);
        let new = some(&[&name, mood, &raw, "new"]);
        body(&table, Change::update(None, new, Vec::new()))
    };
    let all = (0..600).map(|n| insert(n, "old")).collect();
    stage.apply(vec![all], 1000).await.unwrap();

    let alone = (0..100).map(delete).collect();
    // Some make room for others, some are changed first.
    let again = (100..150).flat_map(|n| [delete(n), insert(n, "again")]);
    let changed = (150..200).flat_map(|n| [update(n), delete(n)]);
    let mixed = again.chain(changed).chain((200..250).map(update));
    let mixed = mixed.collect();
    for batch in [alone, mixed] {
        stage.apply(vec![batch], 1000).await.unwrap();
        assert!(stage.drifted.is_empty(), "{:?}", stage.drifted);
    }
    let gone_before = (0..40).map(delete).collect();
    stage.apply(vec![gone_before], 1000).await.unwrap();
    assert_eq!(stage.drifted, [("delete_missed", 40)]);
    let batch = |first: usize| {
        let changed = (first + 40..first + 50).map(update);
        (first..first + 40).map(delete).chain(changed).collect()
    };
    let batches = (0..6).map(|number| batch(250 + 50 * number)).collect();
    let prepared = stage.apply_ahead(batches, 50).await.unwrap();
    assert!(prepared > 1, "{prepared}");
    let rows = "SELECT concat_ws(' ', v, count(*), min(raw::text), max(raw::text)) FROM {s}.going GROUP BY v ORDER BY v";
    let expected = [
        r"again 50 \x00000064 \x00000095",
        r"new 110 \x000000c8 \x00000225",
        r"old 50 \x00000226 \x00000257",
    ];
    assert_eq!(stage.rows(rows).await, expected);
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
