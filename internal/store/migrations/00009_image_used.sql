-- +goose Up
-- When the image was last of use to a VM, or got its name.
ALTER TABLE image ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
UPDATE image SET used = created;

-- +goose Down
ALTER TABLE image DROP COLUMN used;
