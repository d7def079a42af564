//! The table as text: columns as wide as what is in them, cut to the width of the terminal.

use std::borrow::Cow;
use std::fmt::Write;

use anstyle::{AnsiColor, Style};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::status::judgement::Severity;
use crate::status::row::{Cell, Cells, HEADER, Row, Vm};

/// Between two columns.
const GAP: usize = 2;
/// The columns that are cut if the lines are too long, and the least width of each: name, last action.
const FLEXIBLE: [(usize, usize); 2] = [(0, 12), (5, 13)];
const COLUMNS: usize = HEADER.len();

/// How a table is written.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// How many columns a line may have; `None` is any number.
    pub width: Option<usize>,
    pub colour: bool,
}

/// The lines of the table, and of the reasons below it.
pub fn lines(vms: &[Vm], look: Look) -> Vec<String> {
    let rows: Vec<&Row> = vms.iter().flat_map(|vm| &vm.rows).collect();
    let widths = widths(&rows, look.width);
    let mut lines = vec![header(&widths, look)];
    lines.extend(rows.into_iter().map(|row| line(row, &widths, look)));
    let mut reasons = vms.iter().flat_map(|vm| reasons(vm, look)).peekable();
    if reasons.peek().is_some() {
        lines.push(String::new());
        lines.extend(reasons);
    }
    lines
}

/// `3 VMs: 1 critical, 1 warning`
pub fn summary(vms: &[Vm]) -> String {
    let count = |severity| vms.iter().filter(|vm| vm.severity() == severity).count();
    let mut text = if vms.len() == 1 { "1 VM".to_owned() } else { format!("{} VMs", vms.len()) };
    for (severity, name, before) in [(Severity::Critical, "critical", ": "), (Severity::Warning, "warning", ", ")] {
        let before = if text.contains(':') { before } else { ": " };
        match count(severity) {
            0 => {}
            number => drop(write!(text, "{before}{number} {name}")),
        }
    }
    text
}

/// What the table has no room for: a line for each.
fn reasons(vm: &Vm, look: Look) -> impl Iterator<Item = String> {
    vm.findings.iter().filter(|finding| finding.is_detail).map(move |finding| {
        let text = format!("{}: {}", vm.target.name, finding.text);
        painted(&cut(&text, look.width.unwrap_or(usize::MAX)), style(finding.severity), look)
    })
}

fn widths(rows: &[&Row], limit: Option<usize>) -> [usize; COLUMNS] {
    let mut widths = HEADER.map(UnicodeWidthStr::width);
    for row in rows {
        widths[0] = widths[0].max(row.name.width());
        if let Cells::Values(values) = &row.cells {
            for (width, cell) in widths[1..].iter_mut().zip(values) {
                *width = (*width).max(cell.text.width());
            }
        }
    }
    let Some(limit) = limit else { return widths };
    let length = |widths: &[usize; COLUMNS]| widths.iter().sum::<usize>() + GAP * (COLUMNS - 1);
    while length(&widths) > limit {
        // The one that has most to give.
        let spare = |(column, least): (usize, usize)| (widths[column].saturating_sub(least), column);
        match FLEXIBLE.map(spare).into_iter().max() {
            Some((spare, column)) if spare > 0 => widths[column] -= spare.min(length(&widths) - limit).div_ceil(2),
            _ => break,
        }
    }
    widths
}

fn header(widths: &[usize; COLUMNS], look: Look) -> String {
    let cells = HEADER.map(|text| (Cow::Borrowed(text), Style::new().bold()));
    join(&cells, widths, look)
}

fn line(row: &Row, widths: &[usize; COLUMNS], look: Look) -> String {
    let name = (Cow::Borrowed(row.name.as_str()), Style::new());
    let cell = |cell: &Cell| (Cow::Owned(cell.text.clone()), style(cell.severity));
    match &row.cells {
        Cells::Values(values) => {
            let cells: Vec<_> = std::iter::once(name).chain(values.iter().map(cell)).collect();
            join(&cells, widths, look)
        }
        Cells::Message(message) => {
            let rest = look.width.map_or(usize::MAX, |limit| limit.saturating_sub(widths[0] + GAP));
            join(&[name, cell(message)], &[widths[0], rest], look)
        }
    }
}

/// Puts the cells into their columns, and cuts the line if it is still too long.
fn join(cells: &[(Cow<'_, str>, Style)], widths: &[usize], look: Look) -> String {
    let mut line = String::new();
    let mut left = look.width.unwrap_or(usize::MAX);
    for (index, ((text, style), width)) in cells.iter().zip(widths).enumerate() {
        if index > 0 {
            let gap = GAP.min(left);
            line.extend(std::iter::repeat_n(' ', gap));
            left -= gap;
        }
        let width = (*width).min(left);
        let text = cut(text, width);
        line.push_str(&painted(&text, *style, look));
        if index + 1 < cells.len() {
            line.extend(std::iter::repeat_n(' ', width - text.width()));
        }
        left -= width;
    }
    line.truncate(line.trim_end().len());
    line
}

/// The text without spaces at its end, in as many columns at most; an ellipsis stands for what is cut.
fn cut(text: &str, width: usize) -> Cow<'_, str> {
    let text = text.trim_end();
    if text.width() <= width {
        return Cow::Borrowed(text);
    }
    let mut left = width.saturating_sub(1);
    let mut short: String = text
        .chars()
        .take_while(|character| {
            let width = character.width().unwrap_or(0);
            let fits = width <= left;
            left = left.saturating_sub(if fits { width } else { left });
            fits
        })
        .collect();
    short.truncate(short.trim_end().len());
    if width > 0 {
        short.push('…');
    }
    Cow::Owned(short)
}

fn style(severity: Severity) -> Style {
    match severity {
        Severity::Ok => Style::new(),
        Severity::Warning => AnsiColor::Yellow.on_default(),
        Severity::Critical => AnsiColor::Red.on_default().bold(),
    }
}

fn painted(text: &str, style: Style, look: Look) -> String {
    if look.colour { format!("{style}{text}{style:#}") } else { text.to_owned() }
}
