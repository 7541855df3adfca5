-- Credits: organisations, what they may spend, and every transaction. Amounts are micro-credits.

-- PostgreSQL reads the text of a CHECK anew with every statement that writes: on tables that change with every
-- transaction it is a tenth of its time. So what these hold is checked by the triggers below, but for the promises.

CREATE TABLE organisation (
    id             TEXT PRIMARY KEY,
    name           TEXT NOT NULL,
    lowest         BIGINT NOT NULL,
    multiplier_ppm BIGINT NOT NULL,
    seq            BIGINT NOT NULL DEFAULT 0,
    head           TEXT NOT NULL DEFAULT '',
    changed_at_ms  BIGINT NOT NULL DEFAULT 0,
    -- Its five accounts.
    available      BIGINT NOT NULL DEFAULT 0,
    reserved       BIGINT NOT NULL DEFAULT 0,
    spent          BIGINT NOT NULL DEFAULT 0,
    issued         BIGINT NOT NULL DEFAULT 0,
    uncovered      BIGINT NOT NULL DEFAULT 0,
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
    organisation        TEXT NOT NULL, -- of `organisation`: the trigger below sees to it, once per statement
    seq                 BIGINT NOT NULL,
    id                  TEXT NOT NULL,
    kind                TEXT NOT NULL,
    reservation         TEXT NOT NULL,
    model               TEXT NOT NULL,
    input_tokens        BIGINT NOT NULL,
    cached_input_tokens BIGINT NOT NULL,
    output_tokens       BIGINT NOT NULL,
    reasoning_tokens    BIGINT NOT NULL,
    price               TEXT NOT NULL,
    base                BIGINT NOT NULL,
    multiplier_ppm      BIGINT NOT NULL,
    amount              BIGINT NOT NULL,
    held                BIGINT NOT NULL,
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
    UNIQUE (id, organisation)
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

CREATE TRIGGER organisation_has_terms BEFORE INSERT OR UPDATE OF id, lowest, multiplier_ppm ON organisation
FOR EACH ROW WHEN (
    length(NEW.id) NOT BETWEEN 1 AND 200 OR NEW.lowest > 0 OR NEW.multiplier_ppm NOT BETWEEN 0 AND 1000000000)
EXECUTE FUNCTION refuse('an organisation has an id, a limit of at most 0, and a multiplier up to 1000');

CREATE TRIGGER organisation_changes_by_entries
BEFORE UPDATE OF id, seq, head, changed_at_ms, available, reserved, spent, issued, uncovered ON organisation
FOR EACH ROW WHEN (pg_trigger_depth() = 0) -- it is `entry_follows` that changes them
EXECUTE FUNCTION refuse('a balance changes by an entry, and by nothing else');

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

-- Entries follow on one another, and do what their kinds do. The last one is how the organisation stands: its
-- balances move with its entries, and by nothing else.

-- Plans are made before anybody knows how long the tables get: always by the index.

CREATE FUNCTION entry_follows() RETURNS TRIGGER LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    faults INT;
BEGIN
    SELECT bit_or(
        CASE WHEN o.id IS NULL
            OR a.seq <> coalesce(p.seq, 0) + 1
            OR a.previous <> coalesce(p.hash, '')
            OR a.at_ms < coalesce(p.at_ms, 0)
            OR a.available <> coalesce(p.available, 0) + a.held + a.lacking
                + CASE WHEN a.kind IN ('grant', 'correct') THEN a.amount
                    WHEN a.kind IN ('reserve', 'consume', 'post') THEN -a.amount ELSE 0 END
            OR a.reserved <> coalesce(p.reserved, 0) - a.held
                + CASE a.kind WHEN 'reserve' THEN a.amount ELSE 0 END
            OR a.spent <> coalesce(p.spent, 0)
                + CASE WHEN a.kind IN ('consume', 'post') THEN a.amount
                    WHEN a.kind = 'correct' THEN -a.amount ELSE 0 END
            OR a.uncovered <> coalesce(p.uncovered, 0) - a.lacking
            OR a.available + a.reserved + a.spent + a.issued + a.uncovered <> 0
            OR a.hash <> entry_hash(a::entry)
        THEN 1 ELSE 0 END
        | CASE WHEN a.id = ''
            OR a.kind NOT IN ('grant', 'correct', 'reserve', 'post', 'void', 'expire', 'consume', 'terms')
            OR a.input_tokens < 0 OR a.cached_input_tokens NOT BETWEEN 0 AND a.input_tokens
            OR a.output_tokens < 0 OR a.reasoning_tokens NOT BETWEEN 0 AND a.output_tokens
            OR a.base < 0 OR a.held < 0
            OR a.reserved < 0 OR a.spent < 0 OR a.issued > 0 OR a.uncovered > 0
            OR (a.amount < 0 AND a.kind NOT IN ('grant', 'correct'))
            OR (a.held <> 0 AND a.kind NOT IN ('post', 'void', 'expire'))
            OR (a.lacking > 0 AND a.kind <> 'post')
            OR (a.lacking < 0 AND a.kind NOT IN ('grant', 'correct'))
        THEN 2 ELSE 0 END)
    INTO faults
    FROM added AS a
    LEFT JOIN entry AS p ON p.organisation = a.organisation AND p.seq = a.seq - 1
    LEFT JOIN organisation AS o ON o.id = a.organisation;
    IF faults & 1 = 1 THEN
        RAISE EXCEPTION 'an entry follows on the one before, and moves what its kind moves';
    ELSIF faults <> 0 THEN
        RAISE EXCEPTION 'an entry is of a kind, and has what its kind has';
    END IF;
    UPDATE organisation AS o
    SET seq = l.seq, head = l.hash, changed_at_ms = l.at_ms, available = l.available, reserved = l.reserved,
        spent = l.spent, issued = l.issued, uncovered = l.uncovered
    FROM (SELECT DISTINCT ON (organisation) * FROM added ORDER BY organisation, seq DESC) AS l
    WHERE o.id = l.organisation;
    RETURN NULL;
END
$$;

CREATE TRIGGER entry_follows AFTER INSERT ON entry
REFERENCING NEW TABLE AS added
FOR EACH STATEMENT EXECUTE FUNCTION entry_follows();

-- Any number of transactions of any number of organisations, in one round trip: the rules of `decide` in
-- `core/ledger.py`, once for each, in their order. No two of them have the same id or the same reservation.

CREATE FUNCTION credits_apply(
    organisations TEXT[], -- of what is asked; they are freed of what has expired, whatever else is asked
    reservations TEXT[],  -- that are posted or voided
    asked JSON)
RETURNS TABLE (
    place BIGINT, refused TEXT, needed BIGINT, wait_us BIGINT, limited_model TEXT, replayed BOOLEAN,
    -- The entry, or how the organisation stands that was refused.
    seq BIGINT, model TEXT, price TEXT, base BIGINT, multiplier_ppm BIGINT, amount BIGINT, held BIGINT,
    lacking BIGINT, expires_at_ms BIGINT, actor TEXT, note TEXT, at_ms BIGINT, available BIGINT, reserved BIGINT,
    spent BIGINT, issued BIGINT, uncovered BIGINT, previous TEXT, hash TEXT)
LANGUAGE plpgsql SET search_path FROM CURRENT
SET plan_cache_mode = force_generic_plan SET enable_hashjoin = off SET enable_mergejoin = off
SET enable_seqscan = off SET enable_bitmapscan = off AS $$
#variable_conflict use_column
DECLARE
    op RECORD;
    org organisation; -- as it stands now, in the midst of the batch
    holding reservation;
    e entry;
    entries entry[] := '{}';
    origin RECORD;
    now_ms BIGINT;
    now_us BIGINT;
    is_reserving BOOLEAN := false;
    is_closing BOOLEAN := false;
    is_counted BOOLEAN := false;
    tokens BIGINT;
    of_model TEXT;
    -- The rate limits of all these organisations, in the order of their ids, one place for each.
    limit_organisations TEXT[];
    limit_models TEXT[];
    limit_rates TEXT[];
    limit_most BIGINT[];
    limit_period_us BIGINT[];
    limit_of_tokens BOOLEAN[];
    limit_full_at_us BIGINT[];
    then_limit_full_at_us BIGINT[];
    limits BIGINT := 0;
    own INT := 1; -- where those of `org` begin,
    other INT := 1; -- and where they have ended
    cost_us BIGINT;
    worst_us BIGINT;
    worst INT;
BEGIN
    PERFORM 1 FROM organisation WHERE id = ANY (organisations) ORDER BY id FOR UPDATE;
    now_ms := now_ms();
    now_us := now_ms * 1000;
    IF EXISTS (SELECT 1 FROM allowance WHERE organisation = ANY (organisations)) THEN
        SELECT count(*), array_agg(a.organisation), array_agg(a.model), array_agg(a.rate), array_agg(a.most),
            array_agg(CASE WHEN a.rate LIKE '%minute' THEN 60000000 ELSE 86400000000 END),
            array_agg(a.rate LIKE 'tokens%'), array_agg(a.full_at_us)
        INTO limits, limit_organisations, limit_models, limit_rates, limit_most, limit_period_us, limit_of_tokens,
            limit_full_at_us
        FROM (
            SELECT * FROM allowance WHERE organisation = ANY (organisations)
            ORDER BY organisation COLLATE "C", model COLLATE "C", rate COLLATE "C") AS a;
    END IF;

    FOR op IN
        SELECT asked.*, before
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
                WHERE organisation = ANY (organisations) AND expires_at_ms <= now_ms AND id <> ALL (reservations)
                ORDER BY expires_at_ms, id
                LIMIT 1000)
        ) AS asked
        LEFT JOIN entry AS before ON before.organisation = asked.organisation AND before.id = asked.id
        ORDER BY asked.organisation COLLATE "C", asked.place, asked.reservation
    LOOP
        place := op.place;
        refused := '';
        needed := 0;
        wait_us := NULL;
        limited_model := '';
        replayed := false;
        amount := 0;
        held := 0;
        lacking := 0;

        IF org.id IS DISTINCT FROM op.organisation THEN -- another one
            SELECT * INTO org FROM organisation WHERE id = op.organisation;
            own := other;
            WHILE own <= limits AND limit_organisations[own] COLLATE "C" < op.organisation LOOP
                own := own + 1;
            END LOOP;
            other := own;
            WHILE other <= limits AND limit_organisations[other] = op.organisation LOOP
                other := other + 1;
            END LOOP;
        END IF;

        IF org.id IS NULL THEN
            refused := 'unknown organisation';
        ELSIF op.before IS NOT NULL THEN
            e := op.before;
            IF e.content = op.content THEN
                replayed := true;
            ELSE
                refused := 'id taken';
            END IF;
        ELSIF op.reservation = '' THEN
            of_model := op.model;
        ELSE
            SELECT * INTO holding FROM reservation WHERE organisation = op.organisation AND id = op.reservation;
            held := coalesce(holding.amount, 0);
            of_model := holding.model;
            IF holding.id IS NULL THEN
                SELECT max(c.model) FILTER (WHERE c.kind = 'reserve' AND c.id = op.reservation) AS model,
                    bool_or(c.kind = 'expire') AS has_expired, bool_or(c.kind IN ('post', 'void')) AS is_closed
                INTO origin
                FROM (
                    SELECT kind, id, model FROM entry
                    WHERE organisation = op.organisation AND id = op.reservation AND kind = 'reserve'
                    UNION ALL
                    SELECT kind, id, model FROM entry
                    WHERE organisation = op.organisation AND reservation = op.reservation AND reservation <> '') AS c;
                IF origin.model IS NULL THEN
                    refused := 'no reservation';
                ELSIF op.kind = 'void' OR origin.is_closed OR NOT origin.has_expired THEN
                    refused := 'closed';
                END IF;
                of_model := origin.model;
            END IF;
        END IF;

        IF refused <> '' OR replayed THEN
            NULL;
        ELSIF op.kind IN ('reserve', 'consume') THEN
            amount := charged(op.base, org.multiplier_ppm);
            IF amount > org.available - org.lowest + org.uncovered THEN
                refused := 'balance';
                needed := amount;
            ELSIF own < other THEN
                tokens := op.input + op.output;
                then_limit_full_at_us := limit_full_at_us;
                worst_us := NULL;
                FOR i IN own .. other - 1 LOOP
                    IF limit_models[i] IN ('', op.model) THEN
                        cost_us := ((CASE WHEN limit_of_tokens[i] THEN tokens ELSE 1 END) * limit_period_us[i]
                            + limit_most[i] - 1) / limit_most[i];
                        then_limit_full_at_us[i] := greatest(now_us, limit_full_at_us[i]) + cost_us;
                        IF worst_us IS NULL OR then_limit_full_at_us[i] - now_us - limit_period_us[i] > worst_us THEN
                            worst_us := then_limit_full_at_us[i] - now_us - limit_period_us[i];
                            worst := i;
                            wait_us := CASE WHEN cost_us <= limit_period_us[i] THEN worst_us END;
                        END IF;
                    END IF;
                END LOOP;
                IF worst_us > 0 THEN
                    refused := replace(limit_rates[worst], '_', ' ');
                    limited_model := limit_models[worst];
                ELSE
                    limit_full_at_us := then_limit_full_at_us;
                    is_counted := true;
                END IF;
            END IF;
        ELSIF op.kind IN ('post', 'void', 'expire') THEN
            IF op.kind = 'post' THEN
                amount := charged(op.base, org.multiplier_ppm);
                lacking := greatest(0, amount - held - greatest(0, org.available - org.lowest));
            END IF;
            FOR i IN own .. other - 1 LOOP -- what was counted, and not used, is there again
                IF limit_models[i] IN ('', of_model) AND limit_of_tokens[i] THEN
                    tokens := CASE op.kind WHEN 'post' THEN op.input + op.output ELSE 0 END;
                    limit_full_at_us[i] := limit_full_at_us[i]
                        + least((tokens * limit_period_us[i] + limit_most[i] - 1) / limit_most[i], limit_period_us[i])
                        - (coalesce(holding.tokens, 0) * limit_period_us[i] + limit_most[i] - 1) / limit_most[i];
                    is_counted := true;
                END IF;
            END LOOP;
        ELSE
            amount := op.base;
            IF amount < 0 AND org.available + amount < (CASE op.kind WHEN 'grant' THEN 0 ELSE org.lowest END) THEN
                refused := 'balance';
                needed := -amount;
            ELSIF (op.kind = 'grant' AND amount - org.issued > 4000000000000000000)
                OR (op.kind = 'correct' AND amount > org.spent)
            THEN
                refused := 'amount';
            ELSE
                lacking := -least(greatest(0, amount), -org.uncovered);
            END IF;
        END IF;

        IF refused <> '' THEN
            available := coalesce(org.available, 0); reserved := coalesce(org.reserved, 0);
            spent := coalesce(org.spent, 0); issued := coalesce(org.issued, 0); uncovered := coalesce(org.uncovered, 0);
            RETURN NEXT;
            CONTINUE;
        END IF;
        IF NOT replayed THEN
            org.available := org.available + held + lacking
                + CASE WHEN op.kind IN ('grant', 'correct') THEN amount
                    WHEN op.kind IN ('reserve', 'consume', 'post') THEN -amount ELSE 0 END;
            org.reserved := org.reserved - held + CASE op.kind WHEN 'reserve' THEN amount ELSE 0 END;
            org.spent := org.spent
                + CASE WHEN op.kind IN ('consume', 'post') THEN amount WHEN op.kind = 'correct' THEN -amount ELSE 0 END;
            org.issued := org.issued - CASE op.kind WHEN 'grant' THEN amount ELSE 0 END;
            org.uncovered := org.uncovered - lacking;
            org.changed_at_ms := greatest(now_ms, org.changed_at_ms);
            org.seq := org.seq + 1;
            e := ROW(
                org.id, org.seq, op.id, op.kind, op.reservation,
                CASE WHEN op.kind IN ('post', 'void') AND op.model = '' THEN of_model ELSE op.model END,
                op.input, op.cached, op.output, op.reasoning, op.price,
                CASE WHEN op.kind IN ('reserve', 'consume', 'post') THEN op.base ELSE 0 END, org.multiplier_ppm,
                amount, held, lacking,
                CASE op.kind WHEN 'reserve' THEN now_ms + op.hold_ms ELSE 0 END,
                op.content, op.actor, op.note, org.changed_at_ms,
                org.available, org.reserved, org.spent, org.issued, org.uncovered, org.head, '');
            e.hash := entry_hash(e);
            org.head := e.hash;
            entries := entries || e;
            is_reserving := is_reserving OR op.kind = 'reserve';
            is_closing := is_closing OR op.kind IN ('post', 'void', 'expire');
        END IF;
        wait_us := NULL;
        seq := e.seq; model := e.model; price := e.price; base := e.base; multiplier_ppm := e.multiplier_ppm;
        amount := e.amount; held := e.held; lacking := e.lacking; expires_at_ms := e.expires_at_ms;
        actor := e.actor; note := e.note; at_ms := e.at_ms; available := e.available; reserved := e.reserved;
        spent := e.spent; issued := e.issued; uncovered := e.uncovered; previous := e.previous; hash := e.hash;
        RETURN NEXT;
    END LOOP;

    IF cardinality(entries) = 0 THEN
        RETURN;
    END IF;
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
    IF is_counted THEN
        UPDATE allowance AS a SET full_at_us = n.full_at_us
        FROM unnest(limit_organisations, limit_models, limit_rates, limit_full_at_us)
            AS n (organisation, model, rate, full_at_us)
        WHERE a.organisation = n.organisation AND a.model = n.model AND a.rate = n.rate
            AND a.full_at_us <> n.full_at_us;
    END IF;
END
$$;

-- What an organisation pays of a list price, as `charged` says.

CREATE FUNCTION charged(base BIGINT, multiplier_ppm BIGINT) RETURNS BIGINT LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE multiplier_ppm WHEN 1000000 THEN base ELSE ceil(base::numeric * multiplier_ppm / 1000000)::bigint END
$$;

-- Frees what has expired of these organisations, a thousand at a time: a batch of nothing else.

CREATE FUNCTION credits_expire(organisations TEXT[]) RETURNS BIGINT LANGUAGE sql SET search_path FROM CURRENT AS $$
    SELECT count(*) FROM credits_apply(organisations, '{}', '[]')
$$;
