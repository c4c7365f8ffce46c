//! HTML that cannot be broken out of: whatever is not written in this program's own words is escaped.

use std::fmt::Display;

/// HTML under way.
#[derive(Debug, Default)]
pub(super) struct Html(String);

/// How a column's cells are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    /// A name, which may be long.
    Name,
    /// A sentence or a list.
    Long,
    /// An address.
    Code,
    /// A number, to the right.
    Figure,
    /// A bar and a percentage.
    Full,
}

impl Column {
    const fn class(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Long => "long",
            Self::Code => "code",
            Self::Figure => "figure",
            Self::Full => "figure full",
        }
    }
}

/// What stands above a column: its name, how it is shown, and whether narrow screens do without it.
pub(super) type Head = (&'static str, Column, bool);

/// A cell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    /// Escaped.
    Text(String),
    /// Escaped, and coloured by a class.
    Colored(&'static str, String),
    /// How full something is, percent.
    Full(f64),
}

impl Cell {
    pub(super) fn of(value: impl Display) -> Self {
        Self::Text(value.to_string())
    }
}

impl Html {
    /// Markup of this program's own.
    pub(super) fn raw(&mut self, markup: &'static str) -> &mut Self {
        self.0.push_str(markup);
        self
    }

    /// Anything else: nothing in it is markup, neither between tags nor in a quoted attribute.
    pub(super) fn text(&mut self, text: impl Display) -> &mut Self {
        for letter in text.to_string().chars() {
            match letter {
                '&' => self.0.push_str("&amp;"),
                '<' => self.0.push_str("&lt;"),
                '>' => self.0.push_str("&gt;"),
                '"' => self.0.push_str("&quot;"),
                '\'' => self.0.push_str("&#39;"),
                // Also those that turn the direction of what follows.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                    self.0.push(char::REPLACEMENT_CHARACTER);
                }
                letter if letter.is_control() => self.0.push(char::REPLACEMENT_CHARACTER),
                letter => self.0.push(letter),
            }
        }
        self
    }

    /// A table of at most `most` rows, or a sentence where there is none.
    pub(super) fn table(
        &mut self,
        heads: &[Head],
        rows: Vec<Vec<Cell>>,
        most: usize,
        none: &'static str,
        more: &'static str,
    ) -> &mut Self {
        if rows.is_empty() {
            return self.raw("<p class=\"soft\">").raw(none).raw("</p>");
        }
        self.raw("<table><thead><tr>");
        for (name, column, wide) in heads {
            self.open("th scope=\"col\"", *column, *wide);
            self.raw(name).raw("</th>");
        }
        self.raw("</tr></thead><tbody>");
        let left = rows.len().saturating_sub(most);
        for row in rows.into_iter().take(most) {
            self.raw("<tr>");
            for (cell, (_, column, wide)) in row.into_iter().zip(heads) {
                self.open("td", *column, *wide);
                self.cell(cell);
                self.raw("</td>");
            }
            self.raw("</tr>\n");
        }
        self.raw("</tbody></table>");
        if left > 0 {
            self.raw("<p class=\"soft\">and ")
                .text(left)
                .raw(" more: ")
                .raw(more)
                .raw("</p>");
        }
        self
    }

    fn open(&mut self, tag: &'static str, column: Column, wide: bool) {
        self.raw("<").raw(tag).raw(" class=\"").raw(column.class());
        if wide {
            self.raw(" wide");
        }
        self.raw("\">");
    }

    fn cell(&mut self, cell: Cell) {
        match cell {
            Cell::Text(text) => self.text(text),
            Cell::Colored(class, text) => self
                .raw("<span class=\"")
                .raw(class)
                .raw("\">")
                .text(text)
                .raw("</span>"),
            Cell::Full(percent) => self.bar(percent),
        };
    }

    /// A bar; its length is an attribute, so that no style is in need of being allowed.
    fn bar(&mut self, percent: f64) -> &mut Self {
        let class = match percent {
            90.0.. => "bar bad",
            75.0.. => "bar warn",
            _ => "bar",
        };
        self.raw("<svg class=\"").raw(class);
        self.raw("\" viewBox=\"0 0 100 1\" preserveAspectRatio=\"none\" aria-hidden=\"true\"><rect height=\"1\" width=\"");
        // Something is there, however little.
        let least = if percent > 0.0 { 1.0 } else { 0.0 };
        let width = percent.clamp(least, 100.0);
        self.0
            .push_str(&format!("{width:.2}\"/></svg>{percent:.2} %"));
        self
    }

    pub(super) fn done(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_others_is_markup() {
        let mut html = Html::default();
        html.text("<script>alert('1')</script>\"&\u{7}\u{202e}é");
        assert_eq!(
            html.done(),
            "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;\u{fffd}\u{fffd}é"
        );
    }

    #[test]
    fn tables_end_and_say_what_they_leave_out() {
        let heads: [Head; 2] = [("Name", Column::Name, false), ("Full", Column::Full, true)];
        let rows = |count| {
            (0..count)
                .map(|n| vec![Cell::of(n), Cell::Full(95.0)])
                .collect()
        };
        let drawn = |count| {
            let mut html = Html::default();
            html.table(&heads, rows(count), 3, "none", "<code>more</code>");
            html.done()
        };
        assert_eq!(drawn(0), "<p class=\"soft\">none</p>");
        assert!(!drawn(3).contains("more"));
        let five = drawn(5);
        assert_eq!(five.matches("<tr>").count(), 4);
        assert!(five.contains("and 2 more: <code>more</code>"));
        assert!(five.contains("<th scope=\"col\" class=\"figure full wide\">Full</th>"));
        assert!(five.contains("bar bad") && five.contains("95.00 %"));
    }
}
