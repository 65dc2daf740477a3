package store

import (
	"context"
	"database/sql"
	"encoding/json"
	"time"

	"banger/api"
	"banger/internal/image"
)

// What a layer is to an image. The disks made of several come after all layers.
const (
	roleLayer = "layer"
	roleTail  = "tail"

	tailPosition = 10_000
)

// InsertImage implements image.Store.
func (db *DB) InsertImage(ctx context.Context, img image.Image, replace bool) error {
	return db.tx(ctx, "image.insert", func(tx *sql.Tx) error {
		if replace {
			if err := untag(ctx, tx, img.Owner, img.Name); err != nil {
				return err
			}
		}
		used := img.Used
		if used.Before(img.Created) {
			used = img.Created
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO image (owner, name, id, created, entries, config, manifest, source, used) VALUES (?,?,?,?,?,?,?,?,?)`,
			img.Owner, img.Name, img.ID, img.Created.UnixNano(), img.Entries, img.Config, img.Manifest, img.Source, used.UnixNano())
		if isUnique(err) {
			return api.Errorf(api.CodeAlreadyExists, "import image %q: an image of that name exists", img.Name).
				WithHint("banger image rm %s, or choose another name", img.Name)
		}
		if err != nil {
			return err
		}
		add := func(position int, role string, l image.Layer) error {
			if err := insertLayer(ctx, tx, l); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, `INSERT INTO image_layer (owner, name, position, digest, role) VALUES (?,?,?,?,?)`,
				img.Owner, img.Name, position, l.Digest, role)
			return err
		}
		for i, l := range img.Layers {
			if err := add(i, roleLayer, l); err != nil {
				return err
			}
		}
		if img.Tail != nil {
			if err := add(tailPosition, roleTail, *img.Tail); err != nil {
				return err
			}
		}
		return nil
	})
}

// untag takes a name from the image that has it. One that VMs use stays, under its id;
// others go.
func untag(ctx context.Context, tx *sql.Tx, owner uint32, name string) error {
	used := `EXISTS (SELECT 1 FROM vm WHERE vm.image_id = image.id) AND NOT EXISTS (SELECT 1 FROM image o WHERE o.id = image.id AND (o.owner, o.name) <> (image.owner, image.name))`
	_, err := tx.ExecContext(ctx, `INSERT INTO image (owner, name, id, created, entries, config, manifest, source, used)
		SELECT owner, id, id, created, entries, config, manifest, source, used FROM image WHERE owner = ? AND name = ? AND `+used, owner, name)
	if err == nil {
		_, err = tx.ExecContext(ctx, `INSERT INTO image_layer (owner, name, position, digest, role)
			SELECT i.owner, i.id, l.position, l.digest, l.role FROM image_layer l JOIN image i ON i.owner = l.owner AND i.name = l.name
			WHERE i.owner = ?1 AND i.name = ?2 AND EXISTS (SELECT 1 FROM image o WHERE o.owner = ?1 AND o.name = i.id)`, owner, name)
	}
	if err == nil {
		_, err = tx.ExecContext(ctx, `DELETE FROM image WHERE owner = ? AND name = ?`, owner, name)
	}
	return err
}

// Images implements image.Store.
func (db *DB) Images(ctx context.Context) ([]image.Image, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT i.owner, i.name, i.id, i.created, i.entries, i.config, i.manifest, i.source, i.used,
		il.role, l.digest, l.diff_id, l.blob, l.dir, l.size, l.entries
		FROM image i JOIN image_layer il ON il.owner = i.owner AND il.name = i.name JOIN layer l ON l.digest = il.digest
		ORDER BY i.created, i.owner, i.name, il.position`)
	parts, err := collect(rows, err, func(rows *sql.Rows, i *image.Image) error {
		var created, used int64
		var role string
		var l image.Layer
		err := rows.Scan(&i.Owner, &i.Name, &i.ID, &created, &i.Entries, &i.Config, &i.Manifest, &i.Source, &used,
			&role, &l.Digest, &l.DiffID, &l.Blob, &l.Dir, &l.Size, &l.Entries)
		i.Created, i.Used = time.Unix(0, created), time.Unix(0, used)
		if role == roleTail {
			i.Tail = &l
		} else {
			i.Layers = []image.Layer{l}
		}
		return err
	})
	var all []image.Image
	for _, p := range parts {
		if n := len(all); n > 0 && all[n-1].Owner == p.Owner && all[n-1].Name == p.Name {
			all[n-1].Layers = append(all[n-1].Layers, p.Layers...)
			all[n-1].Tail = p.Tail
		} else {
			all = append(all, p)
		}
	}
	return all, err
}

// DeleteImage implements image.Store.
func (db *DB) DeleteImage(ctx context.Context, owner uint32, name string, keep []string) (orphans []image.Layer, err error) {
	err = db.tx(ctx, "image.delete", func(tx *sql.Tx) error {
		rows, err := tx.QueryContext(ctx, `SELECT v.name FROM image i JOIN vm v ON v.image_id = i.id
			WHERE i.owner = ?1 AND i.name = ?2 AND NOT EXISTS
			(SELECT 1 FROM image o WHERE o.id = i.id AND (o.owner, o.name) <> (?1, ?2))`, owner, name)
		vms, err := collect(rows, err, scanString)
		if err != nil {
			return err
		}
		if len(vms) > 0 {
			return inUse("image", name, vms)
		}
		res, err := tx.ExecContext(ctx, `DELETE FROM image WHERE owner = ? AND name = ?`, owner, name)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil || n == 0 {
			return api.Errorf(api.CodeNotFound, "remove image %q: no such image", name).WithHint("banger image list")
		}
		orphans, err = deleteOrphans(ctx, tx, keep)
		return err
	})
	return orphans, err
}

// DeleteOrphans implements image.Store.
func (db *DB) DeleteOrphans(ctx context.Context, keep []string) (orphans []image.Layer, err error) {
	err = db.tx(ctx, "layer.orphans", func(tx *sql.Tx) error {
		orphans, err = deleteOrphans(ctx, tx, keep)
		return err
	})
	return orphans, err
}

func deleteOrphans(ctx context.Context, tx *sql.Tx, keep []string) ([]image.Layer, error) {
	kept, err := json.Marshal(append([]string{}, keep...))
	if err != nil {
		return nil, err
	}
	rows, err := tx.QueryContext(ctx, `DELETE FROM layer WHERE digest NOT IN (SELECT digest FROM image_layer)
		AND digest NOT IN (SELECT value FROM json_each(?)) RETURNING `+layerColumns, string(kept))
	return collect(rows, err, scanLayer)
}

// Layers implements image.Store.
func (db *DB) Layers(ctx context.Context) ([]image.Layer, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT `+layerColumns+` FROM layer`)
	return collect(rows, err, scanLayer)
}

// Layer implements image.Store.
func (db *DB) Layer(ctx context.Context, digest string) (image.Layer, bool, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT `+layerColumns+` FROM layer WHERE digest = ?`, digest)
	layers, err := collect(rows, err, scanLayer)
	if err != nil || len(layers) == 0 {
		return image.Layer{}, false, err
	}
	return layers[0], true, nil
}

// InsertLayer implements image.Store.
func (db *DB) InsertLayer(ctx context.Context, l image.Layer) error {
	return db.tx(ctx, "layer.insert", func(tx *sql.Tx) error { return insertLayer(ctx, tx, l) })
}

func insertLayer(ctx context.Context, tx *sql.Tx, l image.Layer) error {
	_, err := tx.ExecContext(ctx, `INSERT INTO layer (`+layerColumns+`) VALUES (?,?,?,?,?,?) ON CONFLICT (digest) DO NOTHING`,
		l.Digest, l.DiffID, l.Blob, l.Dir, l.Size, l.Entries)
	return err
}

// ResizeLayer implements image.Store.
func (db *DB) ResizeLayer(ctx context.Context, digest string, size int64) error {
	return db.exec(ctx, "layer.resize", `UPDATE layer SET size = ? WHERE digest = ?`, size, digest)
}

const layerColumns = `digest, diff_id, blob, dir, size, entries`

func scanLayer(rows *sql.Rows, l *image.Layer) error {
	return rows.Scan(&l.Digest, &l.DiffID, &l.Blob, &l.Dir, &l.Size, &l.Entries)
}

func scanString(rows *sql.Rows, s *string) error { return rows.Scan(s) }
