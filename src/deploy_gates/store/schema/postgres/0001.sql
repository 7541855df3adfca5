-- What both engines promise in the same words; SQLite has these as functions of the program.

CREATE FUNCTION now_ms() RETURNS BIGINT LANGUAGE sql VOLATILE AS $$
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint
$$;

CREATE FUNCTION netstrings(VARIADIC fields TEXT[]) RETURNS BYTEA LANGUAGE sql IMMUTABLE AS $$
    SELECT convert_to(string_agg(octet_length(field) || ':' || field || ',', '' ORDER BY place), 'UTF8')
    FROM unnest(fields) WITH ORDINALITY AS each (field, place)
$$;

-- What is promoted: a config, once per digest.

CREATE TABLE config (
    digest   TEXT PRIMARY KEY CHECK (length(digest) = 64),
    name     TEXT NOT NULL CHECK (name <> ''),
    spelling BYTEA NOT NULL,
    CONSTRAINT "a config is kept under the digest of its spelling" CHECK (digest = encode(sha256(spelling), 'hex'))
);

CREATE TABLE price (
    digest TEXT PRIMARY KEY REFERENCES config,
    body   TEXT NOT NULL
);

-- Why it may be promoted: evidence, and the environments it opens.

CREATE TABLE environment (
    name  TEXT PRIMARY KEY,
    after TEXT NOT NULL -- the environment that has to serve a digest before this one does; empty: none
);

INSERT INTO environment VALUES ('development', ''), ('staging', 'development'), ('production', 'staging');

CREATE TABLE evidence (
    id             TEXT PRIMARY KEY CHECK (length(id) = 64),
    config         TEXT NOT NULL,
    digest         TEXT NOT NULL REFERENCES config,
    policy         TEXT NOT NULL CHECK (policy <> ''),
    verdict        TEXT NOT NULL CHECK (verdict IN ('pass', 'fail', 'inconclusive', 'skip')),
    finished_at_ms BIGINT NOT NULL,
    signed_by      TEXT NOT NULL,
    revoked_by     TEXT NOT NULL DEFAULT '',
    envelope       BYTEA NOT NULL
);

CREATE INDEX evidence_of_config ON evidence (config, digest, finished_at_ms);

CREATE TABLE admission (
    evidence       TEXT NOT NULL REFERENCES evidence,
    environment    TEXT NOT NULL REFERENCES environment,
    valid_until_ms BIGINT NOT NULL,
    PRIMARY KEY (evidence, environment)
);

-- What every environment serves: one row decides everything, its fence and its lease included.

CREATE TABLE deployment (
    config          TEXT NOT NULL CHECK (config <> ''),
    environment     TEXT NOT NULL REFERENCES environment,
    revision        BIGINT NOT NULL DEFAULT 0 CHECK (revision >= 0),
    kind            TEXT NOT NULL DEFAULT '' CHECK (kind IN ('', 'promote', 'canary', 'rollback')),
    baseline        TEXT NOT NULL DEFAULT '',
    candidate       TEXT NOT NULL DEFAULT '',
    weight_bp       BIGINT NOT NULL DEFAULT 0 CHECK (weight_bp BETWEEN 0 AND 9999),
    salt            TEXT NOT NULL DEFAULT '',
    policy          TEXT NOT NULL DEFAULT '',
    evidence        TEXT NOT NULL DEFAULT '',
    actor           TEXT NOT NULL DEFAULT '',
    reason          TEXT NOT NULL DEFAULT '',
    idempotency_key TEXT NOT NULL DEFAULT '',
    changed_at_ms   BIGINT NOT NULL DEFAULT 0,
    owner           TEXT NOT NULL DEFAULT '',
    fence           BIGINT NOT NULL DEFAULT 0,
    lease_until_ms  BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (config, environment),
    CHECK ((candidate = '') = (weight_bp = 0)),
    CHECK (candidate = '' OR (salt <> '' AND baseline <> '')),
    CHECK (revision = 0 OR baseline <> '')
);

CREATE TABLE history (
    config          TEXT NOT NULL,
    environment     TEXT NOT NULL,
    revision        BIGINT NOT NULL,
    kind            TEXT NOT NULL,
    baseline        TEXT NOT NULL,
    candidate       TEXT NOT NULL,
    weight_bp       BIGINT NOT NULL,
    salt            TEXT NOT NULL,
    policy          TEXT NOT NULL,
    evidence        TEXT NOT NULL,
    fence           BIGINT NOT NULL,
    actor           TEXT NOT NULL CHECK (actor <> ''),
    reason          TEXT NOT NULL,
    idempotency_key TEXT NOT NULL CHECK (idempotency_key <> ''),
    at_ms           BIGINT NOT NULL,
    previous        TEXT NOT NULL,
    hash            TEXT NOT NULL,
    PRIMARY KEY (config, environment, revision),
    UNIQUE (config, environment, idempotency_key),
    FOREIGN KEY (config, environment) REFERENCES deployment
);

CREATE TABLE outbox (
    config      TEXT NOT NULL,
    environment TEXT NOT NULL,
    revision    BIGINT NOT NULL,
    PRIMARY KEY (config, environment, revision),
    FOREIGN KEY (config, environment, revision) REFERENCES history
);

-- Who serves it, and what came of it.

CREATE TABLE instance (
    id               TEXT NOT NULL,
    name             TEXT NOT NULL,
    environment      TEXT NOT NULL,
    config           TEXT NOT NULL,
    revision         BIGINT NOT NULL,
    serving_since_ms BIGINT NOT NULL,
    reloaded         BOOLEAN NOT NULL, -- it served something else before; false: it started with this revision
    refused          BIGINT NOT NULL,
    reason           TEXT NOT NULL,
    seen_at_ms       BIGINT NOT NULL,
    PRIMARY KEY (id, config)
);

CREATE TABLE tally (
    instance    TEXT NOT NULL,
    number      BIGINT NOT NULL, -- by its sender: what is sent twice is kept once
    config      TEXT NOT NULL,
    environment TEXT NOT NULL,
    start_ms    BIGINT NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (instance, number)
);

CREATE INDEX tally_of_deployment ON tally (config, environment, start_ms);

CREATE TABLE token (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL CHECK (name <> ''),
    secret_hash   TEXT NOT NULL CHECK (length(secret_hash) = 64),
    scopes        TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    created_by    TEXT NOT NULL,
    revoked_at_ms BIGINT NOT NULL DEFAULT 0
);

-- What may not happen, whoever asks for it. What reads tables here reads those of its own schema, whatever
-- the search path of the session is, and no temporary table of the same name.

CREATE FUNCTION refuse() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '%', TG_ARGV[0];
END
$$;

CREATE TRIGGER config_stays BEFORE UPDATE ON config
FOR EACH ROW EXECUTE FUNCTION refuse('a config that is kept does not change');

CREATE TRIGGER config_is_kept BEFORE DELETE ON config
FOR EACH ROW EXECUTE FUNCTION refuse('a config that is kept stays');

CREATE TRIGGER config_is_not_emptied BEFORE TRUNCATE ON config
FOR EACH STATEMENT EXECUTE FUNCTION refuse('a config that is kept stays');

CREATE TRIGGER evidence_is_kept BEFORE DELETE ON evidence
FOR EACH ROW EXECUTE FUNCTION refuse('evidence that is kept stays');

CREATE TRIGGER evidence_is_not_emptied BEFORE TRUNCATE ON evidence
FOR EACH STATEMENT EXECUTE FUNCTION refuse('evidence that is kept stays');

CREATE TRIGGER evidence_stays BEFORE UPDATE ON evidence
FOR EACH ROW WHEN (
    (NEW.id, NEW.config, NEW.digest, NEW.policy, NEW.verdict, NEW.finished_at_ms, NEW.signed_by, NEW.envelope)
    IS DISTINCT FROM
    (OLD.id, OLD.config, OLD.digest, OLD.policy, OLD.verdict, OLD.finished_at_ms, OLD.signed_by, OLD.envelope)
    OR OLD.revoked_by <> '')
EXECUTE FUNCTION refuse('evidence does not change, but for being revoked once');

CREATE TRIGGER history_stays BEFORE UPDATE OR DELETE ON history
FOR EACH ROW EXECUTE FUNCTION refuse('history only grows');

CREATE TRIGGER history_is_not_emptied BEFORE TRUNCATE ON history
FOR EACH STATEMENT EXECUTE FUNCTION refuse('history only grows');

CREATE TRIGGER deployment_is_not_emptied BEFORE TRUNCATE ON deployment
FOR EACH STATEMENT EXECUTE FUNCTION refuse('a deployment is never deleted');

CREATE TRIGGER deployment_is_kept BEFORE DELETE ON deployment
FOR EACH ROW EXECUTE FUNCTION refuse('a deployment is never deleted');

CREATE TRIGGER deployment_begins_empty BEFORE INSERT ON deployment
FOR EACH ROW WHEN (NEW.revision <> 0 OR NEW.baseline <> '' OR NEW.candidate <> '')
EXECUTE FUNCTION refuse('a deployment begins empty');

-- A later failing run takes the force of earlier evidence, whichever of the two arrives first.

CREATE FUNCTION evidence_takes_turns() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended(NEW.config || ':' || NEW.digest, 0));
    RETURN NEW;
END
$$;

CREATE TRIGGER evidence_takes_turns BEFORE INSERT ON evidence
FOR EACH ROW EXECUTE FUNCTION evidence_takes_turns();

CREATE FUNCTION evidence_revokes() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF NEW.verdict = 'fail' THEN
        UPDATE evidence SET revoked_by = NEW.id
        WHERE config = NEW.config AND digest = NEW.digest AND verdict = 'pass' AND revoked_by = ''
            AND finished_at_ms <= NEW.finished_at_ms;
    ELSIF NEW.verdict = 'pass' AND NEW.revoked_by = '' THEN
        UPDATE evidence AS e SET revoked_by = later.id
        FROM (SELECT id FROM evidence
              WHERE config = NEW.config AND digest = NEW.digest AND verdict = 'fail'
                  AND finished_at_ms >= NEW.finished_at_ms
              ORDER BY finished_at_ms DESC, id LIMIT 1) AS later
        WHERE e.id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER evidence_revokes AFTER INSERT ON evidence
FOR EACH ROW EXECUTE FUNCTION evidence_revokes();

-- What is served changes by the next revision, with evidence, and is remembered.

CREATE FUNCTION deployment_moves_by_revisions() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    brought TEXT := CASE NEW.kind WHEN 'canary' THEN NEW.candidate ELSE NEW.baseline END;
BEGIN
    IF NEW.config <> OLD.config OR NEW.environment <> OLD.environment OR NEW.revision <> OLD.revision + 1
        OR NEW.fence < OLD.fence
    THEN
        RAISE EXCEPTION 'what is served changes by the next revision, and by nothing else';
    END IF;

    IF NEW.kind = 'rollback' THEN
        IF NEW.candidate <> '' OR NEW.policy <> OLD.policy
            OR (NEW.baseline <> OLD.baseline
                AND NOT EXISTS (SELECT 1 FROM history WHERE config = NEW.config
                                AND environment = NEW.environment AND baseline = NEW.baseline))
        THEN
            RAISE EXCEPTION 'a rollback brings back what was served before, and no candidate';
        END IF;
        RETURN NEW;
    END IF;

    IF NEW.kind = 'canary' AND (NEW.candidate = '' OR NEW.baseline <> OLD.baseline) THEN
        RAISE EXCEPTION 'a canary leaves the baseline as it is';
    END IF;
    IF NEW.kind = 'promote' AND NEW.candidate <> '' THEN
        RAISE EXCEPTION 'a promotion leaves no candidate behind';
    END IF;

    -- The lock has whoever revokes this evidence wait, or has this statement see that it is revoked.
    PERFORM 1
    FROM evidence AS e JOIN admission AS a ON a.evidence = e.id
    WHERE e.id = NEW.evidence AND e.config = NEW.config AND e.policy = NEW.policy
        AND e.digest = brought
        AND e.verdict = 'pass' AND e.revoked_by = ''
        AND a.environment = NEW.environment AND a.valid_until_ms > now_ms()
    FOR SHARE OF e;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'no passing evidence opens this environment to this digest';
    END IF;

    -- The same for whoever moves the environment before.
    IF OLD.candidate <> brought AND NEW.environment IN (SELECT name FROM environment WHERE after <> '') THEN
        PERFORM 1
        FROM environment AS here JOIN deployment AS before ON before.environment = here.after
        WHERE here.name = NEW.environment AND before.config = NEW.config
            AND before.baseline = brought
        FOR SHARE OF before;
        IF NOT FOUND THEN
            RAISE EXCEPTION 'the environment before this one does not serve this digest';
        END IF;
    END IF;

    IF OLD.lease_until_ms <= now_ms() THEN -- while the statement waited for the row
        RAISE EXCEPTION 'the lease has expired';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER deployment_moves_by_revisions BEFORE UPDATE ON deployment
FOR EACH ROW WHEN (
    (NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
     NEW.policy, NEW.evidence)
    IS DISTINCT FROM
    (OLD.config, OLD.environment, OLD.revision, OLD.kind, OLD.baseline, OLD.candidate, OLD.weight_bp, OLD.salt,
     OLD.policy, OLD.evidence))
EXECUTE FUNCTION deployment_moves_by_revisions();

CREATE FUNCTION deployment_is_remembered() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    before TEXT := coalesce((SELECT hash FROM history WHERE config = NEW.config
                             AND environment = NEW.environment AND revision = OLD.revision), '');
BEGIN
    INSERT INTO history VALUES (
        NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
        NEW.policy, NEW.evidence, NEW.fence, NEW.actor, NEW.reason, NEW.idempotency_key, NEW.changed_at_ms,
        before,
        encode(sha256(netstrings(
            before, NEW.config, NEW.environment, NEW.revision::text, NEW.kind, NEW.baseline, NEW.candidate,
            NEW.weight_bp::text, NEW.salt, NEW.policy, NEW.evidence, NEW.fence::text, NEW.actor, NEW.reason,
            NEW.idempotency_key, NEW.changed_at_ms::text)), 'hex'));
    INSERT INTO outbox VALUES (NEW.config, NEW.environment, NEW.revision);
    PERFORM pg_notify('deploy_gates', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;

CREATE TRIGGER deployment_is_remembered AFTER UPDATE ON deployment
FOR EACH ROW WHEN (NEW.revision <> OLD.revision)
EXECUTE FUNCTION deployment_is_remembered();

CREATE FUNCTION history_follows() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM deployment WHERE config = NEW.config AND environment = NEW.environment
                   AND revision = NEW.revision AND idempotency_key = NEW.idempotency_key)
    THEN
        RAISE EXCEPTION 'history tells of moves that were made';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER history_follows BEFORE INSERT ON history
FOR EACH ROW EXECUTE FUNCTION history_follows();
