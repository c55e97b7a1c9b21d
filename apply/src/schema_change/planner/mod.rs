//! Plans what brings the destination table from what is known to a version. Pure.

mod added;
mod columns;
mod keys;
mod renames;

use bunny_catalog::SchemaChanges;
use bunny_postgres::{quote_ident, quote_literal};
use bunny_schemas::envelope::{ColumnFacts, ColumnSchema, OldRows};

use super::destination::Present;
use super::doubt;
use super::plan::{
    Alteration, Attempt, Otherwise, Plan, Refusal, Wanted, alteration, first_seen, primary_key,
    seen_again,
};
use super::shape::Known;
use super::types::widens;
use crate::schema::expression;

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

    fn notice(&mut self, text: String) {
        self.plan.notices.push(text);
    }
}

#[cfg(test)]
mod tests;
