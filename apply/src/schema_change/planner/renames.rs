//! Renames, in an order in which no name is taken twice.

use super::*;

impl Planner<'_> {
    /// Gives renamed columns their new names, where the destination's column still has the
    /// source's former one.
    pub(super) fn rename_columns(&mut self, columns: &mut [Known], matched: &[Option<usize>]) {
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

    pub(super) fn rename(&self, from: &str, to: &str) -> Alteration {
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
}
