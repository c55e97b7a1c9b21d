//! docs/fidelity.md: written from the tables of this suite, and compared with them, so that it
//! says what is tested and nothing else.

use std::fmt::Write as _;

use bunny_tests::services::repository;

use super::older::OLDER;
use super::refusals::REFUSALS;
use super::rows::{COMMITTED, CONNECTIONS};
use super::values::ValueCase;
use super::values::packages::{PACKAGES, UNTESTED};
use super::{row_cases, values};
use crate::untracked::UNSEEN;
use crate::untracked_proofs::{OTHERS, UNPROVED};

const HEAD: &str = "\
# Fidelity

What arrives exactly as it was, and what is refused. **This page is written from the test suite**
(`tests/tests/e2e/fidelity`) and compared with it by a test: every line is a case that runs on real
servers. After a change of the suite, `BUNNY_WRITE_DOCS=1` and the test of this page write it anew.

Each case is compared in three places: the destination's content, byte for byte as Postgres prints it;
the destination's column types; and the events in the topics, decoded by another Avro implementation,
which must add up to the source. Source and destination are set to other date styles, time zones,
interval styles and the like on purpose. `make test-matrix` runs all of it over PostgreSQL 14 to 18, mixed
both ways.

## Types

Every type goes through the snapshot, insert, update from each value to the next, update of another
column, and delete; in a table without a key, where one of two equal rows changes; as a primary key, where it can be
one; and in arrays with NULL elements, empty, of two dimensions, with a lower bound. NULL is always among
the values. *Event* is the Avro type beside null.
";

const TYPES_HEAD: &str = "| type | event | key | arrays | from | |\n|---|---|---|---|---|---|\n";

const PACKAGED: &str = "
### Types of extensions that packages bring

Run where both servers have the extension: `make test-full` installs the package for Debian's PostgreSQL 15, the servers of
`make test-matrix` have none of them. The extension is in a schema of its own; the destination gets it with the first
table that needs it, and its GiST, SP-GiST and expression indexes, checks and generated columns with the table.
";

const ROWS: &str = "
## Rows

Each line is a kind of table or transaction, compared after every change.
";

const UNSEEN_HEAD: &str = "
## Changes that no event carries

Noticed at the source and brought over by a sync of the table (docs/adr/0026), under writes, with `schema_changes` `all`.
With `additive` another type is said instead, and the data flows on.

";

const UNPROVED_HEAD: &str = "
And where the source's catalog looks as if no row had changed (docs/adr/0044):

";

const REFUSED: &str = "
## Refused

Said when a mirror is created, by name, before anything is made.

| what | what to do |
|---|---|
";

const OLDER_HEAD: &str = "
## Into an older destination

Run where the source is of the newer version. A destination's own text or message is never all that is said: the table is
named, and the column where one is to blame.

| what | where | what comes of it |
|---|---|---|
";

const TAIL: &str = "
## Good to know

- A table without a usable identity is mirrored insert-only, and the answer to the request says so: updates
  and deletes are not captured.
- A value of a `reg` type, an `aclitem`, or of an enum names something that has to be at the destination. If
  it is not, the table becomes `ERRORED`; its message is Postgres' own and names the column.
- Unique constraints that are DEFERRABLE are not checked at the destination while rows are replicated, because
  Postgres checks them by triggers that do not fire in replica role. The source has checked them.
- With `on_existing_rows` `upsert`, rows that are at the destination and not at the source stay. So do rows that a
  snapshot loaded before it had to start over, if the source deleted them in between.
- A collation of the user's is created at the destination. One that the destination's ICU or C library does not know makes
  the table `ERRORED`, and so does one that is there and is not of the same kind (deterministic or not).
- From a source that is not in UTF8, a value of type `name` and a column's name may be longer than the 63 bytes that
  PostgreSQL keeps. The table becomes `ERRORED`, or is refused when the mirror is created; nothing is cut.
- Labels of an enum that change hands are followed in rows; their order at the destination stays as it was there.
- Large objects, triggers, policies and grants are not replicated.
";

fn write_types(page: &mut String, cases: &[ValueCase]) {
    for case in cases {
        let yes = |yes: bool| if yes { "yes" } else { "" };
        let extension = match case.extension {
            "" => String::new(),
            extension => format!("extension `{extension}`"),
        };
        let notes: Vec<&str> = [extension.as_str(), case.note]
            .into_iter()
            .filter(|note| !note.is_empty())
            .collect();
        let since = if case.since > 14 {
            format!("PostgreSQL {}", case.since)
        } else {
            String::new()
        };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {since} | {} |",
            case.type_name,
            case.avro,
            yes(case.key),
            yes(case.arrays),
            notes.join("; ")
        );
    }
}

fn document() -> String {
    let mut page = HEAD.to_owned();
    for group in values::GROUPS {
        let _ = write!(page, "\n### {}\n\n{TYPES_HEAD}", group.title);
        write_types(&mut page, group.cases);
    }
    page.push_str(PACKAGED);
    for package in PACKAGES {
        let _ = write!(
            page,
            "\n`{}`, from package `{}`:\n\n{TYPES_HEAD}",
            package.extension, package.package
        );
        write_types(&mut page, package.cases);
    }
    let _ = writeln!(
        page,
        "\nUntested, because Debian has no package for these servers: {}. Its values travel as text like any other's.",
        UNTESTED.join(", ")
    );
    page.push_str(ROWS);
    for group in row_cases::GROUPS {
        let _ = write!(page, "\n### {}\n\n", group.title);
        for case in group.cases {
            let since = match (case.since, case.until) {
                (15.., _) => format!(" (PostgreSQL {} and later)", case.since),
                (_, ..100) => format!(" (sources up to PostgreSQL {})", case.until),
                _ => String::new(),
            };
            let _ = writeln!(page, "- {}{since}", case.name);
        }
        if group.title == "Transactions" {
            let _ = writeln!(
                page,
                "- {COMMITTED} transactions that commit, interleaved over {CONNECTIONS} connections with others that roll back\n\
                 - one transaction of 1,000,000 rows, in the full tier"
            );
        }
    }
    page.push_str(UNSEEN_HEAD);
    for unseen in UNSEEN {
        let since = match unseen.since {
            15.. => format!(" (PostgreSQL {} and later)", unseen.since),
            _ => String::new(),
        };
        let _ = writeln!(page, "- {}{since}", unseen.name);
    }
    page.push_str(UNPROVED_HEAD);
    for name in UNPROVED.iter().map(|(name, ..)| name).chain(&OTHERS) {
        let _ = writeln!(page, "- {name}");
    }
    page.push_str(REFUSED);
    for refusal in REFUSALS {
        let _ = writeln!(page, "| {} | {} |", refusal.name, refusal.cure);
    }
    page.push_str(OLDER_HEAD);
    for older in OLDER {
        let _ = writeln!(
            page,
            "| {} | from PostgreSQL {} into {} or older | {} |",
            older.name, older.since, older.until, older.outcome
        );
    }
    page.push_str(TAIL);
    page
}

#[test]
fn the_support_table_is_that_of_the_suite() -> anyhow::Result<()> {
    let path = repository().join("docs/fidelity.md");
    let written = document();
    if std::env::var_os("BUNNY_WRITE_DOCS").is_some() {
        std::fs::write(&path, &written)?;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    anyhow::ensure!(
        found == written,
        "docs/fidelity.md is not what the suite says; write it with BUNNY_WRITE_DOCS=1"
    );
    Ok(())
}
