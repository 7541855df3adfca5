-- Credits: organisations, what they may spend, and every transaction. Amounts are micro-credits.

CREATE TABLE organisation (
    id             TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
    name           TEXT NOT NULL,
    lowest         BIGINT NOT NULL CHECK (lowest <= 0),
    multiplier_ppm BIGINT NOT NULL CHECK (multiplier_ppm BETWEEN 0 AND 1000000000),
    seq            BIGINT NOT NULL DEFAULT 0,
    head           TEXT NOT NULL DEFAULT '',
    changed_at_ms  BIGINT NOT NULL DEFAULT 0,
    -- Its five accounts.
    available      BIGINT NOT NULL DEFAULT 0,
    reserved       BIGINT NOT NULL DEFAULT 0 CHECK (reserved >= 0),
    spent          BIGINT NOT NULL DEFAULT 0 CHECK (spent >= 0),
    issued         BIGINT NOT NULL DEFAULT 0 CHECK (issued <= 0),
    uncovered      BIGINT NOT NULL DEFAULT 0 CHECK (uncovered <= 0),
    CONSTRAINT "accounts sum to zero" CHECK (available + reserved + spent + issued + uncovered = 0),
    CONSTRAINT "no balance goes below its limit" CHECK (available >= lowest)
) WITH (fillfactor = 50); -- this row changes with every transaction: there is room for it on its page

CREATE TABLE allowance (
    organisation TEXT NOT NULL REFERENCES organisation,
    model        TEXT NOT NULL, -- empty: all models together
    rate         TEXT NOT NULL CHECK (rate IN ('requests_per_minute', 'tokens_per_minute', 'requests_per_day',
                                               'tokens_per_day')),
    most         BIGINT NOT NULL CHECK (most BETWEEN 1 AND 1000000000000),
    full_at_us   BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (organisation, model, rate)
) WITH (fillfactor = 50);

-- What was charged by: a price, once per digest.
CREATE TABLE tariff (
    digest TEXT PRIMARY KEY CHECK (length(digest) = 64),
    body   TEXT NOT NULL
);

CREATE TABLE reservation (
    organisation  TEXT NOT NULL REFERENCES organisation,
    id            TEXT NOT NULL,
    model         TEXT NOT NULL,
    amount        BIGINT NOT NULL CHECK (amount >= 0),
    tokens        BIGINT NOT NULL CHECK (tokens >= 0),
    expires_at_ms BIGINT NOT NULL,
    PRIMARY KEY (organisation, id)
);

CREATE INDEX reservation_by_expiry ON reservation (organisation, expires_at_ms);

CREATE TABLE entry (
    organisation        TEXT NOT NULL, -- of `organisation`: the triggers below see to it, once per statement
    seq                 BIGINT NOT NULL CHECK (seq > 0),
    id                  TEXT NOT NULL CHECK (id <> ''),
    kind                TEXT NOT NULL CHECK (kind IN ('grant', 'correct', 'reserve', 'post', 'void', 'expire',
                                                      'consume', 'terms')),
    reservation         TEXT NOT NULL,
    model               TEXT NOT NULL,
    input_tokens        BIGINT NOT NULL CHECK (input_tokens >= 0),
    cached_input_tokens BIGINT NOT NULL CHECK (cached_input_tokens BETWEEN 0 AND input_tokens),
    output_tokens       BIGINT NOT NULL CHECK (output_tokens >= 0),
    reasoning_tokens    BIGINT NOT NULL CHECK (reasoning_tokens BETWEEN 0 AND output_tokens),
    price               TEXT NOT NULL,
    base                BIGINT NOT NULL CHECK (base >= 0),
    multiplier_ppm      BIGINT NOT NULL,
    amount              BIGINT NOT NULL CHECK (amount >= 0 OR kind IN ('grant', 'correct')),
    held                BIGINT NOT NULL CHECK (held >= 0),
    lacking             BIGINT NOT NULL,
    expires_at_ms       BIGINT NOT NULL,
    content             TEXT NOT NULL,
    actor               TEXT NOT NULL,
    note                TEXT NOT NULL,
    at_ms               BIGINT NOT NULL,
    available           BIGINT NOT NULL,
    reserved            BIGINT NOT NULL,
    spent               BIGINT NOT NULL,
    issued              BIGINT NOT NULL,
    uncovered           BIGINT NOT NULL,
    previous            TEXT NOT NULL,
    hash                TEXT NOT NULL,
    PRIMARY KEY (organisation, seq),
    UNIQUE (id, organisation),
    CONSTRAINT "accounts sum to zero" CHECK (available + reserved + spent + issued + uncovered = 0),
    CONSTRAINT "an entry holds what it closes" CHECK (held = 0 OR kind IN ('post', 'void', 'expire')),
    CONSTRAINT "only calls lack, and only grants make up" CHECK (
        lacking = 0 OR (lacking > 0 AND kind = 'post') OR (lacking < 0 AND kind IN ('grant', 'correct')))
);

CREATE UNIQUE INDEX entry_closes_once ON entry (reservation, organisation, kind) WHERE reservation <> '';

-- For people and their reports: the same as accounts, and as transfers between them.

CREATE VIEW account AS
SELECT id AS organisation, a.account, a.balance
FROM organisation, LATERAL (VALUES ('available', available), ('reserved', reserved), ('spent', spent),
                                   ('issued', issued), ('uncovered', uncovered)) AS a (account, balance);

CREATE VIEW transfer AS
SELECT organisation, seq, debit, credit, t.amount
FROM entry, LATERAL (VALUES
    ('grant', 'issued', 'available', amount),
    ('correct', 'spent', 'available', amount),
    ('grant', 'available', 'uncovered', -lacking),
    ('correct', 'available', 'uncovered', -lacking),
    ('reserve', 'available', 'reserved', amount),
    ('consume', 'available', 'spent', amount),
    ('void', 'reserved', 'available', held),
    ('expire', 'reserved', 'available', held),
    ('post', 'reserved', 'spent', least(amount, held)),
    ('post', 'reserved', 'available', greatest(0, held - amount)),
    ('post', 'available', 'spent', greatest(0, amount - held) - lacking),
    ('post', 'uncovered', 'spent', lacking)) AS t (of_kind, debit, credit, amount)
WHERE of_kind = kind AND t.amount <> 0;

-- What may not happen, whoever asks for it.

CREATE TRIGGER entry_stays BEFORE UPDATE OR DELETE ON entry
FOR EACH ROW EXECUTE FUNCTION refuse('a ledger only grows');

CREATE TRIGGER entry_is_not_emptied BEFORE TRUNCATE ON entry
FOR EACH STATEMENT EXECUTE FUNCTION refuse('a ledger only grows');

CREATE TRIGGER tariff_stays BEFORE UPDATE OR DELETE ON tariff
FOR EACH ROW EXECUTE FUNCTION refuse('a tariff that is kept stays as it is');

CREATE TRIGGER organisation_is_kept BEFORE DELETE ON organisation
FOR EACH ROW EXECUTE FUNCTION refuse('an organisation with a ledger stays');

CREATE TRIGGER organisation_is_not_emptied BEFORE TRUNCATE ON organisation
FOR EACH STATEMENT EXECUTE FUNCTION refuse('an organisation with a ledger stays');

CREATE TRIGGER organisation_begins_empty BEFORE INSERT ON organisation
FOR EACH ROW WHEN (
    NEW.seq <> 0 OR NEW.head <> '' OR NEW.available <> 0 OR NEW.reserved <> 0 OR NEW.spent <> 0
    OR NEW.issued <> 0 OR NEW.uncovered <> 0)
EXECUTE FUNCTION refuse('an organisation begins with empty accounts');

-- The hash of an entry, spelled as `core/ledger.py` spells it: it belongs to the row, whoever wrote it.

CREATE FUNCTION entry_hash(e entry) RETURNS TEXT LANGUAGE sql STABLE AS $$
    SELECT encode(sha256(convert_to(
        concat_ws(',', e.previous, e.seq, e.at_ms, e.input_tokens, e.cached_input_tokens, e.output_tokens,
            e.reasoning_tokens, e.base, e.multiplier_ppm, e.amount, e.held, e.lacking, e.expires_at_ms,
            e.available, e.reserved, e.spent, e.issued, e.uncovered)
        || concat(
            octet_length(e.organisation), ':', e.organisation, octet_length(e.id), ':', e.id,
            octet_length(e.kind), ':', e.kind, octet_length(e.reservation), ':', e.reservation,
            octet_length(e.model), ':', e.model, octet_length(e.price), ':', e.price,
            octet_length(e.content), ':', e.content, octet_length(e.actor), ':', e.actor,
            octet_length(e.note), ':', e.note), 'UTF8')), 'hex')
$$;

-- Entries follow on one another, and do what their kinds do; the last one is how the organisation stands.

-- Plans are made before anybody knows how long the tables get: always by the index.

CREATE FUNCTION entry_follows() RETURNS TRIGGER LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF EXISTS (
        SELECT 1
        FROM (
            SELECT n.*,
                lag(seq) OVER w AS p_seq, lag(hash) OVER w AS p_hash, lag(at_ms) OVER w AS p_at_ms,
                lag(available) OVER w AS p_available, lag(reserved) OVER w AS p_reserved,
                lag(spent) OVER w AS p_spent, lag(uncovered) OVER w AS p_uncovered
            FROM (
                SELECT true AS is_new, a.* FROM added AS a
                UNION ALL
                SELECT false, p.*
                FROM (SELECT organisation, min(seq) AS seq FROM added GROUP BY organisation) AS first
                CROSS JOIN LATERAL (
                    SELECT * FROM entry AS e WHERE e.organisation = first.organisation AND e.seq = first.seq - 1
                ) AS p
            ) AS n
            WINDOW w AS (PARTITION BY organisation ORDER BY seq)
        ) AS a
        WHERE is_new AND (
            a.seq <> coalesce(p_seq, 0) + 1
            OR a.previous <> coalesce(p_hash, '')
            OR a.at_ms < coalesce(p_at_ms, 0)
            OR a.available <> coalesce(p_available, 0) + a.held + a.lacking
                + CASE WHEN a.kind IN ('grant', 'correct') THEN a.amount
                    WHEN a.kind IN ('reserve', 'consume', 'post') THEN -a.amount ELSE 0 END
            OR a.reserved <> coalesce(p_reserved, 0) - a.held
                + CASE a.kind WHEN 'reserve' THEN a.amount ELSE 0 END
            OR a.spent <> coalesce(p_spent, 0)
                + CASE WHEN a.kind IN ('consume', 'post') THEN a.amount
                    WHEN a.kind = 'correct' THEN -a.amount ELSE 0 END
            OR a.uncovered <> coalesce(p_uncovered, 0) - a.lacking))
        OR EXISTS (SELECT 1 FROM added AS a WHERE a.hash <> entry_hash(a::entry))
    THEN
        RAISE EXCEPTION 'an entry follows on the one before, and moves what its kind moves';
    END IF;
    IF EXISTS (
        SELECT 1
        FROM (SELECT organisation, max(seq) AS seq FROM added GROUP BY organisation) AS last
        LEFT JOIN organisation AS o ON o.id = last.organisation AND o.seq = last.seq
        WHERE o.id IS NULL)
    THEN
        RAISE EXCEPTION 'a ledger tells of transactions that were made';
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER entry_follows AFTER INSERT ON entry
REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION entry_follows();

CREATE FUNCTION organisation_changes_by_entries() RETURNS TRIGGER LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
BEGIN
    IF NOT EXISTS (
        SELECT 1 FROM entry AS e
        WHERE e.organisation = NEW.id AND e.seq = NEW.seq AND e.seq > OLD.seq AND e.hash = NEW.head
            AND e.available = NEW.available AND e.reserved = NEW.reserved AND e.spent = NEW.spent
            AND e.issued = NEW.issued AND e.uncovered = NEW.uncovered)
    THEN
        RAISE EXCEPTION 'a balance changes by an entry, and by nothing else';
    END IF;
    RETURN NULL;
END
$$;

CREATE CONSTRAINT TRIGGER organisation_changes_by_entries AFTER UPDATE ON organisation
DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW WHEN (
    (NEW.id, NEW.seq, NEW.head, NEW.available, NEW.reserved, NEW.spent, NEW.issued, NEW.uncovered)
    IS DISTINCT FROM
    (OLD.id, OLD.seq, OLD.head, OLD.available, OLD.reserved, OLD.spent, OLD.issued, OLD.uncovered))
EXECUTE FUNCTION organisation_changes_by_entries();

-- For how long a transaction uses a rate, as `Rate.cost_us` says.

CREATE FUNCTION rate_cost_us(rate TEXT, tokens BIGINT, most BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS $$
    SELECT ((CASE WHEN rate LIKE 'tokens%' THEN tokens ELSE 1 END)
        * (CASE WHEN rate LIKE '%minute' THEN 60000000 ELSE 86400000000 END) + most - 1) / most
$$;

-- Any number of transactions of any number of organisations, in one round trip: the rules of `decide` in
-- `core/ledger.py`, once for each, in their order. No two of them have the same id or the same reservation.

CREATE FUNCTION credits_apply(
    sweeping TEXT[], -- organisations that are freed of what has expired, whatever else is asked
    asked JSON)
RETURNS TABLE (
    place BIGINT, made entry, refused TEXT, needed BIGINT, wait_us BIGINT, limited_model TEXT, replayed BOOLEAN,
    available BIGINT, reserved BIGINT, spent BIGINT, issued BIGINT, uncovered BIGINT)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    op RECORD;
    org organisation;        -- as it stands now, in the midst of the batch
    changed organisation[] := '{}';
    entries entry[] := '{}';
    e entry;
    origin RECORD;
    at_ms BIGINT;
    at_us BIGINT;
    asked_organisations TEXT[];
    reservations TEXT[];
    amount BIGINT;
    held BIGINT;
    lacking BIGINT;
    is_reserving BOOLEAN := false;
    is_closing BOOLEAN := false;
    tokens BIGINT;
    of_model TEXT;
    -- The rate limits of that organisation, one place for each.
    limit_models TEXT[];
    limit_rates TEXT[];
    limit_most BIGINT[];
    full_at_us BIGINT[];
    then_full_at_us BIGINT[];
    cost_us BIGINT;
    worst_us BIGINT;
    worst INT;
BEGIN
    SELECT coalesce(array_agg(DISTINCT a.organisation), '{}'),
        coalesce(array_agg(a.reservation) FILTER (WHERE a.reservation <> ''), '{}')
    INTO asked_organisations, reservations
    FROM json_to_recordset(asked) AS a (organisation TEXT, reservation TEXT);
    PERFORM 1 FROM organisation WHERE id = ANY (asked_organisations || sweeping) ORDER BY id FOR UPDATE;
    at_ms := now_ms();
    at_us := at_ms * 1000;

    FOR op IN
        SELECT asked.*, o AS org, r.amount AS open_amount, r.tokens AS open_tokens, r.model AS open_model,
            r.id AS open_id, before AS before, before.seq AS before_seq
        FROM (
            SELECT * FROM ROWS FROM (json_to_recordset(asked) AS (
                organisation TEXT, id TEXT, kind TEXT, reservation TEXT, model TEXT, price TEXT, content TEXT,
                actor TEXT, note TEXT, base BIGINT, input BIGINT, cached BIGINT, output BIGINT, reasoning BIGINT,
                hold_ms BIGINT)) WITH ORDINALITY AS a (
                organisation, id, kind, reservation, model, price, content, actor, note, base, input, cached, output,
                reasoning, hold_ms, place)
            UNION ALL ( -- what nobody has closed in time, unless somebody does just now
                SELECT organisation, 'expired:' || id, 'expire', id, model, '', '', 'ledger', '', 0, 0, 0, 0, 0, 0, 0
                FROM reservation
                WHERE organisation = ANY (asked_organisations || sweeping) AND expires_at_ms <= at_ms
                    AND id <> ALL (reservations)
                ORDER BY expires_at_ms, id
                LIMIT 1000)
        ) AS asked
        LEFT JOIN organisation AS o ON o.id = asked.organisation
        LEFT JOIN reservation AS r ON r.organisation = asked.organisation AND r.id = asked.reservation
            AND asked.reservation <> ''
        LEFT JOIN entry AS before ON before.organisation = asked.organisation AND before.id = asked.id
        ORDER BY asked.organisation, asked.place, asked.reservation
    LOOP
        place := op.place;
        made := NULL;
        refused := '';
        needed := 0;
        wait_us := NULL;
        limited_model := '';
        replayed := false;

        IF (op.org).id IS NULL THEN
            refused := 'unknown organisation';
            available := 0; reserved := 0; spent := 0; issued := 0; uncovered := 0;
            RETURN NEXT;
            CONTINUE;
        END IF;

        IF org.id IS DISTINCT FROM op.organisation THEN -- the next one
            IF org.id IS NOT NULL THEN
                changed := changed || org;
                IF full_at_us IS NOT NULL THEN
                    PERFORM keep_allowances(org.id, limit_models, limit_rates, full_at_us);
                END IF;
            END IF;
            org := op.org;
            SELECT array_agg(a.model), array_agg(a.rate), array_agg(a.most), array_agg(a.full_at_us)
            INTO limit_models, limit_rates, limit_most, full_at_us
            FROM (SELECT * FROM allowance WHERE organisation = org.id ORDER BY model COLLATE "C", rate COLLATE "C") AS a;
        END IF;

        IF op.before_seq IS NOT NULL THEN
            made := op.before;
            IF made.content = op.content THEN
                replayed := true;
            ELSE
                made := NULL;
                refused := 'id taken';
            END IF;
        ELSIF op.kind IN ('post', 'void') AND op.open_id IS NULL THEN
            SELECT max(c.model) FILTER (WHERE c.kind = 'reserve' AND c.id = op.reservation) AS model,
                bool_or(c.kind = 'expire') AS has_expired, bool_or(c.kind IN ('post', 'void')) AS is_closed
            INTO origin
            FROM (
                SELECT kind, id, model FROM entry
                WHERE organisation = org.id AND id = op.reservation AND kind = 'reserve'
                UNION ALL
                SELECT kind, id, model FROM entry
                WHERE organisation = org.id AND reservation = op.reservation AND reservation <> '') AS c;
            IF origin.model IS NULL THEN
                refused := 'no reservation';
            ELSIF op.kind = 'void' OR origin.is_closed OR NOT origin.has_expired THEN
                refused := 'closed';
            END IF;
            of_model := origin.model;
        ELSE
            of_model := coalesce(op.open_model, op.model);
        END IF;
        IF refused <> '' OR replayed THEN
            available := org.available; reserved := org.reserved; spent := org.spent;
            issued := org.issued; uncovered := org.uncovered;
            RETURN NEXT;
            CONTINUE;
        END IF;

        amount := CASE
            WHEN op.kind IN ('grant', 'correct') THEN op.base
            WHEN op.kind NOT IN ('reserve', 'consume', 'post') THEN 0
            WHEN org.multiplier_ppm = 1000000 THEN op.base
            ELSE ceil(op.base::numeric * org.multiplier_ppm / 1000000)::bigint END;
        held := coalesce(op.open_amount, 0);
        lacking := 0;
        tokens := op.input + op.output;

        IF op.kind IN ('reserve', 'consume') THEN
            IF amount > org.available - org.lowest + org.uncovered THEN
                refused := 'balance';
                needed := amount;
            ELSIF full_at_us IS NOT NULL THEN
                then_full_at_us := full_at_us;
                worst_us := NULL;
                FOR i IN 1 .. array_length(full_at_us, 1) LOOP
                    IF limit_models[i] IN ('', op.model) THEN
                        cost_us := rate_cost_us(limit_rates[i], tokens, limit_most[i]);
                        then_full_at_us[i] := greatest(at_us, full_at_us[i]) + cost_us;
                        cost_us := then_full_at_us[i] - at_us
                            - CASE WHEN limit_rates[i] LIKE '%minute' THEN 60000000 ELSE 86400000000 END;
                        IF worst_us IS NULL OR cost_us > worst_us THEN
                            worst_us := cost_us;
                            worst := i;
                        END IF;
                    END IF;
                END LOOP;
                IF worst_us > 0 THEN
                    refused := replace(limit_rates[worst], '_', ' ');
                    limited_model := limit_models[worst];
                    IF rate_cost_us(limit_rates[worst], tokens, limit_most[worst])
                        <= (CASE WHEN limit_rates[worst] LIKE '%minute' THEN 60000000 ELSE 86400000000 END)
                    THEN
                        wait_us := worst_us;
                    END IF;
                ELSE
                    full_at_us := then_full_at_us;
                END IF;
            END IF;
        ELSIF op.kind IN ('post', 'void', 'expire') THEN
            lacking := greatest(0, amount - held - greatest(0, org.available - org.lowest));
            IF full_at_us IS NOT NULL THEN
                FOR i IN 1 .. array_length(full_at_us, 1) LOOP
                    IF limit_models[i] IN ('', of_model) AND limit_rates[i] LIKE 'tokens%' THEN
                        full_at_us[i] := full_at_us[i]
                            + least(rate_cost_us(limit_rates[i], CASE op.kind WHEN 'post' THEN tokens ELSE 0 END,
                                                 limit_most[i]),
                                    CASE WHEN limit_rates[i] LIKE '%minute' THEN 60000000 ELSE 86400000000 END)
                            - rate_cost_us(limit_rates[i], coalesce(op.open_tokens, 0), limit_most[i]);
                    END IF;
                END LOOP;
            END IF;
        ELSIF amount < 0
            AND org.available + amount < (CASE op.kind WHEN 'grant' THEN 0 ELSE org.lowest END)
        THEN
            refused := 'balance';
            needed := -amount;
        ELSIF (op.kind = 'grant' AND amount - org.issued > 4000000000000000000)
            OR (op.kind = 'correct' AND amount > org.spent)
        THEN
            refused := 'amount';
        ELSE
            lacking := -least(greatest(0, amount), -org.uncovered);
        END IF;

        IF refused = '' THEN
            org.available := org.available + held + lacking
                + CASE WHEN op.kind IN ('grant', 'correct') THEN amount
                    WHEN op.kind IN ('reserve', 'consume', 'post') THEN -amount ELSE 0 END;
            org.reserved := org.reserved - held + CASE op.kind WHEN 'reserve' THEN amount ELSE 0 END;
            org.spent := org.spent
                + CASE WHEN op.kind IN ('consume', 'post') THEN amount WHEN op.kind = 'correct' THEN -amount ELSE 0 END;
            org.issued := org.issued - CASE op.kind WHEN 'grant' THEN amount ELSE 0 END;
            org.uncovered := org.uncovered - lacking;
            org.changed_at_ms := greatest(at_ms, org.changed_at_ms);
            e := ROW(
                org.id, org.seq + 1, op.id, op.kind, op.reservation,
                CASE WHEN op.kind IN ('post', 'void') AND op.model = '' THEN of_model ELSE op.model END,
                op.input, op.cached, op.output, op.reasoning, op.price,
                CASE WHEN op.kind IN ('reserve', 'consume', 'post') THEN op.base ELSE 0 END, org.multiplier_ppm,
                amount, held, lacking,
                CASE op.kind WHEN 'reserve' THEN at_ms + op.hold_ms ELSE 0 END,
                op.content, op.actor, op.note, org.changed_at_ms,
                org.available, org.reserved, org.spent, org.issued, org.uncovered, org.head, '');
            e.hash := entry_hash(e);
            org.seq := e.seq;
            org.head := e.hash;
            entries := entries || e;
            is_reserving := is_reserving OR e.kind = 'reserve';
            is_closing := is_closing OR e.kind IN ('post', 'void', 'expire');
            made := e;
        END IF;
        available := org.available; reserved := org.reserved; spent := org.spent;
        issued := org.issued; uncovered := org.uncovered;
        RETURN NEXT;
    END LOOP;

    IF org.id IS NOT NULL THEN
        changed := changed || org;
        IF full_at_us IS NOT NULL THEN
            PERFORM keep_allowances(org.id, limit_models, limit_rates, full_at_us);
        END IF;
    END IF;
    IF cardinality(entries) = 0 THEN
        RETURN;
    END IF;
    UPDATE organisation AS o
    SET seq = c.seq, head = c.head, changed_at_ms = c.changed_at_ms, available = c.available, reserved = c.reserved,
        spent = c.spent, issued = c.issued, uncovered = c.uncovered
    FROM unnest(changed) AS c
    WHERE o.id = c.id AND o.seq <> c.seq;
    INSERT INTO entry SELECT n.* FROM unnest(entries) AS n;
    IF is_closing THEN
        DELETE FROM reservation AS r USING unnest(entries) AS n
        WHERE n.kind IN ('post', 'void', 'expire') AND r.organisation = n.organisation AND r.id = n.reservation;
    END IF;
    IF is_reserving THEN
        INSERT INTO reservation
        SELECT n.organisation, n.id, n.model, n.amount, n.input_tokens + n.output_tokens, n.expires_at_ms
        FROM unnest(entries) AS n WHERE n.kind = 'reserve';
    END IF;
END
$$;

CREATE FUNCTION keep_allowances(of_organisation TEXT, models TEXT[], rates TEXT[], fulls_at_us BIGINT[])
RETURNS VOID LANGUAGE sql SET search_path FROM CURRENT AS $$
    UPDATE allowance AS a SET full_at_us = n.full_at_us
    FROM unnest(models, rates, fulls_at_us) AS n (model, rate, full_at_us)
    WHERE a.organisation = of_organisation AND a.model = n.model AND a.rate = n.rate
        AND a.full_at_us <> n.full_at_us
$$;

-- Frees what has expired of these organisations, a thousand at a time: a batch of nothing else.

CREATE FUNCTION credits_expire(of_organisations TEXT[]) RETURNS BIGINT LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT count(*) FROM credits_apply(of_organisations, '[]')
$$;
