//! Sequences: created with their table, where they stood when the table was read, and
//! raised since by the rows that come.
//!
//! The log carries no sequence as such. What it carries is where one stood when its table
//! was last synced, and the values drawn since, in rows. So a sequence here is never
//! behind either: it is raised to the greater of the two, and never set back.

use bunny_postgres::introspect::{SequenceDefinition, SequenceRole};
use bunny_postgres::{TableName, quote_ident, quote_literal};

use super::build::{begin, commit};
use super::step::{Step, comment_on};
use crate::context::MirrorRun;
use crate::error::{Error, Result};

/// The name of a table's sequence at the destination: one that belongs to the table lies
/// in the table's schema, any other keeps its own.
pub(crate) fn destination_name(sequence: &SequenceDefinition, table: &TableName) -> TableName {
    match sequence.role {
        SequenceRole::Identity | SequenceRole::Owned => {
            TableName::new(table.schema.as_str(), sequence.name.name.as_str())
        }
        SequenceRole::Used => sequence.name.clone(),
    }
}

/// The inside of `GENERATED … AS IDENTITY (…)`. Without a name Postgres picks one.
pub(crate) fn identity_options(sequence: &SequenceDefinition, name: Option<&TableName>) -> String {
    let name = name.map_or_else(String::new, |name| {
        format!("SEQUENCE NAME {} ", name.quoted())
    });
    format!("{name}{}", options(sequence))
}

fn options(sequence: &SequenceDefinition) -> String {
    format!(
        "START WITH {} INCREMENT BY {} MINVALUE {} MAXVALUE {} CACHE {} {}",
        sequence.start,
        sequence.increment,
        sequence.min,
        sequence.max,
        sequence.cache,
        if sequence.cycle { "CYCLE" } else { "NO CYCLE" }
    )
}

/// Makes a sequence that no identity column makes. One that others use as well may be
/// there already, and is then left as it is but for being raised.
pub(crate) fn create(sequence: &SequenceDefinition, name: &TableName) -> Step {
    let sql = name.quoted();
    let mut statements = Vec::new();
    if sequence.role == SequenceRole::Used {
        statements.push(format!(
            "CREATE SCHEMA IF NOT EXISTS {}",
            quote_ident(&name.schema)
        ));
    }
    statements.push(format!(
        "CREATE SEQUENCE IF NOT EXISTS {sql} AS {} {}",
        sequence.data_type,
        options(sequence)
    ));
    if let Some(comment) = &sequence.comment {
        statements.push(comment_on("SEQUENCE", &sql, comment));
    }
    let what = format!("sequence {name}");
    Step::new("sequence", &sequence.name.name, what, statements)
}

/// Ties a sequence to its column.
pub(crate) fn own(sequence: &SequenceDefinition, name: &TableName, table: &TableName) -> String {
    format!(
        "ALTER SEQUENCE {} OWNED BY {}.{}",
        name.quoted(),
        table.quoted(),
        quote_ident(&sequence.column)
    )
}

/// Sets a new sequence to where the source's stood.
pub(crate) fn set(sequence: &SequenceDefinition, name_sql: &str) -> Option<String> {
    let last_value = sequence.last_value?;
    Some(format!(
        "SELECT setval({}::regclass, {last_value}, {})",
        quote_literal(name_sql),
        sequence.is_called
    ))
}

/// Raises a sequence to where the source's stood, and to the greatest value of a column
/// (`table`, `column`: SQL), whichever is further on its way. Never sets it back.
pub(crate) fn raise_sql(
    sequence: &SequenceDefinition,
    name_sql: &str,
    column: Option<(&str, &str)>,
) -> String {
    let is_rising = sequence.increment > 0;
    let (furthest, order, further) = if is_rising {
        (
            "max",
            "value DESC, called DESC",
            "(best.value, best.called) > (now.last_value, now.is_called)",
        )
    } else {
        (
            "min",
            "value, called DESC",
            "(-best.value, best.called) > (-now.last_value, now.is_called)",
        )
    };
    let last_value = sequence
        .last_value
        .map_or_else(|| "NULL".to_owned(), |value| value.to_string());
    let of_rows = column.map_or_else(String::new, |(table, column)| {
        format!(" UNION ALL SELECT {furthest}({column})::bigint, true FROM {table}")
    });
    format!(
        "WITH best AS (SELECT value, called FROM (
             SELECT {last_value}::bigint, {}{of_rows}) known(value, called)
             WHERE value BETWEEN {} AND {} ORDER BY {order} LIMIT 1)
         SELECT setval({}::regclass, best.value, best.called) FROM best, {name_sql} now
         WHERE {further}",
        sequence.is_called,
        sequence.min,
        sequence.max,
        quote_literal(name_sql)
    )
}

/// Finds a column's sequence, and whether its values are the sequence's and an index finds
/// the greatest.
const FIND: &str = "
    SELECT pg_get_serial_sequence($1, $2),
           EXISTS (SELECT FROM pg_index i
                   JOIN pg_class c ON c.oid = i.indexrelid
                   JOIN pg_am am ON am.oid = c.relam AND am.amname = 'btree'
                   JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
                   WHERE i.indrelid = to_regclass($1) AND a.attname = $2
                     AND a.atttypid IN ('int2'::regtype, 'int4'::regtype, 'int8'::regtype)
                     AND i.indisvalid AND i.indpred IS NULL)
    WHERE to_regclass($1) IS NOT NULL
      AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attname = $2)";

/// Raises the sequences of a table in one fenced transaction.
pub(crate) async fn raise(
    client: &tokio_postgres::Client,
    run: &MirrorRun,
    table: &TableName,
    sequences: &[SequenceDefinition],
) -> Result<()> {
    let doing = || format!("raising the sequences of {table}");
    let table_sql = table.quoted();
    begin(client, run).await?;
    for sequence in sequences {
        let found = client
            .query_opt(FIND, &[&table_sql, &sequence.column])
            .await
            .map_err(Error::sql(doing()))?;
        let Some(found) = found else { continue };
        let is_indexed: bool = found.get(1);
        let name_sql = match sequence.role {
            SequenceRole::Used => Some(sequence.name.quoted()),
            SequenceRole::Identity | SequenceRole::Owned => found.get(0),
        };
        let Some(name_sql) = name_sql else { continue };
        let exists = client
            .query_one("SELECT to_regclass($1) IS NOT NULL", &[&name_sql])
            .await
            .map_err(Error::sql(doing()))?;
        if !exists.get::<_, bool>(0) {
            continue;
        }
        let column_sql = quote_ident(&sequence.column);
        let follows_rows = is_indexed && !sequence.cycle && sequence.role != SequenceRole::Used;
        let column = follows_rows.then_some((table_sql.as_str(), column_sql.as_str()));
        client
            .batch_execute(&raise_sql(sequence, &name_sql, column))
            .await
            .map_err(Error::sql(doing()))?;
    }
    commit(client).await
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::schema) fn sequence(role: SequenceRole) -> SequenceDefinition {
        SequenceDefinition {
            name: TableName::new("shop", "t_id_seq"),
            role,
            column: "id".into(),
            data_type: "integer".into(),
            start: 5,
            increment: 10,
            min: 1,
            max: 2_147_483_647,
            cache: 1,
            cycle: false,
            last_value: Some(25),
            is_called: true,
            comment: None,
        }
    }

    #[test]
    fn owned_sequences_move_with_their_table() {
        let table = TableName::new("Other", "t");
        let owned = sequence(SequenceRole::Owned);
        let name = destination_name(&owned, &table);
        assert_eq!(name, TableName::new("Other", "t_id_seq"));
        assert_eq!(
            create(&owned, &name).sql(),
            "CREATE SEQUENCE IF NOT EXISTS \"Other\".\"t_id_seq\" AS integer START WITH 5 INCREMENT BY 10 MINVALUE 1 MAXVALUE 2147483647 CACHE 1 NO CYCLE"
        );
        assert_eq!(
            own(&owned, &name, &table),
            "ALTER SEQUENCE \"Other\".\"t_id_seq\" OWNED BY \"Other\".\"t\".\"id\""
        );
        let used = sequence(SequenceRole::Used);
        assert_eq!(destination_name(&used, &table), used.name);
        assert!(
            create(&used, &used.name)
                .sql()
                .starts_with("CREATE SCHEMA IF NOT EXISTS \"shop\"; ")
        );
    }

    #[test]
    fn an_identity_keeps_its_sequences_name_and_options() {
        let identity = sequence(SequenceRole::Identity);
        let name = TableName::new("Other", "t_id_seq");
        assert_eq!(
            identity_options(&identity, Some(&name)),
            "SEQUENCE NAME \"Other\".\"t_id_seq\" START WITH 5 INCREMENT BY 10 MINVALUE 1 MAXVALUE 2147483647 CACHE 1 NO CYCLE"
        );
        assert!(identity_options(&identity, None).starts_with("START WITH"));
    }

    #[test]
    fn a_new_sequence_stands_where_the_sources_stood() {
        let mut sequence = sequence(SequenceRole::Owned);
        assert_eq!(
            set(&sequence, "\"a\".\"it's\"").as_deref(),
            Some("SELECT setval('\"a\".\"it''s\"'::regclass, 25, true)")
        );
        sequence.last_value = None;
        assert_eq!(set(&sequence, "x"), None);
    }

    #[test]
    fn raising_goes_the_sequences_own_way() {
        let mut sequence = sequence(SequenceRole::Owned);
        let rising = raise_sql(&sequence, "s", Some(("t", "c")));
        assert!(
            rising.contains("SELECT max(c)::bigint, true FROM t"),
            "{rising}"
        );
        sequence.increment = -1;
        let falling = raise_sql(&sequence, "s", Some(("t", "c")));
        assert!(falling.contains("SELECT min(c)::bigint"), "{falling}");
        assert!(!raise_sql(&sequence, "s", None).contains("UNION"));
    }
}
