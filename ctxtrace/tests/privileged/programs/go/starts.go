// A program whose goroutines are started in different ways, for the tests of the types of goroutines. Each goroutine sleeps in system
// calls a known number of times.
package main

import (
	"sync"
	"syscall"
)

var done sync.WaitGroup

//go:noinline
func nap(times int) {
	for i := 0; i < times; i++ {
		length := syscall.Timespec{Nsec: 1e6}
		syscall.Nanosleep(&length, nil)
	}
	done.Done()
}

func plain() {
	nap(20)
}

// courier makes two calls, so it is too long to be inlined.
func courier(first, second int) {
	done.Add(1)
	nap(first)
	nap(second)
}

// porter makes one call, so newer compilers inline it into its wrapper.
func porter(times int) {
	nap(times)
}

type van struct {
	times int
}

func (v *van) deliver(times int) {
	done.Add(1)
	nap(v.times)
	nap(times)
}

func (v van) park() {
	done.Add(1)
	nap(v.times)
	nap(v.times)
}

// load is so large that a wrapper copies it.
type load struct {
	parts [40]int
}

func carry(l load, times int) int {
	done.Add(1)
	nap(l.parts[7])
	nap(times)
	return times
}

func main() {
	done.Add(8)
	go plain()
	go courier(20, 20)
	go courier(20, 10)
	go porter(20)
	v := &van{20}
	go v.deliver(10)
	park := v.park
	go park()
	var l load
	l.parts[7] = 20
	go carry(l, 20)
	go func() {
		nap(20)
	}()
	done.Wait()
}
