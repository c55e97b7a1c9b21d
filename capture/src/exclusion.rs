//! Which columns of a table must not leave the source, by name and by number. Pure.
//!
//! A name can be given to another column, and an excluded column another name: only the
//! attnum stays. So the numbers that were ever seen under an excluded name are remembered
//! (in the position topic, with the rest of what is known of a table) and stay excluded.
//!
//! The walsender describes columns without their numbers. It lists them in the order of the
//! numbers and leaves out those that were dropped by then, and generated ones; the catalog,
//! asked later, still knows every number, and a number that is dropped never comes back. That
//! leaves few assignments of numbers to a description, mostly one, whatever was renamed in
//! between. A column is published only if it is an excluded one in none of them. Where that
//! leaves a column open, names are believed that stood before and stand now: a column that has
//! the same name at both ends of the time in question had it all the while.

use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::introspect::ColumnLook;
use serde::{Deserialize, Serialize};

/// What is known of one table's excluded columns, and of its columns at some moment that the
/// stream has passed. Empty for a table without excluded columns. Travels as JSON, so fields
/// only get added, with a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Exclusion {
    /// The attnums that were seen under each excluded name.
    numbers: BTreeMap<String, BTreeSet<i16>>,
    /// The highest attnum there was.
    highest: i16,
    /// The names there were, by attnum.
    names: BTreeMap<i16, String>,
    /// Attnums that were dropped by then.
    dropped: BTreeSet<i16>,
    /// Attnums of generated columns, which may be made ordinary ones later, never the reverse.
    generated: BTreeSet<i16>,
}

/// Which columns of a description may be published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Judged {
    /// For each column described.
    pub(crate) kept: Vec<bool>,
    /// What is known once the stream has come to this description.
    pub(crate) learned: Exclusion,
}

impl Exclusion {
    /// What a look at the catalog adds to what was known `before` of the same table.
    pub(crate) fn seen(
        before: Option<&Exclusion>,
        excluded: &[String],
        now: &[ColumnLook],
    ) -> Exclusion {
        if excluded.is_empty() {
            return Exclusion::default();
        }
        let number = |is: &dyn Fn(&ColumnLook) -> bool| {
            let found = now.iter().filter(|column| is(column));
            found.map(|column| column.attnum).collect::<BTreeSet<i16>>()
        };
        let numbers = excluded.iter().map(|name| {
            let mut numbers = number(&|column| !column.is_dropped && column.name == *name);
            let known = before.and_then(|before| before.numbers.get(name));
            numbers.extend(known.into_iter().flatten());
            (name.clone(), numbers)
        });
        Exclusion {
            numbers: numbers.collect(),
            highest: now.iter().map(|column| column.attnum).max().unwrap_or(0),
            names: now
                .iter()
                .filter(|column| !column.is_dropped)
                .map(|column| (column.attnum, column.name.clone()))
                .collect(),
            dropped: number(&|column| column.is_dropped),
            generated: number(&|column| !column.is_dropped && column.is_generated),
        }
    }

    /// Makes sure that every name the mirror excludes counts, seen or not.
    pub(crate) fn require(&mut self, excluded: &[String]) {
        for name in excluded {
            self.numbers.entry(name.clone()).or_default();
        }
    }

    /// Whether the column of that number is known to be excluded.
    pub(crate) fn excludes(&self, attnum: i16) -> bool {
        self.numbers
            .values()
            .any(|numbers| numbers.contains(&attnum))
    }

    /// Adds the numbers that `other` knows; true if there were any.
    pub(crate) fn add_numbers(&mut self, other: &Exclusion) -> bool {
        let before = self.numbers.clone();
        for (name, numbers) in &other.numbers {
            let known = self.numbers.entry(name.clone()).or_default();
            known.extend(numbers);
        }
        before != self.numbers
    }

    /// What a stream begins with: what the log says of where it stands, or what a look of
    /// `now` says, whose numbers hold in any case and the rest if the stream `begins_later`.
    pub(crate) fn at_start(
        logged: Option<&Exclusion>,
        now: &Exclusion,
        begins_later: bool,
    ) -> Exclusion {
        let mut start = match logged.filter(|logged| logged.highest > 0) {
            Some(logged) => logged.clone(),
            None if begins_later => now.clone(),
            None => Exclusion::default(),
        };
        start
            .numbers
            .retain(|name, _| now.numbers.contains_key(name));
        for (name, numbers) in &now.numbers {
            let known = start.numbers.entry(name.clone()).or_default();
            if known.is_empty() {
                known.clone_from(numbers);
            }
        }
        start
    }

    /// Adds what was found at a later look, which the stream has passed by now.
    pub(crate) fn advance(&mut self, later: &Exclusion) {
        self.numbers
            .retain(|name, _| later.numbers.contains_key(name));
        self.add_numbers(later);
        self.highest = self.highest.max(later.highest);
        self.names.clone_from(&later.names);
        self.dropped.extend(&later.dropped);
        self.generated.extend(&later.generated);
    }

    /// Judges columns whose numbers are known.
    ///
    /// # Errors
    /// Why it cannot be told what to keep, in words.
    pub(crate) fn keeps<'c>(
        &self,
        columns: impl Iterator<Item = (&'c str, i16)> + Clone,
    ) -> Result<Vec<bool>, String> {
        self.check_known(columns.clone().map(|(name, _)| name))?;
        Ok(columns
            .map(|(name, attnum)| !self.numbers.contains_key(name) && !self.holds(attnum))
            .collect())
    }

    /// Judges the columns of a description, in its order, by what the catalog says since.
    ///
    /// # Errors
    /// Why it cannot be told what to keep, in words.
    pub(crate) fn judge(&self, described: &[&str], now: &[ColumnLook]) -> Result<Judged, String> {
        if self.numbers.is_empty() {
            return Ok(Judged {
                kept: vec![true; described.len()],
                learned: self.clone(),
            });
        }
        self.check_known(described.iter().copied())?;
        let none = BTreeMap::new();
        self.judge_with(described, now, &none).or_else(|_| {
            let fixed = now
                .iter()
                .filter(|column| !column.is_dropped)
                .filter(|column| self.names.get(&column.attnum) == Some(&column.name))
                .map(|column| {
                    let rank = described.iter().position(|name| *name == column.name);
                    (column.attnum, rank)
                });
            self.judge_with(described, now, &fixed.collect())
        })
    }

    fn judge_with(
        &self,
        described: &[&str],
        now: &[ColumnLook],
        fixed: &BTreeMap<i16, Option<usize>>,
    ) -> Result<Judged, String> {
        let possible = self.assignments(described.len(), now, fixed);
        let mut learned = self.clone();
        for (name, possible) in described.iter().zip(&possible) {
            if let (Some(numbers), [attnum]) = (learned.numbers.get_mut(*name), &possible[..]) {
                numbers.insert(*attnum);
            }
        }
        let mut kept = Vec::with_capacity(described.len());
        for (name, possible) in described.iter().zip(&possible) {
            let excluded = possible.iter().filter(|attnum| learned.holds(**attnum));
            kept.push(match excluded.count() {
                _ if self.numbers.contains_key(*name) => false,
                0 if !possible.is_empty() => true,
                count if count > 0 && count == possible.len() => false,
                _ => {
                    return Err(format!(
                        "its columns were changed in a way that leaves open whether {name} is one of the excluded columns under another name, so nothing of it was published; sync it again"
                    ));
                }
            });
        }
        if possible.iter().all(|possible| possible.len() == 1) {
            let assigned = possible.into_iter().flatten();
            let names = described.iter().map(|name| (*name).to_owned());
            learned.passed(assigned.zip(names).collect(), now);
        }
        Ok(Judged { kept, learned })
    }

    /// Every excluded name is the name of something.
    fn check_known<'c>(&self, names: impl Iterator<Item = &'c str> + Clone) -> Result<(), String> {
        let unknown = self.numbers.iter().find(|(name, numbers)| {
            numbers.is_empty() && !names.clone().any(|other| other == **name)
        });
        match unknown {
            None => Ok(()),
            Some((name, _)) => Err(format!(
                "its excluded column {name} was renamed or dropped before it was first seen, so nothing of the table was published; give the column its name back and sync it again, or create the mirror again without excluding it"
            )),
        }
    }

    fn holds(&self, attnum: i16) -> bool {
        self.numbers
            .values()
            .any(|numbers| numbers.contains(&attnum))
    }

    /// The stream has come to a description of just these columns.
    fn passed(&mut self, assigned: BTreeMap<i16, String>, now: &[ColumnLook]) {
        let gone = now.iter().filter(|column| {
            column.is_dropped
                && column.attnum <= self.highest
                && !self.generated.contains(&column.attnum)
                && !assigned.contains_key(&column.attnum)
        });
        let gone: Vec<i16> = gone.map(|column| column.attnum).collect();
        self.dropped.extend(gone);
        let highest = assigned.keys().last().copied().unwrap_or(0);
        self.highest = self.highest.max(highest);
        self.names = assigned;
    }

    /// For each of `count` columns described, the attnums it may have; none where no
    /// assignment is possible. `fixed` tells of some numbers which column they are, if any.
    ///
    /// Numbers are gone through in order, each described or left out; `reached[i]` holds how
    /// many may be described before the i-th, `rest[i]` how many before it let the others
    /// come out right.
    fn assignments(
        &self,
        count: usize,
        now: &[ColumnLook],
        fixed: &BTreeMap<i16, Option<usize>>,
    ) -> Vec<Vec<i16>> {
        let now: Vec<&ColumnLook> = now
            .iter()
            .filter(|column| !self.dropped.contains(&column.attnum))
            .collect();
        let may_take = |column: &ColumnLook, rank: usize| {
            let fixed_rank = fixed.get(&column.attnum);
            rank < count && fixed_rank.is_none_or(|fixed| *fixed == Some(rank))
        };
        let may_skip = |column: &ColumnLook| {
            column.is_dropped || column.is_generated || self.generated.contains(&column.attnum)
        };
        // The table had no column of this number yet, nor of those after it.
        let may_end = |at: usize| {
            now.get(at)
                .is_none_or(|column| column.attnum > self.highest)
        };

        let mut reached = vec![BTreeSet::from([0])];
        for column in &now {
            let mut next = BTreeSet::new();
            for &rank in reached.last().into_iter().flatten() {
                if may_take(column, rank) {
                    next.insert(rank + 1);
                }
                if may_skip(column) {
                    next.insert(rank);
                }
            }
            reached.push(next);
        }
        let mut rest = vec![BTreeSet::new(); now.len() + 1];
        for at in (0..=now.len()).rev() {
            let mut here = BTreeSet::new();
            if may_end(at) {
                here.insert(count);
            }
            if let Some(column) = now.get(at) {
                for &rank in &rest[at + 1] {
                    if rank > 0 && may_take(column, rank - 1) {
                        here.insert(rank - 1);
                    }
                    if may_skip(column) {
                        here.insert(rank);
                    }
                }
            }
            rest[at] = here;
        }
        let mut possible = vec![Vec::new(); count];
        for (at, column) in now.iter().enumerate() {
            for &rank in &reached[at] {
                if may_take(column, rank) && rest[at + 1].contains(&(rank + 1)) {
                    possible[rank].push(column.attnum);
                }
            }
        }
        possible
    }
}

#[cfg(test)]
mod tests;
