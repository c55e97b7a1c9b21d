//! Columns that the destination computes, when values come for their name.
//!
//! Nothing of a generated column comes in the stream. If values come, its expression was dropped at the
//! source, and older rows keep what was computed; or it was dropped itself and another has
//! its name, whose older rows hold something else. Only the number tells.

use super::super::destination::Present;
use super::*;

impl Planner<'_> {
    /// Whether the destination's generated column `there` is `column`, which has its name. If not, the source
    /// has dropped the one that it stands for.
    ///
    /// # Errors
    /// It is not known, or it is, and older rows may differ all the same.
    pub(super) fn is_computed_as(
        &self,
        column: &ColumnSchema,
        there: &Present,
    ) -> Result<bool, Refusal> {
        let Wanted {
            computed,
            destination,
            ..
        } = self.wanted;
        let name = quote_ident(&column.name);
        let is_sent_computed = column.facts.as_ref().is_some_and(|facts| facts.generated);
        let named = |computed: &&Computed| computed.name == column.name;
        let Some(was) = computed
            .and_then(|computed| computed.iter().find(named))
            .filter(|_| column.attnum != 0 && column.facts.is_some())
        else {
            if is_sent_computed {
                return Ok(true);
            }
            return Err(Refusal(format!(
                "the source sends a column {name}, which is computed in {destination}, and it is not known whether that is the same \
                 column, so what older rows hold is not either: {}",
                by_hand(column)
            )));
        };
        if was.attnum != column.attnum {
            if is_sent_computed {
                return Err(Refusal(format!(
                    "column {name} was dropped and is generated anew at the source: sync the table again"
                )));
            }
            return Ok(false);
        }
        let is_retyped = was.type_name != column.type_name && there.type_name != column.type_name;
        if is_retyped && !is_sent_computed {
            return Err(Refusal(format!(
                "column {name} is not generated at the source any more, and is {} there by now, while {destination} has computed it as {}: \
                 sync the table again",
                column.type_name, there.type_name
            )));
        }
        Ok(true)
    }

    /// Whether older rows of a column that the destination lacks hold what was computed for them.
    pub(super) fn was_computed(&self, column: &ColumnSchema) -> bool {
        let mut computed = self.wanted.computed.into_iter().flatten();
        column.attnum != 0 && computed.any(|computed| computed.attnum == column.attnum)
    }

    /// The same column, made plain at the source: so it is here.
    pub(super) fn take_values(&mut self, column: &ColumnSchema) -> Result<(), Refusal> {
        if column.facts.as_ref().is_some_and(|facts| facts.generated) {
            // The publication was told to send it: what is computed here is the same.
            return Ok(());
        }
        let name = quote_ident(&column.name);
        let statement = format!(
            "ALTER TABLE {} ALTER COLUMN {name} DROP EXPRESSION",
            self.table
        );
        let refusal = format!(
            "column {name} is not generated at the source any more, and in {} it is, so its values have no place there: run \
             {statement} at the destination, then retry the table",
            self.wanted.destination
        );
        if self.mode() != SchemaChanges::All {
            return Err(Refusal(refusal));
        }
        self.added
            .push(alteration(statement, Otherwise::Refuse(refusal)));
        Ok(())
    }

    /// What stands for a column that the source has dropped, so that another of its name can be added.
    pub(super) fn drop_computed(&mut self, column: &ColumnSchema) -> Result<(), Refusal> {
        let name = quote_ident(&column.name);
        let dropped = format!(
            "the source has dropped its generated column {name} and added another of that name, and {} still computes the former",
            self.wanted.destination
        );
        if self.mode() != SchemaChanges::All {
            return Err(Refusal(format!("{dropped}: {}", by_hand(column))));
        }
        self.plan.alterations.push(alteration(
            format!("ALTER TABLE {} DROP COLUMN {name}", self.table),
            Otherwise::Refuse(format!(
                "{dropped}, which could not be dropped, for something depends on it; remove the cause, then sync the table again"
            )),
        ));
        Ok(())
    }
}

/// Never to drop the expression: older rows would keep what another column held.
fn by_hand(column: &ColumnSchema) -> String {
    format!(
        "drop it there, add it again as a plain {}, then sync the table again",
        column.type_name
    )
}
