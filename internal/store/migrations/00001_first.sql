-- +goose Up
CREATE TABLE resource (
  seq     INTEGER PRIMARY KEY AUTOINCREMENT,
  id      TEXT NOT NULL UNIQUE,
  owner   TEXT NOT NULL,
  kind    TEXT NOT NULL,
  name    TEXT NOT NULL,
  spec    TEXT NOT NULL,
  state   TEXT NOT NULL CHECK (state IN ('acquiring', 'held', 'releasing')),
  boot_id TEXT NOT NULL,
  run     TEXT NOT NULL,
  error   TEXT NOT NULL DEFAULT '',
  UNIQUE (kind, name)
) STRICT;
CREATE INDEX resource_owner ON resource (owner);

CREATE TABLE layer (
  digest TEXT PRIMARY KEY,
  dir    TEXT NOT NULL UNIQUE,
  size   INTEGER NOT NULL
) STRICT;

CREATE TABLE image (
  owner   INTEGER NOT NULL,
  name    TEXT NOT NULL,
  id      TEXT NOT NULL,
  created INTEGER NOT NULL,
  entries INTEGER NOT NULL,
  PRIMARY KEY (owner, name)
) STRICT;

CREATE TABLE image_layer (
  owner    INTEGER NOT NULL,
  name     TEXT NOT NULL,
  position INTEGER NOT NULL,
  digest   TEXT NOT NULL REFERENCES layer (digest),
  PRIMARY KEY (owner, name, position),
  FOREIGN KEY (owner, name) REFERENCES image (owner, name) ON DELETE CASCADE
) STRICT;

CREATE TABLE kernel (
  name       TEXT PRIMARY KEY,
  release    TEXT NOT NULL,
  source     TEXT NOT NULL,
  dir        TEXT NOT NULL UNIQUE,
  is_default INTEGER NOT NULL,
  created    INTEGER NOT NULL,
  size       INTEGER NOT NULL
) STRICT;

-- What a VM is. What is momentarily true of it is in the ledger and in memory.
CREATE TABLE vm (
  id         TEXT PRIMARY KEY,
  owner      INTEGER NOT NULL,
  name       TEXT NOT NULL UNIQUE,
  image      TEXT NOT NULL,
  image_id   TEXT NOT NULL,
  kernel     TEXT NOT NULL,
  cpus       INTEGER NOT NULL,
  memory     INTEGER NOT NULL,
  root_size  INTEGER NOT NULL,
  ephemeral  INTEGER NOT NULL,
  wanted     TEXT NOT NULL CHECK (wanted IN ('stopped', 'running', 'deleted')),
  sync       TEXT NOT NULL,
  machine_id TEXT NOT NULL,
  created    INTEGER NOT NULL,
  last_error TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE INDEX vm_image ON vm (image_id);
CREATE INDEX vm_kernel ON vm (kernel);

-- +goose Down
DROP TABLE vm;
DROP TABLE kernel;
DROP TABLE image_layer;
DROP TABLE image;
DROP TABLE layer;
DROP TABLE resource;
