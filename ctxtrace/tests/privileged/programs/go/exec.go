// A program with a goroutine that starts 20 programs, for the test of os/exec.
package main

import (
	"os/exec"
	"sync"
)

func launcher(times int, done *sync.WaitGroup) {
	for i := 0; i < times; i++ {
		if err := exec.Command("true").Run(); err != nil {
			panic(err)
		}
	}
	done.Done()
}

func main() {
	var done sync.WaitGroup
	done.Add(1)
	go launcher(20, &done)
	done.Wait()
}
