"""The repository a release comes from: its config, its evidence, and its smoke cases."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from deploy_gates import answers, catalog, clock, envelope, git, runner, workspace
from deploy_gates.core.canonical import Json, JsonObject, short, spelled
from deploy_gates.core.config import ConfigChange, Snapshot
from deploy_gates.core.cost import Price
from deploy_gates.core.errors import EnvelopeError, Refusal, Refused, SettingsError, WorkspaceError
from deploy_gates.core.freezing import freezes
from deploy_gates.core.gate import Found, Outcome, Verdict
from deploy_gates.core.promotion import Record
from deploy_gates.core.release import Promotion, Release, State, Status, Terms
from deploy_gates.envelope import PublicKey
from deploy_gates.gates import golden
from deploy_gates.model import Record as Asking
from deploy_gates.settings import Settings
from deploy_gates.store import Store
from deploy_gates.workspace import STATE_FOLDER, Changes

GRACE_S = 120.0
"""So long after the last mark of a canary its clients wait before they end it by themselves."""
NAMED_MAX = 3
"""So many smoke cases are named in a sentence; the rest is counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Came:
    """What came of a step: how it ended, and what the journal is to say of it."""

    status: Status
    data: JsonObject


@dataclass(frozen=True, kw_only=True)
class Checkout:
    """A repository as it lies here. Every method reads it anew."""

    root: Path
    settled: Settings
    evidence: Path | None = None
    """Evidence to hand in; `None`: where the gates have put it."""
    keys: tuple[PublicKey, ...] = field(init=False)

    def __post_init__(self) -> None:
        files = [str(self.root / each) for each in self.settled.public_keys]
        object.__setattr__(self, "keys", envelope.public_keys(self.root, files))

    @property
    def names(self) -> tuple[str, ...]:
        """The configs, in order."""
        return tuple(sorted(self._files()))

    def snapshot(self, name: str) -> Snapshot:
        """The config as it is in the work tree. `SettingsError` where it is not there or cannot be read."""
        files = self._files()
        if name not in files:
            known = ", ".join(sorted(files)) or "none at all"
            raise SettingsError(f"there is no config {name!r} in {self.root.name}", hint=f"known: {known}")
        snapshot = workspace.read_snapshot(self.root, files[name])
        if snapshot.config is None:
            raise SettingsError("\n".join(str(each) for each in snapshot.problems))
        return snapshot

    def subject(self, name: str) -> str:
        """The first line of the commit that last changed the config: why is said there."""
        file = self._files().get(name)
        return git.subject(self.root, str(Path(file).parent)) if file else ""

    def keep(self, store: Store, name: str) -> str:
        """Have the store keep the config, and what a call of it costs; its digest."""
        snapshot = self.snapshot(name)
        assert snapshot.config is not None, snapshot
        return runner.keep(store, name, spelled(snapshot.config.document), self._price(snapshot))

    def admit(self, store: Store, name: str, digest: str) -> Record | None:
        """Have the store keep the evidence for the config as it is here; `None`: there is none here.

        `EnvelopeError` or `Refused` where it cannot be trusted.
        """
        path = self.evidence or self.root / STATE_FOLDER / "evidence" / f"{name}-{short(digest)}.json"
        if not (self.evidence or path.exists()):
            return None
        snapshot = self.snapshot(name)
        price = self._price(snapshot)
        return runner.admit(
            store,
            envelope.read(path),
            keys=self.keys,
            require_signature=bool(self.keys),
            policy=self.settled.policy,
            dataset=snapshot.cases_digest,
            prices=price.source if price else "",
        )

    def _files(self) -> dict[str, str]:
        return {Path(each).parent.name: each for each in workspace.config_files(self.root, self.settled)}

    def _price(self, snapshot: Snapshot) -> Price | None:
        assert snapshot.config is not None, snapshot
        return catalog.price(
            snapshot.config.model,
            self.settled.policy,
            clock.now(),
            service_tier=str(snapshot.config.parameters.get("service_tier", "")),
            base_url=snapshot.config.environment("production").base_url,
        )

    # --- Steps of a promotion -------------------------------------------------------------------

    def release(self, store: Store, name: str, actor: str) -> Release:
        """The config as it is here, kept by the store, with the commit that brought it."""
        repository = git.find(self.root)
        return Release(
            config=name,
            digest=self.keep(store, name),
            actor=actor,
            reason=self.subject(name),
            commit=repository.head if repository else "",
        )

    def terms(
        self, *, weight_bp: int | None = None, through_freeze: str = "", low_traffic: bool = False
    ) -> Terms:
        """What the settings demand of a promotion that begins now."""
        ship = self.settled.ship
        return Terms(
            weight_bp=weight_bp or ship.weight_bp,
            canary=dict(self.settled.canary_table),
            lasts_s=lasts_s(self.settled),
            approvals={name: count for name, count in ship.approvals.items() if count},
            freezes=() if through_freeze else freezes(ship.freezes, clock.now()),
            smoke=ship.smoke,
            low_traffic=low_traffic or ship.low_traffic,
        )

    def propose(
        self,
        store: Store,
        name: str,
        *,
        actor: str,
        until: str,
        weight_bp: int | None = None,
        through_freeze: str = "",
        low_traffic: bool = False,
        retry: bool = False,
    ) -> Promotion | None:
        """Put the config as it is here on its way; `None` where `until` serves it to everybody already.

        `Refused` where this digest was rolled back there before, unless it is a `retry`: every further try
        is one more chance for a harmful change to slip through. One that is held, and would not be asked for
        in this way any more, is proposed anew.
        """
        release = self.release(store, name, actor)
        last = next((each for each in store.promotions(name) if each.release.digest == release.digest), None)
        is_open = last is not None and not last.state.is_final
        here = next(iter(store.deployments(until, name)), None)
        if here is not None and here.baseline == release.digest and not here.candidate and not is_open:
            return None
        if last is not None and last.state is State.ROLLED_BACK and not retry:
            raise Refused(
                Refusal.STATE,
                f"promotion {last.id} has rolled {short(release.digest)} of {name} back: {last.conclusion}",
                hint=f"change the config, or try it again as it is: deploy-gates ship {name} --retry",
            )
        if through_freeze:
            release = replace(release, reason=f"{release.reason} (through the freeze: {through_freeze})")
        policy = self.settled.policy.digest
        terms = self.terms(weight_bp=weight_bp, through_freeze=through_freeze, low_traffic=low_traffic)
        is_anew = False
        if last is not None and is_open and last.held:
            terms = terms.keeping(last.terms, weight_bp=weight_bp)
            is_anew = last.asked_otherwise(until=until, policy=policy, terms=terms, now=clock.now())
        return store.propose(release, until=until, policy=policy, terms=terms, is_anew=is_anew)

    def verified(self, store: Store, promotion: Promotion) -> Came:
        """The evidence of a promotion: handed in from here where it is here, and enough as far as it goes."""
        release = promotion.release
        try:
            if self._stands_at(promotion):
                self.admit(store, release.config, release.digest)
        except (EnvelopeError, Refused) as error:
            return Came(status=Status.FAILED, data={"said": error.message, "hint": error.hint})
        return admission(store, promotion, self.keys)

    def smoked(self, store: Store, promotion: Promotion, environment: str) -> Came:
        """What the smoke cases find in an environment: asked live where its key is set, else replayed."""
        release = promotion.release
        if not self._stands_at(promotion):
            here = "is another one in this checkout by now"
            return _held(f"the smoke cases of {short(release.digest)} are not here: {release.config} {here}")
        served = next(
            (each for each in store.serving(environment).deployments if each.config == release.config), None
        )
        if served is None or served.baseline != release.digest:
            return _held(f"{environment} does not serve {short(release.digest)} any more")
        snapshot = self.snapshot(release.config)
        snapshot = replace(snapshot, cases=tuple(each for each in snapshot.cases if each.is_smoke))
        if not snapshot.cases:
            return _held(
                f"no case in {snapshot.cases_file} is tagged `smoke`, so nothing would be known of "
                f"{environment}",
                hint='tag a few robust cases "smoke", or say `smoke = false` in [tool.deploy_gates.ship]',
            )
        return _found(self._outcomes(snapshot, environment), environment)

    def _outcomes(self, snapshot: Snapshot, environment: str) -> list[Outcome]:
        config = snapshot.config
        assert config is not None, snapshot
        has_key = bool(os.environ.get(config.environment(environment).api_key_env))
        change = ConfigChange(name=snapshot.name, baseline=None, candidate=snapshot, base="nothing")
        asking = answers.Answers(
            root=self.root,
            settings=replace(self.settled, environment=environment),
            changes=Changes(changed=(change,)),
            record=(Asking.ALL if has_key else Asking.NONE).value,
            budget_usd=self.settled.budget_usd,
            started=clock.now(),
            keeps=False,
        )
        try:
            checks = [each for each in golden.checks(asking.changes[0], asking.context) if each.case]
            return [asking.outcome(each, lambda: checks) for each in checks]
        finally:
            asking.close()

    def _stands_at(self, promotion: Promotion) -> bool:
        """Whether the config is here as the promotion has it: only then its cases speak for it."""
        try:
            config = self.snapshot(promotion.release.config).config
        except (SettingsError, WorkspaceError):
            return False
        return config is not None and config.digest == promotion.release.digest


def admission(store: Store, promotion: Promotion, keys: Sequence[PublicKey] = ()) -> Came:
    """Whether the store keeps evidence that opens every environment on the way.

    With `keys`, only what one of them has signed counts: whoever may write to the store may not say so.
    """
    release, now = promotion.release, clock.now()
    records = store.evidence(release.config, release.digest)
    under = [each for each in records if each.policy == promotion.policy]
    last = under[0] if under else None
    if last is None:
        what = "was gathered under another policy" if records else "is missing"
        return _held(
            f"the evidence for {short(release.digest)} {what}",
            hint=f"pytest --deploy-gates --gate-all --gate-config={release.config}, then ship again",
        )
    if last.verdict == Verdict.FAIL or last.revoked_by:
        return Came(
            status=Status.FAILED,
            data={"said": f"the gates block {short(release.digest)}: {_blocking(last)}", "evidence": last.id},
        )
    passing = [each for each in under if each.verdict == Verdict.PASS and not each.revoked_by]
    trusted = [each for each in passing if not keys or _is_signed(each, keys)]
    if passing and not trusted:
        said = f"the evidence for {short(release.digest)} is not signed by a key that is trusted here"
        return Came(status=Status.FAILED, data={"said": said, "hint": "`public_keys` name whom to trust"})
    passing = trusted
    for environment in promotion.environments:
        until = [each.admitted_until.get(environment) for each in passing]
        if not any(each is not None and each > now for each in until):
            return _not_open(last, environment)
    signed = f", signed by {last.signed_by}" if last.signed_by else ""
    return Came(
        status=Status.DONE,
        data={
            "said": f"five gates pass{signed}, {age(now - last.finished_at)} old",
            "evidence": last.id,
            "signed_by": last.signed_by,
            "finished_at": last.finished_at.isoformat(),
        },
    )


def lasts_s(settled: Settings) -> float:
    """After how long the clients end a canary of these settings by themselves, whoever died."""
    plan, ship = settled.canary, settled.ship
    may_hold = "hold" in (plan.on_inconclusive.value, plan.then.value)
    return plan.mark_s * (1 + plan.extensions) + GRACE_S + (ship.hold_s if may_hold else 0.0)


def age(span: timedelta) -> str:
    """A span as people say it: `4 min`."""
    seconds = max(0, round(span.total_seconds()))
    for size, word in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds // size} {word}"
    return f"{seconds} s"


def _is_signed(record: Record, keys: Sequence[PublicKey]) -> bool:
    try:
        envelope.verify(record.envelope, keys, require_signature=True, digest=record.digest)
    except EnvelopeError:
        return False
    return True


def _blocking(record: Record) -> str:
    """Which gates say no, as the evidence has it."""
    if record.verdict != Verdict.FAIL:
        return "a later run of them failed"
    try:
        found = envelope.verify(record.envelope, (), require_signature=False).evidence
    except EnvelopeError:
        return "its evidence says fail"
    gates = [each.gate.value for each in found.gates if each.verdict is Verdict.FAIL]
    return f"{' and '.join(gates)} {'fails' if len(gates) == 1 else 'fail'}"


def _not_open(record: Record, environment: str) -> Came:
    if record.verdict == Verdict.INCONCLUSIVE:
        return _held("the gates could not decide", hint="pytest --deploy-gates says what would")
    until: datetime | None = record.admitted_until.get(environment)
    why = "has expired" if until else "does not open it"
    return _held(
        f"the evidence is not enough for {environment}: it {why}",
        hint="fresh answers open production: pytest --deploy-gates --gate-record=all; or --until staging",
    )


def _held(said: str, hint: str = "") -> Came:
    return Came(status=Status.HELD, data={"said": said, "hint": hint})


def _found(outcomes: Sequence[Outcome], environment: str) -> Came:
    """The smoke cases as one result. Every one of them has to be met."""
    missed = [each for each in outcomes if each.found is Found.MISSED]
    unknown = [each for each in outcomes if each.found is Found.UNKNOWN]
    total, live = len(outcomes), sum(each.asked for each in outcomes)
    cases: list[Json] = [
        {"case": each.case, "found": each.found.value, "reasons": list(each.reasons)} for each in outcomes
    ]
    data: JsonObject = {
        "cases": total,
        "met": total - len(missed) - len(unknown),
        "asked": live,
        "each": cases,
    }
    if missed:
        said = f"{len(missed)} of {total} smoke cases missed in {environment}: {_named(missed)}"
        return Came(status=Status.FAILED, data={"said": said, **data})
    if unknown:
        said = f"{len(unknown)} of {total} smoke cases have no answer in {environment}: {_named(unknown)}"
        return Came(status=Status.HELD, data={"said": said, **data})
    how = "" if live else ", replayed"
    return Came(status=Status.DONE, data={"said": f"{total} of {total} smoke cases{how}", **data})


def _named(outcomes: Sequence[Outcome]) -> str:
    said = [
        f"{each.case} ({each.reasons[0]})" if each.reasons else each.case for each in outcomes[:NAMED_MAX]
    ]
    more = len(outcomes) - len(said)
    return "; ".join(said) + (f"; and {more} more" if more else "")
