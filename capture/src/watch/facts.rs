//! What is remembered of a mapped table, and what follows when it is not so any more. Pure.

use bunny_catalog::MirrorTable;
use bunny_postgres::TableName;
use bunny_postgres::introspect::{Look, PublicationState, TableKind, TableLook};
use bunny_schemas::control::TableRecord;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::drift::Drift;
use super::marks::Marks;
use crate::exclusion::Exclusion;
use crate::publication::only;

/// A table as the source's catalog showed it. Travels as JSON in the position topic, so
/// fields only get added, with a default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct TableFacts {
    /// `pg_class.oid`; 0 when there was no such table.
    pub(crate) oid: u32,
    /// The oid of one that is gone, by which it is found under another name.
    pub(crate) former: u32,
    /// Oid of the publication it is in; 0 when in none.
    pub(crate) publication: u32,
    /// Oid of its row in `pg_publication_rel`; 0 when it is in for another reason.
    pub(crate) membership: u32,
    /// What that publication lets through.
    pub(crate) carried: Carried,
    /// The sync the mirror asked for when this was seen.
    pub(crate) request_id: Option<Uuid>,
    /// Rows changed although only inserts are captured.
    pub(crate) drift: Option<Drift>,
    /// Of the table of that oid, which of its columns are excluded.
    pub(crate) exclusion: Exclusion,
    /// A partition of it is UNLOGGED: changes there are in no stream.
    pub(super) unlogged: bool,
    /// Whether a partition of it is a foreign table: its rows are neither copied nor in any stream.
    /// None where nobody looked.
    pub(super) foreign: Option<bool>,
    /// Of the table of that oid; None where nobody looked for them.
    pub(super) marks: Option<Marks>,
    /// What changed outside the stream and waits for someone to ask for a sync.
    pub(super) standing: Option<String>,
}

impl TableFacts {
    /// Whether it is the table as `other` says, whenever it was looked at.
    pub(super) fn same(&self, other: &TableFacts) -> bool {
        let same_marks = match (&self.marks, &other.marks) {
            (Some(one), Some(other)) => one.same(other),
            (one, other) => one == other,
        };
        let rest = |facts: &TableFacts| TableFacts {
            marks: None,
            ..facts.clone()
        };
        same_marks && rest(self) == rest(other)
    }

    /// A record of a table, with what is known of its excluded columns besides.
    pub(crate) fn with_excluded(record: &TableRecord, exclusion: &Exclusion) -> TableRecord {
        let mut facts: TableFacts = serde_json::from_str(&record.facts).unwrap_or_default();
        facts.exclusion.add_numbers(exclusion);
        TableRecord {
            facts: facts.json(),
            ..record.clone()
        }
    }

    /// Numbers and names always serialise.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The oid it has, or had when it was there last.
    pub(super) fn last_oid(&self) -> u32 {
        if self.oid == 0 { self.former } else { self.oid }
    }
}

/// Kinds of change that are published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Carried {
    inserts: bool,
    updates: bool,
    deletes: bool,
    truncates: bool,
    /// Changes of leaves, as the root's. True for a table without leaves.
    leaves: bool,
}

impl Carried {
    fn of(publication: &PublicationState, kind: TableKind) -> Carried {
        Carried {
            inserts: publication.inserts,
            updates: publication.updates,
            deletes: publication.deletes,
            truncates: publication.truncates,
            leaves: publication.via_root || kind == TableKind::Ordinary,
        }
    }

    /// What was let through and is no more, in words; empty when nothing is.
    fn lost_since(self, before: Carried) -> String {
        let kinds = [
            ("inserts", before.inserts, self.inserts),
            ("updates", before.updates, self.updates),
            ("deletes", before.deletes, self.deletes),
            ("truncates", before.truncates, self.truncates),
            ("changes of partitions", before.leaves, self.leaves),
        ];
        let lost: Vec<&str> = kinds
            .into_iter()
            .filter(|(_, before, now)| *before && !now)
            .map(|(kind, ..)| kind)
            .collect();
        lost.join(", ")
    }
}

/// The publications of a mirror, by name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Publications<'a> {
    pub(crate) all: &'a str,
    /// None when the user brought the publication: then there is only that one.
    pub(crate) insert_only: Option<&'a str>,
}

/// What one look says of one table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Judged {
    pub(crate) facts: TableFacts,
    /// Changes may have been missed, for this reason: the table must not go on.
    pub(crate) gap: Option<String>,
    /// What will be seen to later.
    pub(crate) waiting: Option<String>,
    /// What is wrong now, and what to do.
    pub(crate) problem: Option<String>,
    /// Its updates and deletes are not captured.
    pub(crate) insert_only: bool,
    /// It stands where updates are published and cannot carry them: the source refuses
    /// its own updates until it is moved.
    pub(crate) to_be_moved: bool,
}

/// Compares what a look shows of `table` with what was known `before`. `is_new` tells
/// that nothing can have been known: nothing of it was captured yet.
pub(crate) fn judge(
    table: &MirrorTable,
    before: Option<&TableFacts>,
    is_new: bool,
    look: &Look,
    publications: Publications<'_>,
) -> Judged {
    let name = &table.source;
    let request_id = table.request_id;
    let Some(found) = look.table(name) else {
        let former = before.map_or(0, TableFacts::last_oid);
        let moved = look.moved.iter().find(|(oid, _)| *oid == former);
        let what = match moved {
            Some((_, now)) => format!("the source table {name} was renamed to {now}"),
            None => format!("the source table {name} is gone"),
        };
        let was_there = before.map_or(!is_new, |before| before.oid != 0);
        return Judged {
            facts: TableFacts {
                former,
                request_id,
                ..TableFacts::default()
            },
            gap: was_there.then(|| {
                format!("{what}; bring it back under its name and sync it again, or take it out of the mirror")
            }),
            problem: Some(format!(
                "{what}; bring it back under its name and sync it again, or take it out of the mirror"
            )),
            ..Judged::default()
        };
    };

    let place = place(found, look, publications);
    let unsynced =
        before.filter(|before| before.oid == found.oid && before.request_id == request_id);
    let mut facts = TableFacts {
        oid: found.oid,
        request_id,
        unlogged: found.held.iter().any(|held| !held.is_logged),
        foreign: Some(!found.foreign_leaves.is_empty()),
        marks: Some(match unsynced.and_then(|before| before.marks.as_ref()) {
            Some(before) => Marks::of(found).after(before),
            None => Marks::of(found),
        }),
        standing: unsynced.and_then(|before| before.standing.clone()),
        ..TableFacts::default()
    };
    if let Some((publication, membership)) = place {
        facts.publication = publication.oid;
        facts.membership = membership;
        facts.carried = Carried::of(publication, found.kind);
    }
    let insert_only = !found.can_carry_updates() || !facts.carried.updates;
    if insert_only {
        let known = unsynced.and_then(|before| before.drift.as_ref());
        facts.drift = Some(Drift::after(known, found.changed_rows()));
    }
    let is_first =
        Some(publications.all) == place.map(|(publication, _)| publication.name.as_str());
    Judged {
        gap: gap(table, before, is_new, &facts, found),
        problem: problem(table, &facts, found, publications),
        insert_only,
        to_be_moved: is_first && publications.insert_only.is_some() && !found.can_carry_updates(),
        facts,
        waiting: None,
    }
}

/// The publication the table is in, and its membership there.
fn place<'l>(
    found: &TableLook,
    look: &'l Look,
    publications: Publications<'_>,
) -> Option<(&'l PublicationState, u32)> {
    [Some(publications.all), publications.insert_only]
        .into_iter()
        .flatten()
        .filter_map(|name| look.publication(name))
        .find_map(|publication| {
            let member = look.member(publication.oid, found.oid)?;
            Some((publication, member.oid))
        })
}

fn gap(
    table: &MirrorTable,
    before: Option<&TableFacts>,
    is_new: bool,
    now: &TableFacts,
    found: &TableLook,
) -> Option<String> {
    let name = &table.source;
    let Some(before) = before else {
        let missed = !is_new && now.publication == 0;
        return missed.then(|| {
            format!("the source table {name} is in no publication of the mirror; sync it again")
        });
    };
    if before.oid == 0 {
        // It was gone, and is marked so already.
        return None;
    }
    if before.oid != now.oid {
        return Some(format!(
            "the source table {name} is another one than before (dropped and created again, or another was given its name); sync it again"
        ));
    }
    if now.unlogged && !before.unlogged {
        return Some(unlogged(found));
    }
    if now.foreign == Some(true) && before.foreign == Some(false) {
        return Some(foreign(found));
    }
    if before.publication == 0 {
        return None;
    }
    if now.publication == 0 {
        return Some(format!(
            "the source table {name} was taken out of the mirror's publication; sync it again"
        ));
    }
    let lost = now.carried.lost_since(before.carried);
    if !lost.is_empty() && !found.can_carry_updates() {
        return Some(format!(
            "the source table {name} has lost its replica identity (its key was dropped, or REPLICA IDENTITY changed), so its {lost} are not published any more; give it a key or REPLICA IDENTITY FULL and sync it again, or sync it again as it is, insert-only"
        ));
    }
    if !lost.is_empty() {
        return Some(format!(
            "the publication of the source table {name} was altered and lost {lost}; undo that and sync the table again"
        ));
    }
    (before.membership != now.membership).then(|| {
        format!(
            "the source table {name} was taken out of the mirror's publication and put back; sync it again"
        )
    })
}

fn unlogged(found: &TableLook) -> String {
    let unlogged = found.held.iter().filter(|held| !held.is_logged);
    let names: Vec<String> = unlogged.map(|held| held.name.to_string()).collect();
    format!(
        "the source table {} has rows that are UNLOGGED, whose changes nobody captures (in {}); ALTER TABLE … SET LOGGED and sync the table again",
        found.name,
        names.join(", ")
    )
}

fn foreign(found: &TableLook) -> String {
    let names: Vec<String> = found
        .foreign_leaves
        .iter()
        .map(TableName::to_string)
        .collect();
    format!(
        "the source table {} has partitions that are foreign tables, whose rows nobody captures ({}); ALTER TABLE … DETACH PARTITION and sync the table again, or take it out of the mirror",
        found.name,
        names.join(", ")
    )
}

fn problem(
    table: &MirrorTable,
    now: &TableFacts,
    found: &TableLook,
    publications: Publications<'_>,
) -> Option<String> {
    let name = &table.source;
    let given = publications.insert_only.is_none();
    if now.publication == 0 {
        let cure = if given {
            format!(
                "add it with ALTER PUBLICATION {} ADD TABLE {} and sync it again",
                bunny_postgres::quote_ident(publications.all),
                only(name)
            )
        } else {
            "sync it again, which puts it back".to_owned()
        };
        return Some(format!(
            "the source table {name} is not in the mirror's publication, its changes are not captured; {cure}"
        ));
    }
    if now.unlogged {
        return Some(unlogged(found));
    }
    if now.foreign == Some(true) {
        return Some(foreign(found));
    }
    let wanted = Carried {
        inserts: true,
        updates: found.can_carry_updates(),
        deletes: found.can_carry_updates(),
        truncates: true,
        leaves: true,
    };
    let in_first = now.carried.updates || now.carried.deletes;
    let wanted = if in_first {
        wanted
    } else {
        // A table that has gained an identity stays insert-only until it is synced again.
        Carried {
            updates: false,
            deletes: false,
            ..wanted
        }
    };
    let lost = now.carried.lost_since(wanted);
    if !lost.is_empty() {
        return Some(format!(
            "the mirror's publication of {name} does not publish {lost}: someone altered it; set publish and publish_via_partition_root back with ALTER PUBLICATION … SET and sync the table again"
        ));
    }
    (given && in_first && !found.can_carry_updates()).then(|| {
        format!(
            "the source table {name} has no usable replica identity and stands in a publication of updates: the source refuses its updates and deletes; give it a key or REPLICA IDENTITY FULL"
        )
    })
}
