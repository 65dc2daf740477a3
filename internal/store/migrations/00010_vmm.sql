-- +goose Up
ALTER TABLE vm ADD COLUMN vmm TEXT NOT NULL DEFAULT 'auto' CHECK (vmm IN ('auto', 'firecracker', 'qemu'));

-- +goose Down
ALTER TABLE vm DROP COLUMN vmm;
