package guest

import (
	"context"
	"fmt"
	"time"

	"banger/api"
	"banger/internal/guest/wire"
)

// maxHealthOutput is how much is kept of what a health check printed, in bytes.
const maxHealthOutput = 4 << 10

// ImageHealth asks the agent what the health check of the image has found, and waits for
// it a while where the agent has nothing newer than it had at seq; nil where the image
// has no such check. It is the guest's word, made to be in order.
func (c *Conn) ImageHealth(ctx context.Context, after int64) (health *api.Health, seq int64, err error) {
	var answer wire.ImageHealth
	if err := c.ask(ctx, "ask agent for the image's health", fmt.Sprintf("/image-health?after=%d", after), &answer); err != nil {
		return nil, after, err
	}
	h := answer.Health
	if h == nil {
		return nil, answer.Seq, nil
	}
	switch h.Status {
	case api.HealthStarting, api.HealthHealthy, api.HealthUnhealthy:
	default:
		return nil, after, api.Errorf(api.CodeGuest, "ask agent for the image's health: the answer makes no sense")
	}
	h.Failing = max(h.Failing, 0)
	h.Exit = min(max(h.Exit, -1), 255)
	h.Output = plain(h.Output, maxHealthOutput)
	if h.Checked != nil && (h.Checked.Year() < 1970 || h.Checked.After(time.Now().Add(24*time.Hour))) {
		h.Checked = nil // its clock is no business of ours
	}
	return h, answer.Seq, nil
}
