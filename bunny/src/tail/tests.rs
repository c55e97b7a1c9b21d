use bunny_postgres::{Lsn, TableName};
use bunny_schemas::control::{GenerationStarted, TableGap};
use bunny_schemas::envelope::{ColumnSchema, Truncate};

use super::*;

fn column(name: &str, type_oid: u32, key: bool) -> ColumnSchema {
    ColumnSchema {
        name: name.to_owned(),
        attnum: 1,
        type_oid,
        type_name: "any".to_owned(),
        typmod: -1,
        not_null: false,
        key,
        facts: None,
    }
}

fn schema() -> TableSchema {
    TableSchema {
        mirror: "shop".to_owned(),
        schema: "public".to_owned(),
        table: "users".to_owned(),
        columns: vec![
            column("id", 20, true),
            column("name", 25, false),
            column("score", 701, false),
            column("photo", 17, false),
        ],
    }
}

fn source() -> Source<'static> {
    Source {
        generation: uuid::Uuid::nil(),
        mirror: "shop",
        schema: "public",
        table: "users",
        xid: 771,
        lsn: Lsn(0x10),
        commit_lsn: Lsn(0x1_0000_00A0),
        commit_ts_us: 1_500_000,
        seq: 3,
    }
}

fn row<'a>(id: i64, name: &'a str) -> Row<'a> {
    vec![
        Datum::Int(id),
        Datum::Text(name),
        Datum::Double(f64::NAN),
        Datum::Bytes(&[1, 255]),
    ]
}

fn update<'a>() -> Change<'a> {
    Change {
        op: Op::Update,
        before_kind: BeforeKind::Key,
        before: Some(vec![Datum::Int(1), Datum::Null, Datum::Null, Datum::Null]),
        after: Some(row(2, "O'Hara\nnext")),
        unchanged: vec![false, false, false, true],
        truncate: None,
        source: source(),
        last: true,
    }
}

fn line(format: Format, event: &Event<'_>) -> String {
    String::from_utf8(Printer::new(format).line(9, event).to_vec()).unwrap()
}

const HEAD: &str = "1970-01-01T00:00:01.500000Z  1/A0/3  xid 771  ";

#[test]
fn a_change_is_one_line() {
    let schema = schema();
    assert_eq!(
        line(Format::Text, &Event::Change(update(), &schema)),
        format!(
            "{HEAD}UPDATE    public.users  id=2 name='O''Hara\\nnext' score=NaN photo=(unchanged)  WAS id=1\n"
        )
    );
    let delete = Change {
        op: Op::Delete,
        after: None,
        unchanged: Vec::new(),
        ..update()
    };
    assert_eq!(
        line(Format::Text, &Event::Change(delete, &schema)),
        format!("{HEAD}DELETE    public.users  id=1\n")
    );
}

#[test]
fn a_change_is_one_object() {
    let schema = schema();
    let shown = line(Format::Json, &Event::Change(update(), &schema));
    assert!(
        shown.ends_with("}\n") && shown.lines().count() == 1,
        "{shown}"
    );
    let shown: Json = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        shown,
        json!({
            "offset": 9, "event": "Change", "op": "u", "before_kind": "key",
            "before": {"id": 1},
            "after": {"id": 2, "name": "O'Hara\nnext", "score": "NaN"},
            "unchanged": ["photo"], "truncate": null,
            "source": {
                "generation": "00000000-0000-0000-0000-000000000000", "mirror": "shop",
                "schema": "public", "table": "users", "xid": 771, "lsn": "0/10",
                "commit_lsn": "1/A0", "commit_ts": "1970-01-01T00:00:01.500000Z",
                "seq": 3, "last": true,
            },
        })
    );
}

#[test]
fn long_values_are_cut_for_people_only() {
    let schema = schema();
    let long = "é".repeat(1000);
    let photo = vec![0_u8; 1000];
    let insert = || Change {
        op: Op::Create,
        before_kind: BeforeKind::None,
        before: None,
        after: Some(vec![
            Datum::Int(1),
            Datum::Text(&long),
            Datum::Null,
            Datum::Bytes(&photo),
        ]),
        unchanged: Vec::new(),
        ..update()
    };
    let shown = line(Format::Text, &Event::Change(insert(), &schema));
    assert!(shown.contains(&format!("name='{}'…(+1600 bytes)", "é".repeat(200))));
    assert!(shown.contains(&format!("photo=\\x{}…(+900 bytes)", "00".repeat(100))));
    let whole = line(Format::Json, &Event::Change(insert(), &schema));
    assert!(whole.contains(&long) && whole.contains(&"00".repeat(1000)));
}

#[test]
fn a_truncate_names_its_tables() {
    let schema = schema();
    let truncate = Change {
        op: Op::Truncate,
        before_kind: BeforeKind::None,
        before: None,
        after: None,
        unchanged: Vec::new(),
        truncate: Some(Truncate {
            tables: vec![TableName::new("public", "users"), TableName::new("s", "t")],
            cascade: true,
            restart_identity: false,
        }),
        ..update()
    };
    assert_eq!(
        line(Format::Text, &Event::Change(truncate, &schema)),
        format!("{HEAD}TRUNCATE  public.users, s.t CASCADE\n")
    );
}

#[test]
fn what_is_no_change_is_said() {
    let gap = Event::Gap(TableGap {
        reason: "too large",
        source: source(),
        last: false,
    });
    assert_eq!(
        line(Format::Text, &gap),
        format!("{HEAD}GAP       public.users  'too large'\n")
    );
    let started = Event::Generation(GenerationStarted {
        generation: uuid::Uuid::nil(),
        mirror: "shop".to_owned(),
        system_id: "7".to_owned(),
        timeline: 1,
        start_lsn: Lsn(0x10),
    });
    assert!(line(Format::Text, &started).starts_with("NEW HISTORY 0000"));
    assert!(line(Format::Json, &started).contains("\"start_lsn\":\"0/10\""));
}
