-- What a worker wrote last into the catalog stands in every lease it has: a catalog that was restored
-- from a backup is told by it.
ALTER TABLE bunny.leases ADD COLUMN renewal uuid;
COMMENT ON COLUMN bunny.leases.renewal IS 'Drawn anew by each renewal; NULL before the first.';
