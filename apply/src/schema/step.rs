//! One object to be made, as SQL, and the few pieces of SQL they share.

use bunny_postgres::{quote_ident, quote_literal};

/// One object that may be refused by the destination without anything else suffering.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Step {
    /// `index`, `foreign key` and so on.
    pub(crate) kind: &'static str,
    /// The object's name at the source.
    pub(crate) name: String,
    /// What is made, for people: `index "i" of public.t`.
    pub(crate) what: String,
    /// All or none of them, in order.
    pub(crate) statements: Vec<String>,
}

impl Step {
    pub(crate) fn new(
        kind: &'static str,
        name: &str,
        what: String,
        statements: Vec<String>,
    ) -> Step {
        Step {
            kind,
            name: name.to_owned(),
            what,
            statements,
        }
    }

    /// All statements as one text.
    pub(crate) fn sql(&self) -> String {
        self.statements.join("; ")
    }
}

/// Storage parameters (`name=value`) as the inside of `WITH (…)` or `SET (…)`.
pub(crate) fn parameters(options: &[String]) -> String {
    let one = |option: &String| match option.split_once('=') {
        Some((name, value)) => format!("{} = {}", quote_ident(name), quote_literal(value)),
        None => quote_ident(option),
    };
    let all: Vec<String> = options.iter().map(one).collect();
    all.join(", ")
}

/// `COMMENT ON <kind> <object> IS '…'`; `object` is SQL.
pub(crate) fn comment_on(kind: &str, object: &str, comment: &str) -> String {
    format!("COMMENT ON {kind} {object} IS {}", quote_literal(comment))
}
