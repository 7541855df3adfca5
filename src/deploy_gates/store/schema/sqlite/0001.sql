-- What is promoted: a config, once per digest.

CREATE TABLE config (
    digest   TEXT PRIMARY KEY CHECK (length(digest) = 64),
    name     TEXT NOT NULL CHECK (name <> ''),
    spelling BLOB NOT NULL
) STRICT;

CREATE TRIGGER config_is_what_its_digest_says BEFORE INSERT ON config
WHEN NEW.digest <> sha256(NEW.spelling)
BEGIN
    SELECT RAISE(ABORT, 'a config is kept under the digest of its spelling');
END;

CREATE TRIGGER config_stays BEFORE UPDATE ON config
BEGIN
    SELECT RAISE(ABORT, 'a config that is kept does not change');
END;

CREATE TRIGGER config_is_kept BEFORE DELETE ON config
BEGIN
    SELECT RAISE(ABORT, 'a config that is kept stays');
END;

CREATE TABLE price (
    digest TEXT PRIMARY KEY REFERENCES config,
    body   TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Why it may be promoted: evidence, and the environments it opens.

CREATE TABLE environment (
    name  TEXT PRIMARY KEY,
    after TEXT NOT NULL -- the environment that has to serve a digest before this one does; empty: none
) STRICT, WITHOUT ROWID;

INSERT INTO environment VALUES ('development', ''), ('staging', 'development'), ('production', 'staging');

CREATE TABLE evidence (
    id             TEXT PRIMARY KEY CHECK (length(id) = 64),
    config         TEXT NOT NULL,
    digest         TEXT NOT NULL REFERENCES config,
    policy         TEXT NOT NULL CHECK (policy <> ''),
    verdict        TEXT NOT NULL CHECK (verdict IN ('pass', 'fail', 'inconclusive', 'skip')),
    finished_at_ms INTEGER NOT NULL,
    signed_by      TEXT NOT NULL,
    revoked_by     TEXT NOT NULL DEFAULT '',
    envelope       BLOB NOT NULL
) STRICT;

CREATE INDEX evidence_of_config ON evidence (config, digest, finished_at_ms);

CREATE TABLE admission (
    evidence       TEXT NOT NULL REFERENCES evidence,
    environment    TEXT NOT NULL REFERENCES environment,
    valid_until_ms INTEGER NOT NULL,
    PRIMARY KEY (evidence, environment)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER evidence_stays BEFORE UPDATE ON evidence
WHEN (NEW.id, NEW.config, NEW.digest, NEW.policy, NEW.verdict, NEW.finished_at_ms, NEW.signed_by, NEW.envelope)
    IS NOT (OLD.id, OLD.config, OLD.digest, OLD.policy, OLD.verdict, OLD.finished_at_ms, OLD.signed_by, OLD.envelope)
    OR OLD.revoked_by <> ''
BEGIN
    SELECT RAISE(ABORT, 'evidence does not change, but for being revoked once');
END;

CREATE TRIGGER evidence_is_kept BEFORE DELETE ON evidence
BEGIN
    SELECT RAISE(ABORT, 'evidence that is kept stays');
END;

CREATE TRIGGER failing_evidence_revokes AFTER INSERT ON evidence
WHEN NEW.verdict = 'fail'
BEGIN
    UPDATE evidence SET revoked_by = NEW.id
    WHERE config = NEW.config AND digest = NEW.digest AND verdict = 'pass' AND revoked_by = ''
        AND finished_at_ms <= NEW.finished_at_ms;
END;

CREATE TRIGGER outdated_evidence_arrives_revoked AFTER INSERT ON evidence
WHEN NEW.verdict = 'pass' AND NEW.revoked_by = ''
BEGIN
    UPDATE evidence SET revoked_by = coalesce(
        (SELECT later.id FROM evidence AS later
         WHERE later.config = NEW.config AND later.digest = NEW.digest AND later.verdict = 'fail'
             AND later.finished_at_ms >= NEW.finished_at_ms
         ORDER BY later.finished_at_ms DESC, later.id LIMIT 1),
        '')
    WHERE id = NEW.id;
END;

-- What every environment serves: one row decides everything, its fence and its lease included.

CREATE TABLE deployment (
    config          TEXT NOT NULL CHECK (config <> ''),
    environment     TEXT NOT NULL REFERENCES environment,
    revision        INTEGER NOT NULL DEFAULT 0 CHECK (revision >= 0),
    kind            TEXT NOT NULL DEFAULT '' CHECK (kind IN ('', 'promote', 'canary', 'rollback')),
    baseline        TEXT NOT NULL DEFAULT '',
    candidate       TEXT NOT NULL DEFAULT '',
    weight_bp       INTEGER NOT NULL DEFAULT 0 CHECK (weight_bp BETWEEN 0 AND 9999),
    salt            TEXT NOT NULL DEFAULT '',
    policy          TEXT NOT NULL DEFAULT '',
    evidence        TEXT NOT NULL DEFAULT '',
    actor           TEXT NOT NULL DEFAULT '',
    reason          TEXT NOT NULL DEFAULT '',
    idempotency_key TEXT NOT NULL DEFAULT '',
    changed_at_ms   INTEGER NOT NULL DEFAULT 0,
    owner           TEXT NOT NULL DEFAULT '',
    fence           INTEGER NOT NULL DEFAULT 0,
    lease_until_ms  INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (config, environment),
    CHECK ((candidate = '') = (weight_bp = 0)),
    CHECK (candidate = '' OR (salt <> '' AND baseline <> '')),
    CHECK (revision = 0 OR baseline <> '')
) STRICT, WITHOUT ROWID;

CREATE TABLE history (
    config          TEXT NOT NULL,
    environment     TEXT NOT NULL,
    revision        INTEGER NOT NULL,
    kind            TEXT NOT NULL,
    baseline        TEXT NOT NULL,
    candidate       TEXT NOT NULL,
    weight_bp       INTEGER NOT NULL,
    salt            TEXT NOT NULL,
    policy          TEXT NOT NULL,
    evidence        TEXT NOT NULL,
    fence           INTEGER NOT NULL,
    actor           TEXT NOT NULL CHECK (actor <> ''),
    reason          TEXT NOT NULL,
    idempotency_key TEXT NOT NULL CHECK (idempotency_key <> ''),
    at_ms           INTEGER NOT NULL,
    previous        TEXT NOT NULL,
    hash            TEXT NOT NULL,
    PRIMARY KEY (config, environment, revision),
    UNIQUE (config, environment, idempotency_key),
    FOREIGN KEY (config, environment) REFERENCES deployment
) STRICT, WITHOUT ROWID;

CREATE TABLE outbox (
    config      TEXT NOT NULL,
    environment TEXT NOT NULL,
    revision    INTEGER NOT NULL,
    PRIMARY KEY (config, environment, revision),
    FOREIGN KEY (config, environment, revision) REFERENCES history
) STRICT, WITHOUT ROWID;

CREATE TRIGGER deployment_begins_empty BEFORE INSERT ON deployment
WHEN NEW.revision <> 0 OR NEW.baseline <> '' OR NEW.candidate <> ''
BEGIN
    SELECT RAISE(ABORT, 'a deployment begins empty');
END;

CREATE TRIGGER deployment_is_kept BEFORE DELETE ON deployment
BEGIN
    SELECT RAISE(ABORT, 'a deployment is never deleted');
END;

CREATE TRIGGER deployment_moves_by_revisions BEFORE UPDATE ON deployment
WHEN (NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
      NEW.policy, NEW.evidence)
    IS NOT (OLD.config, OLD.environment, OLD.revision, OLD.kind, OLD.baseline, OLD.candidate, OLD.weight_bp,
            OLD.salt, OLD.policy, OLD.evidence)
BEGIN
    SELECT RAISE(ABORT, 'what is served changes by the next revision, and by nothing else')
    WHERE NEW.config <> OLD.config OR NEW.environment <> OLD.environment OR NEW.revision <> OLD.revision + 1
        OR NEW.fence < OLD.fence;

    SELECT RAISE(ABORT, 'a rollback brings back what was served before, and no candidate')
    WHERE NEW.kind = 'rollback'
        AND (NEW.candidate <> '' OR NEW.policy <> OLD.policy
             OR (NEW.baseline <> OLD.baseline
                 AND NOT EXISTS (SELECT 1 FROM history WHERE config = NEW.config AND environment = NEW.environment
                                 AND baseline = NEW.baseline)));

    SELECT RAISE(ABORT, 'a canary leaves the baseline as it is')
    WHERE NEW.kind = 'canary' AND (NEW.candidate = '' OR NEW.baseline <> OLD.baseline);

    SELECT RAISE(ABORT, 'a promotion leaves no candidate behind')
    WHERE NEW.kind = 'promote' AND NEW.candidate <> '';

    SELECT RAISE(ABORT, 'no passing evidence opens this environment to this digest')
    WHERE NEW.kind <> 'rollback'
        AND NOT EXISTS (
            SELECT 1 FROM evidence AS e JOIN admission AS a ON a.evidence = e.id
            WHERE e.id = NEW.evidence AND e.config = NEW.config AND e.policy = NEW.policy
                AND e.digest = CASE NEW.kind WHEN 'canary' THEN NEW.candidate ELSE NEW.baseline END
                AND e.verdict = 'pass' AND e.revoked_by = ''
                AND a.environment = NEW.environment AND a.valid_until_ms > now_ms());

    SELECT RAISE(ABORT, 'the environment before this one does not serve this digest')
    FROM environment AS here
    WHERE NEW.kind <> 'rollback' AND here.name = NEW.environment AND here.after <> ''
        AND OLD.candidate <> CASE NEW.kind WHEN 'canary' THEN NEW.candidate ELSE NEW.baseline END
        AND NOT EXISTS (
            SELECT 1 FROM deployment AS before
            WHERE before.config = NEW.config AND before.environment = here.after
                AND before.baseline = CASE NEW.kind WHEN 'canary' THEN NEW.candidate ELSE NEW.baseline END);
END;

CREATE TRIGGER deployment_is_remembered AFTER UPDATE ON deployment
WHEN NEW.revision <> OLD.revision
BEGIN
    INSERT INTO history
    SELECT NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
        NEW.policy, NEW.evidence, NEW.fence, NEW.actor, NEW.reason, NEW.idempotency_key, NEW.changed_at_ms,
        before.hash,
        sha256(netstrings(before.hash, NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline,
                          NEW.candidate, NEW.weight_bp, NEW.salt, NEW.policy, NEW.evidence, NEW.fence, NEW.actor,
                          NEW.reason, NEW.idempotency_key, NEW.changed_at_ms))
    FROM (SELECT coalesce((SELECT hash FROM history WHERE config = NEW.config AND environment = NEW.environment
                           AND revision = OLD.revision), '') AS hash) AS before;
    INSERT INTO outbox VALUES (NEW.config, NEW.environment, NEW.revision);
END;

CREATE TRIGGER history_stays BEFORE UPDATE ON history
BEGIN
    SELECT RAISE(ABORT, 'history only grows');
END;

CREATE TRIGGER history_is_kept BEFORE DELETE ON history
BEGIN
    SELECT RAISE(ABORT, 'history only grows');
END;

CREATE TRIGGER history_follows BEFORE INSERT ON history
WHEN NOT EXISTS (SELECT 1 FROM deployment WHERE config = NEW.config AND environment = NEW.environment
                 AND revision = NEW.revision AND idempotency_key = NEW.idempotency_key)
BEGIN
    SELECT RAISE(ABORT, 'history tells of moves that were made');
END;

-- Who serves it, and what came of it.

CREATE TABLE instance (
    id               TEXT NOT NULL,
    name             TEXT NOT NULL,
    environment      TEXT NOT NULL,
    config           TEXT NOT NULL,
    revision         INTEGER NOT NULL,
    serving_since_ms INTEGER NOT NULL,
    reloaded         INTEGER NOT NULL, -- 1: it served something else before; 0: it started with this revision
    refused          INTEGER NOT NULL,
    reason           TEXT NOT NULL,
    seen_at_ms       INTEGER NOT NULL,
    PRIMARY KEY (id, config)
) STRICT, WITHOUT ROWID;

CREATE TABLE tally (
    instance    TEXT NOT NULL,
    number      INTEGER NOT NULL, -- by its sender: what is sent twice is kept once
    config      TEXT NOT NULL,
    environment TEXT NOT NULL,
    start_ms    INTEGER NOT NULL,
    body        TEXT NOT NULL,
    PRIMARY KEY (instance, number)
) STRICT;

CREATE INDEX tally_of_deployment ON tally (config, environment, start_ms);

CREATE TABLE token (
    id            TEXT PRIMARY KEY,
    name          TEXT NOT NULL CHECK (name <> ''),
    secret_hash   TEXT NOT NULL CHECK (length(secret_hash) = 64),
    scopes        TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    created_by    TEXT NOT NULL,
    revoked_at_ms INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
