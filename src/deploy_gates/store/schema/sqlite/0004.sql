-- What evidence opens is said once, and the order of environments stands.

CREATE TRIGGER admission_comes_with_its_evidence BEFORE INSERT ON admission
WHEN NEW.evidence IS NOT (SELECT id FROM evidence ORDER BY rowid DESC LIMIT 1)
BEGIN
    SELECT RAISE(ABORT, 'what evidence opens is said when it is handed in');
END;

CREATE TRIGGER admission_stays BEFORE UPDATE ON admission
BEGIN
    SELECT RAISE(ABORT, 'what evidence opens does not change');
END;

CREATE TRIGGER admission_is_kept BEFORE DELETE ON admission
BEGIN
    SELECT RAISE(ABORT, 'what evidence opens does not change');
END;

CREATE TRIGGER environment_stays BEFORE UPDATE ON environment
BEGIN
    SELECT RAISE(ABORT, 'the order of environments does not change');
END;

CREATE TRIGGER environment_is_kept BEFORE DELETE ON environment
BEGIN
    SELECT RAISE(ABORT, 'the order of environments does not change');
END;
