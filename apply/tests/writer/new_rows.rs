//! New rows of batches that also update and delete: by COPY, after the rest.

use bunny_apply::event::{Body, Change};

use crate::stage::{KEYED, Stage, body, commit, keyed, old_key, some};

const SHOWN: &str = r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#;

/// More than enough to be worth a COPY.
const MANY: u64 = 50;

/// No INSERT gets past it, COPY does: rules are not for COPY.
const NO_INSERTS: &str = "CREATE RULE no_inserts AS ON INSERT TO {s}.keyed DO INSTEAD NOTHING;
    ALTER TABLE {s}.keyed ENABLE ALWAYS RULE no_inserts;";

fn insert(id: u64, code: &str) -> Body {
    let row = some(&[&id.to_string(), code, "1", "x"]);
    body(&keyed(), Change::Insert(row))
}

fn update(id: u64, code: &str) -> Body {
    let after = some(&[&id.to_string(), code, "1", "x"]);
    body(&keyed(), Change::update(None, after, Vec::new()))
}

fn delete(id: u64) -> Body {
    body(&keyed(), Change::Delete(old_key(id)))
}

/// Rows 1 to 100, each with its key as code.
async fn hundred(ddl: &str) -> Stage {
    let mut stage = Stage::new(ddl, &[("keyed", &["ID"])]).await;
    let rows = (1..=100).map(|id| insert(id, &id.to_string())).collect();
    stage.apply(vec![rows], 1000).await.unwrap();
    stage
}

/// What the batch gives: deletes, an update and a row that is replaced make room for new rows, under
/// the key or under the unique code.
fn batch() -> (Vec<Body>, Vec<String>) {
    let mut bodies: Vec<Body> = (1..=MANY).map(delete).collect();
    bodies.push(update(60, "sixty"));
    bodies.push(insert(200, "60"));
    bodies.extend([delete(61), insert(61, "anew")]);
    bodies.push(insert(201, "61"));
    let codes = (1..=MANY).map(|id| (1000 + id, id.to_string()));
    bodies.extend(codes.map(|(id, code)| insert(id, &code)));
    // Came and went, and came with another code.
    bodies.extend([insert(300, "a"), delete(300), insert(300, "b")]);
    bodies.push(update(300, "c"));

    let expected = (MANY + 1..=100).map(|id| match id {
        60 => "60|sixty".to_owned(),
        61 => "61|anew".to_owned(),
        id => format!("{id}|{id}"),
    });
    let mut expected: Vec<String> = expected.collect();
    expected.extend(["200|60", "201|61", "300|c"].map(str::to_owned));
    expected.extend((1..=MANY).map(|id| format!("{}|{id}", 1000 + id)));
    (bodies, expected)
}

#[tokio::test]
#[ignore = "needs a server"]
async fn new_rows_are_copied_once_the_rest_has_made_room() {
    let mut stage = hundred(KEYED).await;
    stage.execute(NO_INSERTS).await;
    let (bodies, expected) = batch();
    stage.apply(vec![bodies], 1000).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, expected);
    assert!(stage.drifted.is_empty(), "{:?}", stage.drifted);
}

#[tokio::test]
#[ignore = "needs a server"]
async fn new_rows_of_a_prepared_batch_are_copied_too() {
    let mut stage = hundred(KEYED).await;
    let mut writer = stage.writer().await;
    let first = stage.parts(vec![vec![update(100, "100")]], 1000).remove(0);
    writer.begin(first.first_offset).await.unwrap();
    writer.write(&first).await.unwrap();
    commit(&mut writer, &first).await.unwrap();

    stage.execute(NO_INSERTS).await;
    let (bodies, expected) = batch();
    let second = stage.parts(vec![bodies], 1000).remove(0);
    assert!(writer.prepare(&second).await.unwrap());
    writer.write(&second).await.unwrap();
    commit(&mut writer, &second).await.unwrap();
    assert_eq!(stage.rows(SHOWN).await, expected);
    assert!(writer.drifted().is_empty());
}

/// The whole batch is undone then and written with care; later ones are staged.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_new_row_that_is_there_is_overwritten() {
    let mut stage = hundred(KEYED).await;
    stage
        .execute(
            r#"INSERT INTO {s}.keyed ("ID", code) VALUES (1001, 'here already'), (2001, 'too')"#,
        )
        .await;
    let (first, mut expected) = batch();
    let second = (1..=MANY).map(|id| insert(2000 + id, &format!("second {id}")));
    let second: Vec<Body> = second.chain([update(300, "d")]).collect();
    stage.apply(vec![first, second], 100).await.unwrap();
    let at = expected.iter().position(|row| row == "300|c").unwrap();
    expected[at] = "300|d".to_owned();
    expected.extend((1..=MANY).map(|id| format!("{}|second {id}", 2000 + id)));
    assert_eq!(stage.rows(SHOWN).await, expected);
    assert_eq!(stage.drifted, [("insert_overwrote", 2)]);
}

/// Nothing at such a destination refuses a key that is there, so nothing is copied on trust.
#[tokio::test]
#[ignore = "needs a server"]
async fn where_no_index_refuses_a_key_no_row_is_there_twice() {
    for index in [
        "",
        r#"CREATE UNIQUE INDEX ON {s}.keyed ("ID") WHERE code <> '';"#,
        r#"CREATE UNIQUE INDEX ON {s}.keyed ("ID", code);"#,
        r#"ALTER TABLE {s}.keyed ADD UNIQUE ("ID") DEFERRABLE INITIALLY DEFERRED;"#,
    ] {
        let ddl = format!("{KEYED} ALTER TABLE {{s}}.keyed DROP CONSTRAINT keyed_pkey; {index}");
        let mut stage = hundred(&ddl).await;
        stage
            .execute(r#"INSERT INTO {s}.keyed ("ID", code) VALUES (1001, 'here already')"#)
            .await;
        let (bodies, expected) = batch();
        stage.apply(vec![bodies], 1000).await.unwrap();
        assert_eq!(stage.rows(SHOWN).await, expected, "{index}");
        assert_eq!(stage.drifted, [("insert_overwrote", 1)], "{index}");
    }
}
