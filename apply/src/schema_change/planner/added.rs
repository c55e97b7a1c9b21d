//! Columns that are new, and what their rows of before hold.

use super::*;

impl Planner<'_> {
    pub(super) fn still_lacking(&mut self, column: &ColumnSchema) {
        if self.wanted.present.column(&column.name).is_some() {
            self.notice(format!(
                "{} has a column {} by now; what was missed of it comes with a sync of the table",
                self.wanted.destination,
                quote_ident(&column.name)
            ));
        }
    }

    pub(super) fn add_column(
        &mut self,
        column: &ColumnSchema,
        now: &mut Known,
    ) -> Result<(), Refusal> {
        let Wanted {
            known,
            present,
            destination,
            version,
            ..
        } = self.wanted;
        let name = quote_ident(&column.name);
        if present.column(&column.name).is_some() {
            let takes = |known: &Known| known.into.as_deref() == Some(&column.name);
            let owner = known.columns.iter().find(|known| takes(known));
            let is_abandoned = self.plan.shape.abandoned.contains(&column.name);
            let is_renamed = owner.is_some_and(|owner| {
                version
                    .columns
                    .iter()
                    .any(|other| other.attnum == owner.attnum && other.attnum != 0)
            });
            let moves_away = is_renamed && self.mode() == SchemaChanges::All;
            if !is_abandoned && !is_renamed {
                now.into = Some(column.name.clone());
                let is_computed = |there: &Present| there.is_generated;
                if present.column(&column.name).is_some_and(is_computed) {
                    return self.take_values(column);
                }
                // It was put there by hand, in advance.
                self.notice(format!(
                    "{destination} has the new column {name} already; its values go there, older rows keep what they hold"
                ));
                return Ok(());
            }
            match self.mode() {
                // Dropped, or renamed away, earlier in this plan.
                SchemaChanges::All if is_abandoned || moves_away => {}
                SchemaChanges::Manual => {
                    self.lack(column);
                    return Ok(());
                }
                _ => {
                    return Err(Refusal(format!(
                        "the source has a new column {name}, and {destination} has another of that name, which belongs to a column \
                         that was dropped or renamed at the source: \"schema_changes\": \"additive\" does not touch it. Drop or \
                         rename it there, then sync the table again"
                    )));
                }
            }
        } else if self.mode() == SchemaChanges::Manual {
            self.lack(column);
            return Ok(());
        }
        self.plan
            .shape
            .abandoned
            .retain(|gone| *gone != column.name);
        now.into = Some(column.name.clone());
        let newest = known.columns.iter().map(|known| known.attnum).max();
        let is_older = column.attnum != 0 && newest.is_some_and(|newest| column.attnum < newest);
        if is_older && present.has_rows {
            return Err(Refusal(format!(
                "the source has sent a column {name} that is older than others, and was kept back so far (excluded, renamed or \
                 generated); what older rows hold in it is not in the stream: sync the table again"
            )));
        }
        self.fill_and_add(column)
    }

    /// Nothing of a column that is computed at the source comes in the stream. One that is computed
    /// here, and comes now, was made plain there: what it was computed as stays in older rows.
    fn take_values(&mut self, column: &ColumnSchema) -> Result<(), Refusal> {
        let facts = column.facts.as_ref();
        if facts.is_some_and(|facts| facts.generated) {
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

    pub(super) fn fill_and_add(&mut self, column: &ColumnSchema) -> Result<(), Refusal> {
        let facts = column.facts.clone().unwrap_or_default();
        let fill = match &facts.old_rows {
            OldRows::Unknown if self.wanted.present.has_rows => {
                return Err(Refusal(format!(
                    "the source has a new column {}, and what its older rows hold is not in the stream (a volatile default or an \
                     identity rewrote the table, or the column has changed since): sync the table again",
                    quote_ident(&column.name)
                )));
            }
            OldRows::Unknown | OldRows::Null => None,
            OldRows::Default => facts.default.clone(),
            OldRows::Value(text) => Some(format!("{}::{}", quote_literal(text), column.type_name)),
        };
        let name = quote_ident(&column.name);
        let collate = |collation: &str| format!(" COLLATE {collation}");
        let collation = facts.collation.as_deref().map(collate).unwrap_or_default();
        let filled = fill.map(|fill| format!(" DEFAULT {fill}"));
        let add = |collation: &str| {
            format!(
                "ALTER TABLE {} ADD COLUMN {name} {}{collation}{}",
                self.table,
                column.type_name,
                filled.as_deref().unwrap_or_default()
            )
        };
        let mut attempts = vec![Attempt {
            sql: add(&collation),
            notice: None,
        }];
        if !collation.is_empty() {
            attempts.push(Attempt {
                sql: add(""),
                notice: Some(format!(
                    "collation{collation} of the new column {name} of {} is left out: the destination does not take it",
                    self.wanted.destination
                )),
            });
        }
        self.added.push(Alteration {
            attempts,
            otherwise: Otherwise::Refuse(format!(
                "the new column {name} of type {} could not be added to {}; make it possible there (a type or extension may be \
                 missing), then sync the table again",
                column.type_name, self.wanted.destination
            )),
        });
        self.default_of_new(column, &facts, filled.is_some());
        if column.not_null {
            self.set_not_null(&column.name);
        }
        Ok(())
    }

    /// The default that filled the old rows need not be the one for new ones.
    pub(super) fn default_of_new(
        &mut self,
        column: &ColumnSchema,
        facts: &ColumnFacts,
        is_filled: bool,
    ) {
        let name = quote_ident(&column.name);
        let alter = format!("ALTER TABLE {} ALTER COLUMN {name}", self.table);
        let default = facts.default.as_deref();
        let obstacle =
            default.and_then(|default| expression::not_portable(default, &column.type_name));
        let say = || {
            format!(
                "the default of the new column {name} of {}",
                self.wanted.destination
            )
        };
        match default {
            Some(default) if obstacle.is_none() => {
                let say = Otherwise::Say(format!("{} could not be set to {default}", say()));
                let sql = format!("{alter} SET DEFAULT {default}");
                self.added.push(alteration(sql, say));
            }
            _ if is_filled => {
                let say = Otherwise::Say(format!("{} could not be dropped", say()));
                self.added
                    .push(alteration(format!("{alter} DROP DEFAULT"), say));
            }
            _ => {}
        }
        if let (Some(default), Some(obstacle)) = (default, obstacle) {
            self.notice(format!("{} is left out: {default}: {obstacle}", say()));
        }
    }

    pub(super) fn lack(&mut self, column: &ColumnSchema) {
        let name = quote_ident(&column.name);
        self.notice(format!(
            "the source has a new column {name} {}, which {} lacks; \"schema_changes\" is \"manual\", so the table goes on without \
             it: add it there, then sync the table again",
            column.type_name, self.wanted.destination
        ));
    }
}
