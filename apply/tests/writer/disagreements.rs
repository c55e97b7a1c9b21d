//! Where the destination is not what the events expect.

use bunny_apply::bookkeeping::Epoch;
use bunny_apply::event::{Before, Change};
use bunny_apply::{Error, bookkeeping};

use crate::stage::{KEYED, Stage, body, keyed, old_key, row, some, version};

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

/// What is swapped can only be written row by row, and there too drift is counted.
#[tokio::test]
#[ignore = "needs a server"]
async fn drift_is_counted_where_rows_are_replayed_one_by_one() {
    let mut stage = Stage::new(KEYED, &[("keyed", &["ID"])]).await;
    stage
        .execute(
            r#"INSERT INTO {s}.keyed ("ID", code) VALUES (1, 'a'), (2, 'b'), (3, 'here already')"#,
        )
        .await;
    let table = keyed();
    let update = |id, code| {
        let after = some(&[id, code, "1", "x"]);
        body(&table, Change::update(None, after, Vec::new()))
    };
    let changes = vec![
        update("1", "on the way"),
        update("2", "a"),
        update("1", "b"),
        body(&table, Change::Insert(some(&["3", "c", "1", "x"]))),
        update("8", "not there"),
        body(&table, Change::Delete(old_key(9))),
    ];
    stage.apply(vec![changes], 100).await.unwrap();
    assert_eq!(
        stage
            .rows(r#"SELECT concat_ws('|', "ID", code) FROM {s}.keyed ORDER BY "ID""#)
            .await,
        ["1|b", "2|a", "3|c", "8|not there"]
    );
    assert_eq!(
        stage.drifted,
        [
            ("insert_overwrote", 1),
            ("update_inserted", 1),
            ("delete_missed", 1)
        ]
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

/// Rows that swap unique values are replayed one by one; a key that came, went and came again within
/// the batch ends with its last identity.
#[tokio::test]
#[ignore = "needs a server"]
async fn a_replayed_row_has_its_last_identity() {
    let ddl = "CREATE TABLE {s}.coded (code text PRIMARY KEY, id bigint GENERATED ALWAYS AS IDENTITY, u int UNIQUE);";
    let mut stage = Stage::new(ddl, &[("coded", &["code"])]).await;
    let coded = version(1, "coded", &[("code", true), ("id", false), ("u", false)]);
    let put = |code: &str, id: &str, u: &str| body(&coded, Change::Insert(some(&[code, id, u])));
    let set = |code: &str, id: &str, u: &str| {
        body(
            &coded,
            Change::update(None, some(&[code, id, u]), Vec::new()),
        )
    };
    let take = |code: &str| {
        let key = row(&[Some(code), None, None]);
        body(&coded, Change::Delete(Before::Key(key)))
    };
    let before = vec![put("a", "1", "1"), put("b", "2", "2"), put("c", "3", "3")];
    stage.apply(vec![before], 100).await.unwrap();
    let swapped = vec![
        set("a", "1", "20"),
        set("b", "2", "1"),
        set("a", "1", "2"),
        put("x", "10", "10"),
        take("x"),
        put("x", "11", "10"),
        take("c"),
        put("c", "12", "3"),
    ];
    stage.apply(vec![swapped], 100).await.unwrap();
    assert_eq!(
        stage
            .rows("SELECT concat_ws('|', code, id, u) FROM {s}.coded ORDER BY code")
            .await,
        ["a|1|2", "b|2|1", "c|12|3", "x|11|10"]
    );
}
