package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"banger/api"
	"banger/internal/failpoint"
	"banger/internal/intake"
	"banger/internal/resource"
)

// committedBy is what the history of an image says of a layer that was made of a VM.
const committedBy = "banger vm promote"

// Stackable says whether a layer can be put on an image: one of an earlier version lacks
// what that takes.
func (m *Manager) Stackable(ctx context.Context, id string) (bool, error) {
	img, err := m.byID(ctx, id)
	if err != nil || img.Config == "" || len(img.Layers) >= maxLayers {
		return false, err
	}
	for _, l := range img.Layers {
		for _, file := range []string{archiveFile, treeFile} {
			if _, err := os.Stat(m.path(l.Dir, file)); err != nil || l.DiffID == "" {
				return false, nil
			}
		}
	}
	return true, nil
}

// Commit makes an image of a tar archive that is not compressed: with the layers of the
// image base below it, or, if whole, alone. What base says of how it is to be run holds
// for it too. On an error nothing is left. Errors are those of Add.
func (m *Manager) Commit(ctx context.Context, owner uint32, name, base string, whole bool, r io.Reader, report api.Reporter) (img Image, err error) {
	if !validName.MatchString(name) {
		return Image{}, badName(name)
	}
	done, err := m.reserve(ctx, owner, name, false)
	if err != nil {
		return Image{}, importError(name, err)
	}
	defer done()
	below, err := m.byID(ctx, base)
	if err != nil {
		return Image{}, err
	}
	dir := "layers/" + resource.RandomName(8)
	if _, err := m.Ledger.Acquire(ctx, layerOwner(dir), dirKind, dir, nil); err != nil {
		return Image{}, importError(name, err)
	}
	defer func() {
		rerr := m.Ledger.ReleaseOwner(context.WithoutCancel(ctx), layerOwner(dir))
		if err != nil { // else the image is there all the same, and the next start releases it
			err = importError(name, errors.Join(err, rerr))
		}
	}()
	file := filepath.Join(m.Dirs.Path(dir), "committed")
	diff, err := m.receive(ctx, file, r, report)
	if err != nil {
		return Image{}, err
	}
	if err := failpoint.Pass("layer", "received"); err != nil {
		return Image{}, err
	}
	var art Artifact
	if art.Config, err = committed(below.Config, whole, diff, time.Now()); err != nil {
		return Image{}, err
	}
	if !whole {
		for _, l := range below.Layers {
			art.Layers = append(art.Layers, m.known(l))
		}
	}
	art.Layers = append(art.Layers, fileBlob(file, "", -1))
	return m.add(ctx, owner, name, false, art, report)
}

// known is the blob of a layer that whoever asks has already, as a part of an image.
func (m *Manager) known(l Layer) Blob {
	b := fileBlob(m.path(l.Dir, archiveFile), l.Blob, -1)
	b.Offered = func(context.Context) error { return nil }
	return b
}

// receive writes an archive to a file, compressed, and returns its digest without that.
func (m *Manager) receive(ctx context.Context, name string, r io.Reader, report api.Reporter) (diff string, err error) {
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	arriving := intake.UntilDone(ctx, r)
	defer arriving.Close()
	sum, keep := sha256.New(), &keeper{file: file}
	to, buf := io.MultiWriter(sum, keep), make([]byte, bufferSize)
	for n := int64(0); ; {
		got, err := arriving.Read(buf)
		if n += int64(got); n > m.MaxSize+maxOverhead {
			return "", api.Errorf(api.CodeInvalid, "archive is too large").WithHint(limited, "max_size")
		}
		if n%roomStep < int64(got) {
			if err := m.Room.Admit("receive layer", roomStep); err != nil {
				return "", err
			}
			report(api.Progress{Step: "read", Current: n})
		}
		if _, werr := to.Write(buf[:got]); werr != nil {
			return "", werr
		}
		if err == io.EOF {
			return "sha256:" + hex.EncodeToString(sum.Sum(nil)), keep.finish()
		}
		if err != nil {
			return "", err
		}
	}
}

// committed is the config of an image with one more layer, or with that layer alone.
// What is not known of the config below stays in it.
func committed(below string, whole bool, diff string, now time.Time) ([]byte, error) {
	if below == "" { // an image of an earlier version
		plain, err := json.Marshal(plainConfig(diff))
		return plain, err
	}
	parsed, err := parseConfig([]byte(below))
	if err != nil {
		return nil, err
	}
	var all map[string]json.RawMessage
	if err := json.Unmarshal([]byte(below), &all); err != nil {
		return nil, err
	}
	rootfs, history := parsed.RootFS, parsed.History
	if whole {
		rootfs.DiffIDs, history = nil, nil
	}
	rootfs.Type, rootfs.DiffIDs = "layers", append(slices.Clone(rootfs.DiffIDs), diff)
	if len(history) == 0 && len(rootfs.DiffIDs) > 1 { // else the new line would be taken for that of the first layer
		history = slices.Repeat([]historyLine{{Created: &time.Time{}}}, len(rootfs.DiffIDs)-1)
	}
	now = now.UTC()
	history = append(slices.Clone(history), historyLine{Created: &now, CreatedBy: committedBy})
	for key, v := range map[string]any{"rootfs": rootfs, "history": history, "created": now} {
		if all[key], err = json.Marshal(v); err != nil {
			return nil, err
		}
	}
	return json.Marshal(all)
}
