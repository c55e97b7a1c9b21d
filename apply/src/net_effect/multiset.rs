//! Folding for tables without a key (REPLICA IDENTITY FULL, or insert-only): such a
//! table is a multiset of rows, and a change adds or takes away one copy.

use std::collections::HashMap;

use crate::event::{Before, Change, Row};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a change of a table without a key does not carry the whole old row: set REPLICA IDENTITY FULL at the source, then sync the table again"
)]
pub struct NoOldRow;

/// Rows with the copies to add (positive) or to take away (negative), never zero, in
/// the order in which they first appear.
pub fn fold<'a>(changes: &[&'a Change]) -> Result<Vec<(&'a Row, i64)>, NoOldRow> {
    let mut nets: Vec<(&Row, i64)> = Vec::with_capacity(changes.len());
    let mut at: HashMap<&[u8], usize> = HashMap::with_capacity(changes.len());
    let mut add = |row: &'a Row, copies: i64| match at.get(row.text()) {
        Some(&index) => nets[index].1 += copies,
        None => {
            at.insert(row.text(), nets.len());
            nets.push((row, copies));
        }
    };
    for change in changes {
        match change {
            Change::Insert(row) => add(row, 1),
            Change::Delete(Before::Row(old)) => add(old, -1),
            Change::Update {
                before: Some(Before::Row(old)),
                after,
                unchanged,
            } if unchanged.is_empty() => {
                add(old, -1);
                add(after, 1);
            }
            Change::Delete(Before::Key(_)) | Change::Update { .. } => return Err(NoOldRow),
        }
    }
    nets.retain(|(_, copies)| *copies != 0);
    Ok(nets)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn row(value: u8) -> Row {
        Row::from_values([Some(&[b'a' + value][..]), None])
    }

    #[test]
    fn a_change_without_its_old_row_is_refused() {
        let delete = Change::Delete(Before::Key(row(1)));
        assert_eq!(fold(&[&delete]), Err(NoOldRow));
        let update = Change::update(None, row(1), Vec::new());
        assert_eq!(fold(&[&update]), Err(NoOldRow));
    }

    proptest! {
        /// Folding gives the multiset that the changes give one by one.
        #[test]
        fn folds_to_the_same_multiset(ops in prop::collection::vec((0u8..3, 0u8..4, 0u8..4), 0..60)) {
            let changes: Vec<Change> = ops
                .iter()
                .map(|&(op, old, new)| match op {
                    0 => Change::Insert(row(new)),
                    1 => Change::Delete(Before::Row(row(old))),
                    _ => Change::update(Some(Before::Row(row(old))), row(new), Vec::new()),
                })
                .collect();
            let mut expected: BTreeMap<Vec<u8>, i64> = BTreeMap::new();
            for &(op, old, new) in &ops {
                if op != 1 {
                    *expected.entry(row(new).text().to_vec()).or_default() += 1;
                }
                if op != 0 {
                    *expected.entry(row(old).text().to_vec()).or_default() -= 1;
                }
            }
            expected.retain(|_, copies| *copies != 0);
            let refs: Vec<&Change> = changes.iter().collect();
            let found: BTreeMap<Vec<u8>, i64> = fold(&refs)
                .unwrap()
                .into_iter()
                .map(|(row, copies)| (row.text().to_vec(), copies))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
