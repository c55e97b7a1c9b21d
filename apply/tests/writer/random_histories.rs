//! Random histories of one keyed table, in batches of random size.

use std::collections::BTreeMap;

use bunny_apply::event::{Body, Change, Row};

use crate::stage::{KEYED, Stage, body, keyed, old_key, row};

/// A small generator of its own, so that a failure can be seen again.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Columns: ID, code, amount, big.
type Source = BTreeMap<u64, (String, String, Option<String>)>;

fn source_row(
    id: u64,
    (code, amount, big): &(String, String, Option<String>),
    with_big: bool,
) -> Row {
    let id = id.to_string();
    let big = big.as_deref().filter(|_| with_big);
    row(&[Some(&id), Some(code), Some(amount), big])
}

/// One random change that the source, as it is, could make.
fn random_change(source: &mut Source, random: &mut Random, serial: &mut u64) -> Vec<Change> {
    *serial += 1;
    let id = random.below(12);
    let unchanged = vec![false, false, false, true];
    let fresh = (
        format!("code\t{serial}\\"),
        format!("{}.500", random.below(1000)),
        (random.below(4) > 0).then(|| format!("big\n{serial}")),
    );
    match (random.below(7), source.contains_key(&id)) {
        (0..=2, false) => {
            let change = Change::Insert(source_row(id, &fresh, true));
            source.insert(id, fresh);
            vec![change]
        }
        (0 | 1, true) => {
            let change = Change::update(None, source_row(id, &fresh, true), Vec::new());
            source.insert(id, fresh);
            vec![change]
        }
        (2, true) => {
            let kept = (fresh.0, fresh.1, source[&id].2.clone());
            let change = Change::update(None, source_row(id, &kept, false), unchanged);
            source.insert(id, kept);
            vec![change]
        }
        (3, true) => {
            source.remove(&id);
            vec![Change::Delete(old_key(id))]
        }
        (4, true) => {
            let to = random.below(12);
            if source.contains_key(&to) {
                return Vec::new();
            }
            let kept = (fresh.0, fresh.1, source.remove(&id).unwrap().2);
            let with_big = random.below(2) == 0;
            let change = Change::update(
                Some(old_key(id)),
                source_row(to, &kept, with_big),
                if with_big { Vec::new() } else { unchanged },
            );
            source.insert(to, kept);
            vec![change]
        }
        (5, true) => {
            // Two rows swap their unique code, by way of a third value.
            let other = random.below(12);
            if other == id || !source.contains_key(&other) {
                return Vec::new();
            }
            let (mut one, mut two) = (source[&id].clone(), source[&other].clone());
            let mut changes = Vec::new();
            let codes = (one.0.clone(), two.0.clone());
            one.0 = format!("between {serial}");
            changes.push(Change::update(None, source_row(id, &one, true), Vec::new()));
            two.0 = codes.0;
            changes.push(Change::update(
                None,
                source_row(other, &two, true),
                Vec::new(),
            ));
            one.0 = codes.1;
            changes.push(Change::update(None, source_row(id, &one, true), Vec::new()));
            source.insert(id, one);
            source.insert(other, two);
            changes
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
#[ignore = "needs a server"]
async fn random_histories_end_as_the_source_stands() {
    histories(false).await;
}

/// Each batch in another session than the one before, prepared while that one is open.
#[tokio::test]
#[ignore = "needs a server"]
async fn random_histories_prepared_ahead_end_as_the_source_stands() {
    histories(true).await;
}

async fn histories(ahead: bool) {
    let mut prepared = 0;
    for seed in 1..20 {
        let mut random = Random(seed * 0x9E37_79B9);
        let own_column = seed % 2 == 0;
        let mut ddl = KEYED.to_owned();
        if own_column {
            // Then key changes are written as such, and the column stays with its row.
            ddl.push_str("ALTER TABLE {s}.keyed ADD COLUMN own text DEFAULT 'fresh';");
        }
        let mut stage = Stage::new(&ddl, &[("keyed", &["ID"])]).await;
        let table = keyed();
        let (mut source, mut serial) = (Source::new(), 0);
        let mut transactions = Vec::new();
        for _ in 0..60 {
            let size = 1 + random.below(9);
            let bodies: Vec<Body> = (0..size)
                .flat_map(|_| random_change(&mut source, &mut random, &mut serial))
                .map(|change| body(&table, change))
                .collect();
            if !bodies.is_empty() {
                transactions.push(bodies);
            }
        }
        let batch = 1 + random.below(40) as usize;
        if ahead {
            prepared += stage.apply_ahead(transactions, batch).await.unwrap();
        } else {
            stage.apply(transactions, batch).await.unwrap();
        }
        let found = stage
            .rows(r#"SELECT concat_ws('|', "ID", code, amount, coalesce(big, 'NULL'), doubled) FROM {s}.keyed ORDER BY "ID""#)
            .await;
        let expected: Vec<String> = source
            .iter()
            .map(|(id, (code, amount, big))| {
                let big = big.as_deref().unwrap_or("NULL");
                format!("{id}|{code}|{amount}|{big}|{}", id * 2)
            })
            .collect();
        assert_eq!(found, expected, "seed {seed}, batches of {batch}");
    }
    assert_eq!(ahead, prepared > 50, "{prepared} batches were prepared");
}
