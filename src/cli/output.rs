//! Says things to people: data on stdout, everything else on stderr, colour only where it helps and is wanted.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::exit::Failure;

/// Decides about noise.
pub(super) struct Printer {
    quiet: bool,
}

impl Printer {
    pub(super) fn new(quiet: bool) -> Printer {
        Printer { quiet }
    }

    pub(super) fn quiet(&self) -> bool {
        self.quiet
    }

    /// Something nice to know; silent with `--quiet`.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            let _ = writeln!(anstream::stderr(), "{text}");
        }
    }

    /// Something that went wrong without stopping us.
    pub(super) fn warn(&self, text: &str) {
        let style = AnsiColor::Yellow.on_default().bold();
        let _ = writeln!(anstream::stderr(), "{style}warning:{style:#} {}", plain(text));
    }

    pub(super) fn error(&self, failure: &Failure) {
        let style = AnsiColor::Red.on_default().bold();
        let _ = writeln!(anstream::stderr(), "{style}error:{style:#} {failure}");
        if let Some(hint) = failure.advice() {
            let style = AnsiColor::Cyan.on_default().bold();
            let _ = writeln!(anstream::stderr(), "{style}hint:{style:#} {hint}");
        }
    }
}

/// Standard output, without colours where nobody sees them.
pub(super) fn stdout() -> impl Write {
    anstream::AutoStream::auto(io::stdout().lock())
}

/// A heading's style.
pub(super) const HEADING: Style = Style::new().bold();

/// A table for people: columns aligned by display width, no lines.
pub(super) fn table(header: &[&str], right: &[usize]) -> Table {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().copied());
    for column in right {
        if let Some(column) = table.column_mut(*column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Writes a table without the blanks that pad its last column.
pub(super) fn write_table(out: &mut impl Write, table: &Table) -> io::Result<()> {
    for line in table.trim_fmt().lines() {
        writeln!(out, "{}", line)?;
    }
    Ok(())
}

/// Text from a log, safe for a terminal and a page: control characters are shown, not sent, and so is what has no width,
/// breaks lines or turns the direction of writing, with which one text passes for another.
pub(crate) fn plain(text: &str) -> String {
    let risky = |c: char| {
        (c.is_control() && c != '\n')
            || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    text.chars()
        .flat_map(|c| {
            if risky(c) {
                c.escape_default().collect::<Vec<_>>()
            } else {
                vec![c]
            }
        })
        .collect()
}

/// The same on one line and not longer than `max` characters.
pub(crate) fn short(text: &str, max: usize) -> String {
    let text = plain(&text.replace('\n', "\\n"));
    if text.chars().count() <= max {
        return text;
    }
    text.chars().take(max.saturating_sub(1)).chain(['…']).collect()
}

/// A count with separators: `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 ban`, `2 bans`.
pub(crate) fn several(number: u64, one: &str) -> String {
    if number == 1 {
        format!("1 {one}")
    } else {
        format!("{} {one}s", count(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_cannot_send_commands_to_a_terminal() {
        assert_eq!(short("/\u{1b}[2J\r\n\u{202e}x", 40), "/\\u{1b}[2J\\r\\n\\u{202e}x");
        assert_eq!(short("größer als erlaubt", 7), "größer…");
    }

    #[test]
    fn counts_are_readable() {
        assert_eq!([0, 999, 1000, 1234567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([several(1, "ban"), several(2000, "ban")], ["1 ban", "2,000 bans"]);
    }
}
