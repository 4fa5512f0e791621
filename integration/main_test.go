package integration_test

import (
	"os"
	"testing"

	"gatehouse/integration/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Run(m)) }
