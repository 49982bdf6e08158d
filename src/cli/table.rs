//! Tables of text with aligned columns.

/// Formats rows as text: columns as wide as needed, two spaces between them, none at the ends of
/// lines. The first row is the heading.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width =
        |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| padded(cell, width)).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// Pads a cell with blanks up to this width. The formatter pads up to 65,535 columns only and
/// panics past them; a file may hold longer texts.
fn padded(cell: &str, width: usize) -> String {
    format!("{cell}{}", " ".repeat(width - cell.chars().count()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(String::from);
        let text = table(&[row(["NAME", "STATE", "PORTS"]), row(["alpine-minimal", "up", ""])]);
        assert_eq!(text, "NAME            STATE  PORTS\nalpine-minimal  up\n");
    }

    #[test]
    fn a_cell_may_have_any_length() {
        let long = "x".repeat(100_000);
        let text = table(&[["A".to_owned(), "B".to_owned()], [long.clone(), "b".to_owned()]]);
        assert_eq!(text, format!("A{}  B\n{long}  b\n", " ".repeat(long.len() - 1)));
    }
}
