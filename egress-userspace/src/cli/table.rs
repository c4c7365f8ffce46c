//! Columns for people.

/// Lines up `rows` under `header`; the columns named in `right` are flush right (figures).
pub(super) fn render(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let head: Vec<String> = header.iter().map(ToString::to_string).collect();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            let width = |row: &Vec<String>| row.get(column).map_or(0, |cell| cell.chars().count());
            rows.iter().chain([&head]).map(width).max().unwrap_or(0)
        })
        .collect();
    let line = |row: &Vec<String>| {
        let mut line = String::new();
        for (column, width) in widths.iter().copied().enumerate() {
            let cell = row.get(column).map_or("", String::as_str);
            if right.contains(&column) {
                line.push_str(&format!("{cell:>width$}  "));
            } else {
                line.push_str(&format!("{cell:<width$}  "));
            }
        }
        line.trim_end().to_owned()
    };
    std::iter::once(&head)
        .chain(rows)
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = vec![
            vec!["a".into(), "7".into()],
            vec!["bbb".into(), "1000".into()],
        ];
        assert_eq!(
            render(&["NAME", "COUNT"], &[1], &rows),
            "NAME  COUNT\na         7\nbbb    1000"
        );
        assert_eq!(render(&["NAME"], &[], &[]), "NAME");
    }
}
