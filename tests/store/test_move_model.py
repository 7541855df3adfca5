"""Any sequence of evidence, leases, and moves, against a model in plain Python, on both engines."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import timedelta
from random import Random

import pytest

from deploy_gates import runner
from deploy_gates.core.canonical import spelled
from deploy_gates.core.errors import Refusal, Refused
from deploy_gates.core.promotion import Kind, Lease, Move
from deploy_gates.store import Store
from deploy_gates.testing import NOW, a_document, a_record

CONFIG = "ticket-triage"
AFTER = {"development": "", "staging": "development", "production": "staging"}
POLICIES = ("1" * 64, "2" * 64)
STEPS = 600
OWNERS = ("ada", "lin")
VERDICTS = ("pass", "pass", "fail", "inconclusive")

FLAWS = ("behind", "ahead", "late", "idle", "other policy", "adopted", "same key", "no share", "whole")
"""What a runner does wrong now and then."""


@dataclass(kw_only=True)
class Row:
    """What an environment serves, as the model sees it."""

    revision: int = 0
    baseline: str = ""
    candidate: str = ""
    weight_bp: int = 0
    salt: str = ""
    policy: str = ""
    fence: int = 0
    owner: str = ""
    is_held: bool = False
    past: list[Move] = field(default_factory=list)
    baselines: list[str] = field(default_factory=list)


class Releases:
    """Three versions of a config on their way through three environments, and two runners that move them."""

    def __init__(self, store: Store, random: Random) -> None:
        self.store = store
        self.random = random
        self.digests = [store.put_config(CONFIG, spelled(a_document(each))) for each in range(3)]
        self.evidence: list[tuple[str, str, str, int]] = []
        self.rows: dict[str, Row] = {}
        self.moves = 0
        self.answers: Counter[Refusal | str] = Counter()
        for digest in self.digests:
            for policy in POLICIES:
                self.judge(digest, "pass", policy)

    def step(self) -> None:
        """Somebody does something."""
        random = self.random
        environment = random.choice(["development", "development", "staging", "production"])
        flaw = random.choice(FLAWS) if random.random() < 0.3 else ""
        match random.choices(range(6), weights=[2, 2, 1, 12, 3, 1])[0]:
            case 0:
                self.judge(random.choice(self.digests), random.choice(VERDICTS), random.choice(POLICIES))
            case 1:
                self.acquire(environment, random.choice(OWNERS))
            case 2:
                self.release(environment)
            case 3:
                self.forward(environment, flaw)
            case 4:
                self.back(environment, flaw)
            case 5:
                self.repeat(environment)

    def judge(self, digest: str, verdict: str, policy: str) -> None:
        minute = len(self.evidence) + self.random.randint(-8, 0)
        self.evidence.append((digest, verdict, policy, minute))
        record = a_record(
            digest,
            id=f"{len(self.evidence):064}",
            verdict=verdict,
            policy=policy,
            finished_at=NOW + timedelta(minutes=minute),
        )

        assert self.store.put_evidence(record)
        assert not self.store.put_evidence(record)

    def acquire(self, environment: str, owner: str) -> None:
        row = self.rows.setdefault(environment, Row())
        if row.is_held and row.owner != owner:
            with pytest.raises(Refused) as refused:
                self.store.acquire(CONFIG, environment, owner, timedelta(minutes=9))
            assert refused.value.refusal is Refusal.LEASE
            return
        row.owner, row.is_held, row.fence = owner, True, row.fence + 1

        lease = self.store.acquire(CONFIG, environment, owner, timedelta(minutes=9))

        assert (lease.fence, lease.revision) == (row.fence, row.revision)

    def release(self, environment: str) -> None:
        row = self.rows.get(environment)
        if row is not None:
            self.store.release(self.lease(environment, row))
            row.is_held = False

    def forward(self, environment: str, flaw: str) -> None:
        row = self.rows.get(environment, Row())
        if flaw == "idle":
            self.release(environment)
        elif not row.is_held:
            self.acquire(environment, OWNERS[0])
            row = self.rows[environment]
        before = self.rows.get(AFTER[environment], Row()).baseline
        likely = [each for each in (row.candidate, before) if each not in ("", row.baseline)]
        digest = self.random.choice([*likely, *likely, *self.digests])
        share = self.random.choice([0, 0, 500, 2_500])
        policy = row.policy or POLICIES[0]
        if flaw in ("other policy", "adopted"):
            policy = next(each for each in POLICIES if each != policy)
        wrong_share = {"no share": 0, "whole": 10_000}.get(flaw)
        is_canary = bool(share) or wrong_share is not None
        self.ask(
            Move(
                config=CONFIG,
                environment=environment,
                kind=Kind.CANARY if is_canary else Kind.PROMOTE,
                digest=digest,
                weight_bp=share if wrong_share is None else wrong_share,
                salt=f"salt {self.moves}" if is_canary else "",
                expected=row.revision + {"behind": -1, "ahead": 1}.get(flaw, 0),
                fence=row.fence - (flaw == "late"),
                policy=policy,
                adopt_policy=flaw == "adopted",
                actor="ada",
                reason="",
                key=self.key(row, flaw),
            )
        )

    def back(self, environment: str, flaw: str) -> None:
        row = self.rows.get(environment, Row())
        self.ask(
            Move(
                config=CONFIG,
                environment=environment,
                kind=Kind.ROLLBACK,
                digest=self.random.choice([*row.baselines[-4:], *self.digests]),
                expected=row.revision + {"behind": -1, "ahead": 1}.get(flaw, 0),
                fence=0,
                actor="lin",
                reason="",
                key=self.key(row, flaw),
            )
        )

    def repeat(self, environment: str) -> None:
        past = self.rows.get(environment, Row()).past
        if past:
            number = self.random.randint(0, 9)
            self.ask(replace(self.random.choice(past), expected=number, fence=number))

    def check(self) -> None:
        found = {each.environment: each for each in self.store.deployments()}
        assert set(found) == set(self.rows)
        for name, row in self.rows.items():
            now = found[name]
            assert (now.revision, now.baseline, now.candidate, now.weight_bp, now.fence) == (
                row.revision,
                row.baseline,
                row.candidate,
                row.weight_bp,
                row.fence,
            )
            assert (now.salt, now.policy) == (row.salt, row.policy)
            assert list(runner.problems(self.store, now)) == []
        served = self.store.serving("development").deployments
        assert [each.revision for each in served] == [
            row.revision for name, row in self.rows.items() if name == "development" and row.revision
        ]
        assert len(self.store.outbox()) == sum(row.revision for row in self.rows.values())

    def key(self, row: Row, flaw: str) -> str:
        self.moves += 1
        return row.past[-1].key if flaw == "same key" and row.past else f"key {self.moves}"

    def lease(self, environment: str, row: Row) -> Lease:
        return Lease(
            config=CONFIG,
            environment=environment,
            owner=row.owner,
            fence=row.fence,
            until=NOW,
            revision=row.revision,
        )

    def ask(self, move: Move) -> None:
        """Make the move in the store and in the model."""
        expected = self.answer(move)
        if isinstance(expected, Refusal):
            self.answers[expected] += 1
            with pytest.raises(Refused) as refused:
                self.store.move(move)
            assert refused.value.refusal is expected, refused.value.message
            return

        made = self.store.move(move)

        row = self.rows[move.environment]
        assert made.replayed == (expected <= row.revision)
        assert made.deployment.revision == expected
        self.answers["replayed" if made.replayed else move.kind] += 1
        if not made.replayed:
            self.make(move, row)

    def answer(self, move: Move) -> Refusal | int:
        """The revision the move makes or made, or why there is none."""
        row = self.rows.get(move.environment)
        for revision, past in enumerate(row.past if row else (), start=1):
            if past.key == move.key:
                is_same = (past.kind, past.digest, past.weight_bp) == (
                    move.kind,
                    move.digest,
                    move.weight_bp,
                )
                return revision if is_same else Refusal.KEY_REUSED
        if row is None or (move.kind is Kind.ROLLBACK and not row.revision):
            return Refusal.UNKNOWN
        if move.expected != row.revision:
            return Refusal.REVISION
        if move.kind is not Kind.ROLLBACK:
            return self.obstacle(move, row) or row.revision + 1
        if not row.candidate and move.digest == row.baseline:
            return Refusal.STATE
        return row.revision + 1 if move.digest in row.baselines else Refusal.UNKNOWN

    def obstacle(self, move: Move, row: Row) -> Refusal | None:
        before = self.rows.get(AFTER[move.environment], Row())
        is_canary = move.kind is Kind.CANARY
        obstacles = {
            Refusal.FENCE: move.fence != row.fence,
            Refusal.LEASE: not row.is_held,
            Refusal.STATE: row.candidate not in ("", move.digest)
            or row.baseline == move.digest
            or (is_canary and (not row.baseline or not 0 < move.weight_bp < 10_000)),
            Refusal.POLICY: not move.adopt_policy and row.policy not in ("", move.policy),
            Refusal.EVIDENCE: not self.is_proved(move.digest, move.policy),
            Refusal.ORDER: bool(AFTER[move.environment])
            and move.digest not in (row.candidate, before.baseline),
        }
        return next((each for each, stands in obstacles.items() if stands), None)

    def is_proved(self, digest: str, policy: str) -> bool:
        failed = [at for of, verdict, _, at in self.evidence if of == digest and verdict == "fail"]
        return any(
            (of, verdict, under) == (digest, "pass", policy) and at > max(failed, default=-100)
            for of, verdict, under, at in self.evidence
        )

    def make(self, move: Move, row: Row) -> None:
        row.revision += 1
        row.past.append(move)
        if move.kind is Kind.CANARY:
            row.salt = row.salt if row.candidate == move.digest else move.salt
            row.candidate, row.weight_bp = move.digest, move.weight_bp
        else:
            row.baseline, row.candidate, row.weight_bp, row.salt = move.digest, "", 0, ""
        if move.kind is Kind.ROLLBACK:
            row.fence, row.owner, row.is_held = row.fence + 1, "", False
        else:
            row.policy = move.policy
        row.baselines.append(row.baseline)


@pytest.mark.parametrize("seed", [1, 2])
def test_both_engines_do_what_the_model_does(store: Store, seed: int) -> None:
    releases = Releases(store, Random(seed))

    for _ in range(STEPS):
        releases.step()
        releases.check()

    every_answer = {*Kind, "replayed", *Refusal}
    assert every_answer - set(releases.answers) == set(), releases.answers
