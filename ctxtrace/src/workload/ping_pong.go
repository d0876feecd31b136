// The article's Go program: two goroutines in lock-step over two channels of strings.
// A variant has a third goroutine, which sends without waiting for answers.
//
// `ctxtrace run --mode go` builds and starts it. Like ctxtrace's other workloads, it reports the outcome on a descriptor and
// the progress in a shared page.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const text = "joe0"

// The number of messages between two stores into the shared page.
const step = 1024

var (
	iterations = flag.Uint64("iterations", 2000000, "messages to send")
	buffer     = flag.Int("buffer", 0, "messages a channel holds")
	sameCPU    = flag.Bool("same-cpu", false, "run on one CPU")
	pipelined  = flag.Bool("pipelined", false, "send without waiting for answers")
	count      = flag.Bool("count-in-flight", false, "count the messages in flight")
	reportFD   = flag.Int("report-fd", 1, "descriptor to report to")
	progressFD = flag.Int("progress-fd", -1, "descriptor of the page to report progress in")
)

// The channels are not arguments: for `go child(there, back)` the compiler would generate a wrapper function, and the runtime would
// record the wrapper as the start function of the goroutine.
var there, back chan string

func main() {
	flag.Parse()
	result, err := play()
	report := os.NewFile(uintptr(*reportFD), "report")
	if err != nil {
		fmt.Fprintf(report, "{\"failed\":%s}\n", strconv.QuoteToASCII(err.Error()))
		os.Exit(1)
	}
	most := ""
	if *count {
		most = fmt.Sprintf(",\"max_in_flight\":%d", atomic.LoadInt64(&maxInFlight))
	}
	_, err = fmt.Fprintf(report, "{\"done\":{\"elapsed_ns\":%d,\"messages\":%d,\"started_ns\":%d%s}}\n",
		result.elapsed.Nanoseconds(), *iterations, result.started, most)
	if err != nil {
		os.Exit(1)
	}
}

// The times of a run: how long it took, and when it started (CLOCK_MONOTONIC, nanoseconds).
type outcome struct {
	elapsed time.Duration
	started int64
}

// Sends all messages, and checks that each comes back.
func play() (result outcome, err error) {
	progress, err := mapProgress()
	if err != nil {
		return result, err
	}
	if *sameCPU {
		if err := pin(); err != nil {
			return result, err
		}
	}
	there, back = make(chan string, *buffer), make(chan string, *buffer)
	go child()

	result.started, err = monotonic()
	if err != nil {
		return result, err
	}
	start := time.Now()
	switch {
	case *pipelined:
		go sender()
		err = receiveAll(progress)
	case *count:
		err = lockStepCounted(progress)
	default:
		err = lockStep(progress)
	}
	result.elapsed = time.Since(start)
	if err != nil {
		return result, err
	}
	atomic.StoreUint64(progress, *iterations)
	return result, nil
}

// Sends the messages one by one, and waits for each to come back.
func lockStep(progress *uint64) error {
	for i := uint64(0); i < *iterations; i++ {
		there <- text
		if <-back != text {
			return altered(i)
		}
		if (i+1)%step == 0 {
			atomic.StoreUint64(progress, i+1)
		}
	}
	close(there)
	return nil
}

// Does the same as lockStep and counts the messages in flight. It is a separate loop so that counting does not slow down lockStep.
func lockStepCounted(progress *uint64) error {
	for i := uint64(0); i < *iterations; i++ {
		isSent()
		there <- text
		message := <-back
		atomic.AddInt64(&inFlight, -1)
		if message != text {
			return altered(i)
		}
		if (i+1)%step == 0 {
			atomic.StoreUint64(progress, i+1)
		}
	}
	close(there)
	return nil
}

// Sends all messages, and waits only for room in the channel.
func sender() {
	for i := uint64(0); i < *iterations; i++ {
		if *count {
			isSent()
		}
		there <- text
	}
	close(there)
}

// Receives and checks all messages of sender, after child has sent them back.
func receiveAll(progress *uint64) error {
	for i := uint64(0); i < *iterations; i++ {
		message := <-back
		if *count {
			atomic.AddInt64(&inFlight, -1)
		}
		if message != text {
			return altered(i)
		}
		if (i+1)%step == 0 {
			atomic.StoreUint64(progress, i+1)
		}
	}
	return nil
}

func altered(index uint64) error {
	return fmt.Errorf("message %d differs from the one that was sent (\"%s\")", index, text)
}

// The messages in flight, and their maximum so far. Only one goroutine increases them.
var inFlight, maxInFlight int64

// Counts a message that is about to be sent.
func isSent() {
	now := atomic.AddInt64(&inFlight, 1)
	if now > atomic.LoadInt64(&maxInFlight) {
		atomic.StoreInt64(&maxInFlight, now)
	}
}

// Returns the time of CLOCK_MONOTONIC in nanoseconds, which the tracer's events use. Package time gives only durations of it.
func monotonic() (int64, error) {
	const clockMonotonic = 1
	var now syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("clock_gettime: %w", errno)
	}
	return now.Nano(), nil
}

// Sends every message back.
func child() {
	for message := range there {
		back <- message
	}
}

func mapProgress() (*uint64, error) {
	if *progressFD < 0 {
		return new(uint64), nil
	}
	page, err := syscall.Mmap(*progressFD, 0, 4096, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	return (*uint64)(unsafe.Pointer(&page[0])), nil
}

// Pins all threads to the last CPU that the process may use. The existing threads are pinned one by one, until no new one is
// found; threads that are created later inherit the CPU from the threads that create them.
func pin() error {
	var allowed, one [1024]uint64
	if err := affinity(syscall.SYS_SCHED_GETAFFINITY, 0, &allowed); err != nil {
		return fmt.Errorf("sched_getaffinity: %w", err)
	}
	last := -1
	for cpu := 0; cpu < len(allowed)*64; cpu++ {
		if allowed[cpu/64]&(1<<uint(cpu%64)) != 0 {
			last = cpu
		}
	}
	if last < 0 {
		return errors.New("sched_getaffinity returned no CPU")
	}
	one[last/64] = 1 << uint(last%64)
	pinned := map[int]bool{}
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		before := len(pinned)
		for _, thread := range threads {
			tid, err := strconv.Atoi(thread.Name())
			if err != nil || pinned[tid] {
				continue
			}
			if err := affinity(syscall.SYS_SCHED_SETAFFINITY, tid, &one); err != nil && err != syscall.ESRCH {
				return fmt.Errorf("sched_setaffinity: %w", err)
			}
			pinned[tid] = true
		}
		if len(pinned) == before {
			return nil
		}
	}
}

func affinity(call uintptr, tid int, set *[1024]uint64) error {
	_, _, errno := syscall.RawSyscall(call, uintptr(tid), unsafe.Sizeof(*set), uintptr(unsafe.Pointer(set)))
	if errno != 0 {
		return errno
	}
	return nil
}
