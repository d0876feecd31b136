// The article's Go program: two goroutines in lock-step over two channels of strings.
// A variant has a third one, which sends without waiting for answers.
//
// It is built and started by `ctxtrace run --mode go`, and says on a descriptor how it went and in a shared page how far it
// has got, as ctxtrace's other workloads do.
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

// Messages between two stores into the shared page.
const step = 1024

var (
	iterations = flag.Uint64("iterations", 2000000, "messages to send")
	buffer     = flag.Int("buffer", 0, "messages a channel holds")
	sameCPU    = flag.Bool("same-cpu", false, "run on one CPU")
	pipelined  = flag.Bool("pipelined", false, "send without waiting for answers")
	count      = flag.Bool("count-in-flight", false, "count the messages in flight")
	reportFD   = flag.Int("report-fd", 1, "descriptor to report to")
	progressFD = flag.Int("progress-fd", -1, "descriptor of the page to show progress in")
)

// Not arguments: of `go child(there, back)` the compiler would make a function of its own, and that would be the one the
// goroutine is known to have been started with.
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

// How it went.
type outcome struct {
	elapsed time.Duration
	started int64
}

// Sends all messages, and sees that each comes back.
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

// Sends one by one, and waits for each to come back.
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

// The same, counted. It is a loop of its own so that the other one stays as it is.
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

// Sends without waiting for anything but room.
func sender() {
	for i := uint64(0); i < *iterations; i++ {
		if *count {
			isSent()
		}
		there <- text
	}
	close(there)
}

// Receives what sender has sent.
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
	return fmt.Errorf("message %d did not arrive as it was sent (\"%s\")", index, text)
}

// Messages on their way, and the most there ever were. One goroutine raises them.
var inFlight, maxInFlight int64

// Another one is on its way.
func isSent() {
	now := atomic.AddInt64(&inFlight, 1)
	if now > atomic.LoadInt64(&maxInFlight) {
		atomic.StoreInt64(&maxInFlight, now)
	}
}

// The clock of the tracer's events, nanoseconds; package time tells durations only.
func monotonic() (int64, error) {
	const clockMonotonic = 1
	var now syscall.Timespec
	_, _, errno := syscall.RawSyscall(syscall.SYS_CLOCK_GETTIME, clockMonotonic, uintptr(unsafe.Pointer(&now)), 0)
	if errno != 0 {
		return 0, fmt.Errorf("clock_gettime: %w", errno)
	}
	return now.Nano(), nil
}

// Sends back what it gets.
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

// Pins all threads to the last CPU that the process may use. Those that the runtime has made by now are pinned one by one,
// until there is no new one; those that it makes later inherit it from their makers.
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
		return errors.New("sched_getaffinity names no CPU")
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
