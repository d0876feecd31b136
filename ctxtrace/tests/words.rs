//! The words that CONTRIBUTING bans ("Style of English") occur nowhere in the repository: not in comments, messages, names, documents,
//! schemas or the page.

use std::path::{Path, PathBuf};

/// Banned words, in lower case. A name in snake case or camel case is split into its words first.
const WORDS: &[&str] = &[
    "anybody",
    "homeless",
    "mend",
    "mended",
    "mending",
    "mends",
    "nobody",
    "nobodys",
    "somebody",
    "somebodys",
    "tell",
    "telling",
    "tells",
    "told",
    "waking",
    "wakings",
    "whoever",
    "whomever",
];

/// Banned phrases, in lower case.
const PHRASES: &[&str] = &[
    "are said",
    "as ever",
    "bring home",
    "brought home",
    "had better",
    "hang on",
    "hangs on",
    "in vain",
    "is said",
    "of so many",
    "says so",
    "those who",
];

/// Names of the kernel, of other programs and of published JSON keys that contain a banned word.
const NAMES: &[&str] = &[
    "SchedWaking",
    "WakeToWaking",
    "WakingToSwitchIn",
    "\"wakings\"",
    "`wakings`",
    "sched_waking",
    "told_again",
    "wake-to-waking",
    "waking-to-switch-in",
    "waking_ns",
    "wakings/",
    "|waking|",
];

/// What is searched: the repository's own text. Generated files are made from it, except the schemas, which are published.
const ROOTS: &[&str] = &[
    ".ci",
    ".github",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.toml",
    "README.md",
    "SECURITY.md",
    "ctxtrace",
    "ctxtrace-abi",
    "ctxtrace-analysis",
    "ctxtrace-bench",
    "ctxtrace-common",
    "ctxtrace-dist",
    "ctxtrace-ebpf",
    "ctxtrace-format",
    "ctxtrace-probe",
    "ctxtrace-report",
    "deny.toml",
    "docs",
    "fuzz",
    "xtask",
    "xtask-process",
];

/// Folders that hold other people's text, generated text or test data.
const SKIPPED: &[&str] = &[
    "bpf",
    "captures",
    "corpus",
    "golden",
    "node_modules",
    "pictures",
    "target",
    "vendor",
];

fn files_below(path: &Path, found: &mut Vec<PathBuf>) {
    if path.is_file() {
        let is_text = path.extension().is_none_or(|extension| {
            [
                "c", "css", "go", "html", "js", "json", "md", "mjs", "py", "rs", "sh", "toml", "yml",
            ]
            .iter()
            .any(|known| extension == *known)
        });
        let is_skipped = path
            .file_name()
            .is_some_and(|name| name == "package-lock.json" || name == "words.rs");
        if is_text && !is_skipped {
            found.push(path.to_owned());
        }
        return;
    }
    let entries = std::fs::read_dir(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    for entry in entries {
        let entry = entry.expect("an entry").path();
        let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !SKIPPED.contains(&name) {
            files_below(&entry, found);
        }
    }
}

/// The words of a line, in lower case. Underscores and capital letters separate words.
fn words_of(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut is_lower_before = false;
    for letter in line.chars() {
        if !letter.is_alphabetic() || letter.is_uppercase() && is_lower_before {
            words.push(String::new());
        }
        if letter.is_alphabetic() {
            words.last_mut().expect("a word").extend(letter.to_lowercase());
        }
        is_lower_before = letter.is_lowercase();
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The banned words and phrases of a line.
fn banned_in(line: &str) -> Vec<&'static str> {
    let line = NAMES.iter().fold(line.to_owned(), |line, name| line.replace(name, " "));
    let words = words_of(&line);
    let text = format!(" {} ", words.join(" "));
    let of_words = WORDS.iter().filter(|banned| words.iter().any(|word| word == **banned));
    let of_phrases = PHRASES.iter().filter(|phrase| text.contains(&format!(" {phrase} ")));
    of_words.chain(of_phrases).copied().collect()
}

#[test]
fn banned_words_are_found_in_text_and_in_names() {
    assert_eq!(banned_in("// Nobody is told."), ["nobody", "told"]);
    assert_eq!(banned_in("fn is_told(WhoTold: u8)"), ["told"]);
    assert_eq!(banned_in("it looked in vain"), ["in vain"]);
    assert!(banned_in("sched_waking, waking_ns, intellect, untold").is_empty());
}

#[test]
fn banned_words_occur_nowhere() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let mut files = Vec::new();
    for root in ROOTS {
        files_below(&repository.join(root), &mut files);
    }
    assert!(files.len() > 200, "only {} files were found", files.len());
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read(&file).expect("readable");
        for (index, line) in String::from_utf8_lossy(&text).lines().enumerate() {
            for banned in banned_in(line) {
                let path = file.strip_prefix(repository).expect("below it").display();
                found.push(format!("{path}:{}: {banned}: {}", index + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{} banned words:\n{}", found.len(), found.join("\n"));
}
