package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"banger/internal/image"
	"banger/internal/kernel"
	"banger/internal/network"
	"banger/internal/store"
	"banger/internal/vm"
)

// openDatabase opens the database at path. One that is damaged is set aside, never
// overwritten, and a new one takes its place; adopt fills that.
func openDatabase(ctx context.Context, path string, log *slog.Logger) (*store.DB, error) {
	var db *store.DB
	err := fmt.Errorf("open database %s: %w: it is gone, and its journal is not", path, store.ErrDamaged)
	if !store.Torn(path) {
		db, err = store.Open(ctx, path)
	}
	if !errors.Is(err, store.ErrDamaged) {
		return db, err
	}
	aside, serr := store.SetAside(path)
	log.Error("the database cannot be used and is set aside; what directories tell is taken up again", "err", err, "to", aside, "set aside", serr)
	if serr != nil {
		return nil, errors.Join(err, serr)
	}
	return store.Open(ctx, path)
}

// adopt makes the database know what only second copies do, which is nothing unless
// it was lost, or an older one was put back. The recovery that follows removes what
// is unknown still, so that an error here forbids it.
func adopt(ctx context.Context, images *image.Manager, kernels *kernel.Manager, vms *vm.Service, net *network.Network, log *slog.Logger) error {
	if err := net.Check(ctx); err != nil {
		return err
	}
	if err := images.Adopt(ctx, log); err != nil {
		return fmt.Errorf("take up images again: %w", err)
	}
	if err := kernels.Adopt(ctx, log); err != nil {
		return fmt.Errorf("take up kernels again: %w", err)
	}
	if err := net.Restore(ctx); err != nil {
		return fmt.Errorf("take up the network again: %w", err)
	}
	if err := vms.Adopt(ctx); err != nil {
		return fmt.Errorf("take up VMs again: %w", err)
	}
	return nil
}
