-- What evidence opens is said once, and the order of environments stands.

CREATE FUNCTION admission_comes_with_its_evidence() RETURNS TRIGGER LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM evidence WHERE id = NEW.evidence AND xmin = pg_current_xact_id()::xid) THEN
        RAISE EXCEPTION 'what evidence opens is said when it is handed in';
    END IF;
    RETURN NEW;
END
$$;

CREATE TRIGGER admission_comes_with_its_evidence BEFORE INSERT ON admission
FOR EACH ROW EXECUTE FUNCTION admission_comes_with_its_evidence();

CREATE TRIGGER admission_stays BEFORE UPDATE OR DELETE ON admission
FOR EACH ROW EXECUTE FUNCTION refuse('what evidence opens does not change');

CREATE TRIGGER admission_is_not_emptied BEFORE TRUNCATE ON admission
FOR EACH STATEMENT EXECUTE FUNCTION refuse('what evidence opens does not change');

CREATE TRIGGER environment_stays BEFORE UPDATE OR DELETE ON environment
FOR EACH ROW EXECUTE FUNCTION refuse('the order of environments does not change');
