//! Long and large recordings: threads that end together or in very great number, and tables that fill while the target runs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{ctxtrace, number, stderr};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "threads_that_end_together_lose_no_record",
        threads_that_end_together_lose_no_record,
    ),
    (
        "threads_beyond_those_told_apart_are_in_the_sums",
        threads_beyond_those_told_apart_are_in_the_sums,
    ),
    (
        "more_edges_than_the_table_holds_are_all_there",
        more_edges_than_the_table_holds_are_all_there,
    ),
    (
        "more_stacks_than_the_table_holds_are_all_there",
        more_stacks_than_the_table_holds_are_all_there,
    ),
];

/// Threads of [`END_TOGETHER`], beside the first one.
const TOGETHER: i64 = 5_000;

/// Threads that all sleep until the same moment, and end.
const END_TOGETHER: &str = r"
#define _GNU_SOURCE
#include <pthread.h>
#include <time.h>
#include <unistd.h>
static struct timespec end;
static void *sleeper(void *none) { clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, 0); return 0; }
static pthread_t threads[5000];
int main(void) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += 2;
    for (int i = 0; i < 5000; i++)
        if (pthread_create(&threads[i], &small, sleeper, 0)) return 1;
    for (int i = 0; i < 5000; i++) pthread_join(threads[i], 0);
    return 0;
}";

/// Threads of [`ONE_BY_ONE`], beside the first one.
const IN_TURN: i64 = 40_000;

/// Threads of which each ends before the next one begins.
const ONE_BY_ONE: &str = r"
#include <pthread.h>
static void *nothing(void *none) { return 0; }
int main(void) {
    for (int i = 0; i < 40000; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, 0)) return 1;
        pthread_join(thread, 0);
    }
    return 0;
}";

/// Pairs of threads of [`PAIRS`], of which one wakes the other.
const WAKEUPS: usize = 127 * 126;

/// 127 threads, each with a pipe, pass a number on, so that each thread wakes each other one once: from thread `i` the number
/// `step` goes to thread `i + step`, and comes to all of them before `step` grows. 127 is a prime number.
const PAIRS: &str = r"
#include <pthread.h>
#include <unistd.h>
enum { N = 127 };
static int pipes[N][2];
struct pass { int step, hops; };
static void *passer(void *number) {
    long i = (long)number;
    struct pass pass;
    while (read(pipes[i][0], &pass, sizeof pass) == sizeof pass && pass.step < N) {
        usleep(100);
        long next = (i + pass.step) % N;
        if (++pass.hops == N) pass.hops = 0, pass.step++;
        if (pass.step == N)
            for (long each = 0; each < N; each++) (void)!write(pipes[each][1], &pass, sizeof pass);
        else
            (void)!write(pipes[next][1], &pass, sizeof pass);
    }
    return 0;
}
int main(void) {
    pthread_t threads[N];
    struct pass first = {1, 0};
    for (long i = 0; i < N; i++) if (pipe(pipes[i])) return 1;
    for (long i = 0; i < N; i++) if (pthread_create(&threads[i], 0, passer, (void *)i)) return 1;
    usleep(100000);
    (void)!write(pipes[0][1], &first, sizeof first);
    for (long i = 0; i < N; i++) pthread_join(threads[i], 0);
    return 0;
}";

/// Distinct stacks that [`STACKS`] sleeps with.
const DISTINCT: usize = 4_096;

/// Sleeps with each of 4,096 stacks: of twelve frames, each of which is one of two functions.
const STACKS: &str = r"
#define _GNU_SOURCE
#include <sys/resource.h>
#include <unistd.h>
static volatile int slept;
static long sleeps(void) {
    struct rusage usage;
    getrusage(RUSAGE_THREAD, &usage);
    return usage.ru_nvcsw;
}
/* A timer that ends before the thread has gone to sleep leaves no switch: it is set again. */
static void zero(int path, int depth);
static void one(int path, int depth);
static __attribute__((noinline)) void further(int path, int depth) {
    if (depth == 0) for (long before = sleeps(); sleeps() == before;) usleep(500);
    else if (path & 1) one(path >> 1, depth - 1);
    else zero(path >> 1, depth - 1);
    slept++;
}
static __attribute__((noinline)) void zero(int path, int depth) { further(path, depth); slept++; }
static __attribute__((noinline)) void one(int path, int depth) { further(path, depth); slept++; }
int main(void) {
    for (int path = 0; path < 4096; path++) further(path, 12);
    return 0;
}";

/// Records one of these programs. The status is 0, so the kernel's counts are the same, and the ledger adds up.
fn record(name: &str, source: &str, options: &str, folder: &Path) -> Value {
    let (program, json) = (build(name, source, folder), folder.join("report.json"));
    let line = format!("record {options} --json {} -- {}", json.display(), program.display());
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = std::fs::read(json).expect("written");
    let report: Value = serde_json::from_slice(&text).expect("a report");
    assert_eq!(number(&report, "/reconciliation/difference"), 0);
    assert_eq!(report["ledger_adds_up"], true);
    report
}

fn build(name: &str, source: &str, folder: &Path) -> PathBuf {
    let (file, built) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&file, source).expect("written");
    let flags = [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
        "-pthread",
        "-w",
    ];
    let status = Command::new("cc").args(flags).arg("-o").arg(&built).arg(&file).status();
    assert!(status.expect("there is a C compiler").success());
    built
}

/// How many threads a report is of.
fn threads_in(report: &Value) -> i64 {
    let threads = report["threads"].as_array().expect("threads");
    threads
        .iter()
        .map(|thread| thread["folded"].as_i64().unwrap_or(1))
        .sum()
}

fn threads_that_end_together_lose_no_record() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = record("together", END_TOGETHER, "--level counts", folder.path());
    assert_eq!(number(&report, "/lost/thread_records"), 0);
    assert_eq!(threads_in(&report), TOGETHER + 1);
}

/// The events are played again, so the sums of the folded threads are compared with those that the events come to.
fn threads_beyond_those_told_apart_are_in_the_sums() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = record(
        "one_by_one",
        ONE_BY_ONE,
        "--level timeline --ring-size 16M",
        folder.path(),
    );
    assert_eq!(number(&report, "/lost/thread_records"), 0);
    assert_eq!(threads_in(&report), IN_TURN + 1);
    let records = report["threads"].as_array().expect("threads").len() as i64;
    assert!(records < IN_TURN / 2, "{records} threads are told apart");
    assert_eq!(number(&report, "/lost/timeline_events"), 0);
    assert_eq!(report["timeline"]["agrees"], true);
    assert!(report["reconciliation"]["rusage"].is_null());
}

fn more_edges_than_the_table_holds_are_all_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = record("pairs", PAIRS, "--level counts", folder.path());
    assert_eq!(number(&report, "/lost/wakeup_edges"), 0);
    let edges = report["wakeups"].as_array().expect("wakeups");
    let pairs: BTreeSet<_> = edges
        .iter()
        .filter(|edge| edge["origin"] == "thread")
        .map(|edge| (edge["from_tid"].as_i64(), edge["to_tid"].as_i64()))
        .collect();
    // A thread that has not gone to sleep yet is not woken.
    assert!(pairs.len() > WAKEUPS * 9 / 10, "{} edges", pairs.len());
}

fn more_stacks_than_the_table_holds_are_all_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let folded = folder.path().join("folded");
    let options = format!("--level stacks --max-stacks 1024 --folded {}", folded.display());
    let report = record("stacks", STACKS, &options, folder.path());
    assert_eq!(number(&report, "/lost/stacks"), 0);
    assert_eq!(number(&report, "/lost/stack_sums"), 0);
    let text = std::fs::read_to_string(folded).expect("written");
    let stacks: BTreeSet<Vec<&str>> = text
        .lines()
        .map(|line| {
            line.split(';')
                .filter(|frame| matches!(*frame, "zero" | "one"))
                .collect()
        })
        .filter(|path: &Vec<_>| path.len() == 12)
        .collect();
    assert_eq!(stacks.len(), DISTINCT);
}
