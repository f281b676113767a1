//! What the documents say of each other and of the code is so: their links, and the house in the design.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const FILES: [&str; 5] =
    ["README.md", "OPERATIONS.md", "DESIGN.md", "CONTRIBUTING.md", "CHANGELOG.md"];

/// The documents that are also in the crate's documentation.
const IN_RUSTDOC: [&str; 2] = ["README.md", "OPERATIONS.md"];

fn read(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{file}: {error}"))
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Returns the targets of inline links, `[text](target)`, and whether each one is of an image.
fn inline(prose: &str) -> impl Iterator<Item = (bool, &str)> {
    prose.match_indices("](").map(|(at, _)| {
        let target = prose[at + 2..].split([')', ' ']).next().expect("it has an end");
        let start = prose[..at].rfind('[').expect("a link begins");
        (prose[..start].ends_with('!'), target)
    })
}

/// Returns the targets of link definitions, `[name]: target`.
fn definitions(text: &str) -> BTreeMap<&str, &str> {
    let line = |line: &str| line.trim_start_matches(['/', '!', ' ']).len();
    let lines = text.lines().map(|it| &it[it.len() - line(it)..]);
    lines.filter_map(|line| line.strip_prefix('[')?.split_once("]: ")).collect()
}

/// Returns the names that links refer to, `[text][name]`.
fn labels(prose: &str) -> impl Iterator<Item = &str> {
    prose.match_indices("][").map(|(at, _)| prose[at + 2..].split(']').next().expect("it ends"))
}

fn anchors(text: &str) -> Vec<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    let slug = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        words.chars().filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect()
    };
    headings.map(slug).collect()
}

#[test]
fn links_in_documents_have_existing_targets() {
    for file in FILES {
        let text = read(file);
        let prose = prose(&text);
        let definitions = definitions(&text);
        for label in labels(&prose) {
            assert!(definitions.contains_key(label), "{file}: [{label}] is defined");
        }
        let targets = inline(&prose).map(|(_, target)| target).chain(definitions.into_values());
        for target in targets.filter(|target| !target.starts_with("http")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { file } else { path };
            assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(path).exists(), "{file}: {target}");
            let is_there = || anchors(&read(path)).iter().any(|it| it == anchor);
            assert!(anchor.is_empty() || is_there(), "{file}: {target}");
        }
    }
}

/// In the crate's documentation, relative paths lead nowhere, and the definitions in `src/lib.rs` take
/// precedence.
#[test]
fn links_of_documents_in_rustdoc_are_defined_in_the_crate() {
    let lib = read("src/lib.rs");
    let own = definitions(&lib);
    for file in IN_RUSTDOC {
        let text = read(file);
        let prose = prose(&text);
        let to_files = inline(&prose)
            .filter(|(is_image, target)| !is_image && !target.starts_with(['#', 'h']));
        assert_eq!(to_files.collect::<Vec<_>>(), [], "{file}: these are given by name");
        for label in labels(&prose) {
            assert!(own.contains_key(label), "{file}: [{label}] leads somewhere in src/lib.rs");
        }
    }
}

/// The files of code in a folder, as `peers/set`.
fn code(folder: &Path, within: &str, all: &mut Vec<String>) {
    for entry in fs::read_dir(folder).expect("our own folder").flatten() {
        let name = entry.file_name().into_string().expect("our own names");
        if entry.path().is_dir() {
            code(&entry.path(), &format!("{within}{name}/"), all);
        } else if let Some(name) = name.strip_suffix(".rs").filter(|name| *name != "tests") {
            all.push(format!("{within}{name}"));
        }
    }
}

#[test]
fn the_house_in_the_design_is_complete() {
    let design = read("DESIGN.md");
    let (_, house) = design.split_once("\n## The house\n").expect("there is such a heading");
    let house = house.split("```").nth(1).expect("it is a block");
    let mut floor = "";
    let mut rooms = Vec::new();
    for line in house.lines().filter(|line| !line.is_empty()) {
        let word = line.split_whitespace().next().expect("it is not empty");
        let name = word.trim_end_matches(".rs").trim_end_matches('/');
        if let Some(name) = name.strip_prefix("src/") {
            floor = name;
            rooms.push(floor.to_owned());
        } else {
            rooms.push(format!("{floor}/{name}"));
        }
    }
    let mut files = Vec::new();
    code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), "", &mut files);
    for file in &files {
        assert!(rooms.contains(file), "{file} is in the house");
    }
    for room in rooms {
        assert!(files.contains(&room), "{room} is in src");
    }
}
