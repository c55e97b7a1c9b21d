//! What a new version of a source table asks of the destination table, and what the
//! mirror's `schema_changes` lets be done about it. Pure.
//!
//! Columns are recognised by their attnum, which survives a rename. Whatever the mode, the
//! data of every column that the destination has a place for goes on flowing into that
//! place; what would make rows differ silently refuses the table instead, with the cure.

use bunny_catalog::SchemaChanges;
use bunny_postgres::{TableName, quote_ident, quote_literal};
use bunny_schemas::envelope::{ColumnFacts, ColumnSchema, OldRows};

use super::destination::PresentTable;
use super::doubt;
use super::shape::{Known, Shape};
use super::types::widens;
use crate::event::TableVersion;
use crate::schema::expression;

/// One thing to do to the destination table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alteration {
    /// The first that the destination accepts is the one.
    pub(crate) attempts: Vec<Attempt>,
    /// What follows when it accepts none.
    pub(crate) otherwise: Otherwise,
}

/// One way to do it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    pub(crate) sql: String,
    /// What someone should know when it was this way.
    pub(crate) notice: Option<String>,
}

/// When no attempt succeeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// The table stops, for this reason.
    Refuse(String),
    /// It goes on, and this is said.
    Say(String),
}

/// What is to be done about a version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// In this order, before the version's first row.
    pub(crate) alterations: Vec<Alteration>,
    /// Constraints, at the end of the destination transaction: what the source's catalog
    /// says may be true a few rows after the version begins only.
    pub(crate) constraints: Vec<Alteration>,
    /// What is not done, a sentence each with what to do.
    pub(crate) notices: Vec<String>,
    /// The table afterwards.
    pub(crate) shape: Shape,
}

/// Why the table cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) String);

/// What a plan is made from.
#[derive(Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) mode: SchemaChanges,
    pub(crate) known: &'a Shape,
    pub(crate) version: &'a TableVersion,
    pub(crate) destination: &'a TableName,
    pub(crate) present: &'a PresentTable,
}

/// Whether a version is the table as it is known, so that nothing need be looked at.
pub(crate) fn is_known(known: &Shape, version: &TableVersion) -> bool {
    let same = |column: &ColumnSchema| {
        known.position(column).is_some_and(|position| {
            let known = &known.columns[position];
            known.name == column.name
                && known.unsure == (column.attnum == 0)
                && known.type_name == column.type_name
                && (column.facts.is_none() || known.not_null == column.not_null)
        })
    };
    known.columns.len() == version.columns.len()
        && version.columns.iter().all(same)
        && primary_key(version).is_none_or(|key| known.primary_key.as_ref() == Some(&key))
}

/// The primary key of a version by attnum; None where it is not known.
pub(crate) fn primary_key(version: &TableVersion) -> Option<Vec<i16>> {
    let mut key = Vec::new();
    for column in &version.columns {
        let facts = column.facts.as_ref()?;
        key.extend(facts.primary_key.map(|position| (position, column.attnum)));
    }
    key.sort_unstable();
    Some(key.into_iter().map(|(_, attnum)| attnum).collect())
}

/// Plans what brings the destination table from what is known to the version.
pub(crate) fn plan(wanted: Wanted<'_>) -> Result<Plan, Refusal> {
    let mut planner = Planner {
        wanted,
        table: wanted.destination.quoted(),
        plan: Plan::default(),
        added: Vec::new(),
    };
    planner.run()?;
    Ok(planner.plan)
}

struct Planner<'a> {
    wanted: Wanted<'a>,
    table: String,
    plan: Plan,
    /// Alterations that come after the renames.
    added: Vec<Alteration>,
}

impl Planner<'_> {
    fn run(&mut self) -> Result<(), Refusal> {
        let Wanted { known, version, .. } = self.wanted;
        let matched: Vec<Option<usize>> = version
            .columns
            .iter()
            .map(|column| known.position(column))
            .collect();
        let mut columns: Vec<Known> = version
            .columns
            .iter()
            .zip(&matched)
            .map(|(column, position)| match position {
                Some(position) => seen_again(&known.columns[*position], column),
                None => first_seen(column),
            })
            .collect();
        let gone: Vec<&Known> = (0..known.columns.len())
            .filter(|position| !matched.contains(&Some(*position)))
            .map(|position| &known.columns[position])
            .collect();
        doubt::refuse(self.wanted, &matched, &gone)?;
        self.plan.shape.abandoned = known.abandoned.clone();
        let key_change = self.key_change();
        if key_change.is_some() {
            self.drop_primary_key();
        }
        self.drop_columns(&gone);
        self.rename_columns(&mut columns, &matched);
        for ((column, now), position) in version.columns.iter().zip(&mut columns).zip(&matched) {
            match position {
                Some(position) => self.change_column(&known.columns[*position], column, now)?,
                None => self.add_column(column, now)?,
            }
        }
        if let Some(key) = key_change {
            self.add_primary_key(&key, &columns);
        }
        self.plan.alterations.append(&mut self.added);
        self.plan.shape.primary_key = primary_key(version).or(known.primary_key.clone());
        self.plan.shape.columns = columns;
        Ok(())
    }

    fn mode(&self) -> SchemaChanges {
        self.wanted.mode
    }

    /// The new primary key at the source, if it is another one and is to be taken over.
    fn key_change(&mut self) -> Option<Vec<i16>> {
        let former = self.wanted.known.primary_key.as_ref()?;
        let key = primary_key(self.wanted.version)?;
        if *former == key {
            return None;
        }
        // A key of which a column is never published is not described.
        let is_published = |attnum: &i16| {
            let mut columns = self.wanted.known.columns.iter();
            columns.any(|column| column.attnum == *attnum)
        };
        if key.is_empty() && !former.iter().all(is_published) {
            return None;
        }
        if self.mode() == SchemaChanges::All {
            return self.has_key(former).then_some(key);
        }
        self.notice(format!(
            "the primary key changed at the source; that of {} stays as it is, and a row that violates it makes the \
             table ERRORED: change it there if the source's rows need it",
            self.wanted.destination
        ));
        None
    }

    /// Whether the destination's primary key is the one that the source had. Another one is
    /// someone's own choice, and stays.
    fn has_key(&self, attnums: &[i16]) -> bool {
        let there = self.wanted.present.primary_key.as_ref();
        let there = there.map_or(&[][..], |(_, columns)| columns);
        let columns = &self.wanted.known.columns;
        let into = |attnum: &i16| {
            let known = columns.iter().find(|known| known.attnum == *attnum);
            known.and_then(|known| known.into.as_ref())
        };
        there.iter().map(Some).eq(attnums.iter().map(into))
    }

    fn drop_primary_key(&mut self) {
        let Some((name, _)) = &self.wanted.present.primary_key else {
            return;
        };
        let sql = format!(
            "ALTER TABLE {} DROP CONSTRAINT {}",
            self.table,
            quote_ident(name)
        );
        let say = format!(
            "the primary key of {} could not be dropped as at the source; a row that violates it makes the table ERRORED",
            self.wanted.destination
        );
        self.plan
            .alterations
            .push(alteration(sql, Otherwise::Say(say)));
    }

    fn add_primary_key(&mut self, key: &[i16], columns: &[Known]) {
        let names: Option<Vec<String>> = key
            .iter()
            .map(|attnum| {
                let column = columns.iter().find(|column| column.attnum == *attnum)?;
                column.into.as_deref().map(quote_ident)
            })
            .collect();
        let Some(names) = names.filter(|names| !names.is_empty()) else {
            return;
        };
        let sql = format!(
            "ALTER TABLE {} ADD PRIMARY KEY ({})",
            self.table,
            names.join(", ")
        );
        let say = format!(
            "the new primary key could not be given to {}: rows are found without its index, which is slow; add it there",
            self.wanted.destination
        );
        self.plan
            .constraints
            .push(alteration(sql, Otherwise::Say(say)));
    }

    fn drop_columns(&mut self, gone: &[&Known]) {
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

    fn relaxed(&self, column: &str) -> String {
        format!(
            "ALTER TABLE {} ALTER COLUMN {} DROP NOT NULL",
            self.table,
            quote_ident(column)
        )
    }

    /// Gives renamed columns their new names, where the destination's column still has the
    /// source's former one.
    fn rename_columns(&mut self, columns: &mut [Known], matched: &[Option<usize>]) {
        let mut renames: Vec<(usize, String)> = Vec::new();
        for (index, (now, position)) in columns.iter().zip(matched).enumerate() {
            let Some(position) = position else {
                continue;
            };
            let former = &self.wanted.known.columns[*position];
            let Some(into) = former.into.as_ref().filter(|_| former.name != now.name) else {
                continue;
            };
            if *into == now.name {
                continue;
            }
            if self.wanted.present.column(into).is_none()
                && self.wanted.present.column(&now.name).is_some()
            {
                // Someone has renamed it there already.
                renames.push((index, String::new()));
            } else if self.mode() == SchemaChanges::All && *into == former.name {
                renames.push((index, into.clone()));
            } else {
                self.plan.notices.push(format!(
                    "column {} was renamed to {} at the source; column {} of {} keeps its name and takes its values: \
                     rename it there and sync the table again if you want the new name",
                    quote_ident(&former.name),
                    quote_ident(&now.name),
                    quote_ident(into),
                    self.wanted.destination
                ));
            }
        }
        // Names may change hands among the renamed: by way of names that nobody has.
        let taken = renames.iter().any(|(index, from)| {
            !from.is_empty()
                && renames
                    .iter()
                    .any(|(_, other)| *other == columns[*index].name)
        });
        let mut first = Vec::new();
        let mut second = Vec::new();
        for (index, from) in renames {
            let column = &mut columns[index];
            column.into = Some(column.name.clone());
            if from.is_empty() {
                continue;
            }
            if taken {
                let between = format!("_bunny_rename_{}", column.attnum);
                first.push(self.rename(&from, &between));
                second.push(self.rename(&between, &column.name));
            } else {
                first.push(self.rename(&from, &column.name));
            }
        }
        self.plan.alterations.append(&mut first);
        self.plan.alterations.append(&mut second);
    }

    fn rename(&self, from: &str, to: &str) -> Alteration {
        let refuse = format!(
            "column {} of {} could not be renamed as at the source; remove the cause, then sync the table again",
            quote_ident(from),
            self.wanted.destination
        );
        let sql = format!(
            "ALTER TABLE {} RENAME COLUMN {} TO {}",
            self.table,
            quote_ident(from),
            quote_ident(to)
        );
        alteration(sql, Otherwise::Refuse(refuse))
    }

    fn change_column(
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
                SchemaChanges::Additive | SchemaChanges::Manual => {}
            }
        }
        Ok(())
    }

    fn set_not_null(&mut self, into: &str) {
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

    fn change_type(&mut self, former: &Known, column: &ColumnSchema, into: &str, present: &str) {
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

    fn still_lacking(&mut self, column: &ColumnSchema) {
        if self.wanted.present.column(&column.name).is_some() {
            self.notice(format!(
                "{} has a column {} by now; what was missed of it comes with a sync of the table",
                self.wanted.destination,
                quote_ident(&column.name)
            ));
        }
    }

    fn add_column(&mut self, column: &ColumnSchema, now: &mut Known) -> Result<(), Refusal> {
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
                // It was put there by hand, in advance.
                self.notice(format!(
                    "{destination} has the new column {name} already; its values go there, older rows keep what they hold"
                ));
                now.into = Some(column.name.clone());
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

    fn fill_and_add(&mut self, column: &ColumnSchema) -> Result<(), Refusal> {
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
    fn default_of_new(&mut self, column: &ColumnSchema, facts: &ColumnFacts, is_filled: bool) {
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

    fn lack(&mut self, column: &ColumnSchema) {
        let name = quote_ident(&column.name);
        self.notice(format!(
            "the source has a new column {name} {}, which {} lacks; \"schema_changes\" is \"manual\", so the table goes on without \
             it: add it there, then sync the table again",
            column.type_name, self.wanted.destination
        ));
    }

    fn notice(&mut self, text: String) {
        self.plan.notices.push(text);
    }
}

/// One statement to try.
pub(crate) fn alteration(sql: String, otherwise: Otherwise) -> Alteration {
    Alteration {
        attempts: vec![Attempt { sql, notice: None }],
        otherwise,
    }
}

fn seen_again(former: &Known, column: &ColumnSchema) -> Known {
    Known {
        attnum: if column.attnum == 0 {
            former.attnum
        } else {
            column.attnum
        },
        not_null: if column.facts.is_some() {
            column.not_null
        } else {
            former.not_null
        },
        into: former.into.clone(),
        ..first_seen(column)
    }
}

/// A column as a version has it, without a place.
pub(crate) fn first_seen(column: &ColumnSchema) -> Known {
    Known {
        attnum: column.attnum,
        unsure: column.attnum == 0,
        name: column.name.clone(),
        type_name: column.type_name.clone(),
        not_null: column.not_null,
        into: None,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
