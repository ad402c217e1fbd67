-- The statements of distfs/access/db.py, by name; the rules of queries.sql hold here too.

-- name: tokens_since
-- What has changed since a revision, and its last change; of no revision (0) what is good now. Times from now on, in
-- seconds: nobody else's clock counts.
SELECT id, encode(hash, 'hex'), coalesce(encode(hash_before, 'hex'), ''),
    coalesce(extract(epoch FROM before_until - now()), 0)::double precision,
    extract(epoch FROM expires_at - now())::double precision, revoked_at IS NOT NULL, revision,
    encode(link_key, 'hex'), coalesce(encode(link_key_before, 'hex'), ''),
    array_to_json(revoked_links), name, owner, array_to_json(scopes), weight, cap_in, cap_out, max_file_size, max_uploads, quota, array_to_json(policies)
FROM token
WHERE revision >= :known AND (CAST(:known AS bigint) > 0 OR (revoked_at IS NULL AND coalesce(expires_at > now(), true)))
ORDER BY revision LIMIT :limit;

-- name: create_token
SELECT create_token(
    :id, CAST(:hash AS bytea), :name, :owner, CAST(:scopes AS text[]), :weight, :cap_in, :cap_out, :max_file_size,
    :max_uploads, :quota, CAST(:policies AS text[]), CAST(:expires AS double precision), :first
);

-- name: token_expiry
SELECT expires_at FROM token WHERE id = :id;

-- name: revoke_token
UPDATE token SET revoked_at = now() WHERE id = :id AND revoked_at IS NULL RETURNING id;

-- name: revoke_link
-- Those that would have ended by themselves go. A clock may be a day wrong.
UPDATE token SET (revoked_links, revoked_links_until) = (
    SELECT array_agg(each.link), array_agg(each.until) FROM (
        SELECT before.link, before.until FROM unnest(revoked_links, revoked_links_until) AS before (link, until)
        WHERE before.until > now() - interval '1 day' AND before.link <> CAST(:link AS uuid)
        UNION ALL SELECT CAST(:link AS uuid), to_timestamp(CAST(:until AS double precision))
    ) AS each
)
WHERE id = :id AND revoked_at IS NULL AND (
    SELECT count(*) < 1000 FROM unnest(revoked_links_until) AS until WHERE until > now() - interval '1 day'
)
RETURNING id;

-- name: is_revoked
SELECT id FROM token WHERE id = :id AND revoked_at IS NOT NULL;

-- name: rotate_token
-- The one before holds for a while: clients are told one after another. So with the links that were made with it.
UPDATE token SET hash = CAST(:hash AS bytea), hash_before = hash, link_key = DEFAULT, link_key_before = link_key,
    before_until = now() + make_interval(secs => CAST(:overlap AS double precision))
WHERE id = :id AND hash <> CAST(:hash AS bytea) AND revoked_at IS NULL AND coalesce(expires_at > now(), true)
RETURNING id;

-- name: has_hash
SELECT id FROM token WHERE hash = CAST(:hash AS bytea);

-- name: tokens
SELECT id, name, token.owner, array_to_json(scopes), weight, cap_in, cap_out, max_file_size, max_uploads, quota,
    array_to_json(policies), created_at, expires_at, revoked_at, coalesce(owned.bytes, 0)
FROM token LEFT JOIN owned ON owned.owner = token.owner
WHERE :all OR (revoked_at IS NULL AND coalesce(expires_at > now(), true))
ORDER BY created_at, id;

-- name: owned_bytes
SELECT bytes FROM owned WHERE owner = :owner;

-- name: create_link
-- Those that came to their end a while ago go, a few at a time. A clock may be a day wrong.
WITH ended AS (
    DELETE FROM link WHERE id IN (
        SELECT id FROM link WHERE expires_at < now() - interval '1 day'
        ORDER BY expires_at LIMIT 100 FOR UPDATE SKIP LOCKED
    )
)
INSERT INTO link (id, most, expires_at, sealed_id, owner, token_id, body)
VALUES (
    :id, :most, to_timestamp(CAST(:expires AS double precision)), :sealed_id, :owner, :token, CAST(:body AS bytea)
) ON CONFLICT DO NOTHING;

-- name: links_of
-- An owner's, with the keys that their tokens have now: none, when a token is good no more.
SELECT sealed_id, link.owner, encode(body, 'hex'), made_at, coalesce(most, 0), cardinality(uses),
    sealed_id = ANY (revoked_links), coalesce(encode(link_key, 'hex'), ''),
    coalesce(CASE WHEN before_until > now() THEN encode(link_key_before, 'hex') END, '')
FROM link LEFT JOIN token ON token.id = token_id
    AND token.revoked_at IS NULL AND coalesce(token.expires_at > now(), true)
WHERE link.owner = :owner AND sealed_id > CAST(:after AS uuid) AND link.expires_at > now()
ORDER BY sealed_id LIMIT :limit;

-- name: links_after
-- The same of all owners.
SELECT sealed_id, link.owner, encode(body, 'hex'), made_at, coalesce(most, 0), cardinality(uses),
    sealed_id = ANY (revoked_links), coalesce(encode(link_key, 'hex'), ''),
    coalesce(CASE WHEN before_until > now() THEN encode(link_key_before, 'hex') END, '')
FROM link LEFT JOIN token ON token.id = token_id
    AND token.revoked_at IS NULL AND coalesce(token.expires_at > now(), true)
WHERE sealed_id > CAST(:after AS uuid) AND link.expires_at > now()
ORDER BY sealed_id LIMIT :limit;

-- name: link_by_id
SELECT encode(body, 'hex'), token_id FROM link WHERE sealed_id = :id;

-- name: take_link
UPDATE link SET uses = array_append(uses, CAST(:use AS uuid))
WHERE id = :id AND cardinality(uses) < most AND NOT uses @> ARRAY[CAST(:use AS uuid)] RETURNING id;

-- name: has_taken_link
SELECT id FROM link WHERE id = :id AND uses @> ARRAY[CAST(:use AS uuid)];

-- name: give_back_link
UPDATE link SET uses = array_remove(uses, CAST(:use AS uuid)) WHERE id = :id;

-- name: link_is_left
SELECT id FROM link WHERE id = :id AND cardinality(uses) < most;
