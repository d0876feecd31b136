// The article's Go program: two goroutines in lockstep over two channels of strings.
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
	reportFD   = flag.Int("report-fd", 1, "descriptor to report to")
	progressFD = flag.Int("progress-fd", -1, "descriptor of the page to show progress in")
)

// Not arguments: of `go child(there, back)` the compiler would make a function of its own, and that would be the one the
// goroutine is known to have been started with.
var there, back chan string

func main() {
	flag.Parse()
	elapsed, err := play()
	report := os.NewFile(uintptr(*reportFD), "report")
	if err != nil {
		fmt.Fprintf(report, "{\"failed\":%s}\n", strconv.QuoteToASCII(err.Error()))
		os.Exit(1)
	}
	_, err = fmt.Fprintf(report, "{\"done\":{\"elapsed_ns\":%d,\"messages\":%d}}\n", elapsed.Nanoseconds(), *iterations)
	if err != nil {
		os.Exit(1)
	}
}

// Sends all messages, one by one, and waits for each to come back.
func play() (time.Duration, error) {
	progress, err := mapProgress()
	if err != nil {
		return 0, err
	}
	if *sameCPU {
		if err := pin(); err != nil {
			return 0, err
		}
	}
	there, back = make(chan string, *buffer), make(chan string, *buffer)
	go child()

	start := time.Now()
	for i := uint64(0); i < *iterations; i++ {
		there <- text
		if <-back != text {
			return 0, fmt.Errorf("message %d did not arrive as it was sent (\"%s\")", i, text)
		}
		if (i+1)%step == 0 {
			atomic.StoreUint64(progress, i+1)
		}
	}
	elapsed := time.Since(start)
	atomic.StoreUint64(progress, *iterations)
	close(there)
	return elapsed, nil
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
