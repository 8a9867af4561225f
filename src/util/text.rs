//! Text of strangers that people read.

/// Whether a character does more than stand in its place: it controls a terminal, begins a line, or changes the
/// direction in which its neighbours are written.
///
/// ```
/// use imgfs::util::disturbs;
///
/// assert!(disturbs('\x1b') && disturbs('\n') && disturbs('\u{202e}') && disturbs('\u{2066}'));
/// assert!(!disturbs('a') && !disturbs('ä') && !disturbs('א') && !disturbs('\u{200d}'));
/// ```
pub fn disturbs(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Removes from a list what is in it before, wherever.
pub(crate) fn drop_repeats(texts: &mut Vec<String>) {
    let mut seen = std::collections::HashSet::new();
    texts.retain(|text| seen.insert(text.clone()));
}
