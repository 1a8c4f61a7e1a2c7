//! The pages and comments of the project: their links lead somewhere, and they name actors. Sentences, README
//! and cells of tables stay short. The page of settings has the program's flags.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of this pattern that git keeps, by its path from the top.
fn files(pattern: &str) -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", pattern]).current_dir(top()).output().unwrap();
    assert!(listed.status.success(), "git ls-files");
    let listed = String::from_utf8(listed.stdout).unwrap();
    // A file that was deleted and not committed yet is still listed.
    listed.lines().filter(|file| top().join(file).exists()).map(str::to_owned).collect()
}

fn pages() -> Vec<String> {
    files("*.md")
}

fn read(page: &str) -> String {
    fs::read_to_string(top().join(page)).unwrap()
}

/// The lines outside of blocks of code, with their numbers.
fn prose(text: &str) -> Vec<(usize, &str)> {
    let mut is_code = false;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code {
            lines.push((number + 1, line));
        }
    }
    lines
}

/// The anchors of a page, as GitHub makes them of its headings.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).into_iter().filter(|(_, line)| line.starts_with('#'));
    let anchor = |(_, line): (usize, &str)| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>()
    };
    headings.map(anchor).collect()
}

/// The targets of `[text](target)`, outside of code.
fn links(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        // What stands between backticks is code as well.
        let outside: String = line.split('`').step_by(2).collect::<Vec<_>>().join("code");
        for part in outside.split("](").skip(1) {
            let target = part.split(')').next().unwrap_or_default();
            found.push((number, target.to_owned()));
        }
    }
    found
}

#[test]
fn every_link_leads_to_a_file_or_a_heading() {
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        let folder = PathBuf::from(&page).parent().unwrap().to_owned();
        for (number, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
            let at = if file.is_empty() { PathBuf::from(&page) } else { folder.join(file) };
            let path = top().join(&at);
            let has_anchor = || anchors(&fs::read_to_string(&path).unwrap_or_default()).contains(anchor);
            if !path.exists() || (!anchor.is_empty() && !has_anchor()) {
                broken.push(format!("{page}:{number}: {target}"));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn no_line_is_wider_than_110_columns_outside_of_tables_links_and_code() {
    let mut wide = Vec::new();
    for page in pages() {
        for (number, line) in prose(&read(&page)) {
            let is_exempt = line.trim_start().starts_with('|') || line.contains("](") || line.contains("://");
            if line.chars().count() > 110 && !is_exempt {
                wide.push(format!("{page}:{number}"));
            }
        }
    }
    assert!(wide.is_empty(), "{wide:#?}");
}

#[test]
fn no_cell_of_a_table_is_longer_than_160_characters() {
    let mut long = Vec::new();
    for page in pages() {
        let text = read(&page);
        for (number, line) in prose(&text).into_iter().filter(|(_, line)| line.starts_with("| ")) {
            let longest = line.split('|').map(|cell| cell.trim().chars().count()).max();
            if longest > Some(160) {
                long.push(format!("{page}:{number}: {longest:?}"));
            }
        }
    }
    assert!(long.is_empty(), "{long:#?}");
}

/// Words that hide who does what. A page says notify, report, send, answer or log.
fn hides_its_actor(line: &str) -> bool {
    let line = line.to_lowercase();
    let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
    words.any(|word| matches!(word, "told" | "tell" | "tells" | "untold"))
        || line.contains("what came of")
        || line.contains("who knows")
}

#[test]
fn every_page_and_comment_names_its_actors() {
    let mut hidden = Vec::new();
    for page in pages() {
        let text = read(&page);
        let lines = prose(&text).into_iter().filter(|(_, line)| hides_its_actor(line));
        hidden.extend(lines.map(|(number, line)| format!("{page}:{number}: {line}")));
    }
    for file in files("src/*.rs") {
        let text = read(&file);
        let comments = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//"));
        let lines = comments.filter(|(_, line)| hides_its_actor(line));
        hidden.extend(lines.map(|(number, line)| format!("{file}:{}: {line}", number + 1)));
    }
    assert!(hidden.is_empty(), "{hidden:#?}");
}

/// Words of one sentence. A span of code is one word.
const SENTENCE: usize = 25;

/// The sentences of a Rust file's comments, each with its first line. A blank line, an item of a list, a heading, a
/// table and a block of code end one.
fn sentences(text: &str) -> Vec<(usize, Vec<String>)> {
    let (mut found, mut open) = (Vec::new(), (0, Vec::new()));
    let (mut kind, mut is_block, mut is_span) = ("", false, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim_start();
        let begin = ["///", "//!", "//"].into_iter().find(|begin| line.starts_with(begin)).unwrap_or("");
        let comment = line[begin.len()..].trim();
        let is_fence = !begin.is_empty() && comment.starts_with("```");
        is_block = (is_block && !begin.is_empty()) != is_fence;
        let is_skipped = begin.is_empty() || is_block || is_fence || comment.starts_with(['#', '|']);
        let mark = comment.split(' ').next().unwrap_or_default();
        let is_item = mark == "-" || mark.strip_suffix('.').is_some_and(|mark| mark.parse::<u32>().is_ok());
        if is_skipped || begin != kind || comment.is_empty() || is_item {
            found.push(std::mem::take(&mut open));
            is_span = false;
        }
        kind = begin;
        for word in comment.split_whitespace().filter(|_| !is_skipped) {
            if open.1.is_empty() {
                open.0 = number + 1;
            }
            // A word inside a span of code belongs to the one that began it.
            match open.1.last_mut() {
                Some(last) if is_span => *last = format!("{last} {word}"),
                _ => open.1.push(word.to_owned()),
            }
            is_span ^= word.matches('`').count() % 2 == 1;
            if !is_span && word.trim_end_matches(['"', '\'', ')', '*']).ends_with(['.', '!', '?']) {
                found.push(std::mem::take(&mut open));
            }
        }
    }
    found.push(open);
    let is_word = |word: &String| word.chars().any(|c| c.is_alphanumeric() || c == '`');
    found.iter_mut().for_each(|(_, words)| words.retain(is_word));
    found
}

#[test]
fn no_sentence_of_a_comment_has_more_than_25_words() {
    let mut long = Vec::new();
    for file in files("*.rs") {
        for (line, words) in sentences(&read(&file)).into_iter().filter(|(_, words)| words.len() > SENTENCE) {
            long.push(format!("{file}:{line}: {} words: {}", words.len(), words.join(" ")));
        }
    }
    assert!(long.is_empty(), "cut these into sentences of at most {SENTENCE} words: {long:#?}");
}

/// A comment of three words can rarely say more than the name below it: a shape, a unit or a source.
#[test]
fn few_comments_have_three_words_or_fewer() {
    let mut short = Vec::new();
    for file in files("src/*.rs") {
        let text = read(&file);
        let docs = |line: &str| line.trim_start().starts_with("///") || line.trim_start().starts_with("//!");
        let lines: Vec<&str> = text.lines().collect();
        for (at, line) in lines.iter().enumerate().filter(|(_, line)| docs(line)) {
            let is_alone =
                (at == 0 || !docs(lines[at - 1])) && !lines.get(at + 1).is_some_and(|next| docs(next));
            if is_alone && line.split_whitespace().count() <= 4 {
                short.push(format!("{file}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    assert!(short.len() < 40, "{}: {short:#?}", short.len());
}

#[test]
fn readme_can_be_read_in_a_few_minutes() {
    let text = read("README.md");
    let (lines, words) = (text.lines().count(), text.split_whitespace().count());
    assert!(lines <= 170 && words <= 1_400, "{lines} lines, {words} words");
}

#[test]
fn the_page_of_settings_has_the_programs_flags_and_variables() {
    let help = Command::new(env!("CARGO_BIN_EXE_duorelay")).args(["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let page = read("src/config/README.md");
    let rows: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let variables =
        help.split("[env: ").skip(1).map(|part| part.split([']', '=']).next().unwrap().to_owned());
    let variables: BTreeSet<String> = variables.collect();
    let described: BTreeSet<String> =
        rows.iter().map(|row| row.split('`').nth(1).unwrap().to_owned()).collect();
    assert_eq!(described, variables);
    for row in rows {
        let flag = row.split('`').nth(3).unwrap();
        assert!(help.contains(&format!("{flag} ")) || help.contains(&format!("{flag}\n")), "{flag} of {row}");
    }
}
