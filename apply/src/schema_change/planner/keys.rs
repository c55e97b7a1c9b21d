//! Primary keys: dropped before the columns change, added after them.

use super::*;

impl Planner<'_> {
    /// The new primary key at the source, if it is another one and is to be taken over.
    pub(super) fn key_change(&mut self) -> Option<Vec<i16>> {
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
    pub(super) fn has_key(&self, attnums: &[i16]) -> bool {
        let there = self.wanted.present.primary_key.as_ref();
        let there = there.map_or(&[][..], |(_, columns)| columns);
        let columns = &self.wanted.known.columns;
        let into = |attnum: &i16| {
            let known = columns.iter().find(|known| known.attnum == *attnum);
            known.and_then(|known| known.into.as_ref())
        };
        there.iter().map(Some).eq(attnums.iter().map(into))
    }

    pub(super) fn drop_primary_key(&mut self) {
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

    pub(super) fn add_primary_key(&mut self, key: &[i16], columns: &[Known]) {
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
        let columns = &self.wanted.version.columns;
        let mut facts = columns.iter().flat_map(|column| &column.facts);
        let deferral = if facts.any(|facts| facts.key_is_deferrable) {
            " DEFERRABLE"
        } else {
            ""
        };
        let sql = format!(
            "ALTER TABLE {} ADD PRIMARY KEY ({}){deferral}",
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
}
