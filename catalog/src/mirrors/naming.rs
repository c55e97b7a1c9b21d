//! Names that derive from a mirror's name. Pure.

use sha2::{Digest, Sha256};

/// Ends the name of the publication of insert-only tables.
const INSERT_ONLY_SUFFIX: &str = "_ins";

/// The longest mirror name, in bytes; also the longest identifier of Postgres.
pub const NAME_LENGTH_MAX: usize = 63;

/// The longest slug, so that a publication with the default prefix needs no
/// cut of its own.
const SLUG_LENGTH_MAX: usize = 44;

/// Hex digits of a hash suffix.
const HASH_DIGITS: usize = 8;

/// Says why a mirror or peer name is not allowed: 1–63 letters, digits, `_`
/// and `-`.
pub fn check_name(what: &str, name: &str) -> Result<(), String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_LENGTH_MAX || !name.chars().all(allowed) {
        return Err(format!(
            "{what} must be 1 to {NAME_LENGTH_MAX} letters, digits, \"_\" and \"-\", not \"{name}\""
        ));
    }
    Ok(())
}

/// The slug of a mirror name: lower case, `-` to `_`. A name that is too long,
/// or whose plain slug is `taken`, gets a hash of the true name as its suffix.
pub(crate) fn slug(name: &str, taken: impl Fn(&str) -> bool) -> String {
    let plain = identifier(name);
    // The insert-only publication of mirror `x` has the name that `x_ins` would give its own.
    let like_another = plain.ends_with(INSERT_ONLY_SUFFIX);
    if plain.len() <= SLUG_LENGTH_MAX && !like_another && !taken(&plain) {
        return plain;
    }
    let mut salt = 0_u32;
    loop {
        let hashed = with_hash(&plain, &format!("{name}/{salt}"), SLUG_LENGTH_MAX);
        if !taken(&hashed) {
            return hashed;
        }
        salt += 1;
    }
}

/// The slugs a mirror of this name may have been given, or the slug itself: whoever has no catalog
/// finds its topics under the first of them that is there. A hashed one is of this name only.
pub fn slugs(name: &str) -> [String; 2] {
    let plain = identifier(name);
    let hashed = with_hash(&plain, &format!("{name}/0"), SLUG_LENGTH_MAX);
    [hashed, plain]
}

/// `<prefix>_<slug>`: replication slots allow only lower case letters, digits
/// and `_`.
/// <https://www.postgresql.org/docs/current/warm-standby.html#STREAMING-REPLICATION-SLOTS>
pub(crate) fn slot_name(prefix: &str, slug: &str) -> String {
    fit(format!("{}_{slug}", identifier(prefix)))
}

/// `<prefix>_pub_<slug>` and `<prefix>_pub_<slug>_ins`.
pub(crate) fn publication_names(prefix: &str, slug: &str) -> (String, String) {
    let prefix = identifier(prefix);
    (
        fit(format!("{prefix}_pub_{slug}")),
        fit(format!("{prefix}_pub_{slug}{INSERT_ONLY_SUFFIX}")),
    )
}

fn identifier(text: &str) -> String {
    text.chars()
        .map(|c| match c.to_ascii_lowercase() {
            c if c.is_ascii_lowercase() || c.is_ascii_digit() => c,
            _ => '_',
        })
        .collect()
}

fn fit(name: String) -> String {
    if name.len() <= NAME_LENGTH_MAX {
        return name;
    }
    with_hash(&name, &name, NAME_LENGTH_MAX)
}

/// `text` (ASCII), cut so that `_` and a hash of `true_name` fit in
/// `length_max`.
fn with_hash(text: &str, true_name: &str, length_max: usize) -> String {
    let digest = Sha256::digest(true_name.as_bytes());
    let hash: String = digest
        .iter()
        .take(HASH_DIGITS / 2)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let kept = text.len().min(length_max - HASH_DIGITS - 1);
    format!("{}_{hash}", &text[..kept])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_slug_is_among_those_of_its_name() {
        for name in ["Prod-to_Staging", "x_ins", &"n".repeat(63)] {
            let given = slug(name, |_| false);
            assert!(slugs(name).contains(&given), "{given}");
            assert!(slugs(&given).contains(&given), "{given}");
        }
    }

    #[test]
    fn no_mirror_publishes_into_the_insert_only_publication_of_another() {
        let (_, insert_only) = publication_names("bunny", &slug("shop", |_| false));
        let (all, _) = publication_names("bunny", &slug("shop-ins", |_| false));
        assert_ne!(insert_only, all);
    }

    #[test]
    fn a_plain_name_stays_readable() {
        assert_eq!(slug("Prod-to_Staging", |_| false), "prod_to_staging");
        assert_eq!(
            slot_name("bunny", "prod_to_staging"),
            "bunny_prod_to_staging"
        );
        assert_eq!(
            publication_names("bunny", "m"),
            ("bunny_pub_m".into(), "bunny_pub_m_ins".into())
        );
    }

    #[test]
    fn a_collision_gets_a_hash_suffix() {
        let first = slug("a-b", |_| false);
        let second = slug("A_b", |taken| taken == first);
        assert_ne!(first, second);
        assert!(second.starts_with("a_b_"), "{second}");
        let third = slug("a_B", |taken| taken == first || taken == second);
        assert_ne!(third, second);
    }

    #[test]
    fn long_names_that_share_a_beginning_stay_apart() {
        let long = "m".repeat(62);
        let one = slug(&format!("{long}1"), |_| false);
        let two = slug(&format!("{long}2"), |_| false);
        assert_ne!(one, two);
    }

    #[test]
    fn a_bad_name_is_refused_with_the_rule() {
        for name in ["", "a b", "é", "a.b", &"x".repeat(64)] {
            let error = check_name("name", name).unwrap_err();
            assert!(error.contains("1 to 63"), "{error}");
        }
        assert!(check_name("name", "Prod-to_Staging9").is_ok());
    }

    proptest! {
        #[test]
        fn derived_names_are_always_legal(name in "[A-Za-z0-9_-]{1,63}", prefix in "[A-Za-z0-9._-]{1,80}") {
            let slug = slug(&name, |_| false);
            let (all, inserts) = publication_names(&prefix, &slug);
            for derived in [slug.clone(), slot_name(&prefix, &slug), all.clone(), inserts.clone()] {
                prop_assert!(derived.len() <= NAME_LENGTH_MAX);
                prop_assert!(derived.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'));
            }
            prop_assert_ne!(all, inserts);
        }
    }
}
