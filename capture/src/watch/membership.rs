//! Which publication each table belongs to, and what stands in them that should not.

use std::collections::BTreeMap;

use bunny_catalog::Mirror;
use bunny_postgres::introspect::{Look, Member};
use bunny_postgres::{Session, TableName, quote_ident};

use super::alter::alter;
use super::facts::{Publications, TableFacts};
use super::{KeptOut, Pending, Seen, Watch, is_mapped};
use crate::error::Result;
use crate::publication::only;
use crate::run::Run;
use crate::slot::Refusal;

/// A table enters or leaves a publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Alteration {
    pub(super) publication: String,
    pub(super) adds: bool,
    pub(super) table: TableName,
}

impl Alteration {
    pub(super) fn sql(&self) -> String {
        format!(
            "ALTER PUBLICATION {} {} TABLE {}",
            quote_ident(&self.publication),
            if self.adds { "ADD" } else { "DROP" },
            only(&self.table)
        )
    }
}

/// Why a table is not in the publication that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Obstacle {
    Locked,
    /// The source's user may not publish it; what the source said.
    Denied(String),
}

impl Watch {
    /// A table that lost its identity is moved at once: until then the source refuses its
    /// own updates. One that is not published yet is tried again. Whether anything was altered
    /// comes with a look after it.
    pub(super) async fn ask_and_move(&self, run: &Run, source: &Session) -> Result<(Seen, bool)> {
        let mirror = &run.mirror;
        let seen = self.ask(source, mirror).await?;
        let look = &seen.look;
        if mirror.publication_given {
            return Ok((seen, false));
        }
        let before = self.unpublished.borrow().clone();
        let coming: Pending = before.keys().cloned().collect();
        let changes = self.wanted_changes(mirror, look, &coming);
        let kept_out = alter(source, &changes, &coming).await?;
        let waits = before.into_iter().filter_map(|(name, before)| {
            let obstacle = kept_out.get(&name).cloned();
            let obstacle = obstacle.or_else(|| look.table(&name).is_none().then_some(before))?;
            Some((name, obstacle))
        });
        let waits: KeptOut = waits.collect();
        self.unpublished.send_if_modified(|unpublished| {
            let differs = *unpublished != waits;
            *unpublished = waits;
            differs
        });
        if changes
            .iter()
            .all(|change| kept_out.contains_key(&change.table))
        {
            return Ok((seen, false));
        }
        tracing::warn!(mirror = %mirror.name, ?changes, ?kept_out, "altered the publications");
        Ok((self.ask(source, mirror).await?, true))
    }

    /// Statements that bring tables where they belong: those about to be synced, those
    /// nothing is known of yet, those that lost their identity, and those not mapped any more.
    pub(super) fn wanted_changes(
        &self,
        mirror: &Mirror,
        look: &Look,
        pending: &Pending,
    ) -> Vec<Alteration> {
        let (Some(all), Some(insert_only)) = (
            look.publication(&mirror.publication_name),
            look.publication(&mirror.publication_ins_name),
        ) else {
            return Vec::new();
        };
        let mut changes = Vec::new();
        let mut change = |publication: &str, adds: bool, table: &TableName| {
            changes.push(Alteration {
                publication: publication.to_owned(),
                adds,
                table: table.clone(),
            });
        };
        for (table, judged) in self.judge_all(mirror, look) {
            let name = &table.source;
            let Some(found) = look.table(name) else {
                continue;
            };
            let is_new = !self.known.contains_key(name) && !self.knew_nothing;
            if !(judged.to_be_moved || pending.contains(name) || is_new) {
                continue;
            }
            let (wanted, other) = if found.can_carry_updates() {
                (all, insert_only)
            } else {
                (insert_only, all)
            };
            if look.member(other.oid, found.oid).is_some() {
                change(&other.name, false, name);
            }
            if look.member(wanted.oid, found.oid).is_none() {
                change(&wanted.name, true, name);
            }
        }
        let was_ours = |member: &Member| {
            let known = self.known.get(&member.name);
            known.is_some_and(|facts| facts.oid == member.table)
                || self.taken_out.contains(&member.name.to_string())
        };
        for member in look
            .members
            .iter()
            .filter(|member| !is_mapped(mirror, &member.name))
        {
            let mut publications = look.publications.iter();
            let publication = publications.find(|found| found.oid == member.publication);
            if let Some(publication) = publication.filter(|_| was_ours(member)) {
                change(&publication.name, false, &member.name);
            }
        }
        changes
    }
}

pub(super) fn publications(mirror: &Mirror) -> Publications<'_> {
    Publications {
        all: &mirror.publication_name,
        insert_only: (!mirror.publication_given).then_some(mirror.publication_ins_name.as_str()),
    }
}

/// A publication that is gone, or another of its name, ends decoding for good.
pub(super) fn check_publications(
    mirror: &Mirror,
    known: &BTreeMap<TableName, TableFacts>,
    look: &Look,
) -> Result<()> {
    if !mirror.generation_ready {
        return Ok(());
    }
    for name in crate::publication::names(mirror) {
        if look.publication(&name).is_none() {
            return Err(Refusal::PublicationGone(name).into());
        }
    }
    let is_known = |oid: u32| look.publications.iter().any(|found| found.oid == oid);
    let gone = known
        .values()
        .any(|facts| facts.publication != 0 && !is_known(facts.publication));
    if gone {
        return Err(Refusal::PublicationReplaced.into());
    }
    Ok(())
}

/// What is wrong with a table that cannot be published yet, and what to do.
pub(super) fn kept_out(name: &TableName, obstacle: &Obstacle) -> String {
    let why = match obstacle {
        Obstacle::Locked => "a lock that another session holds (CREATE INDEX CONCURRENTLY, VACUUM, ALTER TABLE or an open transaction; see pg_locks) keeps it from being added to the mirror's publication".to_owned(),
        Obstacle::Denied(said) => format!(
            "only its owner may add it to the mirror's publication ({said}); make the peer's user a member of the role that owns it, or give it to that user with ALTER TABLE {} OWNER TO",
            name.quoted()
        ),
    };
    format!(
        "the source table {name} is not captured and copied yet: {why}; it is tried again every few seconds"
    )
}

/// Members of the mirror's own publications that it does not map.
pub(super) fn strangers(
    mirror: &Mirror,
    known: &BTreeMap<TableName, TableFacts>,
    look: &Look,
) -> Vec<String> {
    let was_mapped = |oid: u32| known.values().any(|facts| facts.oid == oid);
    look.members
        .iter()
        .filter(|member| !is_mapped(mirror, &member.name) && !was_mapped(member.table))
        .filter_map(|member| {
            let mut publications = look.publications.iter();
            let publication = publications.find(|found| found.oid == member.publication)?;
            Some(format!(
                "publication {} holds table {}, which the mirror does not map; take it out with ALTER PUBLICATION {} DROP TABLE {}",
                publication.name,
                member.name,
                quote_ident(&publication.name),
                only(&member.name)
            ))
        })
        .collect()
}
