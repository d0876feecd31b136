//! The dependencies between the modules of each crate have no circle. (The compiler refuses circles between crates.)
//!
//! A module depends on another one if its code names it in a path that begins with `crate`, `self` or `super`. Tests and fixtures
//! are left out. So are paths between a module and the modules inside it, because a module declares these and they are its parts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The path of a module in its crate; the crate itself is empty.
type Module = Vec<String>;

/// The modules of a crate, each with the modules that it depends on.
type Dependencies = BTreeMap<Module, BTreeSet<Module>>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the workspace")
        .to_owned()
}

/// Returns the source folders of all crates.
fn source_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(root()).expect("the folder is readable");
    let folders = entries.map(|entry| entry.expect("the folder is readable").path());
    folders
        .filter(|folder| folder.join("Cargo.toml").exists())
        .map(|folder| folder.join("src"))
        .filter(|source| source.is_dir())
        .collect()
}

/// Adds the files below `folder`, by the paths of their modules.
fn add_files(folder: &Path, module: &Module, files: &mut BTreeMap<Module, String>) {
    for entry in fs::read_dir(folder).expect("the folder is readable") {
        let path = entry.expect("the folder is readable").path();
        let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let inner: Module = module.iter().cloned().chain([name.clone()]).collect();
        if path.is_dir() {
            add_files(&path, &inner, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let declares = matches!(name.as_str(), "lib" | "main" | "mod");
            let of_file = if declares { module.clone() } else { inner };
            // A crate may have both a library and a program; both are its root.
            files
                .entry(of_file)
                .or_default()
                .push_str(&fs::read_to_string(&path).expect("the file is readable"));
        }
    }
}

/// Returns the code without its comments and without the tests at its end.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let is_tests = lines
            .peek()
            .is_some_and(|next| next.contains("mod ") && next.ends_with('{'));
        if line == "#[cfg(test)]" && is_tests {
            break;
        }
        code.push_str(line.split("//").next().unwrap_or_default());
        code.push('\n');
    }
    code
}

/// Returns the modules that are declared below a condition that holds only in tests.
fn test_modules(module: &Module, text: &str) -> Vec<Module> {
    let mut is_for_tests = false;
    let mut found = Vec::new();
    for line in text.lines() {
        if line.starts_with("#[cfg(test)]") || line.starts_with("#[cfg(any(test, ") {
            is_for_tests = true;
        } else if !line.starts_with("#[") {
            let declared = line.strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
            if let (true, Some((_, name))) = (is_for_tests, declared) {
                found.push(module.iter().cloned().chain([name.to_owned()]).collect());
            }
            is_for_tests = false;
        }
    }
    found
}

/// Returns the paths in the code that begin with `crate`, `self` or `super`, as their parts.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    code.split(|c| !is_part(c))
        .map(|path| path.split("::").filter(|part| !part.is_empty()).collect())
        .filter(|parts: &Vec<&str>| parts.len() > 1 && matches!(parts[0], "crate" | "self" | "super"))
        .collect()
}

/// Returns the module that a path names, seen from a module.
fn named(from: &Module, path: &[&str], files: &BTreeMap<Module, String>) -> Module {
    let mut module = from.clone();
    for part in path {
        match *part {
            "crate" => module.clear(),
            "self" => {}
            "super" => drop(module.pop()),
            name => module.push(name.to_owned()),
        }
    }
    while !files.contains_key(&module) && !module.is_empty() {
        module.pop();
    }
    module
}

fn dependencies(files: &BTreeMap<Module, String>) -> Dependencies {
    let of_tests: Vec<Module> = files
        .iter()
        .flat_map(|(module, text)| test_modules(module, text))
        .collect();
    let is_of_tests = |module: &Module| of_tests.iter().any(|tests| module.starts_with(tests));
    let modules = files.iter().filter(|(module, _)| !is_of_tests(module));
    modules
        .map(|(module, text)| {
            let code = code(text);
            let all = paths(&code).into_iter().map(|path| named(module, &path, files));
            let others = all
                .filter(|other| !other.starts_with(module) && !module.starts_with(other))
                .filter(|other| !is_of_tests(other));
            (module.clone(), others.collect())
        })
        .collect()
}

/// Returns the modules that can be reached from a module.
fn reached(from: &Module, dependencies: &Dependencies) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&Module> = vec![from];
    while let Some(module) = next.pop() {
        for other in dependencies.get(module).into_iter().flatten() {
            if found.insert(other.clone()) {
                next.push(other);
            }
        }
    }
    found
}

/// Returns the dependencies between the parts of a module, each with everything inside it.
fn between_parts(of: &Module, dependencies: &Dependencies) -> Dependencies {
    let part =
        |module: &Module| (module.starts_with(of) && module.len() > of.len()).then(|| module[..=of.len()].to_vec());
    let mut between = Dependencies::new();
    for (module, others) in dependencies {
        if let Some(from) = part(module) {
            let others = others.iter().filter_map(part).filter(|other| *other != from);
            between.entry(from.clone()).or_default().extend(others);
        }
    }
    between
}

/// Returns the modules that depend on themselves through others: file by file, and as parts of the same module.
fn circles(dependencies: &Dependencies) -> BTreeSet<String> {
    let all = dependencies.keys().map(|of| between_parts(of, dependencies));
    let all: Vec<Dependencies> = all.chain([dependencies.clone()]).collect();
    all.iter()
        .flat_map(|level| level.keys().filter(|module| reached(module, level).contains(*module)))
        .map(|module| module.join("::"))
        .collect()
}

#[test]
fn no_module_depends_on_itself() {
    let mut found = Vec::new();
    for source in source_folders() {
        let mut files = BTreeMap::new();
        add_files(&source, &Module::new(), &mut files);
        let circles = circles(&dependencies(&files));
        if !circles.is_empty() {
            found.push(format!(
                "{}: {}",
                source.display(),
                circles.into_iter().collect::<Vec<_>>().join(", ")
            ));
        }
    }
    assert!(
        found.is_empty(),
        "these modules depend on themselves:\n{}",
        found.join("\n")
    );
}

#[test]
fn a_circle_is_found() {
    let files = |texts: &[(&str, &str)]| -> BTreeMap<Module, String> {
        let module = |path: &str| {
            path.split("::")
                .filter(|part| !part.is_empty())
                .map(str::to_owned)
                .collect()
        };
        texts
            .iter()
            .map(|(path, text)| (module(path), (*text).to_owned()))
            .collect()
    };
    let drawn = [
        ("", "mod one;\nmod two;\n#[cfg(test)]\nmod tests;"),
        (
            "one",
            "mod inner;\nuse crate::two::Two;\n#[cfg(test)]\nmod tests {\n    use crate::tests;\n}",
        ),
        ("one::inner", "use super::One;"),
        ("two", "// use crate::one::One;\nfn two() {}"),
        ("tests", "use crate::one;"),
    ];
    let found = |texts: &[(&str, &str)]| circles(&dependencies(&files(texts))).into_iter().collect::<Vec<_>>();
    assert_eq!(found(&drawn), Vec::<String>::new());
    // There is no circle of files, but one of parts.
    let mut of_parts = drawn;
    of_parts[3].1 = "fn two() { super::one::inner::three() }";
    assert_eq!(found(&of_parts), ["one", "two"]);
    of_parts[2].1 = "use crate::two;";
    assert_eq!(found(&of_parts), ["one", "one::inner", "two"]);
}

/// Only the tracer loads BPF programs, so captures can be read and reported where aya does not build.
#[test]
fn only_the_tracer_depends_on_aya() {
    let with_aya: Vec<String> = source_folders()
        .iter()
        .filter_map(|source| source.parent())
        .filter(|folder| {
            let manifest = fs::read_to_string(folder.join("Cargo.toml")).expect("the file is readable");
            manifest
                .lines()
                .any(|line| line.starts_with("aya.") || line.starts_with("aya ="))
        })
        .filter_map(|folder| Some(folder.file_name()?.to_string_lossy().into_owned()))
        .collect();
    assert_eq!(with_aya, ["ctxtrace"]);
}
