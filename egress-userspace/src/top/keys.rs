//! What keys do to the view.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Which table is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Table {
    /// Origins.
    #[default]
    Origins,
    /// Egress IPs.
    Addresses,
    /// Pools.
    Pools,
    /// Refusals by reason.
    Refusals,
}

impl Table {
    /// All of them, in the order of their keys.
    pub const ALL: [Self; 4] = [Self::Origins, Self::Addresses, Self::Pools, Self::Refusals];

    /// The name above it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Origins => "origins",
            Self::Addresses => "egress IPs",
            Self::Pools => "pools",
            Self::Refusals => "refusals",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Origins => Self::Addresses,
            Self::Addresses => Self::Pools,
            Self::Pools => Self::Refusals,
            Self::Refusals => Self::Origins,
        }
    }
}

/// What is shown of a snapshot, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// The table.
    pub table: Table,
    /// The column it is sorted by; none: as the snapshot has it, the fullest first.
    pub sort: Option<usize>,
    /// The smallest first.
    pub ascending: bool,
    /// Only rows that have this in them.
    pub filter: String,
    /// A filter is being typed.
    pub typing: bool,
    /// Rows above the first one that is shown.
    pub above: usize,
    /// Nothing changes until it is taken away again.
    pub paused: bool,
}

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Drawing it anew.
    Draw,
    /// Ending.
    Quit,
}

/// The longest filter.
const FILTER: usize = 64;

impl Shown {
    /// Presses a key; the table has so many columns.
    pub fn press(&mut self, key: KeyEvent, columns: usize) -> After {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'C')) {
            return After::Quit;
        }
        if self.typing {
            self.kind(key.code, control);
            return After::Draw;
        }
        match key.code {
            KeyCode::Char('q') => return After::Quit,
            KeyCode::Esc if self.filter.is_empty() => return After::Quit,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Tab => self.show(self.table.next()),
            KeyCode::Char(digit @ '1'..='4') => {
                let place = (digit as usize) - ('1' as usize);
                if let Some(table) = Table::ALL.get(place) {
                    self.show(*table);
                }
            }
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    None => Some(0),
                    Some(last) if last + 1 >= columns => None,
                    Some(column) => Some(column + 1),
                }
            }
            KeyCode::Char('r') => self.ascending = !self.ascending,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('p' | ' ') => self.paused = !self.paused,
            KeyCode::Down | KeyCode::Char('j') => self.above = self.above.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.above = self.above.saturating_sub(1),
            KeyCode::PageDown => self.above = self.above.saturating_add(10),
            KeyCode::PageUp => self.above = self.above.saturating_sub(10),
            KeyCode::Home => self.above = 0,
            _ => {}
        }
        After::Draw
    }

    fn show(&mut self, table: Table) {
        self.table = table;
        (self.sort, self.ascending, self.above) = (None, false, 0);
    }

    /// A key while a filter is being typed.
    fn kind(&mut self, code: KeyCode, control: bool) {
        self.above = 0;
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if !control && self.filter.chars().count() < FILTER => {
                self.filter.push(letter);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(keys: &str) -> Shown {
        let mut shown = Shown::default();
        for key in keys.chars() {
            let code = match key {
                '\n' => KeyCode::Enter,
                '\t' => KeyCode::Tab,
                '\x1b' => KeyCode::Esc,
                letter => KeyCode::Char(letter),
            };
            assert_eq!(
                shown.press(KeyEvent::new(code, KeyModifiers::NONE), 3),
                After::Draw,
                "{keys:?}"
            );
        }
        shown
    }

    #[test]
    fn keys_choose_sort_and_filter() {
        assert_eq!(after("\t").table, Table::Addresses);
        assert_eq!(after("\t\t\t\t").table, Table::Origins);
        assert_eq!(after("4").table, Table::Refusals);
        assert_eq!(
            (after("s").sort, after("sss").sort, after("ssss").sort),
            (Some(0), Some(2), None)
        );
        assert_eq!(after("ss2").sort, None, "another table has other columns");
        // Letters are letters while a filter is typed, also those that are keys.
        let filtered = after("/q:443\n");
        assert_eq!(
            (filtered.filter.as_str(), filtered.typing),
            ("q:443", false)
        );
        assert_eq!(after("/q\x1b"), Shown::default());
        assert_eq!(after("/q\n\x1b").filter, "");
        assert!(after("p").paused && !after("pp").paused);
    }

    #[test]
    fn q_escape_and_control_c_end_it() {
        let press = |keys: &str, key: KeyEvent| after(keys).press(key, 3);
        let plain = |code| KeyEvent::new(code, KeyModifiers::NONE);
        let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
        assert_eq!(press("", plain(KeyCode::Char('q'))), After::Quit);
        assert_eq!(press("", plain(KeyCode::Esc)), After::Quit);
        assert_eq!(press("", control_c), After::Quit);
        assert_eq!(
            press("/typing", control_c),
            After::Quit,
            "whatever is typed"
        );
    }
}
