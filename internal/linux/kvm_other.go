//go:build !amd64

package linux

import (
	"context"
	"errors"
)

// ProbeKVM says that KVM is of no use: banger's guests are for amd64.
func ProbeKVM(context.Context) error {
	return errors.New("the guests are for another architecture than the host's")
}

// TSCKHz says that the rate of the time stamp counter is not known.
func TSCKHz() int64 { return 0 }
