//! Which columns of the catalog a Relation message means. Pure.
//!
//! The walsender describes a table as it was at that place of the stream; the catalog
//! answers for this moment. Between the two, columns may have been added, dropped and renamed,
//! so a name alone proves nothing. Three things help: a message lists columns in the order of
//! their attnums; `pg_attribute` keeps the numbers of dropped columns; and the version
//! published before says which number each name had.

/// A number of `pg_attribute`, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) attnum: i16,
    pub(super) name: String,
    pub(super) is_dropped: bool,
}

/// What was found for the version published before, all its columns included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Former {
    /// Name and attnum of each column; 0 where it was not recognised.
    pub(super) columns: Vec<(String, i16)>,
    /// Numbers that were dropped by then.
    pub(super) dropped: Vec<i16>,
}

impl Former {
    fn attnum(&self, name: &str) -> Option<i16> {
        let found = self.columns.iter().find(|(column, _)| column == name);
        found
            .map(|(_, attnum)| *attnum)
            .filter(|attnum| *attnum > 0)
    }

    fn holds(&self, attnum: i16) -> bool {
        self.columns.iter().any(|(_, held)| *held == attnum)
    }
}

/// The attnum of each of `names` (a message's columns, in order); 0 where more than one
/// column could be meant, or none.
pub(super) fn attnums(names: &[&str], slots: &[Slot], former: Option<&Former>) -> Vec<i16> {
    let mut candidates: Vec<Vec<i16>> = names
        .iter()
        .map(|name| candidates(name, names, slots, former))
        .collect();
    // Only what fits into an increasing sequence can be meant.
    let mut above = 0;
    for column in &mut candidates {
        column.retain(|attnum| *attnum > above);
        above = column.iter().copied().min().unwrap_or(i16::MAX);
    }
    let mut below = i16::MAX;
    for column in candidates.iter_mut().rev() {
        column.retain(|attnum| *attnum < below);
        below = column.iter().copied().max().unwrap_or(0);
    }
    if candidates.iter().any(Vec::is_empty) {
        return vec![0; names.len()];
    }
    candidates
        .iter()
        .map(|column| match column[..] {
            [attnum] => attnum,
            _ => 0,
        })
        .collect()
}

/// Every column that `name` may mean.
fn candidates(name: &str, names: &[&str], slots: &[Slot], former: Option<&Former>) -> Vec<i16> {
    let now = slots
        .iter()
        .find(|slot| !slot.is_dropped && slot.name == name);
    let now = now.map(|slot| slot.attnum);
    let before = former.and_then(|former| former.attnum(name));
    let newest = former.and_then(|former| former.columns.iter().map(|(_, attnum)| *attnum).max());
    let was_dropped =
        |slot: &Slot| former.is_some_and(|former| former.dropped.contains(&slot.attnum));
    let mut found: Vec<i16> = match (before, now) {
        (Some(before), now) => [Some(before), now].into_iter().flatten().collect(),
        // Or one of that name that was added after the former version, and dropped since.
        (None, Some(now)) => slots
            .iter()
            .filter(|slot| {
                slot.is_dropped
                    && !was_dropped(slot)
                    && newest.is_some_and(|newest| slot.attnum > newest)
            })
            .map(|slot| slot.attnum)
            .chain([now])
            .collect(),
        // Renamed or dropped since: it has another name now, or none.
        (None, None) => slots
            .iter()
            .filter(|slot| !was_dropped(slot))
            .filter(|slot| slot.is_dropped || !names.contains(&slot.name.as_str()))
            .filter(|slot| {
                former.is_none_or(|former| {
                    let held = former
                        .columns
                        .iter()
                        .find(|(_, attnum)| *attnum == slot.attnum);
                    // One of the former version's may have been renamed to it.
                    !former.holds(slot.attnum)
                        || held.is_some_and(|(held, _)| !names.contains(&held.as_str()))
                })
            })
            .map(|slot| slot.attnum)
            .collect(),
    };
    found.sort_unstable();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `None`: dropped.
    fn slots(names: &[Option<&str>]) -> Vec<Slot> {
        (1..)
            .zip(names)
            .map(|(attnum, name)| Slot {
                attnum,
                name: name.unwrap_or("........pg.dropped........").to_owned(),
                is_dropped: name.is_none(),
            })
            .collect()
    }

    fn former(columns: &[(&str, i16)], dropped: &[i16]) -> Former {
        Former {
            columns: columns
                .iter()
                .map(|(name, attnum)| ((*name).to_owned(), *attnum))
                .collect(),
            dropped: dropped.to_vec(),
        }
    }

    #[test]
    fn a_table_as_it_is() {
        let now = slots(&[Some("id"), None, Some("b")]);
        assert_eq!(attnums(&["id", "b"], &now, None), [1, 3]);
        let before = former(&[("id", 1), ("b", 3)], &[2]);
        assert_eq!(attnums(&["id", "b"], &now, Some(&before)), [1, 3]);
    }

    #[test]
    fn columns_that_came_later_do_not_disturb() {
        let now = slots(&[Some("id"), Some("a"), Some("later")]);
        assert_eq!(attnums(&["id", "a"], &now, None), [1, 2]);
    }

    #[test]
    fn names_that_changed_hands_are_not_believed() {
        // a was dropped, and b renamed to a.
        let now = slots(&[Some("id"), None, Some("a")]);
        let found = attnums(&["id", "a", "b"], &now, None);
        assert_eq!(found, [0, 0, 0]);
        let before = former(&[("id", 1), ("a", 2), ("b", 3)], &[]);
        assert_eq!(attnums(&["id", "a", "b"], &now, Some(&before)), [1, 2, 3]);
        assert_eq!(attnums(&["id", "b"], &now, Some(&before)), [1, 3]);
    }

    #[test]
    fn the_steps_of_a_migration_in_one_transaction() {
        // ADD tmp; UPDATE; DROP old; RENAME tmp TO old.
        let before = former(&[("id", 1), ("old", 2), ("b", 3)], &[]);
        let now = slots(&[Some("id"), None, Some("b"), Some("old")]);
        let added = attnums(&["id", "old", "b", "tmp"], &now, Some(&before));
        assert_eq!(added, [1, 2, 3, 4]);
        let at_end = former(&[("id", 1), ("old", 2), ("b", 3), ("tmp", 4)], &[]);
        assert_eq!(attnums(&["id", "b", "old"], &now, Some(&at_end)), [1, 3, 4]);
    }

    #[test]
    fn added_and_dropped_since() {
        let before = former(&[("id", 1)], &[]);
        let now = slots(&[Some("id"), None]);
        assert_eq!(attnums(&["id", "x"], &now, Some(&before)), [1, 2]);
        // Added twice: which of the two is not to be told.
        let twice = slots(&[Some("id"), None, Some("x")]);
        assert_eq!(attnums(&["id", "x"], &twice, Some(&before)), [1, 0]);
        // What was gone before is nobody's.
        let long_ago = former(&[("id", 1)], &[2]);
        assert_eq!(attnums(&["id", "x"], &twice, Some(&long_ago)), [1, 3]);
    }

    #[test]
    fn a_rename_without_a_word_between() {
        let before = former(&[("id", 1), ("a", 2)], &[]);
        let now = slots(&[Some("id"), Some("b")]);
        assert_eq!(attnums(&["id", "b"], &now, Some(&before)), [1, 2]);
    }
}
