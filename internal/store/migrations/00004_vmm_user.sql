-- +goose Up
-- The user that the VM's VMM runs as, nobody else's while the row is there.
ALTER TABLE vm ADD COLUMN uid INTEGER;
CREATE UNIQUE INDEX vm_uid ON vm (uid);

-- +goose Down
DROP INDEX vm_uid;
ALTER TABLE vm DROP COLUMN uid;
