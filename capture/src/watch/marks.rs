//! Marks that changes outside the stream leave on the tables that hold a mapped table's
//! rows, and what they may mean. Pure; `untracked` finds out what they do mean.

use std::collections::BTreeMap;

use bunny_postgres::introspect::{HeldLook, TableKind, TableLook};
use serde::{Deserialize, Serialize};

/// What is remembered of the tables that hold the rows. Travels in the position topic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Marks {
    /// Transactions below this number (64 bits) had ended when the marks were seen.
    pub(super) horizon: i64,
    /// By oid: the table itself, or its leaves.
    pub(super) held: BTreeMap<u32, Mark>,
    /// By `attnum`, the types of its columns; empty where nobody looked for them.
    pub(super) types: BTreeMap<i16, String>,
    /// By type, the labels of the enums that its columns are made of, by their oids; None where
    /// nobody looked for them.
    pub(super) labels: Option<BTreeMap<u32, BTreeMap<u32, String>>>,
    /// By type, texts that no label has any more, with the value that had each first: the
    /// destination may hold them for as long as nobody has written those rows.
    pub(super) former_labels: BTreeMap<u32, BTreeMap<String, u32>>,
}

/// One of them. Short names: a table may have thousands.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Mark {
    #[serde(rename = "n")]
    pub(super) name: String,
    #[serde(rename = "f")]
    pub(super) filenode: u32,
    #[serde(rename = "a")]
    pub(super) attached: String,
    #[serde(rename = "c")]
    pub(super) columns: String,
    #[serde(rename = "m")]
    pub(super) missing: String,
}

/// Something that may have changed rows outside the stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Sign<'a> {
    /// Another file, and columns were altered: a rewrite, or not.
    Rewritten {
        now: &'a HeldLook,
        /// The columns that a mere copy of the rows touches, see [`HeldLook::missing`].
        missing: &'a str,
    },
    /// A leaf has another file: truncated, or copied as it was.
    NewFile { now: &'a HeldLook },
    /// A leaf is new.
    Attached { now: &'a HeldLook },
    /// A leaf was taken out and put back.
    PutBack { now: &'a HeldLook },
    /// A leaf is no leaf any more.
    Gone { oid: u32, name: &'a str },
    /// These labels of an enum belong to other values than before.
    Relabelled { labels: Vec<&'a str> },
}

impl Marks {
    pub(super) fn of(found: &TableLook) -> Marks {
        let mark = |held: &HeldLook| {
            let mark = Mark {
                name: held.name.to_string(),
                filenode: held.filenode,
                attached: held.attached.clone(),
                columns: held.columns.clone(),
                missing: held.missing.clone(),
            };
            (held.oid, mark)
        };
        let labels = found.enums.iter();
        let labels = labels.map(|(oid, found)| (*oid, found.labels.clone()));
        Marks {
            horizon: found.horizon,
            held: found.held.iter().map(mark).collect(),
            types: found.types.clone(),
            labels: Some(labels.collect()),
            former_labels: BTreeMap::new(),
        }
    }

    /// With the texts that labels had when `before` was seen, or earlier, and have no more.
    pub(super) fn after(mut self, before: &Marks) -> Marks {
        for (oid, labels) in self.labels.iter().flatten() {
            let is_had = |text: &String| labels.values().any(|label| label == text);
            let former = before.former_labels.get(oid).into_iter().flatten();
            let known = before.labels.as_ref().and_then(|known| known.get(oid));
            let known = known
                .into_iter()
                .flatten()
                .map(|(owner, text)| (text, owner));
            let gone: BTreeMap<String, u32> = known
                .chain(former)
                .filter(|(text, _)| !is_had(text))
                .map(|(text, owner)| (text.clone(), *owner))
                .collect();
            if !gone.is_empty() {
                self.former_labels.insert(*oid, gone);
            }
        }
        self
    }

    /// Whether the same is there, whenever it was seen.
    pub(super) fn same(&self, other: &Marks) -> bool {
        self.held == other.held
            && self.types == other.types
            && self.labels == other.labels
            && self.former_labels == other.former_labels
    }

    /// Whether a column, which has this type now, was there with another one; so it is
    /// where that is not known.
    pub(super) fn is_retyped(&self, attnum: i16, now: &str) -> bool {
        let before = self.types.get(&attnum);
        self.types.is_empty() || before.is_some_and(|before| before != now)
    }

    /// What speaks for a change outside the stream since these marks were seen.
    pub(super) fn signs<'a>(&'a self, found: &'a TableLook) -> Vec<Sign<'a>> {
        let is_root = found.kind == TableKind::Partitioned;
        let mut signs = Vec::new();
        for now in &found.held {
            let Some(before) = self.held.get(&now.oid) else {
                if is_root {
                    signs.push(Sign::Attached { now });
                }
                continue;
            };
            if before.attached != now.attached {
                signs.push(Sign::PutBack { now });
            } else if before.filenode != now.filenode && before.columns != now.columns {
                signs.push(Sign::Rewritten {
                    now,
                    missing: &before.missing,
                });
            } else if before.filenode != now.filenode && is_root {
                signs.push(Sign::NewFile { now });
            }
        }
        let is_there = |oid: &u32| found.held.iter().any(|held| held.oid == *oid);
        for (oid, before) in self.held.iter().filter(|(oid, _)| !is_there(oid)) {
            if is_root {
                signs.push(Sign::Gone {
                    oid: *oid,
                    name: &before.name,
                });
            }
        }
        let labels = self.changed_hands(found);
        if !labels.is_empty() {
            signs.push(Sign::Relabelled { labels });
        }
        signs
    }

    /// Labels that belong to another value now, by its oid. A label that is only renamed is
    /// unknown before; the stream tells of it with the first row that holds it.
    fn changed_hands<'a>(&self, found: &'a TableLook) -> Vec<&'a str> {
        let Some(known) = &self.labels else {
            return Vec::new();
        };
        let mut changed = Vec::new();
        for (oid, now) in &found.enums {
            let Some(known) = known.get(oid) else {
                continue;
            };
            let former = self.former_labels.get(oid).into_iter().flatten();
            let owners: BTreeMap<&str, u32> = known
                .iter()
                .map(|(owner, label)| (label.as_str(), *owner))
                .chain(former.map(|(label, owner)| (label.as_str(), *owner)))
                .collect();
            for (owner, label) in &now.labels {
                let before = owners.get(label.as_str());
                if before.is_some_and(|before| before != owner) {
                    changed.push(label.as_str());
                }
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use bunny_postgres::TableName;
    use bunny_postgres::introspect::{EnumLook, ReplicaIdentity};

    use super::*;

    fn leaf(oid: u32) -> HeldLook {
        HeldLook {
            oid,
            name: TableName::new("public", format!("leaf_{oid}")),
            filenode: oid,
            filenode_by: "5".into(),
            attached: "6".into(),
            columns: "x".into(),
            missing: String::new(),
            is_logged: true,
            has_rows: true,
            updates: 0,
            deletes: 0,
        }
    }

    fn look(kind: TableKind, held: Vec<HeldLook>) -> TableLook {
        TableLook {
            name: TableName::new("public", "t"),
            oid: 1,
            kind,
            replica_identity: ReplicaIdentity::Default,
            identity_key: vec!["id".into()],
            held,
            foreign_leaves: Vec::new(),
            types: BTreeMap::new(),
            enums: BTreeMap::new(),
            horizon: 7,
        }
    }

    fn signs_after(kind: TableKind, change: impl FnOnce(&mut Vec<HeldLook>)) -> Vec<String> {
        let before = Marks::of(&look(kind, vec![leaf(1), leaf(2)]));
        let mut held = vec![leaf(1), leaf(2)];
        change(&mut held);
        let now = look(kind, held);
        let name = |sign: &Sign<'_>| match sign {
            Sign::Rewritten { now, .. } => format!("rewritten {}", now.oid),
            Sign::NewFile { now } => format!("new file {}", now.oid),
            Sign::Attached { now } => format!("attached {}", now.oid),
            Sign::PutBack { now } => format!("put back {}", now.oid),
            Sign::Gone { oid, .. } => format!("gone {oid}"),
            Sign::Relabelled { labels } => format!("relabelled {}", labels.join(" ")),
        };
        before.signs(&now).iter().map(name).collect()
    }

    #[test]
    fn each_kind_of_change_leaves_its_own_sign() {
        type Change = fn(&mut Vec<HeldLook>);
        let cases: [(&str, Change); 7] = [
            ("", |_| {}),
            ("", |held| held[0].has_rows = false),
            ("new file 1", |held| held[0].filenode = 9),
            ("", |held| held[0].columns = "y".into()),
            ("rewritten 1", |held| {
                held[0].filenode = 9;
                held[0].columns = "y".into();
            }),
            ("put back 2", |held| held[1].attached = "8".into()),
            ("attached 3,gone 1", |held| held[0] = leaf(3)),
        ];
        for (expected, change) in cases {
            assert_eq!(
                signs_after(TableKind::Partitioned, change).join(","),
                expected
            );
        }
    }

    #[test]
    fn a_column_is_retyped_that_was_there_with_another_type() {
        let mut seen = look(TableKind::Ordinary, vec![leaf(1)]);
        seen.types = [(1, "23:-1:0".to_owned())].into();
        let marks = Marks::of(&seen);
        assert!(marks.is_retyped(1, "20:-1:0"));
        assert!(!marks.is_retyped(1, "23:-1:0"), "only its values");
        assert!(!marks.is_retyped(2, "20:-1:0"), "new");
        let unknown = Marks::default();
        assert!(unknown.is_retyped(2, "20:-1:0"));
        assert!(
            !unknown.same(&Marks {
                held: unknown.held.clone(),
                ..marks
            }),
            "the types are remembered"
        );
    }

    #[test]
    fn labels_change_hands_or_are_only_renamed() {
        let with = |labels: &[(u32, &str)]| {
            let mut look = look(TableKind::Ordinary, vec![leaf(1)]);
            let labels = labels.iter().map(|(oid, label)| (*oid, (*label).into()));
            let mood = EnumLook {
                type_name: "mood".into(),
                labels: labels.collect(),
            };
            look.enums.insert(50, mood);
            look
        };
        let before = Marks::of(&with(&[(1, "a"), (2, "b")]));
        let changed = |labels: &[(u32, &str)]| {
            assert!(!before.same(&Marks::of(&with(labels))));
            before.changed_hands(&with(labels)).join(",")
        };
        assert_eq!(changed(&[(1, "b"), (2, "a")]), "b,a", "exchanged");
        assert_eq!(changed(&[(1, "b"), (2, "c")]), "b", "one after the other");
        assert_eq!(changed(&[(1, "a"), (2, "c"), (3, "b")]), "b", "a new value");
        assert_eq!(changed(&[(1, "a"), (2, "c")]), "", "renamed");
        assert_eq!(changed(&[(1, "a"), (2, "b"), (3, "c")]), "", "added");
        let renamed = with(&[(1, "c"), (2, "b")]);
        let between = Marks::of(&renamed).after(&before);
        let later = with(&[(1, "c"), (2, "b"), (3, "a")]);
        assert_eq!(
            between.changed_hands(&later),
            ["a"],
            "long after the rename"
        );
        let again = Marks::of(&renamed).after(&between);
        assert_eq!(again.changed_hands(&later), ["a"], "however long");
        let back = Marks::of(&with(&[(1, "a"), (2, "b")])).after(&again);
        assert_eq!(back.former_labels[&50].keys().collect::<Vec<_>>(), ["c"]);
        let told = Marks::of(&later).after(&again);
        assert!(told.changed_hands(&later).is_empty(), "told once");
        let nobody_looked = Marks {
            labels: None,
            ..before.clone()
        };
        let exchanged = with(&[(1, "b"), (2, "a")]);
        assert!(nobody_looked.changed_hands(&exchanged).is_empty());
        assert_eq!(before.signs(&exchanged).len(), 1);
    }

    #[test]
    fn a_plain_table_with_another_file_is_in_the_stream() {
        let truncated = |held: &mut Vec<HeldLook>| held[0].filenode = 9;
        assert!(signs_after(TableKind::Ordinary, truncated).is_empty());
        let rewritten = |held: &mut Vec<HeldLook>| {
            held[0].filenode = 9;
            held[0].columns = "y".into();
        };
        assert_eq!(signs_after(TableKind::Ordinary, rewritten), ["rewritten 1"]);
    }
}
