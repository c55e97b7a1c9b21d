//! Columns that are gone, and those that go on as something else.

use super::*;

impl Planner<'_> {
    pub(super) fn drop_columns(&mut self, gone: &[&Known]) {
        for column in gone {
            let Some(into) = &column.into else {
                continue;
            };
            let Some(present) = self.wanted.present.column(into) else {
                continue;
            };
            let blocks = present.not_null
                && !present.fills_itself
                && !self.wanted.present.is_key(&present.name);
            let quoted = quote_ident(into);
            let relax = blocks.then(|| self.relaxed(&present.name));
            let place = format!("column {quoted} of {}", self.wanted.destination);
            let kept = format!(
                "column {} was dropped at the source",
                quote_ident(&column.name)
            );
            match self.mode() {
                SchemaChanges::All => {
                    let mut attempts = vec![Attempt {
                        sql: format!("ALTER TABLE {} DROP COLUMN {quoted}", self.table),
                        notice: None,
                    }];
                    let say = format!(
                        "{kept}; {place} could not be, for something depends on it, and stays: drop it yourself"
                    );
                    attempts.extend(relax.map(|sql| Attempt {
                        sql,
                        notice: Some(say.clone()),
                    }));
                    let alteration = Alteration {
                        attempts,
                        otherwise: Otherwise::Say(say),
                    };
                    self.plan.alterations.push(alteration);
                    // If it stays after all, its name must not be taken for another's.
                    self.plan.shape.abandoned.push(into.clone());
                }
                SchemaChanges::Additive => {
                    let mut said = format!(
                        "{kept}; \"schema_changes\": \"additive\" drops nothing: {place} stays, and new rows leave it empty"
                    );
                    if let Some(sql) = relax {
                        said.push_str(" (it may now be NULL)");
                        self.plan.alterations.push(alteration(
                            sql,
                            Otherwise::Say(format!("{place} could not be made nullable")),
                        ));
                    }
                    self.notice(format!("{said}. Drop it there when nobody needs it"));
                    self.plan.shape.abandoned.push(into.clone());
                }
                SchemaChanges::Manual => {
                    let mut said = format!("{kept}; {place} stays, and new rows leave it empty");
                    if blocks {
                        said.push_str(
                            ", which its NOT NULL forbids: the table becomes ERRORED with the next row",
                        );
                    }
                    self.notice(format!("{said}. Drop it there"));
                    self.plan.shape.abandoned.push(into.clone());
                }
            }
        }
    }

    pub(super) fn relaxed(&self, column: &str) -> String {
        format!(
            "ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL",
            self.table,
            quote_ident(column)
        )
    }

    pub(super) fn change_column(
        &mut self,
        former: &Known,
        column: &ColumnSchema,
        now: &mut Known,
    ) -> Result<(), Refusal> {
        let Some(into) = now.into.clone() else {
            self.still_lacking(column);
            return Ok(());
        };
        // It is looked up under the name that it had before the renames of this plan.
        let present = former
            .into
            .as_deref()
            .and_then(|name| self.wanted.present.column(name))
            .or_else(|| self.wanted.present.column(&into));
        let Some(present) = present.cloned() else {
            return Ok(());
        };
        if former.type_name != column.type_name && present.type_name != column.type_name {
            self.change_type(former, column, &into, &present.type_name);
        }
        let may_be_null = column.facts.is_some() && !column.not_null;
        let quoted = quote_ident(&into);
        if may_be_null && present.not_null && !self.wanted.present.is_key(&present.name) {
            let place = format!("column {quoted} of {}", self.wanted.destination);
            if self.mode() == SchemaChanges::Manual {
                self.notice(format!(
                    "column {} may be NULL at the source now; {place} may not: drop its NOT NULL, or the first NULL makes the table ERRORED",
                    quote_ident(&column.name)
                ));
            } else {
                let say = format!("{place} could not be made nullable");
                self.added
                    .push(alteration(self.relaxed(&into), Otherwise::Say(say)));
            }
        }
        let became_not_null = column.facts.is_some() && column.not_null && !former.not_null;
        if became_not_null && !present.not_null {
            match self.mode() {
                SchemaChanges::All => self.set_not_null(&into),
                // Of a primary key that changed, all is said at once.
                SchemaChanges::Additive | SchemaChanges::Manual
                    if column
                        .facts
                        .as_ref()
                        .is_some_and(|facts| facts.primary_key.is_some()) => {}
                SchemaChanges::Additive | SchemaChanges::Manual => {
                    let place = format!("column {quoted} of {}", self.wanted.destination);
                    self.notice(format!(
                        "column {} is NOT NULL at the source by now; {place} still takes NULL: set it NOT NULL there if others write to it",
                        quote_ident(&column.name)
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn set_not_null(&mut self, into: &str) {
        let quoted = quote_ident(into);
        let sql = format!(
            "ALTER TABLE {} ALTER COLUMN {quoted} SET NOT NULL",
            self.table
        );
        let say = format!(
            "column {quoted} of {} is NOT NULL at the source by now, but here not every row has a value yet; set it later",
            self.wanted.destination
        );
        self.plan
            .constraints
            .push(alteration(sql, Otherwise::Say(say)));
    }

    pub(super) fn change_type(
        &mut self,
        former: &Known,
        column: &ColumnSchema,
        into: &str,
        present: &str,
    ) {
        let (from, to) = (&former.type_name, &column.type_name);
        let quoted = quote_ident(into);
        let place = format!("column {quoted} of {}", self.wanted.destination);
        if widens(to, present) {
            return;
        }
        let alter = format!("ALTER TABLE {} ALTER COLUMN {quoted}", self.table);
        let changed = format!(
            "the type of column {} changed at the source from {from} to {to}",
            quote_ident(&column.name)
        );
        let refuse = Otherwise::Refuse(format!(
            "{changed}, which {place} could not follow; remove the cause (or change its type yourself), then sync the table again"
        ));
        let is_as_it_was = present == from;
        let in_place = is_as_it_was && widens(from, to);
        if self.mode() == SchemaChanges::Manual || !is_as_it_was {
            self.notice(format!(
                "{changed}; {place} stays {present}, and takes values as long as they fit: change its type there, then sync the table again"
            ));
        } else if in_place {
            self.added
                .push(alteration(format!("{alter} TYPE {to}"), refuse));
        } else if self.mode() == SchemaChanges::Additive {
            self.notice(format!(
                "{changed}, which \"schema_changes\": \"additive\" does not follow; {place} stays {present}, and takes values as \
                 long as they fit: change its type there, then sync the table again"
            ));
        } else {
            let said = Some(format!(
                "{changed}; {place} was cast as Postgres casts it. If the source's statement said otherwise (USING), or depended \
                 on its session, older rows differ: sync the table again"
            ));
            let attempt = |sql: String| Attempt {
                sql,
                notice: said.clone(),
            };
            self.added.push(Alteration {
                attempts: vec![
                    attempt(format!("{alter} TYPE {to}")),
                    attempt(format!("{alter} TYPE {to} USING {quoted}::{to}")),
                    attempt(format!(
                        "{alter} DROP DEFAULT, ALTER COLUMN {quoted} TYPE {to} USING {quoted}::{to}"
                    )),
                    attempt(format!(
                        "{alter} DROP DEFAULT, ALTER COLUMN {quoted} TYPE {to} USING {quoted}::text::{to}"
                    )),
                ],
                otherwise: refuse,
            });
        }
    }
}
