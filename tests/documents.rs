//! The documents are consistent with each other, with the crate's documentation and with the folders of the code.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use diesel_peers::Ledger;
use support::figure::{base64, definition};

/// The folder of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The documents beside the chapters.
const DOCUMENTS: [&str; 7] = [
    "README.md",
    "DESIGN.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "cli/README.md",
    "examples/README.md",
    "fuzz/README.md",
];

/// The folder of the chapters, which are also modules of the crate's documentation.
const CHAPTERS: &str = "docs";

/// Where links of the README and the chapters lead in the crate's documentation.
const LINKS: &str = "src/guide/links.md";

/// The documentation of the crate's items.
const ITEMS: &str = "https://docs.rs/diesel-peers/latest/diesel_peers/";

/// The figures of the documents: the label, the drawing, its definition in the crate's documentation, and the
/// benchmark that writes both.
const FIGURES: [(&str, &str, &str, &str); 2] = [
    ("recovery", "benches/recovery.svg", "src/guide/figure.md", "recovery"),
    ("slow figure", "docs/slow-peers.svg", "src/guide/slow_figure.md", "slow"),
];

fn path(file: &str) -> PathBuf {
    Path::new(ROOT).join(file)
}

fn read(file: &str) -> String {
    fs::read_to_string(path(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The names of the files in a folder.
fn files(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(path(folder)).unwrap_or_else(|error| panic!("{folder}: {error}"));
    let name = |entry: fs::DirEntry| entry.file_name().into_string().expect("our names are UTF-8");
    let mut names: Vec<_> = entries.flatten().map(name).collect();
    names.sort();
    names
}

fn chapters() -> Vec<String> {
    let names =
        files(CHAPTERS).into_iter().filter_map(|name| name.strip_suffix(".md").map(str::to_owned));
    names.map(|name| format!("{CHAPTERS}/{name}.md")).collect()
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// The targets of links with an inline target, and whether each is an image.
fn inline(prose: &str) -> impl Iterator<Item = (bool, &str)> {
    prose.match_indices("](").map(|(at, _)| {
        let target = prose[at + 2..].split([')', ' ']).next().expect("split returns one item");
        let start = prose[..at].rfind('[').expect("a link begins with a bracket");
        (prose[..start].ends_with('!'), target)
    })
}

/// The definitions of labels: `[label]: target`.
fn definitions(text: &str) -> BTreeMap<&str, &str> {
    let definitions = text.lines().filter_map(|line| line.strip_prefix('[')?.split_once("]: "));
    definitions.filter(|(label, _)| !label.contains(']')).collect()
}

/// The labels that links use.
fn labels(prose: &str) -> impl Iterator<Item = &str> {
    prose
        .match_indices("][")
        .map(|(at, _)| prose[at + 2..].split(']').next().expect("split returns one item"))
}

fn anchors(text: &str) -> Vec<String> {
    let prose = prose(text);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let slug = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(slug).collect()
}

/// The file that a link leads to, as a path from the root, and the anchor.
fn resolved<'a>(file: &str, target: &'a str) -> (String, &'a str) {
    let (to, anchor) = target.split_once('#').unwrap_or((target, ""));
    if to.is_empty() {
        return (file.to_owned(), anchor);
    }
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in to.split('/') {
        if part == ".." {
            parts.pop().unwrap_or_else(|| panic!("{file}: {target} leaves the repository"));
        } else {
            parts.push(part);
        }
    }
    (parts.join("/"), anchor)
}

/// The item at an address of the crate's documentation: `struct.Peers.html` is `crate::Peers`.
fn item(address: &str) -> Option<String> {
    let page = address.strip_prefix(ITEMS)?.strip_suffix(".html")?;
    let (_kind, name) = page.split_once('.')?;
    Some(format!("crate::{name}"))
}

#[test]
fn links_lead_to_files_and_headings() {
    let chapters = chapters();
    assert!(chapters.len() > 10, "the chapters are found: {chapters:?}");
    for file in DOCUMENTS.into_iter().chain(chapters.iter().map(String::as_str)) {
        let text = read(file);
        let prose = prose(&text);
        let definitions = definitions(&text);
        for label in labels(&prose) {
            assert!(definitions.contains_key(label), "{file}: the label [{label}] is defined");
        }
        for label in definitions.keys() {
            assert!(
                labels(&prose).any(|used| used == *label),
                "{file}: the label [{label}] is used"
            );
        }
        let targets = inline(&prose).map(|(_, target)| target).chain(definitions.into_values());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (to, anchor) = resolved(file, target);
            assert!(path(&to).exists(), "{file}: the target {target} exists");
            let has_heading = || anchors(&read(&to)).iter().any(|heading| heading == anchor);
            assert!(anchor.is_empty() || has_heading(), "{file}: the heading {target} exists");
        }
    }
}

/// The crate's documentation has no files beside it. Its definitions come first, so they count.
#[test]
fn links_lead_to_the_same_chapters_in_the_crates_documentation() {
    let links = read(LINKS);
    let links = definitions(&links);
    let mut used = Vec::new();
    for file in chapters().into_iter().chain(["README.md".to_owned()]) {
        let text = read(&file);
        let prose = prose(&text);
        let to_files: Vec<_> = inline(&prose)
            .filter(|(is_image, target)| !is_image && !target.starts_with(['#', 'h']))
            .collect();
        assert_eq!(to_files, [], "{file}: links to files use labels");
        for (label, target) in definitions(&text) {
            let item = item(target);
            let is_external = target.starts_with("http") && item.is_none();
            if is_external || FIGURES.iter().any(|(figure, ..)| *figure == label) {
                continue;
            }
            let link = *links.get(label).unwrap_or_else(|| panic!("{LINKS}: [{label}] of {file}"));
            if let Some(item) = item {
                assert_eq!(link, item, "{file} and {LINKS} agree about [{label}]");
                used.push(label.to_owned());
                continue;
            }
            let (to, anchor) = resolved(&file, target);
            let chapter = to.strip_prefix("docs/").and_then(|to| to.strip_suffix(".md"));
            let expected = match chapter {
                Some(chapter) => {
                    let module = format!("crate::guide::{}", chapter.replace('-', "_"));
                    if anchor.is_empty() { module } else { format!("{module}#{anchor}") }
                }
                None => match to.strip_prefix("src/").and_then(|to| to.strip_suffix(".rs")) {
                    Some(module) => format!("crate::{module}"),
                    None => format!("https://docs.rs/crate/diesel-peers/latest/source/{to}"),
                },
            };
            assert_eq!(link, expected, "{file} and {LINKS} agree about [{label}]");
            used.push(label.to_owned());
        }
    }
    for label in links.keys() {
        assert!(used.iter().any(|used| used == label), "{LINKS}: the label [{label}] is used");
    }
}

#[test]
fn figures_of_the_crates_documentation_are_those_of_the_documents() {
    assert_eq!(base64(b"links"), "bGlua3M=", "the encoder pads a group of two bytes");
    for (label, drawing, file, bench) in FIGURES {
        let svg = fs::read(path(drawing)).expect("the figure is in the repository");
        assert!(
            read(file) == definition(label, &svg),
            "{file} contains {drawing}; this command writes both: \
             cargo bench -p diesel-peers-tests --bench {bench} --features mysql"
        );
    }
}

/// A migration that is copied from the chapter creates the table that the ledger needs.
#[test]
fn statement_of_the_ledgers_table_is_that_of_the_code() {
    let chapter = read("docs/transactions.md");
    let blocks = chapter.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
    let words = |sql: &str| sql.split_whitespace().collect::<Vec<_>>().join(" ");
    let blocks: Vec<_> =
        blocks.map(|block| words(block).replace("( ", "(").replace(" )", ")")).collect();
    let name = "transaction_ledger";
    let create = format!("{};", Ledger::table(name).create_table());
    assert!(blocks.contains(&create), "{create} is a block of {blocks:?}");
    assert!(chapter.contains(&format!("Ledger::table(\"{name}\").create_table()")));
}

#[test]
fn every_chapter_is_a_module_and_in_the_contents_of_the_readme() {
    let guide = read("src/guide.rs");
    let readme = read("README.md");
    let compiled = read("tests/support/lib.rs");
    for chapter in chapters() {
        assert!(
            compiled.contains(&format!("../../{chapter}\"")),
            "the code of {chapter} is compiled"
        );
        assert!(guide.contains(&format!("\"../{chapter}\"")), "{chapter} is a module of the guide");
        assert!(readme.contains(&format!("]: {chapter}")), "{chapter} is linked in the README");
    }
}

#[test]
fn layout_in_the_design_lists_the_folders_of_the_code() {
    let design = read("DESIGN.md");
    let (_, layout) = design.split_once("\n## The layout\n").expect("the design has this heading");
    let layout = layout.split("```").nth(1).expect("the layout is a block of code");
    let listed: Vec<_> = layout
        .lines()
        .filter_map(|line| line.split_whitespace().next()?.strip_suffix('/'))
        .collect();
    for folder in &listed {
        assert!(path(folder).is_dir(), "{folder}/ exists");
    }
    let folders = files("src").into_iter().map(|name| format!("src/{name}"));
    for folder in folders.filter(|folder| path(folder).is_dir()) {
        assert!(listed.contains(&&*folder), "{folder}/ is in the layout");
    }
}

/// The tours of the design, and how many files each may lead through.
const TOURS: [(&str, usize); 2] =
    [("A connection is checked out", 6), ("A peer is marked down and comes back", 9)];

/// The code spans of a text.
fn code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// Whether the source defines a function or a type of this name.
fn defines(source: &str, name: &str) -> bool {
    [format!("fn {name}("), format!("fn {name}<"), format!("struct {name} ")]
        .iter()
        .any(|definition| source.contains(definition))
}

#[test]
fn tours_in_the_design_lead_through_functions_of_the_code() {
    let design = read("DESIGN.md");
    for (tour, limit) in TOURS {
        let (_, text) =
            design.split_once(&format!("\n### {tour}\n")).expect("the design has this tour");
        let text = text.split("\n## ").next().expect("split returns one item");
        let text = text.split("\n### ").next().expect("split returns one item");
        let (table, notes) = text.split_once("\nOn the way: ").expect("notes follow the table");
        let rows = table.lines().filter(|line| line.starts_with("| `"));
        let steps: Vec<(&str, Vec<&str>)> = rows
            .map(|row| {
                let mut cells = row.split('|').skip(1).map(code);
                let file = cells.next().expect("a row has a file")[0];
                (file, cells.next().expect("a row has functions"))
            })
            .collect();
        assert!(steps.len() > 4, "{tour}: {steps:?}");
        let files: BTreeSet<&str> = steps.iter().map(|(file, _)| *file).collect();
        assert!(files.len() <= limit, "{tour}: {} files: {files:?}", files.len());
        for (file, functions) in &steps {
            assert!(!functions.is_empty(), "{tour}: {file} has a function");
            let source = read(file);
            for name in functions {
                assert!(defines(&source, name), "{tour}: {file} has the function {name}");
            }
        }
        let spans = code(notes);
        for (at, file) in spans.iter().enumerate().filter(|(_, span)| span.starts_with("src/")) {
            let name = spans[at - 1].rsplit("::").next().expect("split returns one item");
            assert!(defines(&read(file), name), "{tour}: {file} defines {name}");
        }
    }
}

/// The documents for developers name files by their paths, from the root or from `src/`.
#[test]
fn paths_in_the_documents_are_those_of_files() {
    for document in ["DESIGN.md", "CONTRIBUTING.md"] {
        let text = read(document);
        let prose = prose(&text);
        let is_path = |span: &&str| {
            let is_plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/_.".contains(c));
            is_plain && span.contains('/') && span.contains('.')
        };
        for span in code(&prose).into_iter().filter(is_path) {
            let exists =
                [span.to_owned(), format!("src/{span}")].iter().any(|file| path(file).exists());
            assert!(exists, "{document}: {span} exists");
        }
    }
}
