package image

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"time"

	"banger/api"
	"banger/internal/resource"
)

// A blob that has not arrived whole stays in its directory when a pull breaks off or
// the daemon dies, and the next pull of it goes on there. Nobody else's does: what is
// here of a blob would be given to who cannot show that the registry gives it. Those of a
// user take no more of the disk than the content of one image may.
const (
	partialFile = "partial.json" // marks such a directory
	partialAge  = 24 * time.Hour // after so long a start of the daemon removes it
)

// partial is what the mark says.
type partial struct {
	Blob  string `json:"blob"` // digest
	Owner uint32 `json:"owner"`
}

// resumes says whether the blobs of an artifact can be taken up where they broke off:
// those that come from elsewhere and are known by digest and size.
func (a Artifact) resumes() bool {
	for _, l := range a.Layers {
		if l.Digest == "" || l.Size < 0 || l.Offered == nil {
			return false
		}
	}
	return true
}

// brokenOff says whether an attempt may succeed another time with what it has got.
func brokenOff(err error) bool {
	return err != nil && (errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || api.CodeOf(err) == api.CodeUnavailable)
}

// markPartial says of a directory which blob arrives there.
func (m *Manager) markPartial(dir string, p partial) error {
	data, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(m.path(dir, partialFile), data, 0o400)
}

// leavePartial leaves a directory to the next pull, unless there is another one with
// that blob.
func (m *Manager) leavePartial(dir string, p partial) bool {
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	if m.partials[p] != "" {
		return false
	}
	m.partials[p] = dir
	return true
}

// trimPartials removes what has waited longest for an owner, until the rest fits.
func (m *Manager) trimPartials(ctx context.Context, owner uint32) error {
	type part struct {
		partial
		since time.Time
		size  int64
	}
	var parts []part
	for p, dir := range m.waiting() {
		if p.Owner != owner {
			continue
		}
		size, err := m.allocated(dir)
		if err != nil {
			return err
		}
		var since time.Time
		if info, err := os.Stat(m.path(dir, archiveFile)); err == nil {
			since = info.ModTime()
		}
		parts = append(parts, part{p, since, size})
	}
	slices.SortFunc(parts, func(a, b part) int { return b.since.Compare(a.since) })
	var total int64
	var errs []error
	for _, p := range parts {
		if total += p.size; total > m.MaxSize {
			errs = append(errs, m.dropPartial(ctx, p.partial))
		}
	}
	return errors.Join(errs...)
}

// takePartial gives the caller what is here of a blob.
func (m *Manager) takePartial(p partial) (dir string, ok bool) {
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	dir, ok = m.partials[p]
	delete(m.partials, p)
	return dir, ok
}

// openPartial opens what is here of a blob of so many bytes.
func (m *Manager) openPartial(dir string, size int64) (*os.File, error) {
	file, err := os.OpenFile(m.path(dir, archiveFile), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.Size() > size {
		err = errors.New("it is longer than the blob")
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// findPartials looks, at the start of a daemon, for what pulls under an earlier one
// have left, in directories of no layer.
func (m *Manager) findPartials(ctx context.Context, alive map[string]bool) error {
	rows, err := m.Ledger.Rows(ctx)
	if err != nil {
		return err
	}
	for _, row := range rows {
		if row.State == resource.Releasing || row.Kind != dirKind || alive[row.Owner] || row.Owner != layerOwner(row.Name) {
			continue
		}
		if p, ok := m.readPartial(row.Name); ok {
			m.leavePartial(row.Name, p)
		}
	}
	return nil
}

func (m *Manager) readPartial(dir string) (p partial, ok bool) {
	data, err := os.ReadFile(m.path(dir, partialFile))
	if err != nil || json.Unmarshal(data, &p) != nil {
		return p, false
	}
	info, err := os.Stat(m.path(dir, archiveFile))
	return p, err == nil && info.Size() > 0 && time.Since(info.ModTime()) < partialAge
}

// waiting are the directories that wait for another pull.
func (m *Manager) waiting() map[partial]string {
	m.busyMu.Lock()
	defer m.busyMu.Unlock()
	return maps.Clone(m.partials)
}

// dropPartial removes what is here of a blob.
func (m *Manager) dropPartial(ctx context.Context, p partial) error {
	dir, ok := m.takePartial(p)
	if !ok {
		return nil
	}
	return m.Ledger.ReleaseOwner(ctx, layerOwner(dir))
}
