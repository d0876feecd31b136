//! Long and large recordings: many threads that exit, at the same time or one after the other, and tables that fill up.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{CTXTRACE, ctxtrace, number, stderr, stdout};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "threads_that_end_together_lose_no_record",
        threads_that_end_together_lose_no_record,
    ),
    (
        "threads_beyond_the_tracked_ones_are_in_the_sums",
        threads_beyond_the_tracked_ones_are_in_the_sums,
    ),
    (
        "more_edges_than_the_table_holds_are_all_recorded",
        more_edges_than_the_table_holds_are_all_recorded,
    ),
    (
        "more_stacks_than_the_table_holds_are_all_recorded",
        more_stacks_than_the_table_holds_are_all_recorded,
    ),
    (
        "forked_children_have_the_names_of_their_parents_mappings_and_of_their_own",
        forked_children_have_the_names_of_their_parents_mappings_and_of_their_own,
    ),
    (
        "wakeup_pairs_of_many_runnable_threads_are_all_recorded",
        wakeup_pairs_of_many_runnable_threads_are_all_recorded,
    ),
    (
        "a_flood_of_mappings_stays_in_bounds",
        a_flood_of_mappings_stays_in_bounds,
    ),
];

/// Tests that take more than ten seconds.
pub(crate) const LONG_TESTS: &[(&str, fn())] = &[
    (
        "half_a_million_stacks_stay_in_bounds",
        half_a_million_stacks_stay_in_bounds,
    ),
    (
        "two_hundred_thousand_threads_stay_in_bounds",
        two_hundred_thousand_threads_stay_in_bounds,
    ),
    (
        "sixty_thousand_forks_stay_in_bounds",
        sixty_thousand_forks_stay_in_bounds,
    ),
    (
        "forty_thousand_programs_stay_in_bounds",
        forty_thousand_programs_stay_in_bounds,
    ),
];

/// The number of threads that [`END_TOGETHER`] creates.
const TOGETHER: i64 = 5_000;

/// A program whose threads all sleep until the same moment and then exit.
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

/// The number of threads that [`ONE_BY_ONE`] creates in one of the tests.
const IN_TURN: i64 = 40_000;

/// A program that creates `COUNT` threads, each after the previous one has exited.
pub(crate) const ONE_BY_ONE: &str = r"
#include <pthread.h>
static void *nothing(void *none) { return 0; }
int main(void) {
    for (int i = 0; i < COUNT; i++) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, 0)) return 1;
        pthread_join(thread, 0);
    }
    return 0;
}";

/// The number of ordered pairs of threads of [`PAIRS`], each of a waker and a thread that it wakes.
const WAKEUPS: usize = 127 * 126;

/// A program in which each of 127 threads wakes each other one once. The threads pass on a number `step` by pipes: thread `i`
/// sends it to thread `i + step`. As 127 is a prime number, it reaches all threads before `step` is incremented.
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

/// The number of distinct stacks that [`STACKS`] sleeps with.
const DISTINCT: usize = 4_096;

/// A program that sleeps with 4,096 stacks of twelve frames. Each frame is one of two functions.
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
/* A timer that expires before the thread is switched out causes no switch, so the sleep is repeated until there is one. */
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

/// A program of two threads that wake each other. One of them waits with `COUNT` stacks of seven frames, each of which is one of
/// eight functions.
const EIGHT_WAYS: &str = r"
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <sys/eventfd.h>
#include <unistd.h>
static volatile int came_back;
static int to, from;
static void *partner(void *none) {
    unsigned long number;
    while (read(to, &number, 8) == 8) number = 1, (void)!write(from, &number, 8);
    return 0;
}
static void wait_for_partner(void) {
    unsigned long number = 1;
    (void)!write(to, &number, 8);
    (void)!read(from, &number, 8);
}
#define DECLARE(n) static void f##n(int path, int depth);
#define DEFINE(n) static __attribute__((noinline)) void f##n(int path, int depth) { \
    if (depth == 0) wait_for_partner(); \
    else switch (path & 7) { \
        case 0: f0(path >> 3, depth - 1); break; case 1: f1(path >> 3, depth - 1); break; \
        case 2: f2(path >> 3, depth - 1); break; case 3: f3(path >> 3, depth - 1); break; \
        case 4: f4(path >> 3, depth - 1); break; case 5: f5(path >> 3, depth - 1); break; \
        case 6: f6(path >> 3, depth - 1); break; default: f7(path >> 3, depth - 1); \
    } \
    came_back++; }
DECLARE(0) DECLARE(1) DECLARE(2) DECLARE(3) DECLARE(4) DECLARE(5) DECLARE(6) DECLARE(7)
DEFINE(0) DEFINE(1) DEFINE(2) DEFINE(3) DEFINE(4) DEFINE(5) DEFINE(6) DEFINE(7)
int main(void) {
    cpu_set_t one_cpu;
    CPU_ZERO(&one_cpu);
    CPU_SET(sched_getcpu(), &one_cpu);
    sched_setaffinity(0, sizeof one_cpu, &one_cpu);
    to = eventfd(0, 0), from = eventfd(0, 0);
    pthread_t thread;
    if (pthread_create(&thread, 0, partner, 0)) return 1;
    for (int path = 0; path < COUNT; path++) f0(path, 7);
    _exit(0);
}";

/// A program that starts `COUNT` processes, each after the previous one has ended. If `EXECUTES` is 1, each process executes this
/// program again, which then ends at once.
const PROCESSES: &str = r#"
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **arguments) {
    if (count > 1) return 0;
    for (int i = 0; i < COUNT; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0 && EXECUTES) execl("/proc/self/exe", arguments[0], "end", (char *)0);
        if (child == 0) _exit(EXECUTES);
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) return 1;
    }
    return 0;
}"#;

/// A program that maps and unmaps code `COUNT` times without a pause.
const MAPPINGS: &str = r#"
#include <fcntl.h>
#include <sys/mman.h>
int main(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    for (int i = 0; i < COUNT; i++) {
        void *mapped = mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
        if (mapped == MAP_FAILED || munmap(mapped, 4096)) return 1;
    }
    return 0;
}"#;

/// A program with 10 groups of 20 senders and 20 receivers. Each sender writes to each receiver of its group; many threads are
/// runnable at the same time.
const CROWD: &str = r"
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>
enum { GROUPS = 10, EACH = 20 };
static int pairs[GROUPS * EACH][2];
static void *receiver(void *number) {
    long i = (long)number;
    char message[100];
    for (int left = EACH * COUNT * (int)sizeof message; left > 0;) {
        int got = read(pairs[i][0], message, sizeof message);
        if (got <= 0) return 0;
        left -= got;
    }
    return 0;
}
static void *sender(void *number) {
    long group = (long)number / EACH;
    char message[100] = {0};
    for (int i = 0; i < COUNT; i++)
        for (int j = 0; j < EACH; j++)
            if (write(pairs[group * EACH + j][1], message, sizeof message) != sizeof message) _exit(1);
    return 0;
}
int main(void) {
    static pthread_t threads[2 * GROUPS * EACH];
    for (long i = 0; i < GROUPS * EACH; i++) if (socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i])) return 1;
    for (long i = 0; i < GROUPS * EACH; i++) if (pthread_create(&threads[2 * i], 0, receiver, (void *)i)) return 1;
    for (long i = 0; i < GROUPS * EACH; i++) if (pthread_create(&threads[2 * i + 1], 0, sender, (void *)i)) return 1;
    for (long i = 0; i < 2 * GROUPS * EACH; i++) pthread_join(threads[i], 0);
    return 0;
}";

/// The number of children of [`CHILDREN`].
const FORKED: u64 = 200;

/// A program that forks 200 children. Each of them maps additional code, and sleeps in a function of the mapping that it inherited.
const CHILDREN: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile int slept;
static long sleeps(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_nvcsw;
}
/* The functions of the C library set up no frame pointer, so a stack lacks the function that calls them, but has its caller. */
static __attribute__((noinline)) void call_usleep(void) {
    for (long before = sleeps(); sleeps() == before;) usleep(500);
    slept++;
}
static __attribute__((noinline)) void sleep_as_a_child(void) {
    call_usleep();
    slept++;
}
int main(void) {
    int file = open("/proc/self/exe", O_RDONLY);
    for (int i = 0; i < 200; i++) {
        pid_t child = fork();
        if (child < 0) return 1;
        if (child == 0) {
            if (mmap(0, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) _exit(1);
            sleep_as_a_child();
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 0) return 1;
    }
    return 0;
}"#;

/// Defines `COUNT` in a C source.
pub(crate) fn counted(count: i64, source: &str) -> String {
    format!("#define COUNT {count}\n{source}")
}

/// The maximum resident set size of a tracer, in units of 1,024 bytes: 300 MB. A test fails beyond it.
const MOST_RESIDENT_KB: i64 = 300 * 1_000_000 / 1_024;

/// A program that runs a command and prints its maximum resident set size in units of 1,024 bytes. The tests do not start the
/// command themselves, because the kernel includes what a process had before its `execve` (kernel: `fs/exec.c`, `exec_mmap()`),
/// which would be the memory of the tests.
pub(crate) const MEASURE: &str = r#"#include <fcntl.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int count, char **words) {
    if (count < 2) return 1;
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) {
        int nothing = open("/dev/null", O_WRONLY);
        if (nothing < 0 || dup2(nothing, 1) < 0) _exit(1);
        execv(words[1], words + 1);
        _exit(127);
    }
    int status;
    struct rusage usage;
    if (wait4(child, &status, 0, &usage) != child || status != 0) return 1;
    printf("%ld\n", usage.ru_maxrss);
    return 0;
}"#;

/// Records one of these programs. Checks that nothing is lost and that the tracer stays within [`MOST_RESIDENT_KB`], and prints the
/// memory and CPU time that it used.
fn record_in_bounds(name: &str, source: &str, options: &str) -> Value {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (program, json) = (build(name, source, folder.path()), folder.path().join("report.json"));
    let line = format!("record {options} --json {} -- {}", json.display(), program.display());
    let measure = build("measure", MEASURE, folder.path());
    let output = Command::new(measure)
        .arg(CTXTRACE)
        .args(line.split_whitespace())
        .stderr(Stdio::null())
        .output()
        .expect("the program starts");
    assert!(output.status.success(), "the tracer failed: {}", output.status);
    // The value is the maximum over the tracer and the programs that it waited for.
    let resident_kb: i64 = stdout(&output).trim().parse().expect("a number of kilobytes");
    let text = std::fs::read(json).expect("the file exists");
    let report: Value = serde_json::from_slice(&text).expect("a report");
    let own_ns = number(&report, "/overhead/tracer_cpu_ns");
    eprintln!("{name}: the tracer had {resident_kb} KB resident and used {own_ns} ns of CPU time while it recorded");
    assert!(
        resident_kb < MOST_RESIDENT_KB,
        "the tracer had {resident_kb} KB resident"
    );
    for lost in [
        "events",
        "stacks",
        "stack_sums",
        "wakeup_edges",
        "threads",
        "thread_records",
        "programs",
        "mappings",
    ] {
        assert_eq!(number(&report, &format!("/lost/{lost}")), 0, "lost.{lost}");
    }
    assert_eq!(number(&report, "/reconciliation/difference"), 0);
    assert_eq!(report["ledger_adds_up"], true);
    report
}

/// Records one of these programs and returns the report. Panics unless the counts equal the kernel's and the ledger adds up.
fn record(name: &str, source: &str, options: &str, folder: &Path) -> Value {
    let (program, json) = (build(name, source, folder), folder.join("report.json"));
    let line = format!("record {options} --json {} -- {}", json.display(), program.display());
    let output = ctxtrace(&line);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = std::fs::read(json).expect("the file exists");
    let report: Value = serde_json::from_slice(&text).expect("a report");
    assert_eq!(number(&report, "/reconciliation/difference"), 0);
    assert_eq!(report["ledger_adds_up"], true);
    report
}

pub(crate) fn build(name: &str, source: &str, folder: &Path) -> PathBuf {
    let (file, built) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&file, source).expect("the file is written");
    let flags = [
        "-O1",
        "-fno-omit-frame-pointer",
        "-fno-optimize-sibling-calls",
        "-pthread",
        "-w",
    ];
    let status = Command::new("cc").args(flags).arg("-o").arg(&built).arg(&file).status();
    assert!(status.expect("a C compiler is installed").success());
    built
}

/// Returns the number of threads in a report, including those that are folded into one record.
fn threads_in(report: &Value) -> i64 {
    let threads = report["threads"].as_array().expect("threads");
    threads
        .iter()
        .map(|thread| thread["folded"].as_i64().unwrap_or(1))
        .sum()
}

fn threads_that_end_together_lose_no_record() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = record("together", END_TOGETHER, "--level counts", folder.path());
    assert_eq!(number(&report, "/lost/thread_records"), 0);
    assert_eq!(threads_in(&report), TOGETHER + 1);
}

/// At level `timeline` ctxtrace replays the events and compares the sums, which include those of the folded threads.
fn threads_beyond_the_tracked_ones_are_in_the_sums() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = record(
        "one_by_one",
        &counted(IN_TURN, ONE_BY_ONE),
        "--level timeline --ring-size 16M",
        folder.path(),
    );
    assert_eq!(number(&report, "/lost/thread_records"), 0);
    assert_eq!(threads_in(&report), IN_TURN + 1);
    let records = report["threads"].as_array().expect("threads").len() as i64;
    assert!(records < IN_TURN / 2, "{records} threads are tracked individually");
    assert_eq!(number(&report, "/lost/timeline_events"), 0);
    assert_eq!(report["timeline"]["agrees"], true);
    assert!(report["reconciliation"]["rusage"].is_null());
}

fn more_edges_than_the_table_holds_are_all_recorded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let report = record("pairs", PAIRS, "--level counts", folder.path());
    assert_eq!(number(&report, "/lost/wakeup_edges"), 0);
    let edges = report["wakeups"].as_array().expect("wakeups");
    let pairs: BTreeSet<_> = edges
        .iter()
        .filter(|edge| edge["origin"] == "thread")
        .map(|edge| (edge["from_tid"].as_i64(), edge["to_tid"].as_i64()))
        .collect();
    // A thread that is not asleep when its number arrives is not woken, so a few pairs may be missing.
    assert!(pairs.len() > WAKEUPS * 9 / 10, "{} edges", pairs.len());
}

fn more_stacks_than_the_table_holds_are_all_recorded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folded = folder.path().join("folded");
    let options = format!("--level stacks --max-stacks 1024 --folded {}", folded.display());
    let report = record("stacks", STACKS, &options, folder.path());
    assert_eq!(number(&report, "/lost/stacks"), 0);
    assert_eq!(number(&report, "/lost/stack_sums"), 0);
    let text = std::fs::read_to_string(folded).expect("the file exists");
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

fn forked_children_have_the_names_of_their_parents_mappings_and_of_their_own() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folded = folder.path().join("folded");
    let options = format!("--level stacks --weight count --folded {}", folded.display());
    let report = record("children", CHILDREN, &options, folder.path());
    assert_eq!(number(&report, "/lost/mappings"), 0);
    let text = std::fs::read_to_string(folded).expect("the file exists");
    let asleep = text
        .lines()
        .filter(|line| line.split(';').any(|frame| frame == "sleep_as_a_child"));
    let counts = asleep.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    let count: u64 = counts.sum();
    assert!(count >= FORKED, "{count} sleeps of {FORKED} children");
}

fn wakeup_pairs_of_many_runnable_threads_are_all_recorded() {
    record_in_bounds("crowd", &counted(100, CROWD), "--level counts");
}

fn a_flood_of_mappings_stays_in_bounds() {
    record_in_bounds("mappings", &counted(400_000, MAPPINGS), "--level stacks");
}

fn half_a_million_stacks_stay_in_bounds() {
    let report = record_in_bounds("eight_ways", &counted(500_000, EIGHT_WAYS), "--level stacks");
    assert!(number(&report, "/kernel_switches/total") > 900_000);
}

fn two_hundred_thousand_threads_stay_in_bounds() {
    let report = record_in_bounds("threads", &counted(200_000, ONE_BY_ONE), "--level counts");
    assert_eq!(threads_in(&report), 200_001);
}

fn sixty_thousand_forks_stay_in_bounds() {
    let source = format!("#define EXECUTES 0\n{}", counted(60_000, PROCESSES));
    let report = record_in_bounds("forks", &source, "--level counts");
    assert_eq!(threads_in(&report), 60_001);
}

fn forty_thousand_programs_stay_in_bounds() {
    let source = format!("#define EXECUTES 1\n{}", counted(40_000, PROCESSES));
    let report = record_in_bounds("programs", &source, "--level stacks");
    assert_eq!(threads_in(&report), 40_001);
}
