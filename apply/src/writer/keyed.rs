//! Rows that are found by a key: folded to effects, staged, written set by set.

use std::io::Write as _;

use tokio_postgres::{Client, SimpleQueryMessage};

use super::copy::CopyIn;
use super::drift::{self, Drift};
use super::sql::{Op, Sql};
use super::target::Target;
use super::{Care, Policy};
use crate::error::{Error, Result};
use crate::event::{Change, Row};
use crate::net_effect::keyed::{self, Effect, Rename, Segment};

/// More rows than that are replayed by way of an index.
const INDEXED_ROWS_MIN: usize = 100;
const REPLAY_INDEX: &str = "bunny_replay";

/// Keys of missing rows that an error names.
const KEYS_SHOWN_MAX: usize = 3;

/// One row for the staging table.
struct Staged<'a> {
    n: i64,
    op: Op,
    /// 0, or which columns are unchanged: an index into the masks, from 1.
    mask: usize,
    row: &'a Row,
}

/// What a set in the staging table holds.
pub(super) struct StagedSet {
    masks: Masks,
    inserts: u64,
    upserts: u64,
    replaces: u64,
    deletes: u64,
    deletes_any: u64,
    patches: u64,
}

/// The different sets of unchanged columns in what is staged, by written column.
#[derive(Default)]
struct Masks(Vec<Vec<bool>>);

impl Masks {
    fn number(&mut self, target: &Target, unchanged: &[bool]) -> usize {
        if unchanged.is_empty() {
            return 0;
        }
        let mask: Vec<bool> = target
            .written
            .iter()
            .map(|&index| unchanged[index])
            .collect();
        let at = self
            .0
            .iter()
            .position(|known| *known == mask)
            .unwrap_or_else(|| {
                self.0.push(mask);
                self.0.len() - 1
            });
        at + 1
    }

    fn get(&self, number: usize) -> &[bool] {
        number.checked_sub(1).map_or(&[], |at| &self.0[at])
    }
}

/// Stages what [`write`] will merge, and touches nothing but the staging table, if the changes
/// fold to one set of which that is true at all: rows that are only new are copied straight
/// into the table, and keys are changed one by one.
pub(super) async fn stage_ahead(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
) -> Result<()> {
    if target.key.is_empty() || target.stage_copy.is_none() {
        return Ok(());
    }
    let segments = keyed::fold(changes, &target.key, target.key_change)
        .map_err(|error| failed(target, error.to_string()))?;
    let [Segment::Set(effects)] = &segments[..] else {
        return Ok(());
    };
    if !is_copied(target, effects, Care::Quick) {
        let set = stage_set(client, target, effects).await?;
        target.ahead = Some(set);
    }
    Ok(())
}

/// Whether the rows go straight into the table.
fn is_copied(target: &Target, effects: &[Effect<'_>], care: Care) -> bool {
    care == Care::Quick
        && !target.avoid_direct_copy
        && effects
            .iter()
            .all(|effect| matches!(effect, Effect::Insert(_)))
}

/// Writes the changes as sets.
pub(super) async fn write(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
    care: Care,
    policy: Policy,
) -> Result<()> {
    if let Some(set) = target.ahead.take() {
        return merge_set(client, target, &set, policy).await;
    }
    let segments = keyed::fold(changes, &target.key, target.key_change)
        .map_err(|error| failed(target, error.to_string()))?;
    for segment in &segments {
        match segment {
            Segment::Set(effects) => {
                if is_copied(target, effects, care) {
                    let copied = copy_rows(client, target, effects.iter().map(Effect::row)).await;
                    if copied.as_ref().is_err_and(super::is_constraint_violation) {
                        target.avoid_direct_copy = true;
                    }
                    copied?;
                } else {
                    let set = stage_set(client, target, effects).await?;
                    merge_set(client, target, &set, policy).await?;
                }
            }
            Segment::Renames(renames) => write_renames(client, target, renames, policy).await?,
        }
    }
    Ok(())
}

/// Writes the changes one by one, in source order.
pub(super) async fn replay(
    client: &Client,
    target: &mut Target,
    changes: &[&Change],
    policy: Policy,
) -> Result<()> {
    let mut masks = Masks::default();
    let mut staged = Vec::with_capacity(changes.len());
    for (n, change) in (0..).zip(changes) {
        let mut stage = |op, mask, row| staged.push(Staged { n, op, mask, row });
        match change {
            Change::Insert(row) => stage(Op::Insert, 0, row),
            Change::Delete(before) => stage(Op::Delete, 0, before.row()),
            Change::Update {
                before,
                after,
                unchanged,
            } => {
                let mask = masks.number(target, unchanged);
                let new_key = keyed::key_of(after, &target.key);
                let old = before.as_ref().map(|before| before.row());
                match old.filter(|old| keyed::key_of(old, &target.key) != new_key) {
                    Some(old) => {
                        stage(Op::Rename, mask, after);
                        stage(Op::OldKey, 0, old);
                    }
                    None if mask == 0 => stage(Op::Upsert, 0, after),
                    None => stage(Op::Patch, mask, after),
                }
            }
        }
    }
    stage_rows(client, target, &staged).await?;
    // Without it every row would cost a look at all of them.
    let indexed = staged.len() > INDEXED_ROWS_MIN;
    if indexed {
        query(client, target, &target.sql.index_staging(REPLAY_INDEX)).await?;
    }
    replay_staged(client, target, &staged, &masks, policy).await?;
    if indexed {
        query(client, target, &Sql::drop_index(REPLAY_INDEX)).await?;
    }
    adopt_identities(client, target).await
}

async fn replay_staged(
    client: &Client,
    target: &Target,
    staged: &[Staged<'_>],
    masks: &Masks,
    policy: Policy,
) -> Result<()> {
    for row in staged {
        let only = Some(row.n);
        match row.op {
            Op::Delete => {
                let done = query(client, target, &target.sql.delete(only)).await?;
                let deleted = done.first().map_or(0, |done| done.count);
                drift::note(target, Drift::DeleteMissed, u64::from(deleted == 0));
            }
            Op::Insert | Op::Upsert => {
                let both = format!("{}; {}", target.sql.update(only), target.sql.insert(only));
                let done = query(client, target, &both).await?;
                let met = done.first().map_or(0, |met| met.value(1));
                match row.op {
                    Op::Insert => drift::note(target, Drift::InsertOverwrote, met),
                    _ => drift::note(target, Drift::UpdateInserted, u64::from(met == 0)),
                }
            }
            Op::Patch => {
                let patch = target.sql.patch(row.mask, masks.get(row.mask), only);
                let met = query(client, target, &patch)
                    .await?
                    .first()
                    .map_or(0, |done| done.value(0));
                if met == 0 && policy.has_initial_snapshot {
                    let key = keyed::show(&keyed::key_of(row.row, &target.key));
                    return Err(missing(target, &key));
                }
                if met == 0 {
                    drift::note(target, Drift::UpdateNotOurs, 1);
                }
            }
            Op::Rename => rename(client, target, row, masks, policy).await?,
            Op::OldKey | Op::Replace | Op::DeleteAny => {}
        }
    }
    Ok(())
}

/// COPY straight into the table: nothing of these rows is expected to be there.
pub(super) async fn copy_rows<'r>(
    client: &Client,
    target: &mut Target,
    rows: impl Iterator<Item = &'r Row>,
) -> Result<()> {
    let doing = format!("copying rows into {}", target.destination);
    let statement = match &target.direct_copy {
        Some(statement) => statement.clone(),
        None => {
            let statement = client
                .prepare(&target.sql.copy_into_table())
                .await
                .map_err(Error::sql(doing.as_str()))?;
            target.direct_copy.insert(statement).clone()
        }
    };
    let mut copy = CopyIn::begin(client, &statement, doing).await?;
    for row in rows {
        target.write_cells(copy.buffer(), row);
        copy.buffer().push(b'\n');
        copy.send_if_large().await?;
    }
    copy.finish().await?;
    Ok(())
}

async fn stage_set(
    client: &Client,
    target: &mut Target,
    effects: &[Effect<'_>],
) -> Result<StagedSet> {
    let mut masks = Masks::default();
    let staged: Vec<Staged<'_>> = (0..)
        .zip(effects)
        .map(|(n, effect)| {
            let (op, mask) = match effect {
                Effect::Insert(_) => (Op::Insert, 0),
                Effect::Upsert(_) => (Op::Upsert, 0),
                Effect::Replace(_) => (Op::Replace, 0),
                Effect::Delete { expected: true, .. } => (Op::Delete, 0),
                Effect::Delete {
                    expected: false, ..
                } => (Op::DeleteAny, 0),
                Effect::Patch(_, unchanged) => (Op::Patch, masks.number(target, unchanged)),
            };
            let row = effect.row();
            Staged { n, op, mask, row }
        })
        .collect();
    stage_rows(client, target, &staged).await?;

    let count = |op: Op| staged.iter().filter(|row| row.op == op).count() as u64;
    Ok(StagedSet {
        inserts: count(Op::Insert),
        upserts: count(Op::Upsert),
        replaces: count(Op::Replace),
        deletes: count(Op::Delete),
        deletes_any: count(Op::DeleteAny),
        patches: count(Op::Patch),
        masks,
    })
}

/// Brings what is staged into the table.
async fn merge_set(
    client: &Client,
    target: &Target,
    set: &StagedSet,
    policy: Policy,
) -> Result<()> {
    let masks = &set.masks;
    let has_deletes = set.deletes + set.replaces + set.deletes_any > 0;
    let has_updates = set.inserts + set.upserts > 0;
    let has_inserts = set.inserts + set.replaces > 0;

    let mut statements = Vec::new();
    if has_deletes {
        statements.push(target.sql.delete(None));
    }
    if has_updates {
        statements.push(target.sql.update(None));
    }
    for number in 1..=masks.0.len() {
        statements.push(target.sql.patch(number, masks.get(number), None));
    }
    if has_inserts {
        statements.push(target.sql.insert(None));
    }
    let mut results = query(client, target, &statements.join("; "))
        .await?
        .into_iter();
    let mut next = || results.next().unwrap_or_default();

    if has_deletes {
        drift::note(
            target,
            Drift::DeleteMissed,
            set.deletes.saturating_sub(next().count),
        );
    }
    if has_updates {
        let met = next();
        let (met_inserts, met_all) = (met.value(0), met.value(1));
        let missed = set.upserts.saturating_sub(met_all - met_inserts);
        drift::note(target, Drift::InsertOverwrote, met_inserts);
        drift::note(target, Drift::UpdateInserted, missed);
        if missed > 0 && !has_inserts {
            query(client, target, &target.sql.insert(None)).await?;
        }
    }
    let met_patches: u64 = (0..masks.0.len()).map(|_| next().value(0)).sum();
    if met_patches < set.patches {
        if policy.has_initial_snapshot {
            let found = query(client, target, &target.sql.missing_patches(KEYS_SHOWN_MAX)).await?;
            let keys: Vec<String> = found
                .into_iter()
                .flat_map(|done| done.rows)
                .flatten()
                .flatten()
                .collect();
            if !keys.is_empty() {
                return Err(missing(target, &keys.join("; ")));
            }
        }
        drift::note(target, Drift::UpdateNotOurs, set.patches - met_patches);
    }
    if has_updates || set.patches > 0 {
        adopt_identities(client, target).await?;
    }
    Ok(())
}

async fn write_renames(
    client: &Client,
    target: &mut Target,
    renames: &[Rename<'_>],
    policy: Policy,
) -> Result<()> {
    let mut masks = Masks::default();
    let mut staged = Vec::with_capacity(renames.len() * 2);
    for (n, change) in (0..).zip(renames) {
        staged.push(Staged {
            n,
            op: Op::Rename,
            mask: masks.number(target, change.unchanged),
            row: change.after,
        });
        staged.push(Staged {
            n,
            op: Op::OldKey,
            mask: 0,
            row: change.old_key,
        });
    }
    stage_rows(client, target, &staged).await?;
    for row in staged.iter().filter(|row| row.op == Op::Rename) {
        rename(client, target, row, &masks, policy).await?;
    }
    // Of those that became patches.
    adopt_identities(client, target).await
}

async fn rename(
    client: &Client,
    target: &Target,
    row: &Staged<'_>,
    masks: &Masks,
    policy: Policy,
) -> Result<()> {
    let (n, unchanged) = (row.n, masks.get(row.mask));
    let (clear, update) = target.sql.rename(n, unchanged);
    let done = query(client, target, &format!("{clear}; {update}")).await?;
    if done.get(1).is_some_and(|update| update.count > 0) {
        return Ok(());
    }
    if !unchanged.is_empty() {
        if policy.has_initial_snapshot {
            return Err(missing(
                target,
                &keyed::show(&keyed::key_of(row.row, &target.key)),
            ));
        }
        let patch = format!(
            "{}; {}",
            target.sql.rename_to(n, Op::Patch),
            target.sql.patch(row.mask, unchanged, Some(n))
        );
        let done = query(client, target, &patch).await?;
        if done.get(1).map_or(0, |patched| patched.value(0)) == 0 {
            drift::note(target, Drift::UpdateNotOurs, 1);
        }
        return Ok(());
    }
    drift::note(target, Drift::UpdateInserted, 1);
    let insert = format!(
        "{}; {}",
        target.sql.rename_to(n, Op::Insert),
        target.sql.insert(Some(n))
    );
    query(client, target, &insert).await?;
    Ok(())
}

/// An UPDATE may not set a GENERATED ALWAYS identity; where the source gave a row another
/// one, the row gets it here.
async fn adopt_identities(client: &Client, target: &Target) -> Result<()> {
    if let Some(adopt) = target.sql.adopt_identities() {
        query(client, target, &adopt).await?;
    }
    Ok(())
}

fn missing(target: &Target, keys: &str) -> Error {
    failed(
        target,
        format!(
            "an update does not carry the whole row, and destination table {} has no row with key ({keys}): \
             rows are missing there; sync the table again",
            target.destination
        ),
    )
}

fn failed(target: &Target, reason: String) -> Error {
    Error::Table {
        table: target.source.clone(),
        reason,
        restart_offset: None,
    }
}

async fn stage_rows(client: &Client, target: &mut Target, rows: &[Staged<'_>]) -> Result<()> {
    let staged = rows.iter().map(|row| (row.n, row.op, row.mask, row.row));
    stage(client, target, staged).await
}

/// Fills the staging table with these rows only: (n, op, mask, row).
pub(super) async fn stage<'r>(
    client: &Client,
    target: &mut Target,
    rows: impl Iterator<Item = (i64, Op, usize, &'r Row)>,
) -> Result<()> {
    target.ensure_staging(client).await?;
    let doing = format!("staging rows of {}", target.destination);
    if target.staged {
        client
            .batch_execute(&target.sql.clear_staging())
            .await
            .map_err(Error::sql(doing.as_str()))?;
    }
    target.staged = true;
    let Some(statement) = target.stage_copy.clone() else {
        return Err(Error::Inconsistent(format!(
            "{doing}: there is no staging table"
        )));
    };
    let mut copy = CopyIn::begin(client, &statement, doing).await?;
    for (n, op, mask, row) in rows {
        // Writing to memory cannot fail.
        let _ = write!(copy.buffer(), "{n}\t{}\t{mask}\t", op.letter());
        target.stage_cells(copy.buffer(), row);
        copy.buffer().push(b'\n');
        copy.send_if_large().await?;
    }
    copy.finish().await?;
    Ok(())
}

/// What one statement of a simple query gave.
#[derive(Debug, Default)]
pub(super) struct Done {
    /// Rows it touched or returned.
    pub(super) count: u64,
    rows: Vec<Vec<Option<String>>>,
}

impl Done {
    /// A number in the first row; 0 if there is none.
    fn value(&self, column: usize) -> u64 {
        let cell = self
            .rows
            .first()
            .and_then(|row| row.get(column))
            .and_then(Option::as_deref);
        cell.and_then(|text| text.parse().ok()).unwrap_or(0)
    }
}

/// Runs statements in one message and gives what each gave.
pub(super) async fn query(client: &Client, target: &Target, statements: &str) -> Result<Vec<Done>> {
    let messages = client
        .simple_query(statements)
        .await
        .map_err(Error::sql(format!(
            "writing rows of {}",
            target.destination
        )))?;
    let mut all = Vec::new();
    let mut rows = Vec::new();
    for message in messages {
        match message {
            SimpleQueryMessage::Row(row) => {
                rows.push(
                    (0..row.len())
                        .map(|column| row.get(column).map(str::to_owned))
                        .collect(),
                );
            }
            SimpleQueryMessage::CommandComplete(count) => {
                let rows = std::mem::take(&mut rows);
                all.push(Done { count, rows });
            }
            _ => {}
        }
    }
    Ok(all)
}
