-- +goose Up
-- The digest of the archive that a layer was made of, as its registry knows it.
ALTER TABLE layer ADD COLUMN blob TEXT NOT NULL DEFAULT '';

-- +goose Down
ALTER TABLE layer DROP COLUMN blob;
