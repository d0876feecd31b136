// A goroutine that sleeps 40 times in C code, and a thread that the C code creates, which sleeps 20 times and runs no goroutine.
package main

/*
#cgo LDFLAGS: -lpthread
#include <pthread.h>
#include <unistd.h>

// Thread-locals of C are in the same TLS segment as Go's.
static __thread volatile int count;

static void naps(void) {
	for (count = 0; count < 40; count++)
		usleep(2000);
}

static void *stranger(void *unused) {
	pthread_setname_np(pthread_self(), "stranger");
	for (count = 0; count < 20; count++)
		usleep(2000);
	return unused;
}

static void start(void) {
	pthread_t thread;
	pthread_create(&thread, 0, stranger, 0);
	pthread_detach(thread);
}
*/
import "C"

import "time"

var done = make(chan bool)

func napper() {
	C.naps()
	done <- true
}

func main() {
	C.start()
	go napper()
	<-done
	time.Sleep(50 * time.Millisecond)
}
