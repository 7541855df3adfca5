-- A canary that clients end by themselves, whoever died.

ALTER TABLE deployment ADD COLUMN expires_at_ms BIGINT NOT NULL DEFAULT 0
    CHECK (expires_at_ms = 0 OR candidate <> '');
ALTER TABLE history ADD COLUMN expires_at_ms BIGINT NOT NULL DEFAULT 0;

CREATE TRIGGER deployment_expires_by_revisions BEFORE UPDATE ON deployment
FOR EACH ROW WHEN (NEW.expires_at_ms <> OLD.expires_at_ms AND NEW.revision = OLD.revision)
EXECUTE FUNCTION refuse('what is served changes by the next revision, and by nothing else');

CREATE OR REPLACE FUNCTION deployment_is_remembered() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
DECLARE
    before TEXT := coalesce((SELECT hash FROM history WHERE config = NEW.config
                             AND environment = NEW.environment AND revision = OLD.revision), '');
    fields TEXT[] := ARRAY[
        before, NEW.config, NEW.environment, NEW.revision::text, NEW.kind, NEW.baseline, NEW.candidate,
        NEW.weight_bp::text, NEW.salt, NEW.policy, NEW.evidence, NEW.fence::text, NEW.actor, NEW.reason,
        NEW.idempotency_key, NEW.changed_at_ms::text];
BEGIN
    IF NEW.expires_at_ms <> 0 THEN -- the others are spelled as all were before any canary expired
        fields := fields || NEW.expires_at_ms::text;
    END IF;
    INSERT INTO history VALUES (
        NEW.config, NEW.environment, NEW.revision, NEW.kind, NEW.baseline, NEW.candidate, NEW.weight_bp, NEW.salt,
        NEW.policy, NEW.evidence, NEW.fence, NEW.actor, NEW.reason, NEW.idempotency_key, NEW.changed_at_ms,
        before, encode(sha256(netstrings(VARIADIC fields)), 'hex'), NEW.expires_at_ms);
    INSERT INTO outbox VALUES (NEW.config, NEW.environment, NEW.revision);
    PERFORM pg_notify('deploy_gates', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;

CREATE INDEX history_by_time ON history (at_ms, config, environment, revision);

-- Releases on their way, and everything that happened to them.

CREATE TABLE promotion (
    id              BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
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
    proposed_at_ms  BIGINT NOT NULL,
    concluded_at_ms BIGINT NOT NULL DEFAULT 0,
    owner           TEXT NOT NULL DEFAULT '',
    fence           BIGINT NOT NULL DEFAULT 0,
    lease_until_ms  BIGINT NOT NULL DEFAULT 0,
    version         BIGINT NOT NULL, -- grows with every line and every state
    told_version    BIGINT NOT NULL DEFAULT -1,
    CHECK ((state IN ('queued', 'running')) = (concluded_at_ms = 0))
);

CREATE UNIQUE INDEX one_promotion_runs ON promotion (config) WHERE state = 'running';
CREATE UNIQUE INDEX one_promotion_is_queued ON promotion (config) WHERE state = 'queued';
CREATE INDEX promotion_of_config ON promotion (config, id);
CREATE INDEX promotion_under_way ON promotion (id) WHERE state IN ('queued', 'running');
CREATE INDEX promotion_untold ON promotion (id) WHERE version > told_version;

CREATE TRIGGER promotion_stays BEFORE UPDATE ON promotion
FOR EACH ROW WHEN (
    (NEW.id, NEW.config, NEW.digest, NEW.actor, NEW.reason, NEW.commit_id, NEW.until, NEW.baseline, NEW.policy,
     NEW.terms, NEW.proposed_at_ms)
    IS DISTINCT FROM
    (OLD.id, OLD.config, OLD.digest, OLD.actor, OLD.reason, OLD.commit_id, OLD.until, OLD.baseline, OLD.policy,
     OLD.terms, OLD.proposed_at_ms))
EXECUTE FUNCTION refuse('what a promotion was proposed with does not change');

CREATE TRIGGER promotion_ends_for_good BEFORE UPDATE ON promotion
FOR EACH ROW WHEN (
    OLD.concluded_at_ms <> 0
    AND (NEW.state, NEW.conclusion, NEW.concluded_at_ms, NEW.version, NEW.fence)
        IS DISTINCT FROM (OLD.state, OLD.conclusion, OLD.concluded_at_ms, OLD.version, OLD.fence))
EXECUTE FUNCTION refuse('a promotion that has ended stays so');

CREATE TRIGGER promotion_is_kept BEFORE DELETE ON promotion
FOR EACH ROW EXECUTE FUNCTION refuse('a promotion that is kept stays');

CREATE TRIGGER promotion_is_not_emptied BEFORE TRUNCATE ON promotion
FOR EACH STATEMENT EXECUTE FUNCTION refuse('a promotion that is kept stays');

CREATE FUNCTION promotion_is_told() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('deploy_gates', TG_TABLE_SCHEMA);
    RETURN NULL;
END
$$;

CREATE TRIGGER promotion_begins AFTER INSERT ON promotion
FOR EACH ROW EXECUTE FUNCTION promotion_is_told();

CREATE TRIGGER promotion_moves AFTER UPDATE ON promotion
FOR EACH ROW WHEN (NEW.version <> OLD.version)
EXECUTE FUNCTION promotion_is_told();

CREATE TABLE journal (
    promotion   BIGINT NOT NULL REFERENCES promotion,
    number      BIGINT NOT NULL,
    act         TEXT NOT NULL CHECK (act <> ''),
    environment TEXT NOT NULL,
    status      TEXT NOT NULL CHECK (status IN ('begun', 'done', 'failed', 'held')),
    at_ms       BIGINT NOT NULL,
    owner       TEXT NOT NULL,
    fence       BIGINT NOT NULL,
    data        TEXT NOT NULL,
    PRIMARY KEY (promotion, number)
);

CREATE FUNCTION journal_follows() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM 1 FROM promotion WHERE id = NEW.promotion AND state = 'running' FOR UPDATE;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'the journal of a promotion that does not run has ended';
    END IF;
    IF NEW.number <> 1 + (SELECT coalesce(max(number), 0) FROM journal WHERE promotion = NEW.promotion) THEN
        RAISE EXCEPTION 'the journal has no gaps';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER journal_follows BEFORE INSERT ON journal
FOR EACH ROW EXECUTE FUNCTION journal_follows();

CREATE TRIGGER journal_stays BEFORE UPDATE OR DELETE ON journal
FOR EACH ROW EXECUTE FUNCTION refuse('a journal only grows');

CREATE TRIGGER journal_is_not_emptied BEFORE TRUNCATE ON journal
FOR EACH STATEMENT EXECUTE FUNCTION refuse('a journal only grows');

CREATE TABLE approval (
    config      TEXT NOT NULL,
    digest      TEXT NOT NULL REFERENCES config,
    environment TEXT NOT NULL REFERENCES environment,
    approver    TEXT NOT NULL CHECK (approver <> ''),
    reason      TEXT NOT NULL,
    at_ms       BIGINT NOT NULL,
    PRIMARY KEY (config, digest, environment, approver)
);

CREATE TRIGGER approval_stays BEFORE UPDATE OR DELETE ON approval
FOR EACH ROW EXECUTE FUNCTION refuse('an approval that is given stays');

-- What others are to be told.

CREATE TABLE delivery (
    number        BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- the order within a thread
    id            TEXT NOT NULL UNIQUE CHECK (id <> ''),
    thread        TEXT NOT NULL,
    channel       TEXT NOT NULL,
    body          TEXT NOT NULL,
    state         TEXT NOT NULL CHECK (state IN ('due', 'delivered', 'dead')),
    attempts      BIGINT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    next_at_ms    BIGINT NOT NULL,
    external_id   TEXT NOT NULL,
    error         TEXT NOT NULL
);

CREATE INDEX delivery_due ON delivery (next_at_ms, number) WHERE state = 'due';
CREATE INDEX delivery_of_thread ON delivery (thread, channel, number);
CREATE INDEX delivery_of_state ON delivery (state, number);
