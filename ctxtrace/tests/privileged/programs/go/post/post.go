// Package post has functions that its tests start as goroutines, for the test that traces `go test`.
package post

import (
	"sync"
	"syscall"
)

//go:noinline
func nap() {
	length := syscall.Timespec{Nsec: 1e6}
	syscall.Nanosleep(&length, nil)
}

// courier sleeps the given number of times.
func courier(times int, done *sync.WaitGroup) {
	for i := 0; i < times; i++ {
		nap()
	}
	done.Done()
}
