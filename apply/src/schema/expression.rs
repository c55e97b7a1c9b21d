//! What an SQL expression refers to, as far as creating a table needs to know.
//!
//! The text comes from `pg_get_expr` under `search_path = pg_catalog`, so whatever is
//! not built in is printed with its schema, and string literals double their quotes and
//! backslashes. That makes a scan over words enough; nothing is parsed further.

/// A word of an expression with what stands around it.
#[derive(Debug, PartialEq, Eq)]
struct Word {
    /// Unquoted name, or the text of an unquoted word.
    text: String,
    /// It follows `::`, so it is (the first word of) a type.
    is_type: bool,
    /// `(` follows, so it is a function.
    is_function: bool,
    /// A dot stands before or after it: a part of a qualified name.
    is_qualified: bool,
}

/// Whether a column of that name may be meant somewhere in the expression.
pub(crate) fn mentions_column(expression: &str, column: &str) -> bool {
    words(expression)
        .iter()
        .any(|word| !word.is_type && !word.is_function && word.text == column)
}

/// Why a default can't be taken over to another server as it stands, if so.
/// `own_type` is the column's type, whose casts are as good there as the column.
pub(crate) fn not_portable(expression: &str, own_type: &str) -> Option<&'static str> {
    let without_own_casts = expression.replace(&format!("::{own_type}"), "");
    for word in words(&without_own_casts) {
        if word.is_function
            && matches!(
                word.text.as_str(),
                "nextval" | "currval" | "setval" | "lastval"
            )
        {
            return Some("it draws from a sequence");
        }
        if word.is_type && word.text.starts_with("reg") {
            return Some("it refers to an object of the source");
        }
        if word.is_qualified {
            return Some("it uses something that is not built in");
        }
    }
    None
}

fn words(expression: &str) -> Vec<Word> {
    let chars: Vec<char> = expression.chars().collect();
    let mut words: Vec<Word> = Vec::new();
    let mut at = 0;
    // What stands directly before the next word.
    let (mut after_cast, mut after_dot) = (false, false);
    while at < chars.len() {
        let char = chars[at];
        if char == '\'' {
            at = skip_quoted(&chars, at, '\'').0;
        } else if char == '"' || char.is_alphabetic() || char == '_' {
            let (end, text) = if char == '"' {
                skip_quoted(&chars, at, '"')
            } else {
                take_word(&chars, at)
            };
            // The prefix of an escape string is no word of its own.
            let is_prefix = chars.get(end) == Some(&'\'');
            if !is_prefix {
                words.push(Word {
                    text,
                    is_type: after_cast,
                    is_function: chars.get(end) == Some(&'('),
                    is_qualified: after_dot || chars.get(end) == Some(&'.'),
                });
            }
            at = end;
        } else if char.is_ascii_digit() {
            // A number, its decimal point and exponent included.
            while at < chars.len() && (chars[at].is_alphanumeric() || chars[at] == '.') {
                at += 1;
            }
        } else {
            after_cast = char == ':' && at > 0 && chars[at - 1] == ':';
            after_dot = char == '.';
            at += 1;
            continue;
        }
        (after_cast, after_dot) = (false, false);
    }
    words
}

/// From an opening quote to behind its closing one, and the text between.
fn skip_quoted(chars: &[char], start: usize, quote: char) -> (usize, String) {
    let mut text = String::new();
    let mut at = start + 1;
    while at < chars.len() {
        if chars[at] == quote {
            if chars.get(at + 1) != Some(&quote) {
                return (at + 1, text);
            }
            at += 1;
        }
        text.push(chars[at]);
        at += 1;
    }
    (at, text)
}

fn take_word(chars: &[char], start: usize) -> (usize, String) {
    let mut end = start;
    while end < chars.len() && (chars[end].is_alphanumeric() || matches!(chars[end], '_' | '$')) {
        end += 1;
    }
    (end, chars[start..end].iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_as_words_only() {
        assert!(mentions_column("(price * 2)", "price"));
        assert!(mentions_column(
            "(\"Odd \"\"one\" || 'x'::text)",
            "Odd \"one"
        ));
        assert!(!mentions_column("(prices * 2)", "price"));
        assert!(!mentions_column("lower('price'::text)", "price"));
        assert!(!mentions_column("lower(name)", "lower"));
        assert!(!mentions_column("(name)::text", "text"));
        assert!(!mentions_column(
            "('it''s price'::text || E'\\\\ price')",
            "price"
        ));
    }

    #[test]
    fn built_in_defaults_are_portable() {
        for expression in [
            "0",
            "1.5",
            "'-1.5e10'::double precision",
            "now()",
            "CURRENT_TIMESTAMP",
            "gen_random_uuid()",
            "'a.b'::character varying",
            "E'a\\\\.b'::text",
            "ARRAY[]::integer[]",
            "(now() + '1 day'::interval)",
            "nothing",
        ] {
            assert_eq!(not_portable(expression, "text"), None, "{expression}");
        }
        assert_eq!(not_portable("'ok'::public.mood", "public.mood"), None);
        assert_eq!(
            not_portable("'ok'::\"My\".\"Mood\"", "\"My\".\"Mood\""),
            None
        );
    }

    #[test]
    fn what_lives_at_the_source_is_not() {
        for expression in [
            "nextval('public.t_id_seq'::regclass)",
            "public.next_number()",
            "'ok'::public.mood",
            "(\"odd\".\"F\"(1) + 1)",
            "'pg_class'::regclass",
        ] {
            assert!(not_portable(expression, "text").is_some(), "{expression}");
        }
    }

    #[test]
    fn unfinished_text_is_answered() {
        for expression in ["'", "\"", "'a", "\"a", "::", "a.", "E'", ""] {
            let _ = not_portable(expression, "text");
            let _ = mentions_column(expression, "a");
        }
    }
}
