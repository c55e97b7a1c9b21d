//! Names on the wire: topics, consumer groups, transactional ids.

use sha2::{Digest, Sha256};

/// Kafka's longest topic name (`org.apache.kafka.common.internals.Topic`).
const NAME_BYTES_MAX: usize = 249;
/// Hexadecimal digits of the hash that ends a cut name.
const HASH_DIGITS: usize = 16;

/// The most partitions a snapshot topic is given.
pub const SNAPSHOT_PARTITIONS_MAX: i32 = 16;

/// Builds every name from the installation's prefix (`bunny` by default) and a
/// mirror's slug. A name longer than Kafka allows is cut and ends in a hash of
/// the whole, so that two long names stay different.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Topics {
    prefix: String,
}

impl Topics {
    /// Names under `prefix`.
    pub fn new(prefix: impl Into<String>) -> Topics {
        Topics {
            prefix: prefix.into(),
        }
    }

    /// The prefix all names start with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// `<prefix>.<slug>.changes`: every change, one partition, commit order.
    pub fn changes(&self, slug: &str) -> String {
        self.of_mirror(slug, "changes")
    }

    /// The slug in the name of a change topic; `None` for other topics, and for names that were
    /// cut.
    pub fn slug_of_changes<'t>(&self, topic: &'t str) -> Option<&'t str> {
        let slug = topic
            .strip_prefix(&self.prefix)?
            .strip_prefix('.')?
            .strip_suffix(".changes")?;
        (!slug.contains('.') && self.changes(slug) == topic).then_some(slug)
    }

    /// `<prefix>.<slug>.snapshot`: chunks of table syncs.
    pub fn snapshot(&self, slug: &str) -> String {
        self.of_mirror(slug, "snapshot")
    }

    /// `<prefix>.<slug>.position`: published position and syncs, compacted.
    pub fn position(&self, slug: &str) -> String {
        self.of_mirror(slug, "position")
    }

    /// What the names of a mirror's table topics begin with: `<prefix>.<slug>`.
    pub fn table_prefix(&self, slug: &str) -> String {
        format!("{}.{slug}", self.prefix)
    }

    /// `<prefix>.<slug>.<schema>.<table>`: the changes of one table, for tools that expect
    /// Debezium's. What Kafka does not take in a name, and a dot, is escaped; no two tables meet.
    pub fn table(&self, slug: &str, schema: &str, table: &str) -> String {
        let [schema, table] = [schema, table].map(escape);
        fit(&format!("{}.{schema}.{table}", self.table_prefix(slug)), "")
    }

    /// `<prefix>.schemas`: schema ids, compacted, shared by all mirrors.
    pub fn schemas(&self) -> String {
        fit(&self.prefix, ".schemas")
    }

    /// Transactional id of a mirror's capture; who initialises it last wins.
    pub fn capture_transactional_id(&self, slug: &str) -> String {
        self.of_mirror(slug, "capture")
    }

    /// Consumer group under which apply's offsets show in Kafka tools.
    pub fn apply_group(&self, slug: &str) -> String {
        self.of_mirror(slug, "apply")
    }

    /// Transactional id under which schema ids are allocated.
    pub fn schemas_transactional_id(&self) -> String {
        self.schemas()
    }

    fn of_mirror(&self, slug: &str, what: &str) -> String {
        fit(&format!("{}.{slug}", self.prefix), &format!(".{what}"))
    }
}

/// Every byte that Kafka does not take, the dot that parts names, and the `_` of a literal `_x`,
/// as `_x` and two hexadecimal digits.
fn escape(name: &str) -> String {
    let bytes = name.as_bytes();
    let mut escaped = String::with_capacity(name.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => true,
            b'_' => bytes.get(at + 1) != Some(&b'x'),
            _ => false,
        };
        if plain {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("_x{byte:02X}"));
        }
    }
    escaped
}

/// `stem` + `suffix`, the stem cut at a character and hashed when too long.
fn fit(stem: &str, suffix: &str) -> String {
    let whole = format!("{stem}{suffix}");
    if whole.len() <= NAME_BYTES_MAX {
        return whole;
    }
    let digest = Sha256::digest(whole.as_bytes());
    let hash: String = digest
        .iter()
        .take(HASH_DIGITS / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let mut keep = NAME_BYTES_MAX - suffix.len() - HASH_DIGITS - 1;
    while !stem.is_char_boundary(keep) {
        keep -= 1;
    }
    format!("{}-{hash}{suffix}", &stem[..keep])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_prefix_slug_and_kind() {
        let topics = Topics::new("bunny");
        assert_eq!(topics.changes("shop"), "bunny.shop.changes");
        assert_eq!(topics.snapshot("shop"), "bunny.shop.snapshot");
        assert_eq!(topics.position("shop"), "bunny.shop.position");
        assert_eq!(topics.schemas(), "bunny.schemas");
        assert_eq!(
            topics.capture_transactional_id("shop"),
            "bunny.shop.capture"
        );
        assert_eq!(topics.apply_group("shop"), "bunny.shop.apply");
        assert_eq!(topics.schemas_transactional_id(), "bunny.schemas");
    }

    #[test]
    fn change_topics_are_recognised() {
        let topics = Topics::new("bunny");
        assert_eq!(topics.slug_of_changes("bunny.shop.changes"), Some("shop"));
        for other in [
            "bunny.shop.snapshot",
            "bunny.changes",
            "bunnyx.shop.changes",
            "bunny.x.shop.changes",
            "bunny.schemas",
        ] {
            assert_eq!(topics.slug_of_changes(other), None, "{other}");
        }
    }

    #[test]
    fn table_topics_are_named_as_debezium_names_them() {
        let topics = Topics::new("bunny");
        let table = |schema, table| topics.table("shop", schema, table);
        assert_eq!(table("public", "users"), "bunny.shop.public.users");
        assert_eq!(
            table("public", "Order Items"),
            "bunny.shop.public.Order_x20Items"
        );
        assert_eq!(table("public", "fa_xt"), "bunny.shop.public.fa_x5Fxt");
        assert_ne!(table("a.b", "c"), table("a", "b.c"));
        let long = "ü".repeat(31);
        let (one, two) = (
            table(&long, &format!("{long}1")),
            table(&long, &format!("{long}2")),
        );
        assert_ne!(one, two);
        assert!(one.len() <= NAME_BYTES_MAX && one.starts_with("bunny.shop._xC3"));
    }

    #[test]
    fn long_names_fit_and_stay_different() {
        let topics = Topics::new("é".repeat(130));
        let one = topics.changes(&format!("{}1", "m".repeat(200)));
        let two = topics.changes(&format!("{}2", "m".repeat(200)));
        assert_ne!(one, two);
        for name in [&one, &two] {
            assert!(name.len() <= NAME_BYTES_MAX);
            assert!(name.ends_with(".changes"));
        }
        let exact = Topics::new("p").changes(&"s".repeat(249 - "p..changes".len()));
        assert_eq!(exact.len(), NAME_BYTES_MAX);
        assert!(!exact.contains('-'));
    }
}
