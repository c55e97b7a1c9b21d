//! Columns that capture could not recognise in the source's catalog. Pure.
//!
//! Such a column is taken for the one of its name, which can prove wrong: that one may have
//! been dropped and another added, or names may have changed hands. So its table goes on only
//! while nothing else about the column changes, until a version says that it is the same.

use bunny_postgres::quote_ident;
use bunny_schemas::envelope::ColumnSchema;

use super::plan::{Refusal, Wanted};
use super::shape::Known;
use super::types::widens;

/// `matched`: the place of each of the version's columns among the known ones; `gone`: the
/// known ones that it does not have.
///
/// # Errors
/// Refuses the table when rows may have been written to another column than they belong to.
pub(super) fn refuse(
    wanted: Wanted<'_>,
    matched: &[Option<usize>],
    gone: &[&Known],
) -> Result<(), Refusal> {
    let lost = gone.iter().find(|gone| gone.unsure);
    let mut pairs = wanted.version.columns.iter().zip(matched);
    let doubtful = pairs.find(|(column, position)| {
        position.is_some_and(|position| may_be_another(&wanted.known.columns[position], column))
    });
    let name = doubtful.map_or(lost.map(|lost| &lost.name), |(column, _)| {
        Some(&column.name)
    });
    match name {
        Some(name) if wanted.present.has_rows => Err(Refusal(format!(
            "the source's table was altered again before capture could read what its column {} is (it may have been dropped and \
             added again): sync the table again",
            quote_ident(name)
        ))),
        _ => Ok(()),
    }
}

fn may_be_another(former: &Known, column: &ColumnSchema) -> bool {
    if column.attnum == 0 {
        let (from, to) = (&former.type_name, &column.type_name);
        return from != to && !widens(from, to);
    }
    former.unsure && (former.attnum, &former.name) != (column.attnum, &column.name)
}
