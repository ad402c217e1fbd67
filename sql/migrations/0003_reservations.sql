-- Room that is promised to uploads while they run, so that no two are promised the same. Unlogged: a reservation
-- costs no disk write, and after a crash of MetaDB the services that live put theirs back when they renew them.

CREATE UNLOGGED TABLE reservation (
    id uuid PRIMARY KEY,
    service uuid NOT NULL,
    width smallint NOT NULL CHECK (width BETWEEN 1 AND 16),
    share bigint NOT NULL CHECK (share >= 0),
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
) WITH (fillfactor = 50);
COMMENT ON TABLE reservation IS 'share bytes on each of width nodes. Its service renews it; without that it counts for nothing after expires_at.';
COMMENT ON COLUMN reservation.ended_at IS 'Its upload was committed: it counts until every node has reported what it wrote.';

CREATE UNLOGGED TABLE admission (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    grants bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE admission IS 'Counts reservations. Who grants one names the count it has seen: if that is old, it looks again.';
