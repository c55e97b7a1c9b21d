//! Which columns of the catalog a Relation message means. Pure.
//!
//! The walsender describes a table as it was at that place of the stream; the catalog
//! answers for this moment. Between the two, columns may have been added, dropped and renamed,
//! so a name alone proves nothing. Four things help: a message lists columns in the order of
//! their attnums; `pg_attribute` keeps the numbers of dropped columns; what was altered last
//! before the slot's position is as it was there; and the version published before says which
//! number each name had.

use super::visibility::Look;

/// A column of a message: its name and type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Described<'a> {
    pub(super) name: &'a str,
    pub(super) type_oid: u32,
}

/// A number of `pg_attribute`, as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) attnum: i16,
    pub(super) name: String,
    /// 0 when dropped.
    pub(super) type_oid: u32,
    pub(super) is_dropped: bool,
    /// It was altered last before anything that the slot may still give.
    pub(super) is_settled: bool,
    /// It may be missing from a message that describes those around it.
    pub(super) is_generated: bool,
}

/// A column of the version published before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FormerColumn {
    pub(super) name: String,
    pub(super) type_oid: u32,
    /// 0 where it was not recognised.
    pub(super) attnum: i16,
}

/// What was found for the version published before, all its columns included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Former {
    pub(super) columns: Vec<FormerColumn>,
    /// Numbers that were dropped by then.
    pub(super) dropped: Vec<i16>,
}

impl Former {
    fn attnum(&self, name: &str) -> Option<i16> {
        let found = self.columns.iter().find(|column| column.name == name);
        found
            .map(|column| column.attnum)
            .filter(|attnum| *attnum > 0)
    }

    fn holds(&self, attnum: i16) -> bool {
        self.columns.iter().any(|column| column.attnum == attnum)
    }

    /// Columns whose name the message does not have: dropped, or renamed.
    fn unnamed<'a>(
        &'a self,
        described: &'a [Described<'_>],
    ) -> impl Iterator<Item = &'a FormerColumn> {
        self.columns.iter().filter(|column| {
            column.attnum > 0 && described.iter().all(|other| other.name != column.name)
        })
    }
}

/// The attnum of each of `described` (a message's columns, in order); 0 where more than
/// one column could be meant, or none.
pub(super) fn attnums(
    described: &[Described<'_>],
    slots: &[Slot],
    former: Option<&Former>,
    look: Look,
) -> Vec<i16> {
    let mut candidates: Vec<Vec<i16>> = described
        .iter()
        .map(|column| candidates(*column, described, slots, former, look))
        .collect();
    keep_increasing(&mut candidates);
    // Of a column that was dropped and one that was added again under its name and type, the
    // new one is meant, where the order allows both and the look is not late.
    let in_time = described.iter().zip(&mut candidates);
    for (column, candidates) in in_time.filter(|_| look == Look::InTime) {
        let now = now(*column, slots).filter(|now| now.type_oid == column.type_oid);
        let was = former.and_then(|former| former.attnum(column.name));
        if let (Some(now), Some(_)) = (now, was.filter(|was| is_dropped(*was, slots)))
            && candidates.contains(&now.attnum)
        {
            *candidates = vec![now.attnum];
        }
    }
    keep_increasing(&mut candidates);
    keep_all_there(&mut candidates, slots);
    if candidates.iter().any(Vec::is_empty) {
        return vec![0; described.len()];
    }
    candidates
        .iter()
        .map(|column| match column[..] {
            [attnum] => attnum,
            _ => 0,
        })
        .collect()
}

/// Leaves of each column's candidates those that fit into an increasing sequence.
fn keep_increasing(candidates: &mut [Vec<i16>]) {
    let mut above = 0;
    for column in candidates.iter_mut() {
        column.retain(|attnum| *attnum > above);
        above = column.iter().copied().min().unwrap_or(i16::MAX);
    }
    let mut below = i16::MAX;
    for column in candidates.iter_mut().rev() {
        column.retain(|attnum| *attnum < below);
        below = column.iter().copied().max().unwrap_or(0);
    }
}

/// A column that is there now and older than the last one described was there, too. Where
/// these are as many as were described, they are the ones.
fn keep_all_there(candidates: &mut [Vec<i16>], slots: &[Slot]) {
    let Some([newest]) = candidates.last().map(Vec::as_slice) else {
        return;
    };
    let there: Vec<i16> = slots
        .iter()
        .filter(|slot| !slot.is_dropped && slot.attnum <= *newest)
        .map(|slot| slot.attnum)
        .collect();
    let are_meant = there.len() == candidates.len()
        && there
            .iter()
            .zip(&*candidates)
            .all(|(attnum, candidates)| candidates.contains(attnum));
    if are_meant && slots.iter().all(|slot| !slot.is_generated) {
        for (attnum, candidates) in there.into_iter().zip(candidates) {
            *candidates = vec![attnum];
        }
    }
}

fn now<'s>(column: Described<'_>, slots: &'s [Slot]) -> Option<&'s Slot> {
    slots
        .iter()
        .find(|slot| !slot.is_dropped && slot.name == column.name)
}

fn is_settled(attnum: i16, slots: &[Slot]) -> bool {
    let mut slots = slots.iter();
    slots.any(|slot| slot.attnum == attnum && slot.is_settled)
}

fn is_dropped(attnum: i16, slots: &[Slot]) -> bool {
    let mut slots = slots.iter();
    slots.any(|slot| slot.attnum == attnum && slot.is_dropped)
}

/// Every column that `column` may mean.
fn candidates(
    column: Described<'_>,
    described: &[Described<'_>],
    slots: &[Slot],
    former: Option<&Former>,
    look: Look,
) -> Vec<i16> {
    let now = now(column, slots);
    if let Some(now) = now.filter(|now| now.is_settled) {
        return vec![now.attnum];
    }
    let before = former.and_then(|former| former.attnum(column.name));
    let mut found: Vec<i16> = match (before, now) {
        // Dropped since, and the one of its name now is another: the types tell.
        (Some(before), Some(now))
            if is_dropped(before, slots) && now.type_oid != column.type_oid =>
        {
            vec![before]
        }
        (Some(before), Some(now)) => vec![before, now.attnum],
        (Some(before), None) => vec![before],
        (None, Some(now)) if former.is_none() && look == Look::InTime => vec![now.attnum],
        (None, Some(now)) => added_since(slots, former)
            .chain(renamed_to(column, now, described, former))
            .collect(),
        // Renamed or dropped since: it has another name now, or none.
        (None, None) => slots
            .iter()
            .filter(|slot| !former.is_some_and(|former| former.dropped.contains(&slot.attnum)))
            .filter(|slot| {
                former.is_none_or(|former| {
                    let mut unnamed = former.unnamed(described);
                    // One of the former version's may have been renamed to it.
                    !former.holds(slot.attnum) || unnamed.any(|held| held.attnum == slot.attnum)
                })
            })
            .map(|slot| slot.attnum)
            .collect(),
    };
    found.retain(|attnum| !is_settled(*attnum, slots));
    found.sort_unstable();
    found.dedup();
    found
}

/// Columns that were added after the former version (or after what the slot knows) and are
/// dropped by now: one may have had the name that another has now.
fn added_since(slots: &[Slot], former: Option<&Former>) -> impl Iterator<Item = i16> {
    let newest = former.and_then(|former| former.columns.iter().map(|column| column.attnum).max());
    slots
        .iter()
        .filter(move |slot| {
            let was_dropped = former.is_some_and(|former| former.dropped.contains(&slot.attnum));
            slot.is_dropped && !was_dropped && newest.is_none_or(|newest| slot.attnum > newest)
        })
        .map(|slot| slot.attnum)
}

/// The column of that name now; or, if its type is another, one of the former version that
/// was renamed to it and is gone since.
fn renamed_to(
    column: Described<'_>,
    now: &Slot,
    described: &[Described<'_>],
    former: Option<&Former>,
) -> Vec<i16> {
    if now.type_oid == column.type_oid {
        return vec![now.attnum];
    }
    let renamed: Vec<i16> = former
        .into_iter()
        .flat_map(|former| former.unnamed(described))
        .filter(|held| held.type_oid == column.type_oid)
        .map(|held| held.attnum)
        .collect();
    if renamed.is_empty() {
        return vec![now.attnum];
    }
    renamed
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
                type_oid: if name.is_some() { 25 } else { 0 },
                is_dropped: name.is_none(),
                is_settled: false,
                is_generated: false,
            })
            .collect()
    }

    fn former(columns: &[(&str, i16)], dropped: &[i16]) -> Former {
        Former {
            columns: columns
                .iter()
                .map(|(name, attnum)| FormerColumn {
                    name: (*name).to_owned(),
                    type_oid: 25,
                    attnum: *attnum,
                })
                .collect(),
            dropped: dropped.to_vec(),
        }
    }

    /// Of text columns of these names.
    fn attnums(names: &[&str], slots: &[Slot], former: Option<&Former>) -> Vec<i16> {
        looked_up(names, slots, former, Look::InTime)
    }

    fn looked_up(names: &[&str], slots: &[Slot], former: Option<&Former>, look: Look) -> Vec<i16> {
        let described: Vec<Described<'_>> = names
            .iter()
            .map(|name| Described { name, type_oid: 25 })
            .collect();
        super::attnums(&described, slots, former, look)
    }

    #[test]
    fn dropped_and_added_again_under_its_name() {
        let before = former(&[("id", 1), ("a", 2)], &[]);
        let now = slots(&[Some("id"), None, Some("a")]);
        assert_eq!(attnums(&["id", "a"], &now, Some(&before)), [1, 3]);
        assert_eq!(
            looked_up(&["id", "a"], &now, Some(&before), Look::Late),
            [1, 0]
        );
        // A description from before that, looked up late: the types tell.
        let mut other = now.clone();
        other[2].type_oid = 23;
        assert_eq!(attnums(&["id", "a"], &other, Some(&before)), [1, 2]);
        // The same after a rename that the description tells of.
        let renamed = former(&[("id", 1), ("n", 2)], &[]);
        assert_eq!(attnums(&["id", "a"], &other, Some(&renamed)), [1, 2]);
        assert_eq!(attnums(&["id", "a"], &now, Some(&renamed)), [1, 3]);
    }

    #[test]
    fn what_is_settled_is_as_it_was() {
        let mut now = slots(&[Some("id"), None, None, Some("b")]);
        now[0].is_settled = true;
        let late = |names: &[&str], now: &[Slot]| looked_up(names, now, None, Look::Late);
        // After a restart, b may have been any of the three.
        assert_eq!(late(&["id", "b"], &now), [1, 0]);
        now[1].is_settled = true;
        assert_eq!(late(&["id", "b"], &now), [1, 0]);
        now[2].is_settled = true;
        assert_eq!(late(&["id", "b"], &now), [1, 4]);
        now[3].is_settled = true;
        assert_eq!(late(&["id", "b"], &now), [1, 4]);
        // A name that nobody has any more is not that of a settled column.
        let mut now = slots(&[Some("id"), Some("c"), None]);
        now[1].is_settled = true;
        assert_eq!(late(&["id", "c", "x"], &now), [1, 2, 3]);
    }

    #[test]
    fn what_is_there_was_there() {
        // c was added, a dropped, and b renamed to z since.
        let mut now = slots(&[Some("id"), None, Some("z"), Some("c")]);
        now[0].is_settled = true;
        let late = |now: &[Slot]| looked_up(&["id", "b", "c"], now, None, Look::Late);
        assert_eq!(late(&now), [1, 3, 4]);
        now[2].is_generated = true;
        assert_eq!(late(&now), [1, 0, 4]);
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
        assert_eq!(attnums(&["id", "a", "b"], &now, None), [0, 0, 0]);
        // Three columns of three numbers.
        let late = looked_up(&["id", "a", "b"], &now, None, Look::Late);
        assert_eq!(late, [1, 2, 3]);
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
