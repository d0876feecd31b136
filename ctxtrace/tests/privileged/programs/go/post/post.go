// Package post has goroutines for its tests to start: what the test of `go test` as a target traces.
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

// courier sleeps so many times.
func courier(times int, done *sync.WaitGroup) {
	for i := 0; i < times; i++ {
		nap()
	}
	done.Done()
}
