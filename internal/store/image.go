package store

import (
	"context"
	"database/sql"
	"time"

	"banger/api"
	"banger/internal/image"
)

// InsertImage implements image.Store.
func (db *DB) InsertImage(ctx context.Context, img image.Image) error {
	return db.tx(ctx, "image.insert", func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO image (owner, name, id, created, entries) VALUES (?,?,?,?,?)`,
			img.Owner, img.Name, img.ID, img.Created.UnixNano(), img.Entries)
		if isUnique(err) {
			return api.Errorf(api.CodeAlreadyExists, "import image %q: an image of that name exists", img.Name).
				WithHint("banger image rm %s, or choose another name", img.Name)
		}
		if err != nil {
			return err
		}
		for i, l := range img.Layers {
			if _, err := tx.ExecContext(ctx, `INSERT INTO layer (digest, dir, size) VALUES (?,?,?) ON CONFLICT (digest) DO NOTHING`,
				l.Digest, l.Dir, l.Size); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, `INSERT INTO image_layer (owner, name, position, digest) VALUES (?,?,?,?)`,
				img.Owner, img.Name, i, l.Digest); err != nil {
				return err
			}
		}
		return nil
	})
}

// Images implements image.Store.
func (db *DB) Images(ctx context.Context) ([]image.Image, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT i.owner, i.name, i.id, i.created, i.entries, l.digest, l.dir, l.size
		FROM image i JOIN image_layer il ON il.owner = i.owner AND il.name = i.name JOIN layer l ON l.digest = il.digest
		ORDER BY i.created, i.owner, i.name, il.position`)
	parts, err := collect(rows, err, func(rows *sql.Rows, i *image.Image) error {
		var created int64
		var l image.Layer
		err := rows.Scan(&i.Owner, &i.Name, &i.ID, &created, &i.Entries, &l.Digest, &l.Dir, &l.Size)
		i.Created, i.Layers = time.Unix(0, created), []image.Layer{l}
		return err
	})
	var all []image.Image
	for _, p := range parts {
		if n := len(all); n > 0 && all[n-1].Owner == p.Owner && all[n-1].Name == p.Name {
			all[n-1].Layers = append(all[n-1].Layers, p.Layers...)
		} else {
			all = append(all, p)
		}
	}
	return all, err
}

// DeleteImage implements image.Store.
func (db *DB) DeleteImage(ctx context.Context, owner uint32, name string) (orphans []image.Layer, err error) {
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
		rows, err = tx.QueryContext(ctx, `DELETE FROM layer WHERE digest NOT IN (SELECT digest FROM image_layer) RETURNING digest, dir, size`)
		orphans, err = collect(rows, err, scanLayer)
		return err
	})
	return orphans, err
}

// Layers implements image.Store.
func (db *DB) Layers(ctx context.Context) ([]image.Layer, error) {
	rows, err := db.sql.QueryContext(ctx, `SELECT digest, dir, size FROM layer`)
	return collect(rows, err, scanLayer)
}

func scanLayer(rows *sql.Rows, l *image.Layer) error { return rows.Scan(&l.Digest, &l.Dir, &l.Size) }

func scanString(rows *sql.Rows, s *string) error { return rows.Scan(s) }
