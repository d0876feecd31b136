//! `--parquet`: the tables have all switches of a run, belong to the invoking user, and are the same when made from a capture.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use parquet::file::reader::{FileReader, SerializedFileReader};

use crate::support::{CTXTRACE, command, ctxtrace, number, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "every_switch_of_a_timeline_is_a_row_of_the_tables",
        every_switch_of_a_timeline_is_a_row_of_the_tables,
    ),
    (
        "under_sudo_the_tables_are_the_invoking_users",
        under_sudo_the_tables_are_the_invoking_users,
    ),
];

/// Returns the number of rows of each file in a fleet folder, by table and file name.
fn tables(folder: &Path) -> BTreeMap<(String, String), i64> {
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut tables = BTreeMap::new();
    for file in files(folder) {
        let table = name(file.parent().expect("a folder"));
        let reader = SerializedFileReader::new(File::open(&file).expect("the file exists")).expect("valid Parquet");
        tables.insert((table, name(&file)), reader.metadata().file_metadata().num_rows());
    }
    tables
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = |path: &Path| {
        std::fs::read_dir(path)
            .expect("a readable folder")
            .flatten()
            .map(|entry| entry.path())
    };
    entries(folder)
        .flat_map(|table| entries(&table).collect::<Vec<_>>())
        .collect()
}

fn every_switch_of_a_timeline_is_a_row_of_the_tables() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let line = format!(
        "run --quiet --mode process --iterations 3000 --repeat 2 --level timeline --json {} --parquet {} -o {}",
        path("x.json"),
        path("fleet"),
        path("x.ctx")
    );
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let json: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path("x.json")).expect("the file exists")).expect("valid JSON");
    let recorded = tables(&folder.path().join("fleet"));
    assert_eq!(
        recorded.len(),
        10 * 2,
        "two runs must have ten tables each: {recorded:?}"
    );
    let rows = |table: &str| {
        let of_table = recorded.iter().filter(|((name, _), _)| name == table);
        let mut rows: Vec<i64> = of_table.map(|(_, rows)| *rows).collect();
        rows.sort_unstable();
        rows
    };
    let runs = json["workload"]["runs"].as_array().expect("runs");
    let mut switches: Vec<i64> = runs.iter().map(|run| number(run, "/kernel_switches")).collect();
    switches.sort_unstable();
    assert_eq!(rows("switches"), switches);
    assert!(
        rows("wakings").contains(&number(&json, "/timeline/wakeups")),
        "{recorded:?}"
    );
    assert_eq!(rows("host"), [1, 1]);

    let output = ctxtrace(&format!("report --quiet {} --parquet {}", path("x.ctx"), path("again")));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        tables(&folder.path().join("again")),
        recorded,
        "the tables from the capture differ"
    );
}

fn under_sudo_the_tables_are_the_invoking_users() {
    const INVOKING_USER: u32 = 12_345;
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::os::unix::fs::chown(folder.path(), Some(INVOKING_USER), Some(INVOKING_USER)).expect("the owner is set");
    let fleet = folder.path().join("a/fleet");
    let capture = folder.path().join("x.ctx");
    let recorded = ctxtrace(&format!("record --quiet -o {} -- true", capture.display()));
    assert_eq!(recorded.status.code(), Some(0), "{}", stderr(&recorded));
    let output = command(&format!(
        "report --quiet {} --parquet {}",
        capture.display(),
        fleet.display()
    ))
    .env("SUDO_UID", INVOKING_USER.to_string())
    .env("SUDO_GID", INVOKING_USER.to_string())
    .output()
    .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{CTXTRACE}: {}", stderr(&output));
    let made = files(&fleet);
    assert_eq!(made.len(), 8);
    let folders = made.iter().filter_map(|file| file.parent());
    for path in made
        .iter()
        .map(PathBuf::as_path)
        .chain(folders)
        .chain([fleet.as_path(), &folder.path().join("a")])
    {
        let metadata = std::fs::metadata(path).expect("the file exists");
        assert_eq!(
            (metadata.uid(), metadata.gid()),
            (INVOKING_USER, INVOKING_USER),
            "{}",
            path.display()
        );
    }
}
