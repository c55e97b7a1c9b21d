use super::*;

/// Attnums from 1 on; `-` is a dropped column, `name*` a generated one.
fn columns(names: &[&str]) -> Vec<ColumnLook> {
    (1..)
        .zip(names)
        .map(|(attnum, name)| ColumnLook {
            attnum,
            name: name.trim_end_matches('*').to_owned(),
            is_dropped: *name == "-",
            is_generated: name.ends_with('*'),
        })
        .collect()
}

fn secret() -> Vec<String> {
    vec!["secret".to_owned()]
}

/// What a look at columns of these names knows, `secret` being excluded.
fn looked(names: &[&str]) -> Exclusion {
    Exclusion::seen(None, &secret(), &columns(names))
}

/// The names that are kept of a description, when the catalog has these columns by then.
fn kept(known: &Exclusion, described: &[&str], now: &[&str]) -> Result<Vec<String>, String> {
    let judged = known.judge(described, &columns(now))?;
    let names = described.iter().zip(judged.kept);
    Ok(names
        .filter(|(_, kept)| *kept)
        .map(|(name, _)| (*name).to_owned())
        .collect())
}

#[test]
fn a_table_without_excluded_columns_keeps_all() {
    let known = Exclusion::seen(None, &[], &columns(&["id", "a"]));
    assert_eq!(known, Exclusion::default());
    assert_eq!(kept(&known, &["id", "b"], &[]).unwrap(), ["id", "b"]);
}

#[test]
fn a_renamed_column_stays_excluded() {
    let known = looked(&["id", "secret", "a"]);
    assert_eq!(
        kept(&known, &["id", "secret", "a"], &["id", "secret", "a"]).unwrap(),
        ["id", "a"]
    );
    // Before and after the rename, looked up after it.
    let now = ["id", "plain", "a"];
    assert_eq!(
        kept(&known, &["id", "secret", "a"], &now).unwrap(),
        ["id", "a"]
    );
    assert_eq!(
        kept(&known, &["id", "plain", "a"], &now).unwrap(),
        ["id", "a"]
    );
    // Its old name given to another.
    let now = ["id", "a", "secret"];
    assert_eq!(kept(&known, &["id", "a", "secret"], &now).unwrap(), ["id"]);
    // Renamed, and another added under the excluded name.
    let now = ["id", "plain", "a", "secret"];
    assert_eq!(
        kept(&known, &["id", "plain", "a", "secret"], &now).unwrap(),
        ["id", "a"]
    );
}

#[test]
fn a_column_dropped_and_added_again_stays_excluded_under_any_name() {
    let known = looked(&["id", "secret", "a"]);
    let now = columns(&["id", "-", "a", "secret"]);
    let judged = known.judge(&["id", "a", "secret"], &now).unwrap();
    assert_eq!(judged.kept, [true, true, false]);
    let renamed = ["id", "-", "a", "plain"];
    assert_eq!(
        kept(&judged.learned, &["id", "a", "plain"], &renamed).unwrap(),
        ["id", "a"]
    );
    // The same by a look in between.
    let later = Exclusion::seen(Some(&known), &secret(), &now);
    assert_eq!(
        kept(&later, &["id", "a", "plain"], &renamed).unwrap(),
        ["id", "a"]
    );
    // One that never had the name is published.
    let other = ["id", "-", "a", "other"];
    assert_eq!(
        kept(&known, &["id", "a", "other"], &other).unwrap(),
        ["id", "a", "other"]
    );
}

#[test]
fn a_late_catalog_is_seen_through() {
    let known = looked(&["id", "secret", "a"]);
    // Renamed, then dropped, then another of its second name: what the stream describes
    // is the excluded one all the same.
    let now = ["id", "-", "a", "plain"];
    assert_eq!(
        kept(&known, &["id", "plain", "a"], &now).unwrap(),
        ["id", "a"]
    );
    assert_eq!(
        kept(&known, &["id", "a", "plain"], &now).unwrap(),
        ["id", "a", "plain"]
    );
    // Columns that came later, generated ones, and long dropped ones do not disturb.
    let known = looked(&["id", "-", "sum*", "secret"]);
    let now = ["id", "-", "sum*", "plain", "later", "total*", "last"];
    assert_eq!(kept(&known, &["id", "plain"], &now).unwrap(), ["id"]);
    assert_eq!(
        kept(&known, &["id", "plain", "later"], &now).unwrap(),
        ["id", "later"]
    );
}

#[test]
fn the_steps_of_a_migration_in_one_transaction() {
    // ADD tmp; UPDATE; DROP old; RENAME tmp TO old.
    let known = looked(&["id", "old", "secret"]);
    let now = ["id", "-", "secret", "old"];
    assert_eq!(
        kept(&known, &["id", "old", "secret", "tmp"], &now).unwrap(),
        ["id", "old", "tmp"]
    );
    assert_eq!(
        kept(&known, &["id", "secret", "old"], &now).unwrap(),
        ["id", "old"]
    );
}

#[test]
fn what_is_left_open_is_not_published() {
    // secret was renamed; then either it or a was dropped, and x added before or after.
    let known = looked(&["id", "a", "secret"]);
    let now = ["id", "-", "plain", "x", "-"];
    let open = kept(&known, &["id", "y", "plain"], &now);
    assert!(open.unwrap_err().contains("leaves open"));
    // A description that fits nothing the catalog knows.
    assert!(kept(&known, &["id", "a", "b", "c"], &["id", "a", "b"]).is_err());
    assert!(kept(&known, &["id", "a", "b"], &[]).is_err());
}

#[test]
fn a_column_never_seen_is_looked_for_in_vain() {
    let known = looked(&["id", "plain"]);
    let missing = kept(&known, &["id", "plain"], &["id", "plain"]);
    assert!(missing.unwrap_err().contains("excluded column secret"));
    let columns = [("id", 1), ("plain", 2)];
    assert!(known.keeps(columns.into_iter()).is_err());
    let mut nothing = Exclusion::default();
    nothing.require(&secret());
    assert!(kept(&nothing, &["id", "plain"], &["id", "plain"]).is_err());
    assert_eq!(
        kept(&nothing, &["id", "secret"], &["id", "secret"]).unwrap(),
        ["id"]
    );
    let known = looked(&["id", "secret"]);
    assert_eq!(known.keeps(columns.into_iter()), Ok(vec![true, false]));
}

#[test]
fn a_start_believes_the_log_before_a_look() {
    let logged = looked(&["id", "secret", "a"]);
    let now = Exclusion::seen(
        Some(&logged),
        &secret(),
        &columns(&["id", "-", "a", "secret"]),
    );
    assert_eq!(Exclusion::at_start(Some(&logged), &now, false), logged);
    // Nothing in the log: the look's numbers, and the rest if the stream begins after it.
    assert_eq!(Exclusion::at_start(None, &now, true), now);
    let numbers_only = Exclusion::at_start(None, &now, false);
    assert_eq!(
        (numbers_only.highest, numbers_only.numbers),
        (0, now.numbers.clone())
    );
    // Names that are not excluded any more, and new ones.
    let other = Exclusion::seen(None, &["a".to_owned()], &columns(&["id", "secret", "a"]));
    let start = Exclusion::at_start(Some(&logged), &other, false);
    assert_eq!(start.numbers, other.numbers);
}

#[test]
fn every_history_is_judged_soundly() {
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    // Steps of a table's life: rename, drop or add a column of a given place.
    let step = (0..3_u8, 0..8_usize, 0..5_usize);
    let history = proptest::collection::vec(step, 0..12);
    let names = ["secret", "a", "b", "c", "d"];
    let mut runner = TestRunner::default();
    let cases = (history, 0..12_usize, 0..12_usize);
    let judged = runner.run(&cases, |(steps, looked_at, described_at)| {
        let mut now = columns(&["id", "secret", "a"]);
        // As they were when looked at, and when described.
        let mut past = vec![now.clone()];
        for (kind, place, name) in steps {
            let is_free = now
                .iter()
                .all(|column| column.is_dropped || column.name != names[name]);
            let attnum = now.len() as i16 + 1;
            match kind {
                0 if is_free => now.push(ColumnLook {
                    attnum,
                    name: names[name].to_owned(),
                    is_dropped: false,
                    is_generated: false,
                }),
                1 => {
                    let place = place % now.len();
                    now[place].name = "-".into();
                    now[place].is_dropped = true;
                }
                2 if is_free => {
                    let place = place % now.len();
                    if !now[place].is_dropped {
                        now[place].name = names[name].to_owned();
                    }
                }
                _ => {}
            }
            past.push(now.clone());
        }
        let looked_at = looked_at % past.len();
        let described_at = looked_at + described_at % (past.len() - looked_at);
        let mut known = None;
        for look in &past[..=looked_at] {
            known = Some(Exclusion::seen(known.as_ref(), &secret(), look));
        }
        let known = known.unwrap();
        let described: Vec<&ColumnLook> = past[described_at]
            .iter()
            .filter(|column| !column.is_dropped)
            .collect();
        let message: Vec<&str> = described
            .iter()
            .map(|column| column.name.as_str())
            .collect();
        let none = BTreeMap::new();
        if let Ok(judged) = known.judge_with(&message, &now, &none) {
            for (column, kept) in described.iter().zip(judged.kept) {
                let excluded = column.name == "secret" || known.holds(column.attnum);
                prop_assert!(!kept || !excluded, "{column:?} of {message:?}");
                prop_assert!(kept || excluded || judged.learned.holds(column.attnum));
            }
        }
        Ok(())
    });
    judged.unwrap();
}
