// A program one of whose goroutines starts programs: what the test of os/exec traces.
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
