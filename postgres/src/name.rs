//! Identifiers: table names and SQL quoting.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `name` as a quoted SQL identifier, whatever characters it holds.
pub fn quote_ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// `text` as an SQL string literal. The escape form is used when there is a
/// backslash, so the result does not depend on `standard_conforming_strings`.
/// Values belong in parameters; this is for statements that take none (DDL,
/// replication commands, `SET`).
pub fn quote_literal(text: &str) -> String {
    let quotes_doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", quotes_doubled.replace('\\', "\\\\"))
    } else {
        format!("'{quotes_doubled}'")
    }
}

/// The true name of a table: schema and name exactly as in `pg_class`.
///
/// The text form is `schema.name`; a part that holds a dot or a double quote (or
/// is empty) is written in double quotes, with inner quotes doubled. Unlike SQL, an
/// unquoted part is taken as it stands, without folding to lower case: what a
/// user reads in a table list is what a user writes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TableName {
    /// Schema, unquoted.
    pub schema: String,
    /// Table, unquoted.
    pub name: String,
}

impl TableName {
    /// A name from its two parts, both unquoted.
    pub fn new(schema: impl Into<String>, name: impl Into<String>) -> Self {
        TableName {
            schema: schema.into(),
            name: name.into(),
        }
    }

    /// `"schema"."name"`, safe to put into SQL.
    pub fn quoted(&self) -> String {
        format!("{}.{}", quote_ident(&self.schema), quote_ident(&self.name))
    }

    /// `schema.name`, quoted only where parsing it back needs that.
    pub fn as_plain(&self) -> String {
        self.to_string()
    }

    /// Parses the text form; see [`TableName`].
    pub fn parse(text: &str) -> Result<Self, ParseTableNameError> {
        text.parse()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_part(f, &self.schema)?;
        f.write_str(".")?;
        write_part(f, &self.name)
    }
}

fn write_part(f: &mut fmt::Formatter<'_>, part: &str) -> fmt::Result {
    if part.is_empty() || part.contains(['.', '"']) {
        f.write_str(&quote_ident(part))
    } else {
        f.write_str(part)
    }
}

/// The text is not `schema.name`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a table name: {problem}; write schema.table, and put a part that holds a dot or a quote in double quotes"
)]
pub struct ParseTableNameError {
    text: String,
    problem: &'static str,
}

impl FromStr for TableName {
    type Err = ParseTableNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_parts(text).map_err(|problem| ParseTableNameError {
            text: text.to_owned(),
            problem,
        })
    }
}

fn parse_parts(text: &str) -> Result<TableName, &'static str> {
    let (schema, rest) = take_part(text)?;
    let Some(rest) = rest.strip_prefix('.') else {
        return Err("it has no schema");
    };
    let (name, rest) = take_part(rest)?;
    if !rest.is_empty() {
        return Err("it has more than two parts");
    }
    Ok(TableName { schema, name })
}

/// One part and what follows it: either nothing or a text that starts with a dot.
fn take_part(text: &str) -> Result<(String, &str), &'static str> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find('.').unwrap_or(text.len());
        let (part, rest) = text.split_at(end);
        if part.is_empty() {
            return Err("a part is empty");
        }
        if part.contains('"') {
            return Err("a quote stands inside an unquoted part");
        }
        return Ok((part.to_owned(), rest));
    };
    let mut part = String::new();
    let mut rest = quoted;
    loop {
        let Some(at) = rest.find('"') else {
            return Err("a double quote is not closed");
        };
        part.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        match rest.strip_prefix('"') {
            Some(after_pair) => {
                part.push('"');
                rest = after_pair;
            }
            None => break,
        }
    }
    if part.is_empty() {
        return Err("a part is empty");
    }
    if !rest.is_empty() && !rest.starts_with('.') {
        return Err("something follows a closing quote");
    }
    Ok((part, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn identifiers_and_literals_are_quoted() {
        assert_eq!(quote_ident("users"), "\"users\"");
        assert_eq!(quote_ident("we\"ird"), "\"we\"\"ird\"");
        assert_eq!(quote_ident(""), "\"\"");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal("a\\b'c"), "E'a\\\\b''c'");
    }

    #[test]
    fn parts_are_taken_verbatim() {
        assert_eq!(
            TableName::parse("public.users").unwrap(),
            TableName::new("public", "users")
        );
        assert_eq!(
            TableName::parse("Public.Users").unwrap(),
            TableName::new("Public", "Users")
        );
        assert_eq!(
            TableName::parse("\"Odd\".t").unwrap(),
            TableName::new("Odd", "t")
        );
        assert_eq!(
            TableName::parse("\"a.b\".\"c\"\"d\"").unwrap(),
            TableName::new("a.b", "c\"d")
        );
        assert_eq!(
            TableName::parse("s.with space").unwrap(),
            TableName::new("s", "with space")
        );
    }

    #[test]
    fn what_is_no_table_name_is_refused() {
        for text in [
            "", ".", "users", "a.", ".b", "a.b.c", "\"a.b", "\"a\"x.b", "a\"b.c", "\"\".b",
            "a.\"b\"c",
        ] {
            assert!(TableName::parse(text).is_err(), "{text:?}");
        }
        let message = TableName::parse("users").unwrap_err().to_string();
        assert!(message.contains("it has no schema"), "{message}");
    }

    #[test]
    fn text_forms() {
        let plain = TableName::new("public", "users");
        assert_eq!(plain.as_plain(), "public.users");
        assert_eq!(plain.quoted(), "\"public\".\"users\"");
        let odd = TableName::new("a.b", "c\"d");
        assert_eq!(odd.as_plain(), "\"a.b\".\"c\"\"d\"");
        assert_eq!(odd.quoted(), "\"a.b\".\"c\"\"d\"");
    }

    proptest! {
        #[test]
        fn text_and_name_agree(schema in "[a-zA-Z.\" ü]{1,8}", name in "[a-zA-Z.\" ü]{1,8}") {
            let table = TableName::new(schema, name);
            prop_assert_eq!(TableName::parse(&table.as_plain()), Ok(table.clone()));
            prop_assert_eq!(TableName::parse(&table.quoted()), Ok(table));
        }

        #[test]
        fn any_text_is_parsed_or_refused(text in ".{0,20}") {
            let _ = TableName::parse(&text);
        }
    }
}
