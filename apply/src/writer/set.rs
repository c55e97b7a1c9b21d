//! One set of net effects, at most one a key: what is there is deleted and updated by way of the
//! staging table, and what is new comes after it by COPY straight into the table
//! (docs/adr/0046). A row staged first costs the destination half as much again.
//!
//! Few rows are neither staged nor copied, but parameters of the statements (`few`). Rows that only go
//! are keys, which are parameters however many (docs/adr/0065).
//!
//! By then every key and every unique value that the set frees is free. If the COPY meets a row
//! all the same, the part is undone and written with care, where all is staged.

use tokio_postgres::Client;

use super::drift::{self, Drift};
use super::few::{self, Few};
use super::keyed::{Done, missing, query, stage};
use super::sql::{Op, Sql};
use super::target::{TableRow, Target};
use super::{Care, Policy, is_constraint_violation};
use crate::copy_in::{self, Gatherer, Piece};
use crate::error::{Error, Result};
use crate::event::Row;
use crate::net_effect::keyed::Effect;

/// Fewer new rows are staged with the rest: a COPY costs two flights more, whatever it holds.
const COPIED_ROWS_MIN: usize = 32;

/// Fewer rows that go are staged with the rest, which is a flight less.
const KEYS_MIN: usize = 32;
/// Keys that are longer together are staged.
const KEYS_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Keys of missing rows that an error names.
const KEYS_SHOWN_MAX: usize = 3;

/// One row for the staging table.
pub(super) struct Staged<'a> {
    pub(super) n: i64,
    pub(super) op: Op,
    /// 0, or which columns are unchanged: an index into the masks, from 1.
    pub(super) mask: usize,
    pub(super) row: &'a Row,
}

/// The different sets of unchanged columns in what is staged, by written column.
#[derive(Default)]
pub(super) struct Masks(Vec<Vec<bool>>);

impl Masks {
    pub(super) fn number(&mut self, target: &Target, unchanged: &[bool]) -> usize {
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

    pub(super) fn get(&self, number: usize) -> &[bool] {
        number.checked_sub(1).map_or(&[], |at| &self.0[at])
    }
}

/// What there is to merge.
#[derive(Default)]
struct StagedSet {
    /// The rows, if they are parameters; None: the staging table holds them.
    few: Option<Few>,
    masks: Masks,
    inserts: u64,
    upserts: u64,
    replaces: u64,
    clears: u64,
    deletes: u64,
    deletes_any: u64,
    patches: u64,
}

impl StagedSet {
    fn of(rows: &[Staged<'_>], masks: Masks) -> StagedSet {
        let mut set = StagedSet {
            masks,
            ..StagedSet::default()
        };
        for row in rows {
            match row.op {
                Op::Insert => set.inserts += 1,
                Op::Upsert => set.upserts += 1,
                Op::Replace => set.replaces += 1,
                Op::Clear => set.clears += 1,
                Op::Delete => set.deletes += 1,
                Op::DeleteAny => set.deletes_any += 1,
                Op::Patch => set.patches += 1,
                Op::OldKey | Op::Rename => {}
            }
        }
        set
    }

    fn given(few: Few, rows: &[Staged<'_>], masks: Masks) -> StagedSet {
        StagedSet {
            few: Some(few),
            ..StagedSet::of(rows, masks)
        }
    }

    /// The statements that read its rows.
    fn sql<'t>(&self, target: &'t Target) -> &'t Sql {
        match &target.few_sql {
            Some(sql) if self.few.is_some() => sql,
            _ => &target.sql,
        }
    }

    async fn run(
        &self,
        client: &Client,
        target: &Target,
        statements: &[String],
    ) -> Result<Vec<Done>> {
        match &self.few {
            Some(few) => few.run(client, target, statements).await,
            None => query(client, target, &statements.join("; ")).await,
        }
    }
}

/// A set prepared ahead: the keys that go, what is staged, and the rows that come after it by COPY.
pub(super) struct Ahead {
    gone: Option<Gone>,
    staged: Option<StagedSet>,
    copied: Vec<Piece>,
}

/// The keys of rows that are deleted before anything else of the set is written.
struct Gone {
    keys: Few,
    /// So many of them are of rows that must be there.
    expected: u64,
}

impl Gone {
    async fn delete(&self, client: &Client, target: &Target) -> Result<()> {
        let sql = target.sql.delete_keys().ok_or_else(|| {
            Error::Inconsistent(format!("the key of {} has one column", target.destination))
        })?;
        let deleted = self.keys.run(client, target, &[sql]).await?;
        let count = deleted.first().map_or(0, Done::met);
        let missed = self.expected.saturating_sub(count);
        drift::note(target, Drift::DeleteMissed, missed);
        Ok(())
    }
}

/// Effects by the way they are written.
struct Split<'e> {
    gone: Option<Gone>,
    staged: Vec<Staged<'e>>,
    masks: Masks,
    /// New once what is staged is merged.
    copied: Vec<&'e Row>,
}

impl<'e> Split<'e> {
    fn of(target: &Target, effects: &'e [Effect<'_>], way: Way, care: Care) -> Split<'e> {
        let copies = way == Way::Copied;
        let mut deleted = Vec::new();
        let mut split = Split {
            gone: None,
            staged: Vec::new(),
            masks: Masks::default(),
            copied: Vec::new(),
        };
        for (n, effect) in (0..).zip(effects) {
            let row = effect.row();
            let (op, mask) = match effect {
                Effect::Insert(_) if copies => {
                    split.copied.push(row);
                    continue;
                }
                Effect::Insert(_) => (Op::Insert, 0),
                Effect::Upsert(_) => (Op::Upsert, 0),
                Effect::Replace(_) if copies => {
                    split.copied.push(row);
                    (Op::Clear, 0)
                }
                Effect::Replace(_) => (Op::Replace, 0),
                Effect::Delete { expected: true, .. } => (Op::Delete, 0),
                Effect::Delete {
                    expected: false, ..
                } => (Op::DeleteAny, 0),
                Effect::Patch(_, unchanged) => (Op::Patch, split.masks.number(target, unchanged)),
            };
            let staged = Staged { n, op, mask, row };
            match op {
                Op::Delete | Op::DeleteAny | Op::Clear => deleted.push(staged),
                _ => split.staged.push(staged),
            }
        }
        if care == Care::Quick && way != Way::Few {
            split.gone = by_keys(target, &deleted);
        }
        if split.gone.is_none() {
            split.staged.append(&mut deleted);
        }
        split
    }
}

/// What only goes, as keys, if it can be given so and that is worth it.
fn by_keys(target: &Target, deleted: &[Staged<'_>]) -> Option<Gone> {
    if deleted.len() < KEYS_MIN || !target.takes_keys() || few::are_all_staged() {
        return None;
    }
    let rows: Vec<&Row> = deleted.iter().map(|staged| staged.row).collect();
    let keys = Few::of_keys(target, &rows)?;
    let expected = deleted.iter().filter(|staged| staged.op == Op::Delete);
    let expected = expected.count() as u64;
    (keys.bytes() <= KEYS_BYTES_MAX).then_some(Gone { keys, expected })
}

/// Where the rows of a set go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// All of them into statements, as parameters.
    Few,
    /// All of them into the staging table.
    Staged,
    /// What is new into the table, the rest into the staging table.
    Copied,
}

impl Way {
    fn of(target: &Target, effects: &[Effect<'_>], care: Care) -> Way {
        let is_insert = |effect: &Effect<'_>| matches!(effect, Effect::Insert(_));
        if effects.iter().all(is_insert) && care == Care::Quick && !target.avoid_direct_copy {
            return Way::Copied;
        }
        let bytes = || effects.iter().map(|effect| effect.row().text().len()).sum();
        if care == Care::Quick && few::are_few(target, effects.len(), bytes) {
            return Way::Few;
        }
        let is_new =
            |effect: &&Effect<'_>| matches!(effect, Effect::Insert(_) | Effect::Replace(_));
        let mut new = effects.iter().filter(is_new);
        match may_copy(target, care) && new.nth(COPIED_ROWS_MIN - 1).is_some() {
            true => Way::Copied,
            false => Way::Staged,
        }
    }
}

/// Whether new rows of sets that are not only new rows may go straight into the table: it must
/// refuse a key that it holds, or a row would be there twice.
pub(super) fn may_copy(target: &Target, care: Care) -> bool {
    care == Care::Quick && !target.avoid_direct_copy && target.refuses_doubles
}

/// Stages what there is to merge, and keeps the new rows as they will be copied. Nothing, if there are only
/// new rows.
pub(super) async fn stage_ahead(
    client: &Client,
    target: &mut Target,
    effects: &[Effect<'_>],
) -> Result<()> {
    let way = Way::of(target, effects, Care::Quick);
    let Split {
        gone,
        staged,
        masks,
        copied,
    } = Split::of(target, effects, way, Care::Quick);
    if (staged.is_empty() && gone.is_none()) || way == Way::Few {
        return Ok(());
    }
    let staged = match staged.is_empty() {
        true => None,
        false => Some(stage_rows(client, target, &staged, masks).await?),
    };
    let copied = pieces_of(target, &copied);
    target.ahead = Some(Ahead {
        gone,
        staged,
        copied,
    });
    Ok(())
}

/// Writes what [`stage_ahead`] has prepared.
pub(super) async fn write_ahead(
    client: &Client,
    target: &mut Target,
    ahead: Ahead,
    policy: Policy,
) -> Result<()> {
    if let Some(gone) = &ahead.gone {
        gone.delete(client, target).await?;
    }
    if let Some(staged) = &ahead.staged {
        merge(client, target, staged, policy).await?;
    }
    if ahead.copied.is_empty() {
        return Ok(());
    }
    let copied = copy_pieces(client, target, ahead.copied).await;
    judge(target, copied)
}

pub(super) async fn write(
    client: &Client,
    target: &mut Target,
    effects: &[Effect<'_>],
    care: Care,
    policy: Policy,
) -> Result<()> {
    let way = Way::of(target, effects, care);
    let Split {
        gone,
        staged,
        masks,
        copied,
    } = Split::of(target, effects, way, care);
    if let Some(gone) = gone {
        gone.delete(client, target).await?;
    }
    if !staged.is_empty() {
        let set = match way {
            Way::Few if masks.0.len() <= few::MASKS_MAX => {
                StagedSet::given(Few::of(target, &staged), &staged, masks)
            }
            Way::Few | Way::Staged | Way::Copied => {
                stage_rows(client, target, &staged, masks).await?
            }
        };
        drop(staged);
        merge(client, target, &set, policy).await?;
    }
    if copied.is_empty() {
        return Ok(());
    }
    copy_new(client, target, copied.into_iter()).await
}

/// Copies rows that are new straight into the table. Once it was wrong, it is not done again.
pub(super) async fn copy_new<'r>(
    client: &Client,
    target: &mut Target,
    rows: impl Iterator<Item = &'r Row>,
) -> Result<()> {
    let copied = copy_rows(client, target, rows).await;
    judge(target, copied)
}

fn judge(target: &mut Target, copied: Result<()>) -> Result<()> {
    if copied.as_ref().is_err_and(is_constraint_violation) {
        target.avoid_direct_copy = true;
    }
    copied
}

/// COPY straight into the table: nothing of these rows is expected to be there.
pub(super) async fn copy_rows<'r>(
    client: &Client,
    target: &mut Target,
    rows: impl Iterator<Item = &'r Row>,
) -> Result<()> {
    let inlet = target.direct_copy(client).await?;
    let doing = doing(target);
    let of: &Target = target;
    let rows = rows.map(|row| TableRow { target: of, row });
    let went = copy_in::copy_rows(client, inlet, rows, doing).await?;
    target.learn(client, went).await
}

async fn copy_pieces(client: &Client, target: &mut Target, pieces: Vec<Piece>) -> Result<()> {
    let was_known = target.direct_copy.is_some();
    let inlet = target.direct_copy(client).await?;
    let went = copy_in::copy_pieces(client, inlet, pieces, doing(target)).await?;
    // Put together before anyone had asked, they are text whatever they hold.
    match was_known {
        true => target.learn(client, went).await,
        false => Ok(()),
    }
}

fn doing(target: &Target) -> String {
    format!("copying rows into {}", target.destination)
}

/// Rows as they will be copied.
fn pieces_of(target: &Target, rows: &[&Row]) -> Vec<Piece> {
    // To look at the table is not for this session yet: what is not prepared is text for once.
    let mut gatherer = match &target.direct_copy {
        Some(inlet) => inlet.gatherer(),
        None => Gatherer::new(None),
    };
    let mut pieces: Vec<Piece> = rows
        .iter()
        .filter_map(|row| gatherer.push(&TableRow { target, row }))
        .collect();
    pieces.extend(gatherer.rest());
    pieces
}

async fn stage_rows(
    client: &Client,
    target: &mut Target,
    rows: &[Staged<'_>],
    masks: Masks,
) -> Result<StagedSet> {
    let staged = rows.iter().map(|row| (row.n, row.op, row.mask, row.row));
    stage(client, target, staged).await?;
    Ok(StagedSet::of(rows, masks))
}

/// Brings the set into the table.
async fn merge(client: &Client, target: &Target, set: &StagedSet, policy: Policy) -> Result<()> {
    let (masks, sql) = (&set.masks, set.sql(target));
    let has_deletes = set.deletes + set.deletes_any + set.replaces + set.clears > 0;
    let has_updates = set.inserts + set.upserts > 0;
    let has_inserts = set.inserts + set.replaces > 0;

    let mut statements = Vec::new();
    if has_deletes {
        statements.push(sql.delete(None));
    }
    if set.inserts > 0 {
        statements.push(sql.update_and_tell_inserts());
    } else if has_updates {
        statements.push(sql.update(None));
    }
    for number in 1..=masks.0.len() {
        statements.push(sql.patch(number, masks.get(number), None));
    }
    if has_inserts {
        statements.push(sql.insert(None));
    }
    let mut results = set.run(client, target, &statements).await?.into_iter();
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
        let (met_inserts, met_upserts) = match set.inserts {
            0 => (0, met.met()),
            _ => (met.value(0), met.value(1).saturating_sub(met.value(0))),
        };
        let missed = set.upserts.saturating_sub(met_upserts);
        drift::note(target, Drift::InsertOverwrote, met_inserts);
        drift::note(target, Drift::UpdateInserted, missed);
        if missed > 0 && !has_inserts {
            set.run(client, target, &[sql.insert(None)]).await?;
        }
    }
    let met_patches: u64 = (0..masks.0.len()).map(|_| next().met()).sum();
    if met_patches < set.patches {
        if policy.has_initial_snapshot {
            let found = set
                .run(client, target, &[sql.missing_patches(KEYS_SHOWN_MAX)])
                .await?;
            let keys: Vec<&str> = found.iter().flat_map(|done| done.texts()).collect();
            if !keys.is_empty() {
                return Err(missing(target, &keys.join("; ")));
            }
        }
        drift::note(target, Drift::UpdateNotOurs, set.patches - met_patches);
    }
    if (has_updates || set.patches > 0)
        && let Some(adopt) = sql.adopt_identities()
    {
        set.run(client, target, &[adopt]).await?;
    }
    Ok(())
}
