-- +goose Up
ALTER TABLE image ADD COLUMN config   TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN manifest TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN source   TEXT NOT NULL DEFAULT '';
ALTER TABLE layer ADD COLUMN diff_id  TEXT NOT NULL DEFAULT '';
ALTER TABLE layer ADD COLUMN entries  INTEGER NOT NULL DEFAULT 0;

-- A layer of the image, or a disk made of several of them.
ALTER TABLE image_layer ADD COLUMN role TEXT NOT NULL DEFAULT 'layer' CHECK (role IN ('layer', 'tail', 'flat'));

-- +goose Down
ALTER TABLE image_layer DROP COLUMN role;
ALTER TABLE layer DROP COLUMN entries;
ALTER TABLE layer DROP COLUMN diff_id;
ALTER TABLE image DROP COLUMN source;
ALTER TABLE image DROP COLUMN manifest;
ALTER TABLE image DROP COLUMN config;
