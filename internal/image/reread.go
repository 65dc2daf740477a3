package image

import (
	"archive/tar"
	"fmt"
	"io"
	"maps"
	"slices"
)

// reread finds entries of layers' archives again, and calls take for each with its
// header and its content. Each archive is read once, as far as it is needed.
func reread[T any](wanted map[origin]T, archive func(layer int) (io.ReadCloser, error), take func(*tar.Header, io.Reader, T) error) error {
	entries := map[int]map[int64]T{}
	for from, w := range wanted {
		if entries[from.layer] == nil {
			entries[from.layer] = map[int64]T{}
		}
		entries[from.layer][from.entry] = w
	}
	for _, layer := range slices.Sorted(maps.Keys(entries)) {
		if err := rereadLayer(layer, entries[layer], archive, take); err != nil {
			return fmt.Errorf("read layer %d again: %w", layer, err)
		}
	}
	return nil
}

func rereadLayer[T any](layer int, wanted map[int64]T, archive func(int) (io.ReadCloser, error), take func(*tar.Header, io.Reader, T) error) error {
	r, err := archive(layer)
	if err != nil {
		return err
	}
	defer r.Close()
	in := tar.NewReader(r)
	for ordinal := int64(0); len(wanted) > 0; ordinal++ {
		hdr, err := in.Next()
		if err != nil {
			return err
		}
		w, ok := wanted[ordinal]
		if !ok {
			continue
		}
		delete(wanted, ordinal)
		if err := take(hdr, in, w); err != nil {
			return err
		}
	}
	return nil
}
