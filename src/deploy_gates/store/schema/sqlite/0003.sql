-- Credits: organisations, what they may spend, and every transaction. Amounts are micro-credits.

CREATE TABLE organisation (
    id             TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    name           TEXT NOT NULL,
    lowest         INTEGER NOT NULL CHECK (lowest <= 0),
    multiplier_ppm INTEGER NOT NULL CHECK (multiplier_ppm BETWEEN 0 AND 1000000000),
    seq            INTEGER NOT NULL DEFAULT 0,
    head           TEXT NOT NULL DEFAULT '',
    changed_at_ms  INTEGER NOT NULL DEFAULT 0,
    -- Its five accounts.
    available      INTEGER NOT NULL DEFAULT 0,
    reserved       INTEGER NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    spent          INTEGER NOT NULL DEFAULT 0 CHECK (spent >= 0),
    issued         INTEGER NOT NULL DEFAULT 0 CHECK (issued <= 0),
    uncovered      INTEGER NOT NULL DEFAULT 0 CHECK (uncovered <= 0),
    CONSTRAINT "accounts sum to zero" CHECK (available + reserved + spent + issued + uncovered = 0),
    CONSTRAINT "no balance goes below its limit" CHECK (available >= lowest)
) WITHOUT ROWID;

CREATE TABLE allowance (
    organisation TEXT NOT NULL REFERENCES organisation,
    model        TEXT NOT NULL, -- empty: all models together
    rate         TEXT NOT NULL CHECK (rate IN ('requests_per_minute', 'tokens_per_minute', 'requests_per_day',
                                               'tokens_per_day')),
    most         INTEGER NOT NULL CHECK (most BETWEEN 1 AND 1000000000000),
    full_at_us   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (organisation, model, rate)
) WITHOUT ROWID;

-- What was charged by: a price, once per digest.
CREATE TABLE tariff (
    digest TEXT PRIMARY KEY CHECK (length(digest) = 64),
    body   TEXT NOT NULL
) WITHOUT ROWID;

CREATE TABLE reservation (
    organisation  TEXT NOT NULL REFERENCES organisation,
    id            TEXT NOT NULL,
    model         TEXT NOT NULL,
    amount        INTEGER NOT NULL CHECK (amount >= 0),
    tokens        INTEGER NOT NULL CHECK (tokens >= 0),
    expires_at_ms INTEGER NOT NULL,
    PRIMARY KEY (organisation, id)
) WITHOUT ROWID;

CREATE INDEX reservation_by_expiry ON reservation (organisation, expires_at_ms);

CREATE TABLE entry (
    organisation        TEXT NOT NULL REFERENCES organisation,
    seq                 INTEGER NOT NULL CHECK (seq > 0),
    id                  TEXT NOT NULL CHECK (id <> ''),
    kind                TEXT NOT NULL CHECK (kind IN ('grant', 'correct', 'reserve', 'post', 'void', 'expire',
                                                      'consume', 'terms')),
    reservation         TEXT NOT NULL,
    model               TEXT NOT NULL,
    input_tokens        INTEGER NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens INTEGER NOT NULL CHECK (cached_input_tokens BETWEEN 0 AND input_tokens),
    output_tokens       INTEGER NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens    INTEGER NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND output_tokens),
    price               TEXT NOT NULL,
    base                INTEGER NOT NULL CHECK (base >= 0),
    multiplier_ppm      INTEGER NOT NULL,
    amount              INTEGER NOT NULL CHECK (amount >= 0 OR kind IN ('grant', 'correct')),
    held                INTEGER NOT NULL CHECK (held >= 0),
    lacking             INTEGER NOT NULL,
    expires_at_ms       INTEGER NOT NULL,
    content             TEXT NOT NULL,
    actor               TEXT NOT NULL,
    note                TEXT NOT NULL,
    at_ms               INTEGER NOT NULL,
    available           INTEGER NOT NULL,
    reserved            INTEGER NOT NULL,
    spent               INTEGER NOT NULL,
    issued              INTEGER NOT NULL,
    uncovered           INTEGER NOT NULL,
    previous            TEXT NOT NULL,
    hash                TEXT NOT NULL,
    PRIMARY KEY (organisation, seq),
    UNIQUE (id, organisation),
    CONSTRAINT "accounts sum to zero" CHECK (available + reserved + spent + issued + uncovered = 0),
    CONSTRAINT "an entry holds what it closes" CHECK (held = 0 OR kind IN ('post', 'void', 'expire')),
    CONSTRAINT "only calls lack, and only grants make up" CHECK (
        lacking = 0 OR (lacking > 0 AND kind = 'post') OR (lacking < 0 AND kind IN ('grant', 'correct')))
) WITHOUT ROWID;

CREATE UNIQUE INDEX entry_closes_once ON entry (reservation, organisation, kind) WHERE reservation <> '';

-- For people and their reports: the same as accounts, and as transfers between them.

CREATE VIEW account AS
SELECT id AS organisation, 'available' AS account, available AS balance FROM organisation
UNION ALL SELECT id, 'reserved', reserved FROM organisation
UNION ALL SELECT id, 'spent', spent FROM organisation
UNION ALL SELECT id, 'issued', issued FROM organisation
UNION ALL SELECT id, 'uncovered', uncovered FROM organisation;

CREATE VIEW transfer AS
SELECT organisation, seq, debit, credit, amount FROM (
    SELECT organisation, seq, 'issued' AS debit, 'available' AS credit, amount FROM entry WHERE kind = 'grant'
    UNION ALL SELECT organisation, seq, 'spent', 'available', amount FROM entry WHERE kind = 'correct'
    UNION ALL SELECT organisation, seq, 'available', 'uncovered', -lacking FROM entry
        WHERE kind IN ('grant', 'correct')
    UNION ALL SELECT organisation, seq, 'available', 'reserved', amount FROM entry WHERE kind = 'reserve'
    UNION ALL SELECT organisation, seq, 'available', 'spent', amount FROM entry WHERE kind = 'consume'
    UNION ALL SELECT organisation, seq, 'reserved', 'available', held FROM entry WHERE kind IN ('void', 'expire')
    UNION ALL SELECT organisation, seq, 'reserved', 'spent', min(amount, held) FROM entry WHERE kind = 'post'
    UNION ALL SELECT organisation, seq, 'reserved', 'available', max(0, held - amount) FROM entry
        WHERE kind = 'post'
    UNION ALL SELECT organisation, seq, 'available', 'spent', max(0, amount - held) - lacking FROM entry
        WHERE kind = 'post'
    UNION ALL SELECT organisation, seq, 'uncovered', 'spent', lacking FROM entry WHERE kind = 'post'
) WHERE amount <> 0;

-- What may not happen, whoever asks for it.

CREATE TRIGGER entry_stays BEFORE UPDATE ON entry
BEGIN
    SELECT RAISE(ABORT, 'a ledger only grows');
END;

CREATE TRIGGER entry_is_kept BEFORE DELETE ON entry
BEGIN
    SELECT RAISE(ABORT, 'a ledger only grows');
END;

CREATE TRIGGER tariff_stays BEFORE UPDATE ON tariff
BEGIN
    SELECT RAISE(ABORT, 'a tariff that is kept does not change');
END;

CREATE TRIGGER tariff_is_kept BEFORE DELETE ON tariff
BEGIN
    SELECT RAISE(ABORT, 'a tariff that is kept stays');
END;

CREATE TRIGGER organisation_is_kept BEFORE DELETE ON organisation
BEGIN
    SELECT RAISE(ABORT, 'an organisation with a ledger stays');
END;

CREATE TRIGGER organisation_begins_empty BEFORE INSERT ON organisation
WHEN NEW.seq <> 0 OR NEW.head <> '' OR NEW.available <> 0 OR NEW.reserved <> 0 OR NEW.spent <> 0
    OR NEW.issued <> 0 OR NEW.uncovered <> 0
BEGIN
    SELECT RAISE(ABORT, 'an organisation begins with empty accounts');
END;

-- An entry follows on what there is, and does what its kind does.

CREATE TRIGGER entry_follows BEFORE INSERT ON entry
WHEN NOT EXISTS (
    SELECT 1 FROM organisation AS o
    WHERE o.id = NEW.organisation AND o.seq = NEW.seq - 1 AND o.head = NEW.previous
        AND NEW.at_ms >= o.changed_at_ms
        AND NEW.available = o.available + NEW.held + NEW.lacking
            + CASE WHEN NEW.kind IN ('grant', 'correct') THEN NEW.amount
                WHEN NEW.kind IN ('reserve', 'consume', 'post') THEN -NEW.amount ELSE 0 END
        AND NEW.reserved = o.reserved - NEW.held + CASE NEW.kind WHEN 'reserve' THEN NEW.amount ELSE 0 END
        AND NEW.spent = o.spent
            + CASE WHEN NEW.kind IN ('consume', 'post') THEN NEW.amount
                WHEN NEW.kind = 'correct' THEN -NEW.amount ELSE 0 END
        AND NEW.uncovered = o.uncovered - NEW.lacking
        AND NEW.hash = sha256( -- spelled as `core/ledger.py` spells it
            NEW.previous || ',' || NEW.seq || ',' || NEW.at_ms || ',' || NEW.input_tokens || ',' ||
            NEW.cached_input_tokens || ',' || NEW.output_tokens || ',' || NEW.reasoning_tokens ||
            ',' || NEW.base || ',' || NEW.multiplier_ppm || ',' || NEW.amount || ',' || NEW.held ||
            ',' || NEW.lacking || ',' || NEW.expires_at_ms || ',' || NEW.available || ',' ||
            NEW.reserved || ',' || NEW.spent || ',' || NEW.issued || ',' || NEW.uncovered ||
            length(CAST(NEW.organisation AS BLOB)) || ':' || NEW.organisation || length(CAST(NEW.id
            AS BLOB)) || ':' || NEW.id || length(CAST(NEW.kind AS BLOB)) || ':' || NEW.kind ||
            length(CAST(NEW.reservation AS BLOB)) || ':' || NEW.reservation || length(CAST(NEW.model
            AS BLOB)) || ':' || NEW.model || length(CAST(NEW.price AS BLOB)) || ':' || NEW.price ||
            length(CAST(NEW.content AS BLOB)) || ':' || NEW.content || length(CAST(NEW.actor AS
            BLOB)) || ':' || NEW.actor || length(CAST(NEW.note AS BLOB)) || ':' || NEW.note))
BEGIN
    SELECT RAISE(ABORT, 'an entry follows on the one before, and moves what its kind moves');
END;

CREATE TRIGGER entry_counts AFTER INSERT ON entry
BEGIN
    UPDATE organisation
    SET seq = NEW.seq, head = NEW.hash, changed_at_ms = NEW.at_ms, available = NEW.available,
        reserved = NEW.reserved, spent = NEW.spent, issued = NEW.issued, uncovered = NEW.uncovered
    WHERE id = NEW.organisation;
END;

CREATE TRIGGER organisation_changes_by_entries
BEFORE UPDATE OF seq, head, available, reserved, spent, issued, uncovered ON organisation
WHEN NOT EXISTS (
    SELECT 1 FROM entry AS e
    WHERE e.organisation = NEW.id AND e.seq = NEW.seq AND e.seq = OLD.seq + 1 AND e.hash = NEW.head
        AND e.available = NEW.available AND e.reserved = NEW.reserved AND e.spent = NEW.spent
        AND e.issued = NEW.issued AND e.uncovered = NEW.uncovered)
BEGIN
    SELECT RAISE(ABORT, 'a balance changes by an entry, and by nothing else');
END;
