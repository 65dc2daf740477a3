-- +goose Up
ALTER TABLE vm ADD COLUMN disk_size INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN network   TEXT NOT NULL DEFAULT 'none';
ALTER TABLE vm ADD COLUMN nat       INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN ip        TEXT;
ALTER TABLE vm ADD COLUMN mac       TEXT;
ALTER TABLE vm ADD COLUMN init      INTEGER NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN host_key  TEXT NOT NULL DEFAULT '';

-- An address is its row: while it is there nobody else has it.
CREATE UNIQUE INDEX vm_ip  ON vm (ip);
CREATE UNIQUE INDEX vm_mac ON vm (mac);

-- The public keys with which users get into their VMs by ssh.
CREATE TABLE ssh_key (
  owner INTEGER NOT NULL,
  key   TEXT NOT NULL,
  PRIMARY KEY (owner, key)
) STRICT;

-- Choices that are made once and kept, such as the subnet.
CREATE TABLE setting (
  name  TEXT PRIMARY KEY,
  value TEXT NOT NULL
) STRICT;

-- +goose Down
DROP TABLE setting;
DROP TABLE ssh_key;
DROP INDEX vm_mac;
DROP INDEX vm_ip;
ALTER TABLE vm DROP COLUMN host_key;
ALTER TABLE vm DROP COLUMN init;
ALTER TABLE vm DROP COLUMN mac;
ALTER TABLE vm DROP COLUMN ip;
ALTER TABLE vm DROP COLUMN nat;
ALTER TABLE vm DROP COLUMN network;
ALTER TABLE vm DROP COLUMN disk_size;
