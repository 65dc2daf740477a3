package e2e

import (
	"testing"

	"banger/internal/hosttest"
)

func TestMain(m *testing.M) { hosttest.MainApart(m) }
