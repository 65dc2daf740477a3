package host

import (
	"testing"

	"banger/internal/hosttest"
)

func TestMain(m *testing.M) { hosttest.Main(m) }
