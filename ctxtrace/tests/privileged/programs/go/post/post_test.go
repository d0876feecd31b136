package post

import (
	"sync"
	"testing"
)

func TestCouriers(t *testing.T) {
	var done sync.WaitGroup
	done.Add(2)
	go courier(40, &done)
	go courier(20, &done)
	done.Wait()
}

func TestNap(t *testing.T) {
	for i := 0; i < 20; i++ {
		nap()
	}
}
