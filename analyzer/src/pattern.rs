//! Patterns of a policy: text in which `*` stands for any run of characters, and nothing else is special.
//!
//! One wildcard is all there is, so that [`Pattern::covers`] can reason about it and Athena's `LIKE` can say the same.
//! ASCII letters match in either case: hosts and header names ignore case anyway, and `/.ENV` is no better than `/.env`.

use std::fmt;

use memchr::memchr2;

/// What a policy compares a field with. Matches without regard to ASCII case.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern {
    text: String,
    /// The literal parts between the wildcards, in lower case; `a*b` has two, `*` has two empty ones.
    parts: Vec<String>,
}

impl Pattern {
    /// Compiles `text`; every text is a pattern.
    pub fn new(text: &str) -> Pattern {
        Pattern {
            text: text.to_owned(),
            parts: text.split('*').map(str::to_ascii_lowercase).collect(),
        }
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The value, in lower case, if there is no wildcard in it.
    pub fn literal(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [only] => Some(only),
            _ => None,
        }
    }

    /// The longest text that every matched value contains, in lower case.
    pub(crate) fn longest_part(&self) -> &str {
        self.parts
            .iter()
            .max_by_key(|part| part.len())
            .map_or("", String::as_str)
    }

    /// Whether all of `value` is matched.
    pub fn matches(&self, value: &str) -> bool {
        let value = value.as_bytes();
        let [first, middle @ .., last] = self.parts.as_slice() else {
            return self.parts[0].as_bytes().eq_ignore_ascii_case(value);
        };
        let (first, last) = (first.as_bytes(), last.as_bytes());
        if value.len() < first.len() + last.len()
            || !value[..first.len()].eq_ignore_ascii_case(first)
            || !value[value.len() - last.len()..].eq_ignore_ascii_case(last)
        {
            return false;
        }
        let mut rest = &value[first.len()..value.len() - last.len()];
        for part in middle {
            match find_ignoring_case(rest, part.as_bytes()) {
                Some(at) => rest = &rest[at + part.len()..],
                None => return false,
            }
        }
        true
    }

    /// Whether every value that `other` matches is matched by this pattern too.
    pub fn covers(&self, other: &Pattern) -> bool {
        // A wildcard of `other` can only be swallowed by one of ours, so it is matched as if it were a letter that only
        // `*` accepts. Enough letters exist for this to be exact.
        let ours: Vec<char> = self.text.to_ascii_lowercase().chars().collect();
        let theirs: Vec<char> = other.text.to_ascii_lowercase().chars().collect();
        // reach[j]: ours[..i] covers theirs[..j]
        let mut reach = vec![false; theirs.len() + 1];
        reach[0] = true;
        for &letter in &ours {
            let mut next = vec![false; theirs.len() + 1];
            for j in 0..=theirs.len() {
                next[j] = if letter == '*' {
                    reach[j] || (j > 0 && next[j - 1])
                } else {
                    j > 0 && reach[j - 1] && theirs[j - 1] == letter
                };
            }
            reach = next;
        }
        reach[theirs.len()]
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Where `needle`, in lower case, begins in `haystack`.
fn find_ignoring_case(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let Some(&first) = needle.first() else { return Some(0) };
    let mut at = 0;
    while haystack.len() - at >= needle.len() {
        let places = &haystack[at..=haystack.len() - needle.len()];
        at += memchr2(first, first.to_ascii_uppercase(), places)?;
        if haystack[at..at + needle.len()].eq_ignore_ascii_case(needle) {
            return Some(at);
        }
        at += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters_and_nothing_else_is_special() {
        for (pattern, yes, no) in [
            ("/login", &["/login", "/LOGIN"][..], &["/login/", "/logi", ""][..]),
            (
                "/api/*/login",
                &["/api/v1/login", "/api//login", "/api/a/b/login"],
                &["/api/login", "/api/v1/login2"],
            ),
            ("*", &["", "x"], &[]),
            ("*.env", &["/.env", ".env", "/a/.ENV"], &["/.env.bak"]),
            ("*.env*", &["/.env.bak", ".env"], &["/env"]),
            ("*a*a*", &["aa", "xaya"], &["a", "xa"]),
            ("a*a", &["aa", "aba"], &["a", "ab"]),
            ("**", &["", "x"], &[]),
            ("", &[""], &["x"]),
            ("50%_?[a].\\", &["50%_?[a].\\"], &["50x_?[a].\\"]),
            ("*ö*", &["/größe"], &["/grosse"]),
        ] {
            for value in yes {
                assert!(Pattern::new(pattern).matches(value), "{pattern} should match {value}");
            }
            for value in no {
                assert!(
                    !Pattern::new(pattern).matches(value),
                    "{pattern} should not match {value}"
                );
            }
        }
    }

    /// Obviously right and slow: what `matches` is compared with.
    fn naive(pattern: &[u8], value: &[u8]) -> bool {
        match pattern.split_first() {
            None => value.is_empty(),
            Some((b'*', rest)) => (0..=value.len()).any(|at| naive(rest, &value[at..])),
            Some((letter, rest)) => value
                .split_first()
                .is_some_and(|(v, values)| v.eq_ignore_ascii_case(letter) && naive(rest, values)),
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_naive_matcher(pattern in "[abA*]{0,7}", value in "[abB]{0,9}") {
            prop_assert_eq!(Pattern::new(&pattern).matches(&value), naive(pattern.as_bytes(), value.as_bytes()));
        }

        #[test]
        fn a_covering_pattern_matches_whatever_the_covered_one_does(a in "[ab*]{0,6}", b in "[ab*]{0,6}", values in proptest::collection::vec("[abc]{0,8}", 30)) {
            let (a, b) = (Pattern::new(&a), Pattern::new(&b));
            if a.covers(&b) {
                for value in values.iter().filter(|v| b.matches(v)) {
                    prop_assert!(a.matches(value), "{} covers {} but not {}", a, b, value);
                }
            } else {
                // A letter that no pattern contains is the witness for `*`.
                let witness = b.as_str().replace('*', "~");
                prop_assert!(!a.matches(&witness) , "{} matches {}, so it should cover {}", a, witness, b);
            }
        }
    }
}
