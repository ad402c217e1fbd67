-- Times that every part of the cluster must hold to. Two services with different ones undo each other's work: what
-- one still uploads is garbage to the other.

CREATE TABLE setting (
    name text PRIMARY KEY CHECK (octet_length(name) <= 100),
    seconds double precision NOT NULL CHECK (seconds >= 0),
    changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE setting IS 'What the cluster agreed on. The first service writes its own; one with others refuses to start.';
