package daemon

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"banger/internal/resource"
)

// How often the daemon tries to give back what the host would not let go of (each
// thing after a pause that grows), and how often it looks whether ledger and host
// agree.
const (
	retryTick = 5 * time.Second
	tendTick  = 3 * time.Minute
)

// source knows owners in the ledger.
type source interface {
	Alive(context.Context) (map[string]bool, error)
}

// living returns whether an owner in the ledger is known to any of the sources.
func living(ctx context.Context, sources []source) (func(owner string) bool, error) {
	all := map[string]bool{}
	for _, s := range sources {
		owners, err := s.Alive(ctx)
		if err != nil {
			return nil, err
		}
		maps.Copy(all, owners)
	}
	return func(owner string) bool { return all[owner] }, nil
}

// recoverAll makes ledger and host agree: what belongs to no VM, layer or kernel goes.
func recoverAll(ctx context.Context, ledger *resource.Ledger, sources []source) error {
	alive, err := living(ctx, sources)
	if err != nil {
		return err
	}
	return ledger.Recover(ctx, alive)
}

// tend is recoverAll while the daemon serves. What it finds and may not put right is
// logged once, and shown by doctor.
func tend(ctx context.Context, ledger *resource.Ledger, sources []source, told map[resource.Finding]bool, log *slog.Logger) error {
	alive, err := living(ctx, sources)
	if err != nil {
		return err
	}
	if err := ledger.Tend(ctx, alive); err != nil {
		log.Warn("ledger and host do not agree; it is tried again", "err", err)
	}
	found, err := ledger.Check(ctx)
	for _, f := range found {
		if !told[f] {
			log.Warn("ledger and host do not agree", "finding", f)
		}
	}
	clear(told)
	for _, f := range found {
		told[f] = true
	}
	return err
}

// keep does both, from time to time, until ctx ends.
func keep(ctx context.Context, ledger *resource.Ledger, sources []source, log *slog.Logger) {
	retries, passes := time.NewTicker(retryTick), time.NewTicker(tendTick)
	defer retries.Stop()
	defer passes.Stop()
	told := map[resource.Finding]bool{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-retries.C:
			if err := ledger.Retry(ctx); err != nil {
				log.Warn("what could not be given back still cannot", "err", err)
			}
		case <-passes.C:
			if err := tend(ctx, ledger, sources, told, log); err != nil && ctx.Err() == nil {
				log.Error("compare ledger and host", "err", err)
			}
		}
	}
}
