package vm

import (
	"testing"

	"banger/api"

	"pgregory.net/rapid"
)

// Nobody gets the user of another one, and all of them are given.
func TestUIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint32Range(1, 1<<32-20).Draw(t, "first")
		size := rapid.Uint32Range(1, 16).Draw(t, "size")
		svc := &Service{owners: map[string]*owner{}}
		c := &confinement{svc: svc, uids: UIDs{first, first + size - 1}}
		settle := func(rec Record) (Record, bool) {
			had := rec.UID
			rec, err := c.settle(t.Context(), rec)
			if err != nil {
				if api.CodeOf(err) != api.CodeUnavailable || len(svc.owners) != int(size) {
					t.Errorf("with %d of %d taken: %v", len(svc.owners), size, err)
				}
				return rec, false
			}
			if c.uids.contains(had) && rec.UID != had || !c.uids.contains(rec.UID) {
				t.Errorf("it had %d and got %d, of %v", had, rec.UID, c.uids)
			}
			return rec, true
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			id := rapid.StringN(1, 1, 1).Draw(t, "id")
			if _, exists := svc.owners[id]; exists {
				delete(svc.owners, id)
				continue
			}
			rec, ok := settle(Record{ID: id})
			if !ok {
				continue
			}
			if svc.takenUIDs()[rec.UID] {
				t.Errorf("%d is another VM's", rec.UID)
			}
			if again, ok := settle(rec); !ok || again != rec {
				t.Errorf("settled twice: %v, %v", rec.UID, again.UID)
			}
			svc.owners[id] = &owner{rec: rec}
		}
	})
}
