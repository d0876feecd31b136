/*
 * The workload `process` in C: four bytes go back and forth between two processes over two pipes, the textbook method to measure
 * a context switch (lmbench's lat_ctx, OSTEP's homework). It does the same as pipe.rs, with only the C library.
 *
 * process ROUND_TRIPS NEAR_CPU FAR_CPU REPORT_FD PROGRESS_FD
 *
 * A CPU of -1 means that the process is not pinned. The outcome is written to REPORT_FD as one line of JSON (a message of
 * run/child.rs), the progress to the page behind PROGRESS_FD (workload/progress.rs).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* The messages between two stores of the progress, and the size of its page in bytes, as in progress.rs. */
#define STEP 1024
#define PAGE 4096

static int report_fd;

/* Reports the failure on report_fd, and exits with status 1. */
static void fail(const char *what, int error) {
    dprintf(report_fd, "{\"failed\":\"%s%s%s\"}\n", what, error ? " failed: " : "", error ? strerror(error) : "");
    exit(1);
}

static const char *const GONE = "the other side of the pipe ended during the run";

/* The text of every message, which every receiver checks; the same as MESSAGE in mod.rs. */
static const char MESSAGE[4] = {'j', 'o', 'e', '0'};

static void send(int fd) {
    if (write(fd, MESSAGE, sizeof MESSAGE) != sizeof MESSAGE)
        fail(errno == EPIPE ? GONE : "write", errno == EPIPE ? 0 : errno);
}

static void receive(int fd, uint64_t index) {
    char message[sizeof MESSAGE];
    /* The kernel writes and reads four bytes of a pipe in one piece. */
    ssize_t length = read(fd, message, sizeof message);
    if (length <= 0)
        fail(length == 0 ? GONE : "read", length == 0 ? 0 : errno);
    if (length != sizeof message || memcmp(message, MESSAGE, sizeof message) != 0) {
        char text[80];
        snprintf(text, sizeof text, "message %llu differs from the one that was sent", (unsigned long long)index);
        fail(text, 0);
    }
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

static void pin(int cpu) {
    if (cpu < 0)
        return;
    size_t size = CPU_ALLOC_SIZE(cpu + 1);
    cpu_set_t *set = CPU_ALLOC(cpu + 1);
    if (!set)
        fail("CPU_ALLOC", ENOMEM);
    CPU_ZERO_S(size, set);
    CPU_SET_S(cpu, size, set);
    if (sched_setaffinity(0, size, set) != 0)
        fail("sched_setaffinity", errno);
    CPU_FREE(set);
}

/* The side that starts: sends each message and waits for its answer. Stores the start time and returns the elapsed time. */
static uint64_t ping(int from, int to, uint64_t round_trips, uint64_t *progress, uint64_t *started) {
    uint64_t start = *started = now_ns();
    for (uint64_t index = 0; index < round_trips; index++) {
        send(to);
        receive(from, index);
        if ((index + 1) % STEP == 0)
            __atomic_store_n(progress, index + 1, __ATOMIC_RELAXED);
    }
    uint64_t elapsed = now_ns() - start;
    __atomic_store_n(progress, round_trips, __ATOMIC_RELAXED);
    return elapsed;
}

/* The side that answers each message. */
static void pong(int from, int to, uint64_t round_trips) {
    for (uint64_t index = 0; index < round_trips; index++) {
        receive(from, index);
        send(to);
    }
}

int main(int argc, char **argv) {
    if (argc != 6)
        return 2;
    uint64_t round_trips = strtoull(argv[1], NULL, 10);
    int near_cpu = atoi(argv[2]), far_cpu = atoi(argv[3]), progress_fd = atoi(argv[5]);
    report_fd = atoi(argv[4]);
    /* If the peer has ended, write fails with EPIPE instead of killing this process. */
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NAME, "process");

    uint64_t *progress = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, progress_fd, 0);
    if (progress == MAP_FAILED)
        fail("mmap", errno);
    int there[2], back[2];
    if (pipe(there) != 0 || pipe(back) != 0)
        fail("pipe", errno);
    pid_t parent = getpid();
    pid_t child = fork();
    if (child < 0)
        fail("fork", errno);
    if (child == 0) {
        close(there[1]);
        close(back[0]);
        /* Only the parent writes the one report; it notices from the status of this child that the child failed. */
        report_fd = -1;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* The parent may have ended before prctl took effect. */
        if (getppid() != parent)
            _exit(1);
        pin(far_cpu);
        pong(there[0], back[1], round_trips);
        _exit(0);
    }
    close(there[0]);
    close(back[1]);
    pin(near_cpu);
    uint64_t started, elapsed = ping(back[0], there[1], round_trips, progress, &started);
    int status;
    if (waitpid(child, &status, 0) != child)
        fail("waitpid", errno);
    if (status != 0)
        fail("the echo process failed", 0);
    dprintf(report_fd, "{\"done\":{\"elapsed_ns\":%llu,\"messages\":%llu,\"started_ns\":%llu}}\n",
            (unsigned long long)elapsed, (unsigned long long)round_trips, (unsigned long long)started);
    return 0;
}
