// 3,000 short-lived goroutines, each of which sleeps in one system call. Ten of them are alive at a time.
package main

import (
	"sync"
	"syscall"
)

var group sync.WaitGroup

func short() {
	length := syscall.Timespec{Nsec: 50e3}
	syscall.Nanosleep(&length, nil)
	group.Done()
}

func main() {
	for i := 0; i < 300; i++ {
		for j := 0; j < 10; j++ {
			group.Add(1)
			go short()
		}
		group.Wait()
	}
}
