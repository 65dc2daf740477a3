-- +goose Up
ALTER TABLE vm ADD COLUMN root_disk TEXT NOT NULL DEFAULT 'overlay' CHECK (root_disk IN ('overlay', 'dm-snapshot'));

-- +goose Down
ALTER TABLE vm DROP COLUMN root_disk;
