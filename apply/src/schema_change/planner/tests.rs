use bunny_postgres::TableName;

use super::super::destination::Present;
use super::super::destination::PresentTable;
use super::super::plan::is_known;
use super::super::shape::{Computed, Shape};
use super::*;
use crate::event::TableVersion;

fn name(name: &str) -> TableName {
    TableName::new("public", name)
}

fn column(attnum: i16, name: &str, type_name: &str) -> ColumnSchema {
    ColumnSchema {
        name: name.to_owned(),
        attnum,
        type_oid: 25,
        type_name: type_name.to_owned(),
        typmod: -1,
        not_null: false,
        key: false,
        facts: (attnum != 0).then(|| ColumnFacts {
            old_rows: OldRows::Null,
            ..ColumnFacts::default()
        }),
    }
}

fn id() -> ColumnSchema {
    let mut id = column(1, "id", "integer");
    id.not_null = true;
    id.key = true;
    if let Some(facts) = &mut id.facts {
        facts.primary_key = Some(1);
    }
    id
}

fn version(columns: Vec<ColumnSchema>) -> TableVersion {
    TableVersion {
        schema_id: 7,
        source: name("t"),
        columns,
    }
}

fn shape(columns: &[ColumnSchema]) -> Shape {
    let columns: Vec<Known> = columns
        .iter()
        .map(|column| Known {
            into: Some(column.name.clone()),
            ..first_seen(column)
        })
        .collect();
    Shape {
        primary_key: Some(vec![1]),
        columns,
        ..Shape::default()
    }
}

fn present(known: &Shape) -> PresentTable {
    let columns = known.columns.iter().filter_map(|column| {
        Some(Present {
            name: column.into.clone()?,
            type_name: column.type_name.clone(),
            not_null: column.not_null,
            fills_itself: false,
            is_generated: false,
        })
    });
    PresentTable {
        columns: columns.collect(),
        primary_key: Some(("t_pkey".into(), vec!["id".into()])),
        has_rows: true,
    }
}

/// From the first columns to the second.
fn change(
    mode: SchemaChanges,
    from: Vec<ColumnSchema>,
    to: Vec<ColumnSchema>,
) -> Result<Plan, Refusal> {
    let known = shape(&from);
    let present = present(&known);
    plan(Wanted {
        mode,
        known: &known,
        computed: Some(&[]),
        version: &version(to),
        destination: &name("copy"),
        present: &present,
    })
}

fn sql(plan: &Plan) -> Vec<&str> {
    plan.alterations
        .iter()
        .chain(&plan.constraints)
        .map(|alteration| alteration.attempts[0].sql.as_str())
        .map(|sql| {
            sql.strip_prefix(r#"ALTER TABLE "public"."copy" "#)
                .unwrap_or(sql)
        })
        .collect()
}

const MODES: [SchemaChanges; 3] = [
    SchemaChanges::Additive,
    SchemaChanges::All,
    SchemaChanges::Manual,
];

fn base() -> Vec<ColumnSchema> {
    vec![id(), column(2, "a", "text"), column(3, "b", "integer")]
}

fn with(column: ColumnSchema) -> Vec<ColumnSchema> {
    let mut columns = base();
    columns.push(column);
    columns
}

fn new_column(old_rows: OldRows, default: Option<&str>) -> ColumnSchema {
    let mut new = column(4, "new", "integer");
    new.facts = Some(ColumnFacts {
        old_rows,
        default: default.map(str::to_owned),
        ..ColumnFacts::default()
    });
    new
}

#[test]
fn what_is_known_needs_nothing() {
    let known = shape(&base());
    assert!(is_known(&known, &version(base())));
    let mut unrecognised = base();
    for column in &mut unrecognised {
        column.attnum = 0;
        column.facts = None;
    }
    assert!(!is_known(&known, &version(unrecognised)), "in doubt");
    assert!(!is_known(&known, &version(with(column(4, "new", "text")))));
    let mut renamed = base();
    renamed[1].name = "z".into();
    assert!(!is_known(&known, &version(renamed)));
    let mut moved = base();
    moved[1].attnum = 5;
    assert!(
        !is_known(&known, &version(moved)),
        "dropped and added again"
    );
}

#[test]
fn a_column_is_added_with_what_its_old_rows_hold() {
    for mode in [SchemaChanges::Additive, SchemaChanges::All] {
        let plain = change(mode, base(), with(new_column(OldRows::Null, None))).unwrap();
        assert_eq!(sql(&plain), [r#"ADD COLUMN "new" integer"#]);
        assert!(plain.notices.is_empty());
        assert_eq!(plain.shape.place_of("new"), Some("new"));

        let later = change(mode, base(), with(new_column(OldRows::Null, Some("7")))).unwrap();
        assert_eq!(
            sql(&later),
            [
                r#"ADD COLUMN "new" integer"#,
                r#"ALTER COLUMN "new" SET DEFAULT 7"#
            ]
        );

        let value = new_column(OldRows::Value("5".into()), None);
        let filled = change(mode, base(), with(value)).unwrap();
        assert_eq!(
            sql(&filled),
            [
                r#"ADD COLUMN "new" integer DEFAULT '5'::integer"#,
                r#"ALTER COLUMN "new" DROP DEFAULT"#
            ]
        );
    }
}

#[test]
fn what_old_rows_hold_must_be_known_unless_there_are_none() {
    let new = || with(new_column(OldRows::Unknown, Some("random()")));
    let refused = change(SchemaChanges::Additive, base(), new()).unwrap_err();
    assert!(refused.0.contains("sync the table again"), "{refused:?}");
    let known = shape(&base());
    let empty = PresentTable {
        has_rows: false,
        ..present(&known)
    };
    let plan = plan(Wanted {
        mode: SchemaChanges::Additive,
        known: &known,
        computed: Some(&[]),
        version: &version(new()),
        destination: &name("copy"),
        present: &empty,
    });
    assert!(plan.is_ok());
}

#[test]
fn a_column_kept_back_so_far_is_not_new() {
    let from = vec![id(), column(3, "b", "integer")];
    let refused = change(SchemaChanges::All, from, base()).unwrap_err();
    assert!(refused.0.contains("older than others"), "{refused:?}");
}

/// A destination that computes `new`, and knows of `computed`, when values come for it.
fn comes(
    mode: SchemaChanges,
    computed: Option<&[Computed]>,
    column: ColumnSchema,
) -> Result<Plan, Refusal> {
    let known = shape(&base());
    let mut present = present(&known);
    present.columns.push(Present {
        name: "new".into(),
        type_name: "integer".into(),
        not_null: false,
        fills_itself: true,
        is_generated: true,
    });
    plan(Wanted {
        mode,
        known: &known,
        computed,
        version: &version(with(column)),
        destination: &name("copy"),
        present: &present,
    })
}

fn computed(attnum: i16) -> [Computed; 1] {
    [Computed {
        attnum,
        name: "new".into(),
        type_name: "integer".into(),
    }]
}

#[test]
fn a_column_that_is_generated_no_more_takes_values() {
    let freed = || new_column(OldRows::Null, None);
    let same = computed(4);
    let all = comes(SchemaChanges::All, Some(&same), freed()).unwrap();
    assert_eq!(sql(&all), [r#"ALTER COLUMN "new" DROP EXPRESSION"#]);
    assert_eq!(all.shape.place_of("new"), Some("new"));
    for mode in [SchemaChanges::Additive, SchemaChanges::Manual] {
        let Refusal(reason) = comes(mode, Some(&same), freed()).unwrap_err();
        assert!(reason.contains("DROP EXPRESSION at the destination"));
    }
    // What the publication was told to send is computed here.
    let mut sent = freed();
    if let Some(facts) = &mut sent.facts {
        facts.generated = true;
    }
    let sent = comes(SchemaChanges::Additive, Some(&same), sent).unwrap();
    assert!(sent.alterations.is_empty() && sent.notices.is_empty());
}

/// Under the name of a generated column that was dropped comes another, whose older rows are others.
#[test]
fn a_generated_column_dropped_and_added_plain_is_another() {
    let former = computed(3);
    let another = || new_column(OldRows::Value("7".into()), None);
    let all = comes(SchemaChanges::All, Some(&former), another()).unwrap();
    assert_eq!(
        sql(&all),
        [
            r#"DROP COLUMN "new""#,
            r#"ADD COLUMN "new" integer DEFAULT '7'::integer"#,
            r#"ALTER COLUMN "new" DROP DEFAULT"#
        ]
    );
    assert_eq!(all.shape.place_of("new"), Some("new"));
    let unknown = new_column(OldRows::Unknown, None);
    let Refusal(reason) = comes(SchemaChanges::All, Some(&former), unknown).unwrap_err();
    assert!(reason.contains("older rows hold is not in the stream"));
    for mode in [SchemaChanges::Additive, SchemaChanges::Manual] {
        let Refusal(reason) = comes(mode, Some(&former), another()).unwrap_err();
        assert!(reason.contains("drop it there, add it again as a plain integer"));
        assert!(!reason.contains("DROP EXPRESSION"));
    }
}

#[test]
fn an_expression_is_dropped_only_where_it_is_proven_to_be_the_same_column() {
    let mut nameless = new_column(OldRows::Null, None);
    nameless.attnum = 0;
    nameless.facts = None;
    let mut retyped = new_column(OldRows::Null, None);
    retyped.type_name = "bigint".into();
    let same = computed(4);
    for (computed, column) in [
        (None, new_column(OldRows::Null, None)),
        (Some(&[][..]), new_column(OldRows::Null, None)),
        (Some(&same[..]), nameless),
        (Some(&same[..]), retyped),
    ] {
        let Refusal(reason) = comes(SchemaChanges::All, computed, column).unwrap_err();
        assert!(reason.contains("sync the table again"), "{reason}");
    }
}

#[test]
fn what_was_computed_for_older_rows_is_not_null() {
    let lacking = |computed: &[Computed], column: ColumnSchema| {
        let known = shape(&base());
        plan(Wanted {
            mode: SchemaChanges::All,
            known: &known,
            computed: Some(computed),
            version: &version(with(column)),
            destination: &name("copy"),
            present: &present(&known),
        })
    };
    // Renamed before its expression was dropped, or dropped here by hand.
    let freed = || new_column(OldRows::Null, None);
    assert!(lacking(&computed(4), freed()).is_err());
    assert!(lacking(&computed(3), freed()).is_ok());
    let mut sent = freed();
    if let Some(facts) = &mut sent.facts {
        facts.generated = true;
    }
    assert!(lacking(&[], sent).is_err());
}

#[test]
fn manual_alters_nothing() {
    let mut other = base();
    other.remove(1);
    other[1].type_name = "text".into();
    other[1].name = "renamed".into();
    other.push(column(4, "new", "text"));
    let plan = change(SchemaChanges::Manual, base(), other).unwrap();
    assert!(plan.alterations.is_empty(), "{plan:?}");
    assert_eq!(plan.notices.len(), 4, "{plan:?}");
    assert_eq!(plan.shape.place_of("new"), None);
    assert_eq!(plan.shape.place_of("renamed"), Some("b"));
}

#[test]
fn a_dropped_column_goes_only_under_all() {
    let mut required = column(2, "a", "text");
    required.not_null = true;
    let from = || vec![id(), required.clone(), column(3, "b", "integer")];
    let to = || vec![id(), column(3, "b", "integer")];
    let all = change(SchemaChanges::All, from(), to()).unwrap();
    assert_eq!(sql(&all), [r#"DROP COLUMN "a""#]);
    let additive = change(SchemaChanges::Additive, from(), to()).unwrap();
    assert_eq!(sql(&additive), [r#"ALTER COLUMN "a" DROP NOT NULL"#]);
    assert_eq!(additive.notices.len(), 1);
    assert_eq!(additive.shape.abandoned, ["a"]);
}

#[test]
fn a_column_dropped_and_added_again_is_another() {
    let to = || vec![id(), column(3, "b", "integer"), column(4, "a", "text")];
    let all = change(SchemaChanges::All, base(), to()).unwrap();
    assert_eq!(sql(&all), [r#"DROP COLUMN "a""#, r#"ADD COLUMN "a" text"#]);
    assert!(change(SchemaChanges::Additive, base(), to()).is_err());
    let manual = change(SchemaChanges::Manual, base(), to()).unwrap();
    assert_eq!(manual.shape.place_of("a"), None);
}

#[test]
fn a_rename_is_proven_by_the_attnum() {
    let mut to = base();
    to[1].name = "z".into();
    let all = change(SchemaChanges::All, base(), to.clone()).unwrap();
    assert_eq!(sql(&all), [r#"RENAME COLUMN "a" TO "z""#]);
    assert_eq!(all.shape.place_of("z"), Some("z"));
    for mode in [SchemaChanges::Additive, SchemaChanges::Manual] {
        let plan = change(mode, base(), to.clone()).unwrap();
        assert!(plan.alterations.is_empty());
        assert_eq!(plan.shape.place_of("z"), Some("a"), "its data flows on");
        assert_eq!(plan.notices.len(), 1);
    }
}

#[test]
fn names_that_change_hands() {
    let mut to = base();
    to[1].name = "b".into();
    to[2].name = "a".into();
    let all = change(SchemaChanges::All, base(), to.clone()).unwrap();
    assert_eq!(
        sql(&all),
        [
            r#"RENAME COLUMN "a" TO "_bunny_rename_2""#,
            r#"RENAME COLUMN "b" TO "_bunny_rename_3""#,
            r#"RENAME COLUMN "_bunny_rename_2" TO "b""#,
            r#"RENAME COLUMN "_bunny_rename_3" TO "a""#,
        ]
    );
    let additive = change(SchemaChanges::Additive, base(), to).unwrap();
    assert_eq!(additive.shape.place_of("b"), Some("a"));
    assert_eq!(additive.shape.place_of("a"), Some("b"));

    // Its name goes to a new column.
    let mut taken = base();
    taken[1].name = "z".into();
    taken.push(column(4, "a", "text"));
    let all = change(SchemaChanges::All, base(), taken.clone()).unwrap();
    assert_eq!(
        sql(&all),
        [r#"RENAME COLUMN "a" TO "z""#, r#"ADD COLUMN "a" text"#]
    );
    assert!(change(SchemaChanges::Additive, base(), taken).is_err());
}

#[test]
fn types_follow_as_far_as_the_mode_goes() {
    let to = |type_name: &str| {
        let mut to = base();
        to[2].type_name = type_name.into();
        to
    };
    let all = change(SchemaChanges::All, base(), to("bigint")).unwrap();
    assert_eq!(sql(&all), [r#"ALTER COLUMN "b" TYPE bigint"#]);
    let additive = change(SchemaChanges::Additive, base(), to("bigint")).unwrap();
    assert!(additive.alterations.is_empty());
    assert_eq!(additive.notices.len(), 1);
    assert_eq!(additive.shape.columns[2].type_name, "bigint", "said once");

    let varying = |length: &str| vec![id(), column(2, "a", &format!("character varying{length}"))];
    let wider = change(SchemaChanges::Additive, varying("(5)"), varying("(9)")).unwrap();
    assert_eq!(
        sql(&wider),
        [r#"ALTER COLUMN "a" TYPE character varying(9)"#]
    );
    let narrower = change(SchemaChanges::Additive, varying("(9)"), varying("(5)")).unwrap();
    assert!(narrower.alterations.is_empty());
}

#[test]
fn not_null_is_dropped_so_that_rows_flow_and_set_under_all() {
    let mut strict = base();
    strict[1].not_null = true;
    for mode in [SchemaChanges::Additive, SchemaChanges::All] {
        let relaxed = change(mode, strict.clone(), base()).unwrap();
        assert_eq!(sql(&relaxed), [r#"ALTER COLUMN "a" DROP NOT NULL"#]);
    }
    let all = change(SchemaChanges::All, base(), strict.clone()).unwrap();
    assert_eq!(sql(&all), [r#"ALTER COLUMN "a" SET NOT NULL"#]);
    for mode in [SchemaChanges::Additive, SchemaChanges::Manual] {
        let said = change(mode, base(), strict.clone()).unwrap();
        assert!(said.alterations.is_empty());
        assert_eq!(said.notices.len(), 1, "{:?}", said.notices);
        assert!(said.notices[0].contains("set it NOT NULL there"));
    }
}

#[test]
fn a_primary_key_follows_under_all() {
    let mut to = base();
    to[2].not_null = true;
    if let Some(facts) = &mut to[2].facts {
        facts.primary_key = Some(2);
    }
    let all = change(SchemaChanges::All, base(), to.clone()).unwrap();
    assert_eq!(
        sql(&all),
        [
            r#"DROP CONSTRAINT "t_pkey""#,
            r#"ALTER COLUMN "b" SET NOT NULL"#,
            r#"ADD PRIMARY KEY ("id", "b")"#
        ]
    );
    let additive = change(SchemaChanges::Additive, base(), to).unwrap();
    assert!(additive.alterations.is_empty());
    assert_eq!(additive.notices.len(), 1);
}

#[test]
fn a_plan_done_is_not_done_again() {
    let mut to = base();
    to.remove(1);
    to[1].type_name = "text".into();
    to.push(new_column(OldRows::Null, None));
    for mode in MODES {
        let plan = change(mode, base(), to.clone()).unwrap();
        assert!(is_known(&plan.shape, &version(to.clone())), "{mode:?}");
    }
}

/// What a version without a number leaves, and what the next one makes of it.
#[test]
fn a_column_that_was_not_recognised_is_not_taken_for_another() {
    let known = vec![id(), column(2, "a", "integer")];
    let seen_again = |attnum, type_name: &str| {
        let to = vec![id(), column(attnum, "a", type_name)];
        change(SchemaChanges::All, known.clone(), to)
    };
    // Alone, it is not known to be another; but a type that changes says it may be.
    let plan = seen_again(0, "integer").unwrap();
    assert!(sql(&plan).is_empty());
    assert_eq!(plan.shape.columns[1].attnum, 2);
    assert!(plan.shape.columns[1].unsure);
    let refused = |changed: Result<Plan, Refusal>| {
        changed.is_err_and(|Refusal(reason)| reason.contains("sync the table again"))
    };
    assert!(refused(seen_again(0, "text")));

    let next = |to: Vec<ColumnSchema>| {
        let present = present(&plan.shape);
        let version = version(to);
        let known = &plan.shape;
        assert!(!is_known(known, &version));
        super::plan(Wanted {
            mode: SchemaChanges::All,
            known,
            computed: Some(&[]),
            version: &version,
            destination: &name("copy"),
            present: &present,
        })
    };
    let sure = next(vec![id(), column(2, "a", "integer")]).unwrap();
    assert!(sql(&sure).is_empty() && !sure.shape.columns[1].unsure);
    assert!(refused(next(vec![id(), column(3, "a", "integer")])));
    assert!(refused(next(vec![id(), column(2, "b", "integer")])));
    assert!(refused(next(vec![id()])));
}
