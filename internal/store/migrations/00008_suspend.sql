-- +goose Up
-- Two more states that may be wanted. A constraint of a column is its column's for ever.
ALTER TABLE vm ADD COLUMN wants TEXT NOT NULL DEFAULT 'stopped'
  CHECK (wants IN ('stopped', 'running', 'paused', 'suspended', 'deleted'));
UPDATE vm SET wants = wanted;
ALTER TABLE vm DROP COLUMN wanted;
ALTER TABLE vm RENAME COLUMN wants TO wanted;

-- +goose Down
ALTER TABLE vm ADD COLUMN wants TEXT NOT NULL DEFAULT 'stopped' CHECK (wants IN ('stopped', 'running', 'deleted'));
UPDATE vm SET wants = CASE wanted WHEN 'paused' THEN 'running' WHEN 'suspended' THEN 'stopped' ELSE wanted END;
ALTER TABLE vm DROP COLUMN wanted;
ALTER TABLE vm RENAME COLUMN wants TO wanted;
