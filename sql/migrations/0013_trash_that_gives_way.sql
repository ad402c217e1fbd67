-- Room that is needed now: a file in the trash whose fragments are to be deleted for good, before its time is over.
-- The version before puts the fragments of such a file aside when its time is over, as it does with any.
ALTER TABLE trash ADD COLUMN erase_at timestamptz;
COMMENT ON COLUMN trash.erase_at IS 'Its room is needed: from then on its fragments are deleted, and not put aside. It cannot be undeleted.';
