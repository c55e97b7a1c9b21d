//! Changes of rows that the stream does not carry: rewrites by ALTER TABLE, and partitions
//! that are truncated, attached, detached or dropped by themselves.
//!
//! A sign (`marks`) becomes such a change unless it is proved that it changed no row. What
//! proves it: rows of before that are still there, a TRUNCATE of the root in the stream, a
//! partition that was empty when this session looked and of which the stream has met no
//! change. Where nothing proves it, rows count as changed: a copy too many costs time, a
//! copy too few is a difference nobody sees.

use std::collections::{BTreeMap, BTreeSet};

use bunny_postgres::introspect::{HeldLook, Look, TableKind, TableLook};
use bunny_postgres::{Lsn, Session, TableName};
use tokio::sync::watch;
use tokio_postgres::error::SqlState;

use super::Seen;
use super::attached::may_have_brought_rows;
use super::marks::{Marks, Sign};
use super::streamed::Streamed;
use crate::error::{Error, Result};
use crate::exclusion::Exclusion;
use crate::snapshot::{self, Passed};

/// So many partitions or columns are named in a sentence.
const NAMED_MAX: usize = 5;

/// Columns altered at or after the horizon (64 bits; all of them if it is too old to be
/// compared), and whether the table was only copied as far as they show.
const TOUCHED: &str = "
    SELECT a.attnum, a.attname::text, a.attisdropped, a.atthasmissing, coalesce(d.oid, 0)::oid,
           r.attnum, concat_ws(':', r.atttypid, r.atttypmod, r.attcollation)
    FROM pg_attribute a
    LEFT JOIN pg_attribute r ON r.attrelid = $4 AND r.attname = a.attname AND NOT r.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = $1 AND a.attnum > 0
      AND (age(a.xmin) <= age($2::text::xid)
           OR pg_snapshot_xmin(pg_current_snapshot())::text::int8 - $3 > 2000000000)
    ORDER BY a.attnum";

/// Rows of transactions that had ended before the horizon.
const ROWS_BEFORE_HORIZON: &str = "
    SELECT EXISTS (SELECT FROM ONLY {table} WHERE age(xmin) > age($1::text::xid))
       AND pg_snapshot_xmin(pg_current_snapshot())::text::int8 - $2 < 2000000000";

/// Of the leaves that still have the file of the look: those without a page.
const EMPTY: &str = "
    SELECT held FROM unnest($1::oid[], $2::oid[]) wanted (held, filenode)
    WHERE pg_relation_filenode(held) = filenode AND pg_relation_size(held) = 0 AND pg_relation_filenode(held) = filenode";

/// What happened to a table, in words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Untracked {
    /// Columns whose values may be others.
    rewritten: BTreeSet<String>,
    /// Those of them that had another type.
    retyped: BTreeSet<String>,
    attached: Vec<String>,
    gone: Vec<String>,
    truncated: Vec<String>,
    /// Labels of enums.
    relabelled: BTreeSet<String>,
}

impl Untracked {
    fn is_nothing(&self) -> bool {
        *self == Untracked::default()
    }

    /// The table's definition may have changed with its rows.
    pub(super) fn is_rewrite(&self) -> bool {
        !self.rewritten.is_empty()
    }

    /// Columns that were there have other types, or may have.
    pub(super) fn is_retyped(&self) -> bool {
        !self.retyped.is_empty()
    }

    /// A sentence without its subject, the table.
    pub(super) fn said(&self) -> String {
        let rewritten: Vec<String> = self.rewritten.iter().cloned().collect();
        let relabelled: Vec<String> = self.relabelled.iter().cloned().collect();
        let kinds = [
            (
                &rewritten,
                "was rewritten by ALTER TABLE (a default that differs from row to row, a type changed with USING), which changed column",
            ),
            (&self.attached, "got with its rows the partition"),
            (&self.gone, "lost by DETACH or DROP the partition"),
            (
                &self.truncated,
                "lost by TRUNCATE the rows of only the partition",
            ),
            (
                &relabelled,
                "holds an enum of which by ALTER TYPE … RENAME VALUE changed hands the label",
            ),
        ];
        let sentences: Vec<String> = kinds
            .iter()
            .filter(|(names, _)| !names.is_empty())
            .map(|(names, what)| format!("{what} {}", listed(names)))
            .collect();
        sentences.join(" and ")
    }
}

fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>();
    match names.len().saturating_sub(NAMED_MAX) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What a look leads to.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) untracked: BTreeMap<TableName, Untracked>,
    /// Nothing can be said of these yet: the next look tries again.
    pub(super) undecided: BTreeSet<TableName>,
}

/// A table that is looked at.
pub(super) struct Subject<'a> {
    pub(super) table: &'a TableLook,
    /// As they were before; None where nobody looked.
    pub(super) marks: Option<&'a Marks>,
    pub(super) exclusion: Exclusion,
}

/// What this run knows besides the marks.
pub(super) struct Inquiry {
    streamed: Streamed,
    passed: watch::Receiver<Passed>,
    /// Leaves that had no row at a look of this run, with the file they had.
    empty: BTreeMap<u32, u32>,
    looks: Looks,
    /// How much the stream had described before that look.
    described_before: u64,
    /// Leaves that came and went between two looks, as of the latest, by their table.
    brief: BTreeMap<TableName, Vec<u32>>,
}

/// Where this run has looked.
#[derive(Debug, Default, PartialEq, Eq)]
struct Looks {
    latest: Option<Lsn>,
    /// What was committed before may not explain what a look sees that comes now. It is where the look
    /// before the latest was: a transaction whose commit is in the log is not seen until its backend
    /// has said so to the others, so the latest may have missed what was committed before it.
    explained_from: Lsn,
}

impl Looks {
    fn taken(&mut self, at: Lsn) {
        self.explained_from = self.latest.unwrap_or_default();
        self.latest = Some(at);
    }
}

impl Inquiry {
    pub(super) fn new(streamed: Streamed, passed: watch::Receiver<Passed>) -> Inquiry {
        Inquiry {
            streamed,
            passed,
            empty: BTreeMap::new(),
            looks: Looks::default(),
            described_before: 0,
            brief: BTreeMap::new(),
        }
    }

    /// What happened outside the stream since the marks `before` were seen.
    ///
    /// # Errors
    /// The source cannot be asked, or the stream has ended.
    pub(super) async fn of<'a>(
        &mut self,
        source: &Session,
        seen: &Seen,
        subjects: impl Iterator<Item = Subject<'a>>,
    ) -> Result<Found> {
        let look = &seen.look;
        let mut found = Found::default();
        let mut partitions = Vec::new();
        self.brief.clear();
        for subject in subjects {
            let Subject { table, marks, .. } = subject;
            let signs = marks.map_or_else(Vec::new, |marks| marks.signs(table));
            let mut untracked = Untracked::default();
            for sign in &signs {
                match self
                    .judge(source, look, &subject, sign, &mut untracked)
                    .await
                {
                    Ok(()) => {}
                    Err(error) if is_for_later(&error) => {
                        tracing::info!(%error, table = %table.name, "what happened to a table is found out later");
                        found.undecided.insert(table.name.clone());
                    }
                    Err(error) => return Err(error),
                }
            }
            self.look_for_brief(look, &subject, &mut untracked);
            if !untracked.is_nothing() {
                found.untracked.insert(table.name.clone(), untracked);
            }
            if table.kind == TableKind::Partitioned {
                partitions.extend(&table.held);
            }
        }
        self.remember_empty(source, &partitions).await?;
        if found.undecided.is_empty() {
            self.looks.taken(look.lsn);
            self.streamed.forget_before(self.looks.explained_from);
        }
        self.described_before = seen.described_before;
        Ok(found)
    }

    async fn judge(
        &mut self,
        source: &Session,
        look: &Look,
        subject: &Subject<'_>,
        sign: &Sign<'_>,
        untracked: &mut Untracked,
    ) -> Result<()> {
        let table = subject.table;
        let horizon = subject.marks.map_or(0, |marks| marks.horizon);
        match sign {
            Sign::Rewritten { now, missing } => {
                // The columns of a leaf may have other numbers than those of its root.
                let is_excluded =
                    |attnum| now.oid == table.oid && subject.exclusion.excludes(attnum);
                let tables = (now.oid, table.oid);
                let columns = touched(source, tables, horizon, missing, is_excluded).await?;
                if columns.is_empty() && table.kind == TableKind::Partitioned {
                    let sign = Sign::NewFile { now };
                    return Box::pin(self.judge(source, look, subject, &sign, untracked)).await;
                }
                for column in columns {
                    let is_as_it_was = |marks: &Marks| {
                        let attnum = column.attnum_of_root;
                        attnum.is_some_and(|attnum| !marks.is_retyped(attnum, &column.type_of_root))
                    };
                    if !subject.marks.is_some_and(is_as_it_was) {
                        untracked.retyped.insert(column.name.clone());
                    }
                    untracked.rewritten.insert(column.name);
                }
            }
            Sign::NewFile { now } => {
                let is_the_same =
                    has_rows(source, ROWS_BEFORE_HORIZON, now, &[&low(horizon), &horizon]).await?;
                if is_the_same == Some(true) {
                    return Ok(());
                }
                self.wait_for_stream(look).await?;
                if self.was_truncated_with_root(table, now) || self.was_empty(now.oid) {
                    return Ok(());
                }
                untracked.truncated.push(now.name.to_string());
            }
            Sign::Attached { now } => {
                if may_have_brought_rows(source, table, now, horizon).await? {
                    untracked.attached.push(now.name.to_string());
                } else if now.filenode != now.oid {
                    self.wait_for_stream(look).await?;
                    // Not the file it was created with: rows that came in the stream may have
                    // gone with that one. What an earlier run has met is not known.
                    let may_have_met =
                        self.looks.latest.is_none() || self.streamed.has_met(now.oid);
                    if may_have_met && !self.was_truncated_with_root(table, now) {
                        untracked.truncated.push(now.name.to_string());
                    }
                }
            }
            Sign::PutBack { now } => {
                self.wait_for_stream(look).await?;
                let brought_rows = may_have_brought_rows(source, table, now, horizon).await?;
                if brought_rows || !self.was_empty(now.oid) {
                    untracked.attached.push(now.name.to_string());
                }
            }
            Sign::Gone { oid, name } => {
                self.wait_for_stream(look).await?;
                if !self.was_empty(*oid) {
                    untracked.gone.push((*name).to_owned());
                }
            }
            Sign::Relabelled { labels } => {
                untracked
                    .relabelled
                    .extend(labels.iter().map(|&label| label.to_owned()));
            }
        }
        Ok(())
    }

    /// What the stream has met is of use once it has come to where was looked.
    async fn wait_for_stream(&mut self, look: &Look) -> Result<()> {
        snapshot::passed(&mut self.passed, look.lsn).await?;
        Ok(())
    }

    /// Leaves that the stream has met and no look has seen: their rows are at the destination,
    /// and went with them. A table that is published itself may have been described next to a
    /// root that was truncated with it. What was described while a look was taken, or whose commit
    /// others do not see yet, may be there without being seen: so two looks have to miss it, both
    /// begun after it was described.
    fn look_for_brief(&mut self, look: &Look, subject: &Subject<'_>, untracked: &mut Untracked) {
        let (table, Some(marks)) = (subject.table, subject.marks) else {
            return;
        };
        if table.kind != TableKind::Partitioned {
            return;
        }
        let leaves = self.streamed.leaves_of(table.oid, self.described_before);
        for (leaf, name, is_missed_again) in leaves {
            let is_held = table.held.iter().any(|held| held.oid == leaf);
            let is_member = look.members.iter().any(|member| member.table == leaf);
            if is_held || is_member || marks.held.contains_key(&leaf) {
                self.streamed.forget_leaf(leaf);
            } else if is_missed_again {
                untracked.gone.push(name.to_string());
                self.brief.entry(table.name.clone()).or_default().push(leaf);
            }
        }
    }

    /// What the latest look found is dealt with, except of the tables `unsettled`.
    pub(super) fn settled(&mut self, unsettled: &BTreeSet<TableName>) {
        let brief = self.brief.iter();
        for (_, leaves) in brief.filter(|(table, _)| !unsettled.contains(*table)) {
            for leaf in leaves {
                self.streamed.forget_leaf(*leaf);
            }
        }
    }

    /// The file is from a transaction that the stream says truncated the root. In a
    /// subtransaction its number is another one, which nothing proves to belong to it.
    fn was_truncated_with_root(&self, table: &TableLook, leaf: &HeldLook) -> bool {
        let truncates = self
            .streamed
            .truncates_of(table.oid, self.looks.explained_from);
        truncates
            .iter()
            .any(|xid| leaf.filenode_by == xid.to_string())
    }

    /// It had no row at a look of this run, and the stream has met none since.
    fn was_empty(&self, leaf: u32) -> bool {
        self.empty.contains_key(&leaf) && !self.streamed.has_met(leaf)
    }

    /// Asks for the size only of those that the statistics think empty, and once a file.
    async fn remember_empty(&mut self, source: &Session, leaves: &[&HeldLook]) -> Result<()> {
        let seems_empty = |leaf: &&&HeldLook| !leaf.has_rows;
        let known: BTreeMap<u32, u32> = leaves
            .iter()
            .filter(seems_empty)
            .filter(|leaf| self.empty.get(&leaf.oid) == Some(&leaf.filenode))
            .map(|leaf| (leaf.oid, leaf.filenode))
            .collect();
        self.empty = known;
        let (unknown, files): (Vec<u32>, Vec<u32>) = leaves
            .iter()
            .filter(seems_empty)
            .filter(|leaf| !self.empty.contains_key(&leaf.oid) && !self.streamed.has_met(leaf.oid))
            .map(|leaf| (leaf.oid, leaf.filenode))
            .unzip();
        if unknown.is_empty() {
            return Ok(());
        }
        let rows = match source.query(EMPTY, &[&unknown, &files]).await {
            Ok(rows) => rows,
            // Somebody has one of them locked: not known is as good as not empty.
            Err(error) if error.code().is_some() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let empty: BTreeSet<u32> = rows.iter().map(|row| row.get(0)).collect();
        let found = leaves.iter().filter(|leaf| empty.contains(&leaf.oid));
        self.empty
            .extend(found.map(|leaf| (leaf.oid, leaf.filenode)));
        Ok(())
    }
}

/// The lower 32 bits, as `xid` takes them.
pub(super) fn low(horizon: i64) -> String {
    (horizon & i64::from(u32::MAX)).to_string()
}

/// A lock that is not to be had, or a partition that is gone by now: another look says more.
fn is_for_later(error: &Error) -> bool {
    let code = match error {
        Error::Query { error, .. } => error.code(),
        _ => None,
    };
    code.is_some_and(|code| {
        *code == SqlState::LOCK_NOT_AVAILABLE || *code == SqlState::UNDEFINED_TABLE
    })
}

/// A column that was altered.
struct Touched {
    name: String,
    /// Of the column of that name in the mapped table: its number, and its type as
    /// [`TableLook::types`] has it.
    attnum_of_root: Option<i16>,
    type_of_root: String,
}

/// Columns of a table that holds rows of a root which were altered and may hold other values than before. Not those
/// that were dropped or stay at the source; nor those that a copy of the rows as they are has only given the values
/// they had without being written.
async fn touched(
    source: &Session,
    (table, root): (u32, u32),
    horizon: i64,
    missing: &str,
    is_excluded: impl Fn(i16) -> bool,
) -> Result<Vec<Touched>> {
    let rows = source
        .query(TOUCHED, &[&table, &low(horizon), &horizon, &root])
        .await
        .map_err(failed)?;
    let mut columns = Vec::new();
    for row in rows {
        let (attnum, name): (i16, String) = (row.get(0), row.get(1));
        let (is_dropped, has_missing): (bool, bool) = (row.get(2), row.get(3));
        let default: u32 = row.get(4);
        let was_filled = default != 0
            && missing
                .split(' ')
                .any(|one| one == format!("{attnum}:{default}"));
        if !(is_dropped || is_excluded(attnum) || was_filled && !has_missing) {
            columns.push(Touched {
                name,
                attnum_of_root: row.get(5),
                type_of_root: row.get(6),
            });
        }
    }
    Ok(columns)
}

/// None: it must not be read.
pub(super) async fn has_rows(
    source: &Session,
    question: &str,
    leaf: &HeldLook,
    params: &[&(dyn tokio_postgres::types::ToSql + Sync)],
) -> Result<Option<bool>> {
    let sql = question.replace("{table}", &leaf.name.quoted());
    match source.query(&*sql, params).await {
        Ok(rows) => Ok(rows.first().map(|row| row.get(0))),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

pub(super) fn failed(error: tokio_postgres::Error) -> Error {
    Error::Query {
        doing: "finding out what changed outside the stream",
        error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_look_may_have_missed_explains_what_the_next_sees() {
        let streamed = Streamed::default();
        let mut looks = Looks::default();
        looks.taken(Lsn::from(10));
        // Committed before the look at 20, which does not see it yet.
        streamed.truncated(1, Lsn::from(19), 7);
        looks.taken(Lsn::from(20));
        streamed.forget_before(looks.explained_from);
        assert_eq!(streamed.truncates_of(1, looks.explained_from), [7]);

        looks.taken(Lsn::from(30));
        streamed.forget_before(looks.explained_from);
        assert_eq!(streamed.truncates_of(1, looks.explained_from), [0; 0]);
    }

    #[test]
    fn says_what_happened_and_names_the_first() {
        let untracked = Untracked {
            rewritten: ["a".to_owned()].into(),
            gone: (1..8).map(|n| format!("p{n}")).collect(),
            ..Untracked::default()
        };
        let said = untracked.said();
        assert!(said.contains("changed column a and lost"), "{said}");
        assert!(said.ends_with("p5 and 2 more"), "{said}");
        assert!(untracked.is_rewrite() && !untracked.is_nothing());
    }
}
