-- A canary that clients end by themselves, whoever died.

ALTER TABLE deployment ADD COLUMN expires_at_ms INTEGER NOT NULL DEFAULT 0
    CHECK (expires_at_ms = 0 OR candidate <> '');
ALTER TABLE history ADD COLUMN expires_at_ms INTEGER NOT NULL DEFAULT 0;

CREATE TRIGGER deployment_expires_by_revisions BEFORE UPDATE ON deployment
WHEN NEW.expires_at_ms <> OLD.expires_at_ms AND NEW.revision = OLD.revision
BEGIN
    SELECT RAISE(ABORT, 'what is served changes by the next revision, and by nothing else');
END;

DROP TRIGGER deployment_is_remembered;

CREATE TRIGGER deployment_is_remembered AFTER UPDATE ON deployment
WHEN NEW.revision <> OLD.revision
BEGIN
    INSERT INTO history
    SELECT NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
        NEW.policy, NEW.evidence, NEW.fence, NEW.actor, NEW.reason, NEW.idempotency_key, NEW.changed_at_ms,
        before.hash,
        sha256(CASE NEW.expires_at_ms
            WHEN 0 THEN -- as all were spelled before any canary expired
                netstrings(before.hash, NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline,
                           NEW.candidate, NEW.weight_bp, NEW.salt, NEW.policy, NEW.evidence, NEW.fence, NEW.actor,
                           NEW.reason, NEW.idempotency_key, NEW.changed_at_ms)
            ELSE
                netstrings(before.hash, NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline,
                           NEW.candidate, NEW.weight_bp, NEW.salt, NEW.policy, NEW.evidence, NEW.fence, NEW.actor,
                           NEW.reason, NEW.idempotency_key, NEW.changed_at_ms, NEW.expires_at_ms)
            END),
        NEW.expires_at_ms
    FROM (SELECT coalesce((SELECT hash FROM history WHERE config = NEW.config AND environment = NEW.environment
                           AND revision = OLD.revision), '') AS hash) AS before;
    INSERT INTO outbox VALUES (NEW.config, NEW.environment, NEW.revision);
END;

CREATE INDEX history_by_time ON history (at_ms, config, environment, revision);

-- Releases on their way, and everything that happened to them.

CREATE TABLE promotion (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    config          TEXT NOT NULL CHECK (config <> ''),
    digest          TEXT NOT NULL REFERENCES config,
    actor           TEXT NOT NULL CHECK (actor <> ''),
    reason          TEXT NOT NULL,
    commit_id       TEXT NOT NULL,
    until           TEXT NOT NULL REFERENCES environment,
    baseline        TEXT NOT NULL,
    policy          TEXT NOT NULL,
    terms           TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('queued', 'running', 'shipped', 'blocked', 'rolled back',
                                                   'superseded', 'aborted')),
    conclusion      TEXT NOT NULL DEFAULT '',
    proposed_at_ms  INTEGER NOT NULL,
    concluded_at_ms INTEGER NOT NULL DEFAULT 0,
    owner           TEXT NOT NULL DEFAULT '',
    fence           INTEGER NOT NULL DEFAULT 0,
    lease_until_ms  INTEGER NOT NULL DEFAULT 0,
    version         INTEGER NOT NULL, -- grows with every line and every state
    told_version    INTEGER NOT NULL DEFAULT -1,
    CHECK ((state IN ('queued', 'running')) = (concluded_at_ms = 0))
) STRICT;

CREATE UNIQUE INDEX one_promotion_runs ON promotion (config) WHERE state = 'running';
CREATE UNIQUE INDEX one_promotion_is_queued ON promotion (config) WHERE state = 'queued';
CREATE INDEX promotion_of_config ON promotion (config, id);
CREATE INDEX promotion_under_way ON promotion (id) WHERE state IN ('queued', 'running');
CREATE INDEX promotion_untold ON promotion (id) WHERE version > told_version;

CREATE TRIGGER promotion_stays BEFORE UPDATE ON promotion
WHEN (NEW.id, NEW.config, NEW.digest, NEW.actor, NEW.reason, NEW.commit_id, NEW.until, NEW.baseline, NEW.policy,
      NEW.terms, NEW.proposed_at_ms)
    IS NOT (OLD.id, OLD.config, OLD.digest, OLD.actor, OLD.reason, OLD.commit_id, OLD.until, OLD.baseline, OLD.policy,
            OLD.terms, OLD.proposed_at_ms)
BEGIN
    SELECT RAISE(ABORT, 'what a promotion was proposed with does not change');
END;

CREATE TRIGGER promotion_ends_for_good BEFORE UPDATE ON promotion
WHEN OLD.concluded_at_ms <> 0
    AND (NEW.state, NEW.conclusion, NEW.concluded_at_ms, NEW.version, NEW.fence)
        IS NOT (OLD.state, OLD.conclusion, OLD.concluded_at_ms, OLD.version, OLD.fence)
BEGIN
    SELECT RAISE(ABORT, 'a promotion that has ended stays so');
END;

CREATE TRIGGER promotion_is_kept BEFORE DELETE ON promotion
BEGIN
    SELECT RAISE(ABORT, 'a promotion that is kept stays');
END;

CREATE TABLE journal (
    promotion   INTEGER NOT NULL REFERENCES promotion,
    number      INTEGER NOT NULL,
    act         TEXT NOT NULL CHECK (act <> ''),
    environment TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('begun', 'done', 'failed', 'held')),
    at_ms       INTEGER NOT NULL,
    owner       TEXT NOT NULL,
    fence       INTEGER NOT NULL,
    data        TEXT NOT NULL,
    PRIMARY KEY (promotion, number)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER journal_follows BEFORE INSERT ON journal
BEGIN
    SELECT RAISE(ABORT, 'the journal has no gaps')
    WHERE NEW.number <> 1 + (SELECT coalesce(max(number), 0) FROM journal WHERE promotion = NEW.promotion);
    SELECT RAISE(ABORT, 'the journal of a promotion that does not run has ended')
    WHERE NOT EXISTS (SELECT 1 FROM promotion WHERE id = NEW.promotion AND state = 'running');
END;

CREATE TRIGGER journal_stays BEFORE UPDATE ON journal
BEGIN
    SELECT RAISE(ABORT, 'a journal only grows');
END;

CREATE TRIGGER journal_is_kept BEFORE DELETE ON journal
BEGIN
    SELECT RAISE(ABORT, 'a journal only grows');
END;

CREATE TABLE approval (
    config      TEXT NOT NULL,
    digest      TEXT NOT NULL REFERENCES config,
    environment TEXT NOT NULL REFERENCES environment,
    approver    TEXT NOT NULL CHECK (approver <> ''),
    reason      TEXT NOT NULL,
    at_ms       INTEGER NOT NULL,
    PRIMARY KEY (config, digest, environment, approver)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER approval_stays BEFORE UPDATE ON approval
BEGIN
    SELECT RAISE(ABORT, 'an approval that is given stays');
END;

CREATE TRIGGER approval_is_kept BEFORE DELETE ON approval
BEGIN
    SELECT RAISE(ABORT, 'an approval that is given stays');
END;

-- What others are to be told.

CREATE TABLE delivery (
    number        INTEGER PRIMARY KEY AUTOINCREMENT, -- the order within a thread
    id            TEXT NOT NULL UNIQUE CHECK (id <> ''),
    thread        TEXT NOT NULL,
    channel       TEXT NOT NULL,
    body          TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('due', 'delivered', 'dead')),
    attempts      INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    next_at_ms    INTEGER NOT NULL,
    external_id   TEXT NOT NULL,
    error         TEXT NOT NULL
) STRICT;

CREATE INDEX delivery_due ON delivery (next_at_ms, number) WHERE state = 'due';
CREATE INDEX delivery_of_thread ON delivery (thread, channel, number);
CREATE INDEX delivery_of_state ON delivery (state, number);
