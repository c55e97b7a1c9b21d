//! Folding for tables whose rows are known by a key.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::event::{Change, Row};

/// What is to become of one row. The writer first deletes (`Delete`, `Replace`), then
/// updates what is there (`Insert`, `Upsert`, `Patch`), then inserts what is not
/// (`Insert`, `Upsert`, `Replace`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect<'a> {
    /// Not expected at the destination; a row that is there is overwritten.
    Insert(Cow<'a, Row>),
    /// Expected; a row that is missing is inserted.
    Upsert(Cow<'a, Row>),
    /// Expected, and needed: the marked columns are not known here.
    Patch(Cow<'a, Row>, Cow<'a, [bool]>),
    /// Deleted and inserted again: columns that only the destination has start anew.
    Replace(Cow<'a, Row>),
    /// Of the row only the key's cells count. `expected`: the row was there before the batch.
    Delete { key: Cow<'a, Row>, expected: bool },
}

impl Effect<'_> {
    /// A row whose key cells are those of the effect's row.
    pub fn row(&self) -> &Row {
        match self {
            Effect::Insert(row)
            | Effect::Upsert(row)
            | Effect::Patch(row, _)
            | Effect::Replace(row) => row,
            Effect::Delete { key, .. } => key,
        }
    }
}

/// An update that gives a row another key, written as such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename<'a> {
    /// Only the key's cells count.
    pub old_key: &'a Row,
    pub after: &'a Row,
    /// Empty when the whole row is known.
    pub unchanged: &'a [bool],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// At most one effect per key; they may be written in any order.
    Set(Vec<Effect<'a>>),
    /// To be written one by one, in order.
    Renames(Vec<Rename<'a>>),
}

/// How an update that changes the key is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// As a delete and an insert, where the whole row is known.
    Split,
    /// As an update of the row that is there, because the destination's table has
    /// columns of its own that must stay with it.
    Rename,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FoldError {
    #[error(
        "an update leaves columns out that the row with key ({0}) does not have: that row was deleted before it"
    )]
    PatchOfDeleted(String),
    #[error(
        "an update does not say which row it is for: the key is stored out of line and was not sent"
    )]
    KeyUnknown,
}

/// Folds the changes of one table, in source order, to effects with the same result.
/// `key` are the indexes of the key columns, never empty.
pub fn fold<'a>(
    changes: &[&'a Change],
    key: &[usize],
    key_change: KeyChange,
) -> Result<Vec<Segment<'a>>, FoldError> {
    let mut folding = Folding {
        key,
        segments: Vec::new(),
        effects: Vec::new(),
        at: HashMap::with_capacity(changes.len()),
    };
    for change in changes {
        match change {
            Change::Insert(row) => folding.insert(key_of(row, key), Cow::Borrowed(row)),
            Change::Delete(before) => folding.delete(key_of(before.row(), key), before.row()),
            Change::Update {
                before,
                after,
                unchanged,
            } => {
                if key
                    .iter()
                    .any(|&column| unchanged.get(column) == Some(&true))
                {
                    return Err(FoldError::KeyUnknown);
                }
                let new_key = key_of(after, key);
                let old = before.as_ref().map(|before| before.row());
                match old.filter(|old| key_of(old, key) != new_key) {
                    None => folding.update(new_key, after, unchanged)?,
                    Some(old) => folding.change_key(old, after, unchanged, key_change),
                }
            }
        }
    }
    folding.close_set();
    Ok(folding.segments)
}

/// The cells of the key, with tabs between: equal for equal keys only.
pub fn key_of<'a>(row: &'a Row, key: &[usize]) -> Cow<'a, [u8]> {
    if let [column] = key {
        return Cow::Borrowed(row.cell(*column));
    }
    let mut text = Vec::new();
    for (index, &column) in key.iter().enumerate() {
        if index > 0 {
            text.push(b'\t');
        }
        text.extend_from_slice(row.cell(column));
    }
    Cow::Owned(text)
}

struct Folding<'a, 'k> {
    key: &'k [usize],
    segments: Vec<Segment<'a>>,
    effects: Vec<Effect<'a>>,
    /// Where in `effects` a key is.
    at: HashMap<Cow<'a, [u8]>, usize>,
}

impl<'a> Folding<'a, '_> {
    fn insert(&mut self, key: Cow<'a, [u8]>, row: Cow<'a, Row>) {
        let Some(&at) = self.at.get(&key) else {
            self.push(key, Effect::Insert(row));
            return;
        };
        self.effects[at] = match &self.effects[at] {
            Effect::Delete { .. } | Effect::Replace(_) => Effect::Replace(row),
            Effect::Insert(_) => Effect::Insert(row),
            Effect::Upsert(_) | Effect::Patch(..) => Effect::Upsert(row),
        };
    }

    fn delete(&mut self, key: Cow<'a, [u8]>, row: &'a Row) {
        let Some(&at) = self.at.get(&key) else {
            let effect = Effect::Delete {
                key: Cow::Borrowed(row),
                expected: true,
            };
            self.push(key, effect);
            return;
        };
        let expected = match &self.effects[at] {
            Effect::Insert(_) => false,
            Effect::Delete { expected, .. } => *expected,
            Effect::Upsert(_) | Effect::Patch(..) | Effect::Replace(_) => true,
        };
        self.effects[at] = Effect::Delete {
            key: Cow::Borrowed(row),
            expected,
        };
    }

    fn update(
        &mut self,
        key: Cow<'a, [u8]>,
        after: &'a Row,
        unchanged: &'a [bool],
    ) -> Result<(), FoldError> {
        let Some(&at) = self.at.get(&key) else {
            let effect = if unchanged.is_empty() {
                Effect::Upsert(Cow::Borrowed(after))
            } else {
                Effect::Patch(Cow::Borrowed(after), Cow::Borrowed(unchanged))
            };
            self.push(key, effect);
            return Ok(());
        };
        let merged = |former: &Row| {
            if unchanged.is_empty() {
                Cow::Borrowed(after)
            } else {
                Cow::Owned(after.filled_from(former, unchanged))
            }
        };
        let effect = match &self.effects[at] {
            Effect::Insert(former) => Effect::Insert(merged(former)),
            Effect::Upsert(former) => Effect::Upsert(merged(former)),
            Effect::Replace(former) => Effect::Replace(merged(former)),
            Effect::Patch(..) if unchanged.is_empty() => Effect::Upsert(Cow::Borrowed(after)),
            Effect::Patch(former, former_unchanged) => {
                let still: Vec<bool> = former_unchanged
                    .iter()
                    .zip(unchanged)
                    .map(|(a, b)| *a && *b)
                    .collect();
                let row = merged(former);
                if still.contains(&true) {
                    Effect::Patch(row, Cow::Owned(still))
                } else {
                    Effect::Upsert(row)
                }
            }
            Effect::Delete { .. } if unchanged.is_empty() => Effect::Replace(Cow::Borrowed(after)),
            Effect::Delete { .. } => return Err(FoldError::PatchOfDeleted(show(&key))),
        };
        self.effects[at] = effect;
        Ok(())
    }

    fn change_key(
        &mut self,
        old: &'a Row,
        after: &'a Row,
        unchanged: &'a [bool],
        key_change: KeyChange,
    ) {
        let old_key = key_of(old, self.key);
        let whole = match self.at.get(&old_key).map(|&at| &self.effects[at]) {
            // The row began in this batch, so nothing of the destination's own is on it.
            Some(Effect::Replace(former)) => Some(whole_row(after, former, unchanged)),
            _ if key_change == KeyChange::Rename => None,
            _ if unchanged.is_empty() => Some(Cow::Borrowed(after)),
            Some(Effect::Insert(former) | Effect::Upsert(former)) => {
                Some(whole_row(after, former, unchanged))
            }
            _ => None,
        };
        if let Some(row) = whole {
            self.delete(old_key, old);
            self.insert(key_of(after, self.key), row);
            return;
        }
        self.close_set();
        let rename = Rename {
            old_key: old,
            after,
            unchanged,
        };
        match self.segments.last_mut() {
            Some(Segment::Renames(renames)) => renames.push(rename),
            _ => self.segments.push(Segment::Renames(vec![rename])),
        }
    }

    fn push(&mut self, key: Cow<'a, [u8]>, effect: Effect<'a>) {
        self.at.insert(key, self.effects.len());
        self.effects.push(effect);
    }

    fn close_set(&mut self) {
        if !self.effects.is_empty() {
            self.segments
                .push(Segment::Set(std::mem::take(&mut self.effects)));
            self.at.clear();
        }
    }
}

fn whole_row<'a>(after: &'a Row, former: &Row, unchanged: &[bool]) -> Cow<'a, Row> {
    if unchanged.is_empty() {
        Cow::Borrowed(after)
    } else {
        Cow::Owned(after.filled_from(former, unchanged))
    }
}

/// A key for an error text.
pub fn show(key: &[u8]) -> String {
    const SHOWN_BYTES_MAX: usize = 200;
    let shown = &key[..key.len().min(SHOWN_BYTES_MAX)];
    String::from_utf8_lossy(shown).replace('\t', ", ")
}

#[cfg(test)]
#[path = "keyed_tests.rs"]
mod tests;
