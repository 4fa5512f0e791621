package amqp

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"gatehouse/integration/harness"
)

func TestMain(m *testing.M) {
	code := harness.Run(m) // ends the shared broker, whose process is waited for by a goroutine
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}
