// A program whose goroutines sleep in system calls a known number of times, for the tests of the Go locator.
package main

import (
	"syscall"
	"time"
)

var (
	done = make(chan bool)
	pipe [2]int
)

func nap() {
	length := syscall.Timespec{Nsec: 2e6}
	syscall.Nanosleep(&length, nil)
}

// napper sleeps 40 times.
func napper() {
	for i := 0; i < 40; i++ {
		nap()
	}
	done <- true
}

// reader reads 25 bytes from a pipe that is filled slowly.
func reader() {
	var text [1]byte
	for i := 0; i < 25; i++ {
		syscall.Read(pipe[0], text[:])
	}
	done <- true
}

func main() {
	if err := syscall.Pipe(pipe[:]); err != nil {
		panic(err)
	}
	go napper()
	go reader()
	for i := 0; i < 25; i++ {
		time.Sleep(4 * time.Millisecond)
		syscall.Write(pipe[1], []byte{'x'})
	}
	<-done
	<-done
}
