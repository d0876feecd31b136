//! Tests of the columns of all tables, and of the rows that a synthetic run has in them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use ctxtrace_common::clock::{Leave, NotedWakeup as Noted};
use ctxtrace_common::event::Event;
use ctxtrace_common::histogram::Latency as Kind;
use ctxtrace_common::ledger::Class;
use ctxtrace_common::process::Image;
use ctxtrace_common::wakeup::{Waker, WakeupOrigin};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::Field;
use parquet::schema::printer::print_schema;

use super::file::schema;
use super::{TABLES, TableFolder, rows, write};
use crate::golden::golden;
use ctxtrace_analysis::fixtures::{info, run};
use ctxtrace_format::Level;
use ctxtrace_format::build;
use ctxtrace_format::events::{EventSink, EventSource};
use ctxtrace_format::run::{ClockAnchor, Info, Run};
use ctxtrace_format::workload::Mode;

/// A folder in which every file has its name from the beginning.
struct PlainFolder(PathBuf);

impl TableFolder for PlainFolder {
    fn create(&mut self, table: &str, name: &str) -> std::io::Result<Box<dyn Write + Send>> {
        let folder = self.0.join(table);
        std::fs::create_dir_all(&folder)?;
        Ok(Box::new(File::create(folder.join(format!("{name}.parquet")))?))
    }
}

#[test]
fn the_picture_of_the_folder_has_every_table() {
    let module = include_str!("mod.rs");
    for table in TABLES {
        assert!(module.contains(&format!("DIR/{table}/")), "{table}");
    }
    assert_eq!(module.matches("DIR/").count(), TABLES.len());
}

/// Columns, their types, and whether they can be null are a contract, because users write queries against them.
#[test]
fn golden_parquet_schema() {
    let mut text = Vec::new();
    macro_rules! tables {
        ($($name:literal: $row:ident,)*) => {
            $(print_schema(&mut text, &schema::<rows::$row<'_>>($name).expect("the schema is valid"));)*
        };
    }
    tables! {
        "host": Host,
        "programs": ProgramRow,
        "ledger": LedgerRecord,
        "tasks": TaskRow,
        "wakeups": WakeupPairRow,
        "latency": LatencyRow,
        "latency_buckets": LatencyBucket,
        "threads": ThreadRow,
        "switches": SwitchRow,
        "wakings": WakeupRow,
        "polls": Poll,
    }
    golden("parquet.schema", text);
}

/// A source of events in memory, by run.
struct Events(Vec<Vec<Event>>);

impl EventSource for Events {
    fn replay(&mut self, run: usize, sink: &mut dyn EventSink) -> std::io::Result<()> {
        // One event per batch: the length of a batch must not matter.
        let events = self.0.get(run).into_iter().flatten();
        events.for_each(|event| sink.events(std::slice::from_ref(event)));
        Ok(())
    }
}

fn read(path: &Path) -> Vec<Vec<(String, Field)>> {
    let reader =
        SerializedFileReader::new(File::open(path).expect("the file is readable")).expect("the file is valid Parquet");
    let rows = reader.get_row_iter(None).expect("the rows are readable");
    let row = |row: parquet::record::Row| {
        let columns = row.get_column_iter();
        columns.map(|(name, field)| (name.clone(), field.clone())).collect()
    };
    rows.map(|read| row(read.expect("the row is readable"))).collect()
}

/// The rows of a table that must have exactly one file.
fn table(folder: &Path, name: &str) -> Vec<Vec<(String, Field)>> {
    let files: Vec<_> = std::fs::read_dir(folder.join(name))
        .expect("the table has a folder")
        .flatten()
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    read(&files[0].path())
}

fn column(row: &[(String, Field)], name: &str) -> Field {
    let found = row.iter().find(|(column, _)| column == name);
    found.unwrap_or_else(|| panic!("there is no column {name}")).1.clone()
}

fn longs(row: &[(String, Field)], names: &[&str]) -> Vec<Option<i64>> {
    let long = |name: &&str| match column(row, name) {
        Field::Null => None,
        Field::Long(value) => Some(value),
        Field::Int(value) => Some(i64::from(value)),
        other => panic!("unexpected value of {name}: {other}"),
    };
    names.iter().map(long).collect()
}

fn text(row: &[(String, Field)], name: &str) -> Option<String> {
    match column(row, name) {
        Field::Null => None,
        Field::Str(text) => Some(text),
        other => panic!("unexpected value of {name}: {other}"),
    }
}

fn timeline() -> Info {
    Info {
        level: Level::Timeline,
        started: ClockAnchor {
            monotonic_ns: 1_000,
            boottime_ns: 0,
            realtime_ns: 1_700_000_000_000_000_000,
        },
        ..info(Mode::TaskPool)
    }
}

/// Thread 101 polls the task `sender`:
///
/// ```text
///   101 on CPU 0   1,000 ──── 3,000 out, blocked in the task      6,500 in, on CPU 1 ── 8,000 out, dead
///   wakeup                                      5,000, by 102
/// ```
fn events() -> Vec<Event> {
    let image = Image { tgid: 100, number: 0 };
    let mut came = Event::switch(1_000, 0);
    came.set_in(101, Noted::OffCpu, 900);
    let mut left = Event::switch(3_000, 0);
    left.set_out(101, Leave::Slept, true, &build::sum_key(Class::TaskBlocked, 1));
    let waker = Waker {
        task: 1,
        tid: 102,
        tgid: 100,
        origin: WakeupOrigin::Task as u32,
        ..Waker::default()
    };
    let mut back = Event::switch(6_500, 1);
    back.set_in(101, Noted::OffCpu, 5_000);
    let mut dead = Event::switch(8_000, 1);
    dead.set_out(101, Leave::Dead, true, &build::sum_key(Class::Exited, 0));
    vec![
        Event::thread(900, 0, 101, 0, 77, image, true),
        Event::wakeup(900, 0, 101, Some(Noted::OffCpu), true, &Waker::default()),
        came,
        left,
        Event::wakeup(5_000, 0, 101, Some(Noted::OffCpu), false, &waker),
        back,
        dead,
    ]
}

fn with_names() -> Run {
    let mut run = run(670_000);
    let image = Image { tgid: 100, number: 0 };
    let names = vec![String::new(), "sender".to_owned()];
    run.aggregates.names.insert(image, names);
    run.aggregates.threads[0].thread.start_boottime_ns = 77;
    run.aggregates.latencies.get_mut(Kind::RunQueue).record(1_500);
    run
}

#[test]
fn every_switch_and_wakeup_is_a_row() {
    let place = tempfile::tempdir().expect("a temporary folder is created");
    let mut folder = PlainFolder(place.path().to_owned());
    let info = timeline();
    write(&mut folder, &info, &[with_names()], None, &mut Events(vec![events()])).expect("the tables are written");

    let switches = table(place.path(), "switches");
    let times = [
        "at_ns",
        "on_cpu_ns",
        "off_cpu_ns",
        "blocked_ns",
        "run_queue_ns",
        "wake_to_run_ns",
        "next_cpu",
    ];
    assert_eq!(switches.len(), 2);
    assert_eq!(
        longs(&switches[0], &times),
        [3_000, 2_000, 3_500, 2_000, 1_500, 1_500, 1].map(Some)
    );
    assert_eq!(text(&switches[0], "class").as_deref(), Some("task-blocked"));
    assert_eq!(text(&switches[0], "task").as_deref(), Some("sender"));
    assert_eq!(text(&switches[0], "thread").as_deref(), Some("tokio-rt-worker"));
    assert_eq!(longs(&switches[0], &["time_ns"]), [Some(1_700_000_000_000_002_000)]);
    let open = longs(&switches[1], &times);
    assert_eq!(open, [Some(8_000), Some(1_500), None, None, None, None, None]);
    assert_eq!(text(&switches[1], "class").as_deref(), Some("exited"));
    assert_eq!(text(&switches[1], "task"), None);

    let wakeups = table(place.path(), "wakings");
    assert_eq!(wakeups.len(), 2);
    assert_eq!(column(&wakeups[0], "newborn"), Field::Bool(true));
    assert_eq!(
        longs(&wakeups[1], &["at_ns", "tid", "from_tid"]),
        [5_000, 101, 102].map(Some)
    );
    assert_eq!(text(&wakeups[1], "from_task").as_deref(), Some("sender"));
    assert_eq!(text(&wakeups[1], "noted").as_deref(), Some("off-cpu"));
}

#[test]
fn what_was_added_up_is_what_the_report_says() {
    let place = tempfile::tempdir().expect("a temporary folder is created");
    let mut folder = PlainFolder(place.path().to_owned());
    let mut run = with_names();
    run.aggregates.counters.lost_wakeups = 7;
    let info = info(Mode::TaskPool);
    write(
        &mut folder,
        &info,
        std::slice::from_ref(&run),
        None,
        &mut Events(Vec::new()),
    )
    .expect("the tables are written");
    let host = table(place.path(), "host");
    let counted = longs(
        &host[0],
        &[
            "kernel_switches",
            "voluntary",
            "difference",
            "lost_wakeups",
            "lost_events",
            "runs",
        ],
    );
    assert_eq!(counted, [5, 4, 0, 7, 0, 1].map(Some));
    assert_eq!(text(&host[0], "run"), Some(info.run_id(&run, 0)));
    let latency = table(place.path(), "latency");
    let kinds: Vec<_> = latency.iter().filter_map(|row| text(row, "kind")).collect();
    assert_eq!(kinds, ["off_cpu", "blocked", "run_queue", "on_cpu", "wake_to_run"]);
    assert_eq!(
        longs(&latency[2], &["count", "p99_ns", "sum_ns"]),
        [1, 1_500, 1_500].map(Some)
    );
    assert_eq!(
        longs(&latency[1], &["count", "p99_ns"]),
        [Some(0), None],
        "a percentile without data is null, not 0"
    );
    let buckets = table(place.path(), "latency_buckets");
    let waited: Vec<_> = buckets
        .iter()
        .filter(|row| text(row, "kind").as_deref() == Some("run_queue"))
        .collect();
    assert_eq!(waited.len(), 1);
    assert_eq!(
        longs(waited[0], &["from_ns", "to_ns", "count"]),
        [1_472, 1_535, 1].map(Some)
    );
    assert!(
        !place.path().join("switches").exists(),
        "a run without events has no such table"
    );
}

/// Many machines can write into the same folder.
#[test]
fn no_run_is_written_over_another() {
    let place = tempfile::tempdir().expect("a temporary folder is created");
    let mut one = timeline();
    let runs = [with_names(), with_names()];
    for host in ["one", "two", "../t\u{e9}n"] {
        host.clone_into(&mut one.host.name);
        // Written twice: the files of the same run are replaced.
        for _ in 0..2 {
            let mut folder = PlainFolder(place.path().to_owned());
            write(&mut folder, &one, &runs, None, &mut Events(vec![events()])).expect("the tables are written");
        }
    }
    for table in ["host", "ledger", "switches", "wakings"] {
        let files = std::fs::read_dir(place.path().join(table))
            .expect("the table has a folder")
            .flatten();
        let mut names: Vec<_> = files
            .map(|file| file.file_name().into_string().expect("the name is valid UTF-8"))
            .collect();
        names.sort();
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(names[0].starts_with("_t_n-20231114T221320Z-"), "{names:?}");
    }
    let entries = std::fs::read_dir(place.path().join("switches"))
        .expect("the table has a folder")
        .flatten();
    let mut rows: Vec<usize> = entries.map(|file| read(&file.path()).len()).collect();
    rows.sort_unstable();
    assert_eq!(rows, [0, 0, 0, 2, 2, 2], "a run without events has empty tables");
}

#[test]
fn rows_are_written_a_group_at_a_time() {
    let image = Image { tgid: 100, number: 0 };
    let mut many = vec![Event::thread(900, 0, 101, 0, 77, image, false)];
    for at_ns in 0..70_000_u64 {
        let mut switch = Event::switch(1_000 + 2 * at_ns, 0);
        switch.set_out(101, Leave::Runnable, false, &build::sum_key(Class::TaskPreempted, 1));
        let mut back = Event::switch(1_001 + 2 * at_ns, 0);
        back.set_in(101, Noted::OffCpu, 0);
        many.extend([switch, back]);
    }
    let place = tempfile::tempdir().expect("a temporary folder is created");
    let mut folder = PlainFolder(place.path().to_owned());
    write(&mut folder, &timeline(), &[with_names()], None, &mut Events(vec![many])).expect("the tables are written");
    let file = std::fs::read_dir(place.path().join("switches"))
        .expect("the table has a folder")
        .flatten()
        .next();
    let reader = SerializedFileReader::new(
        File::open(file.expect("the table has a file").path()).expect("the file is readable"),
    )
    .expect("the file is valid Parquet");
    let groups = reader.metadata().row_groups();
    let rows: Vec<i64> = groups
        .iter()
        .map(parquet::file::metadata::RowGroupMetaData::num_rows)
        .collect();
    assert_eq!(rows, [65_536, 70_000 - 65_536]);
}
