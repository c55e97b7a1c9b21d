//! The fold against a model that applies one change after the other.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::event::Before;

/// Columns: key, plain, large (the one that may be left out as unchanged).
fn row(key: u8, plain: u8, large: Option<u8>) -> Row {
    let key = key.to_string();
    let plain = plain.to_string();
    let large = large.map(|large| large.to_string());
    Row::from_values([
        Some(key.as_bytes()),
        Some(plain.as_bytes()),
        large.as_ref().map(|large| large.as_bytes()),
    ])
}

fn key_row(key: u8) -> Row {
    let key = key.to_string();
    Row::from_values([Some(key.as_bytes()), None, None])
}

/// A destination row: its mapped cells, and a value in a column of the destination's own.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stored {
    row: Row,
    own: u8,
}

type Table = BTreeMap<Vec<u8>, Stored>;

fn key_text(row: &Row) -> Vec<u8> {
    row.cell(0).to_vec()
}

fn put(table: &mut Table, row: &Row) {
    let own = table.get(&key_text(row)).map_or(0, |stored| stored.own);
    table.insert(
        key_text(row),
        Stored {
            row: row.clone(),
            own,
        },
    );
}

/// One change as the row-by-row semantics have it; false if it cannot be applied.
fn apply_change(table: &mut Table, change: &Change) -> bool {
    match change {
        Change::Insert(row) => put(table, row),
        Change::Delete(before) => {
            table.remove(&key_text(before.row()));
        }
        Change::Update {
            before,
            after,
            unchanged,
        } => {
            let old_key = before
                .as_ref()
                .map_or(key_text(after), |old| key_text(old.row()));
            match table.get(&old_key).cloned() {
                Some(stored) => {
                    table.remove(&old_key);
                    let row = if unchanged.is_empty() {
                        after.clone()
                    } else {
                        after.filled_from(&stored.row, unchanged)
                    };
                    table.insert(
                        key_text(after),
                        Stored {
                            row,
                            own: stored.own,
                        },
                    );
                }
                None if unchanged.is_empty() => put(table, after),
                None => return false,
            }
        }
    }
    true
}

/// Segments as the writer's three statements treat them; false if one cannot be applied.
fn apply_segments(table: &mut Table, segments: &[Segment<'_>]) -> bool {
    for segment in segments {
        match segment {
            Segment::Set(effects) => {
                for effect in effects {
                    if let Effect::Delete { .. } | Effect::Replace(_) = effect {
                        table.remove(&key_text(effect.row()));
                    }
                }
                for effect in effects {
                    let Some(stored) = table.get_mut(&key_text(effect.row())) else {
                        if let Effect::Patch(..) = effect {
                            return false;
                        }
                        continue;
                    };
                    match effect {
                        Effect::Insert(row) | Effect::Upsert(row) => {
                            stored.row = row.clone().into_owned()
                        }
                        Effect::Patch(row, unchanged) => {
                            stored.row = row.filled_from(&stored.row, unchanged)
                        }
                        Effect::Replace(_) | Effect::Delete { .. } => {
                            unreachable!("deleted before")
                        }
                    }
                }
                for effect in effects {
                    if let Effect::Insert(row) | Effect::Upsert(row) | Effect::Replace(row) = effect
                    {
                        table.entry(key_text(row)).or_insert_with(|| Stored {
                            row: row.clone().into_owned(),
                            own: 0,
                        });
                    }
                }
            }
            Segment::Renames(renames) => {
                for rename in renames {
                    let change = Change::Update {
                        before: Some(Before::Key(rename.old_key.clone())),
                        after: rename.after.clone(),
                        unchanged: rename.unchanged.to_vec(),
                    };
                    if !apply_change(table, &change) {
                        return false;
                    }
                }
            }
        }
    }
    true
}

#[derive(Clone, Debug)]
struct Draw {
    op: u8,
    key: u8,
    other: u8,
    plain: u8,
    large: u8,
}

fn draws() -> impl Strategy<Value = Vec<Draw>> {
    let draw = (0u8..8, 0u8..5, 0u8..5, any::<u8>(), any::<u8>()).prop_map(
        |(op, key, other, plain, large)| Draw {
            op,
            key,
            other,
            plain,
            large,
        },
    );
    prop::collection::vec(draw, 0..40)
}

/// The changes a source that begins with `table` would send for these draws.
fn history(table: &Table, draws: &[Draw]) -> Vec<Change> {
    let mut source = table.clone();
    let mut changes = Vec::new();
    for draw in draws {
        let present = source.contains_key(&key_text(&key_row(draw.key)));
        let free = !source.contains_key(&key_text(&key_row(draw.other)));
        let whole = row(draw.key, draw.plain, Some(draw.large));
        let moved = row(draw.other, draw.plain, Some(draw.large));
        let old = Some(Before::Key(key_row(draw.key)));
        let large_unchanged = vec![false, false, true];
        let change = match draw.op {
            0 | 1 if !present => Change::Insert(whole),
            2 if present => Change::update(None, whole, Vec::new()),
            3 if present => Change::update(None, row(draw.key, draw.plain, None), large_unchanged),
            4 if present => Change::Delete(Before::Key(key_row(draw.key))),
            5 if present && free => Change::update(old, moved, Vec::new()),
            6 if present && free => {
                Change::update(old, row(draw.other, draw.plain, None), large_unchanged)
            }
            _ => continue,
        };
        assert!(apply_change(&mut source, &change));
        changes.push(change);
    }
    changes
}

fn table_of(keys: &[u8]) -> Table {
    keys.iter()
        .map(|&key| {
            let row = row(key, 200, Some(key));
            (key_text(&row), Stored { row, own: 1 })
        })
        .collect()
}

fn without_own(table: &Table) -> Vec<Row> {
    table.values().map(|stored| stored.row.clone()).collect()
}

proptest! {
    /// A batch folded and written gives the very rows that its changes give one by one.
    #[test]
    fn the_fold_is_the_history(keys in prop::collection::vec(0u8..5, 0..5), draws in draws(), rename in any::<bool>()) {
        let base = table_of(&keys);
        let changes = history(&base, &draws);
        let refs: Vec<&Change> = changes.iter().collect();
        let mode = if rename { KeyChange::Rename } else { KeyChange::Split };

        let mut expected = base.clone();
        for change in &changes {
            prop_assert!(apply_change(&mut expected, change));
        }
        let mut found = base;
        let segments = fold(&refs, &[0], mode).unwrap();
        prop_assert!(apply_segments(&mut found, &segments));
        if rename {
            prop_assert_eq!(found, expected);
        } else {
            prop_assert_eq!(without_own(&found), without_own(&expected));
        }
    }

    /// However a history is cut into batches, the result is the same.
    #[test]
    fn batch_borders_do_not_show(keys in prop::collection::vec(0u8..5, 0..5), draws in draws(), cut in 0usize..40) {
        let base = table_of(&keys);
        let changes = history(&base, &draws);
        let refs: Vec<&Change> = changes.iter().collect();
        let (first, second) = refs.split_at(cut.min(refs.len()));

        let mut whole = base.clone();
        prop_assert!(apply_segments(&mut whole, &fold(&refs, &[0], KeyChange::Rename).unwrap()));
        let mut halves = base;
        prop_assert!(apply_segments(&mut halves, &fold(first, &[0], KeyChange::Rename).unwrap()));
        prop_assert!(apply_segments(&mut halves, &fold(second, &[0], KeyChange::Rename).unwrap()));
        prop_assert_eq!(whole, halves);
    }

    /// Over a destination that drifted, what can be applied converges towards the source.
    #[test]
    fn drift_resolves_towards_the_source(
        source_keys in prop::collection::vec(0u8..5, 0..5),
        destination_keys in prop::collection::vec(0u8..5, 0..5),
        draws in draws(),
    ) {
        let changes = history(&table_of(&source_keys), &draws);
        let refs: Vec<&Change> = changes.iter().collect();
        let base = table_of(&destination_keys);
        let mut expected = base.clone();
        let mut applies = true;
        for change in &changes {
            applies &= apply_change(&mut expected, change);
        }
        prop_assume!(applies);
        let mut found = base;
        prop_assert!(apply_segments(&mut found, &fold(&refs, &[0], KeyChange::Split).unwrap()));
        prop_assert_eq!(without_own(&found), without_own(&expected));
    }

    /// One effect per key in a set, whatever comes in.
    #[test]
    fn a_set_holds_a_key_once(keys in prop::collection::vec(0u8..5, 0..5), draws in draws()) {
        let changes = history(&table_of(&keys), &draws);
        let refs: Vec<&Change> = changes.iter().collect();
        for segment in fold(&refs, &[0], KeyChange::Split).unwrap() {
            if let Segment::Set(effects) = segment {
                let mut seen: Vec<Vec<u8>> = effects.iter().map(|effect| key_text(effect.row())).collect();
                seen.sort();
                seen.dedup();
                prop_assert_eq!(seen.len(), effects.len());
            }
        }
    }
}

#[test]
fn an_insert_and_its_updates_are_one_insert() {
    let changes = [
        Change::Insert(row(1, 1, Some(7))),
        Change::update(None, row(1, 2, None), vec![false, false, true]),
    ];
    let refs: Vec<&Change> = changes.iter().collect();
    let segments = fold(&refs, &[0], KeyChange::Split).unwrap();
    assert_eq!(
        segments,
        [Segment::Set(vec![Effect::Insert(Cow::Owned(row(
            1,
            2,
            Some(7)
        )))])]
    );
}

#[test]
fn swapped_keys_in_one_batch_keep_their_rows() {
    // 1 → 9, 2 → 1, 9 → 2, as a source without deferrable keys must do it.
    let changes: Vec<Change> = [(1, 9, 10), (2, 1, 20), (9, 2, 10)]
        .into_iter()
        .map(|(old, new, plain)| {
            Change::update(
                Some(Before::Key(key_row(old))),
                row(new, plain, Some(0)),
                Vec::new(),
            )
        })
        .collect();
    let refs: Vec<&Change> = changes.iter().collect();
    let mut table = table_of(&[1, 2]);
    assert!(apply_segments(
        &mut table,
        &fold(&refs, &[0], KeyChange::Split).unwrap()
    ));
    assert_eq!(
        without_own(&table),
        [row(1, 20, Some(0)), row(2, 10, Some(0))]
    );
}

#[test]
fn a_patch_of_a_row_deleted_before_names_its_key() {
    let changes = [
        Change::Delete(Before::Key(key_row(3))),
        Change::update(None, row(3, 1, None), vec![false, false, true]),
    ];
    let refs: Vec<&Change> = changes.iter().collect();
    assert_eq!(
        fold(&refs, &[0], KeyChange::Split),
        Err(FoldError::PatchOfDeleted("3".into()))
    );
}

#[test]
fn keys_of_several_columns_do_not_run_into_each_other() {
    let one = Row::from_values([Some(&b"a"[..]), Some(b"b\tc")]);
    let two = Row::from_values([Some(&b"a\tb"[..]), Some(b"c")]);
    assert_ne!(key_of(&one, &[0, 1]), key_of(&two, &[0, 1]));
}
