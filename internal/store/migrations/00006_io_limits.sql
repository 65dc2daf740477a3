-- +goose Up
-- What a VM's disks may do by the second; 0 for no limit.
ALTER TABLE vm ADD COLUMN io_read_bps   INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN io_write_bps  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN io_read_iops  INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN io_write_iops INTEGER NOT NULL DEFAULT 0;

-- +goose Down
ALTER TABLE vm DROP COLUMN io_write_iops;
ALTER TABLE vm DROP COLUMN io_read_iops;
ALTER TABLE vm DROP COLUMN io_write_bps;
ALTER TABLE vm DROP COLUMN io_read_bps;
