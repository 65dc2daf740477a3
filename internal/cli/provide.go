package cli

import (
	"context"
	"strings"

	"banger/api"
	"banger/internal/bootstrap"
)

// provide gets the kernel or the image that missing is about, and says what it
// got. What it cannot get is the error that it was given.
func (d *deps) provide(ctx context.Context, missing *api.Error) (string, error) {
	kind, name, _ := strings.Cut(missing.Object, "/")
	switch {
	case kind == "kernel" && name == "":
		k, err := d.pullKernel(ctx)
		if api.CodeOf(err) == api.CodeAlreadyExists { // another command line was quicker
			return "kernel " + name, nil
		}
		return "kernel " + describeKernel(k), err
	case kind == "image" && name == bootstrap.Host():
		i, err := d.bootstrap(ctx, name, name, nil)
		if api.CodeOf(err) == api.CodeAlreadyExists {
			return "image " + name, nil
		}
		return "image " + describeImage(i), err
	case kind == "image" && name != "":
		i, err := d.pullImage(ctx, name, "")
		if err != nil {
			e := *api.AsError(err)
			e.Message = missing.Message + ", and " + e.Message
			return "", &e
		}
		return "image " + describeImage(i), nil
	}
	return "", missing
}
