"""Commands about the store: promote, roll back, and tell what runs where and who did what."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy_gates.cli.frame import (
    DONE,
    REFUSED,
    Commands,
    actor,
    existing,
    group,
    opened,
    positive,
    print_json,
    store_url,
    stored,
    terminal,
    weight,
)
from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ENVIRONMENTS
from deploy_gates.core.errors import Refusal, Refused, SettingsError, StoreUnavailable

if TYPE_CHECKING:
    from deploy_gates.core.promotion import Event, Moved, Standing, Token
    from deploy_gates.settings import Settings
    from deploy_gates.store import Store


def add(commands: Commands) -> None:
    """Add these commands to the parser."""
    promote = stored(
        commands,
        "promote",
        _promote,
        "bring a config that passed its gates into an environment",
        "deploy-gates promote ticket-triage --to development",
    )
    promote.add_argument("config", metavar="NAME", help="the config")
    promote.add_argument("--to", required=True, choices=ENVIRONMENTS, help="the environment")
    promote.add_argument("--digest", default="", help="a digest the store keeps (default: the file as it is)")
    promote.add_argument("--evidence", type=existing, metavar="FILE", help="evidence to hand in first")
    promote.add_argument("--weight", default="", metavar="PCT", help="only for this share, as a canary: 5")
    promote.add_argument(
        "--adopt-policy",
        action="store_true",
        help="have the environment judge by the policy of these settings",
    )
    _says_why(promote)

    rollback = stored(
        commands,
        "rollback",
        _rollback,
        "end the canary, or bring back what was served before",
        "deploy-gates rollback ticket-triage --reason 'refunds go to billing'",
    )
    rollback.add_argument("config", metavar="NAME", help="the config")
    rollback.add_argument("--env", default="production", choices=ENVIRONMENTS, help="default: production")
    rollback.add_argument("--digest", default="", help="go back to this one (default: the one before)")
    _says_why(rollback)

    status = stored(commands, "status", _status, "tell what runs where, since when, and who follows")
    status.add_argument("config", nargs="?", default="", metavar="NAME", help="only this config")
    status.add_argument("--env", default="", choices=ENVIRONMENTS, help="only this environment")

    log = stored(
        commands,
        "log",
        _log,
        "tell who moved what, when, why, and by which evidence",
        "deploy-gates log --verify",
    )
    log.add_argument("config", nargs="?", default="", metavar="NAME", help="only this config")
    log.add_argument("--env", default="", choices=ENVIRONMENTS, help="only this environment")
    log.add_argument(
        "--limit", type=positive, default=20, help="so many events of each deployment (default 20)"
    )
    log.add_argument(
        "--verify", action="store_true", help="check that no event was edited, removed, or reordered"
    )

    stores = group(commands, "store", "create or migrate the store", "deploy-gates store upgrade")
    stored(
        stores,
        "upgrade",
        _upgrade,
        "create or migrate the tables; safe to run twice",
        "deploy-gates store upgrade",
    )
    _add_tokens(commands)
    _add_serve(commands)


def _add_tokens(commands: Commands) -> None:
    tokens = group(
        commands, "token", "tokens for the HTTP API", "deploy-gates token create triage-service --scope read"
    )
    create = stored(
        tokens,
        "create",
        _create_token,
        "make a token, and show it once",
        "deploy-gates token create triage-service --scope read --scope report",
    )
    create.add_argument("name", help="who uses it; promotions by it are logged under this name")
    create.add_argument(
        "--scope",
        action="append",
        required=True,
        choices=["read", "report", "promote", "spend", "grant"],
        help="repeatable",
    )
    stored(tokens, "list", _list_tokens, "list all tokens, without their secrets", "deploy-gates token list")
    revoke = stored(
        tokens, "revoke", _revoke_token, "take a token out of force", "deploy-gates token revoke 5f3a9c21"
    )
    revoke.add_argument("id", help="as `token list` shows it")


def _add_serve(commands: Commands) -> None:
    serve = stored(
        commands,
        "serve",
        _serve,
        "serve the store over HTTP: the API, and OFREP for OpenFeature clients",
        "deploy-gates serve --port 8080",
    )
    serve.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1)")
    serve.add_argument("--port", type=int, default=8080, help="the port; 0 is any free one (default: 8080)")
    serve.add_argument(
        "--environment",
        default="production",
        choices=ENVIRONMENTS,
        help="what OFREP serves (default: production)",
    )
    serve.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="let pages from there read, with a token: https://app.example.com; repeatable",
    )
    serve.add_argument(
        "--no-carry", action="store_true", help="do not go on with promotions that their runner has left"
    )


def _says_why(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--reason", default="", help="why, for the log")
    parser.add_argument("--by", default="", metavar="NAME", help="who does it (default: the user)")
    parser.add_argument("--key", default="", help="an idempotency key: the same move is made once")
    parser.add_argument(
        "--expect", type=positive, metavar="REVISION", help="refuse if the environment has moved on"
    )


# --- Moving -------------------------------------------------------------------------------------


def _promote(asked: argparse.Namespace) -> int:
    from deploy_gates import runner, settings, workspace

    root = workspace.find_root(Path.cwd())
    settled = settings.load(root)
    weight_bp = weight(asked.weight)
    with opened(asked, makes=True) as store:
        if asked.digest:
            digest = _kept(store, asked.config, asked.digest)
            if asked.evidence:
                _admit(store, root, settled, asked.evidence)
        else:
            digest = _handed_in(store, root, settled, asked)
        moved = runner.promote(
            store,
            config=asked.config,
            environment=asked.to,
            digest=digest,
            policy=settled.policy.digest,
            actor=asked.by or actor(),
            reason=asked.reason or _subject(root, settled, asked.config),
            weight_bp=weight_bp,
            key=asked.key,
            expected=asked.expect,
            adopt_policy=asked.adopt_policy,
        )
        return _show(store, moved, asked.json)


def _rollback(asked: argparse.Namespace) -> int:
    from deploy_gates import runner

    with opened(asked) as store:
        digest = _kept(store, asked.config, asked.digest) if asked.digest else ""
        moved = runner.rollback(
            store,
            config=asked.config,
            environment=asked.env,
            digest=digest,
            actor=asked.by or actor(),
            reason=asked.reason or "rolled back by hand",
            key=asked.key,
            expected=asked.expect,
        )
        return _show(store, moved, asked.json)


def _handed_in(store: Store, root: Path, settled: Settings, asked: argparse.Namespace) -> str:
    """Have the store keep the config as it is in the work tree, and the evidence for it; the digest."""
    from deploy_gates.ship.checkout import Checkout

    checkout = Checkout(root=root, settled=settled, evidence=asked.evidence)
    digest = checkout.keep(store, asked.config)
    checkout.admit(store, asked.config, digest)
    return digest


def _admit(store: Store, root: Path, settled: Settings, path: Path) -> None:
    from deploy_gates import envelope, runner

    keys = envelope.public_keys(root, [str(root / each) for each in settled.public_keys])
    runner.admit(store, envelope.read(path), keys=keys, require_signature=bool(keys), policy=settled.policy)


def _kept(store: Store, config: str, beginning: str) -> str:
    """The one digest of the config in evidence or history that begins so."""
    if len(beginning) == 64:
        return str(beginning)
    found = {each.digest for each in store.evidence(config) if each.digest.startswith(beginning)}
    if len(found) == 1:
        return found.pop()
    said = "no digest" if not found else "more than one digest"
    raise Refused(
        Refusal.UNKNOWN,
        f"{said} of {config} that the store keeps begins with {beginning}",
        hint=f"deploy-gates log {config}",
    )


def _subject(root: Path, settled: Settings, name: str) -> str:
    """The first line of the commit that last changed the config: why is said there."""
    from deploy_gates.ship.checkout import Checkout

    return Checkout(root=root, settled=settled).subject(name)


def _show(store: Store, moved: Moved, as_json: bool) -> int:
    from deploy_gates import runner
    from deploy_gates.core.promotion import Standing
    from deploy_gates.report import record

    try:
        standing = runner.followed(store, moved.deployment)
    except StoreUnavailable as away:  # it is made all the same
        print(f"warning: nobody can tell which clients follow: {away.message}", file=sys.stderr)
        standing = Standing(deployment=moved.deployment, instances=())
    if as_json:
        print_json(_standing(standing) | {"replayed": moved.replayed})
        return DONE
    for line in record.moved(standing, moved.replayed, terminal()):
        print(line)
    return DONE


# --- Looking ------------------------------------------------------------------------------------


def _status(asked: argparse.Namespace) -> int:
    from deploy_gates import clock, runner
    from deploy_gates.report import record, shipping

    with opened(asked) as store:
        standings = runner.status(store, environment=asked.env, config=asked.config)
        promotions = store.promotions(asked.config, is_open=True)
    if asked.json:
        print_json([_standing(each) for each in standings])
        return DONE
    screen, now = terminal(), clock.now()
    for line in (
        *record.status(standings, screen, now=now, config=asked.config, environment=asked.env),
        *shipping.under_way(promotions, screen, now=now),
    ):
        print(line)
    return DONE


def _standing(standing: Standing) -> JsonObject:
    took = standing.took
    return {
        "deployment": standing.deployment.to_json(),
        "instances": [each.to_json() for each in standing.instances],
        "following": len(standing.following),
        "took_ms": None if took is None else round(took.total_seconds() * 1000, 3),
    }


def _log(asked: argparse.Namespace) -> int:
    from deploy_gates import runner
    from deploy_gates.report import record

    with opened(asked) as store:
        deployments = [each for each in store.deployments(asked.env, asked.config) if each.revision]
        if asked.verify and not deployments:
            of, at = f" of {asked.config}" * bool(asked.config), f" in {asked.env}" * bool(asked.env)
            raise Refused(
                Refusal.UNKNOWN, f"there is no history{of}{at} to verify", hint="deploy-gates status"
            )
        problems = (
            [said for each in deployments for said in runner.problems(store, each)] if asked.verify else []
        )
        events: list[Event] = []
        for each in deployments:
            first = max(0, each.revision - asked.limit)
            events += reversed(store.history(each.config, each.environment, after=first))
    events.sort(key=lambda each: (each.config, -each.at_ms))
    status = REFUSED if problems else DONE
    if asked.json:
        verified: Json = list(problems) if asked.verify else None
        print_json({"events": [each.to_json() for each in events], "problems": verified})
        return status
    lines = record.history(events, terminal(), only=asked.config, environment=asked.env)
    if asked.verify:
        lines += record.verification(deployments, problems, terminal())
    for line in lines:
        print(line)
    return status


def _upgrade(asked: argparse.Namespace) -> int:
    from deploy_gates import workspace
    from deploy_gates.store import open_store

    root = workspace.find_root(Path.cwd())
    store = open_store(store_url(asked, root), root=root)
    try:
        made = store.upgrade()
        _warn(store)
    finally:
        store.close()
    if asked.json:
        print_json({"store": store.url, "before": made.before, "after": made.after})
    elif made.before == made.after:
        print(f"{store.url} is current: version {made.after}")
    else:
        print(f"{store.url}: version {made.before} → {made.after}")
    return DONE


# --- Tokens and the server ----------------------------------------------------------------------


def _create_token(asked: argparse.Namespace) -> int:
    from deploy_gates import clock
    from deploy_gates.core.promotion import Scope
    from deploy_gates.store import tokens

    scopes = frozenset(Scope(each) for each in asked.scope)
    secret, token = tokens.issue(asked.name, scopes, created_by=actor(), now=clock.now())
    with opened(asked, makes=True) as store:
        store.put_token(token)
    if asked.json:
        print_json({"id": token.id, "token": secret})
        return DONE
    print(secret)
    print("keep it: it is shown this once, and the store has only its hash", file=sys.stderr)
    return DONE


def _list_tokens(asked: argparse.Namespace) -> int:
    with opened(asked) as store:
        tokens = store.tokens()
    if asked.json:
        print_json([_token(each) for each in tokens])
        return DONE
    for each in tokens:
        ended = f", revoked {each.revoked_at:%Y-%m-%d}" if each.revoked_at else ""
        scopes = " ".join(sorted(each.scopes))
        print(
            f"{each.id}  {each.name:<24} {scopes:<22} {each.created_at:%Y-%m-%d} by {each.created_by}{ended}"
        )
    return DONE


def _token(token: Token) -> Json:
    return {
        "id": token.id,
        "name": token.name,
        "scopes": [each.value for each in sorted(token.scopes)],
        "created_at": token.created_at.isoformat(),
        "created_by": token.created_by,
        "revoked_at": token.revoked_at.isoformat() if token.revoked_at else None,
    }


def _revoke_token(asked: argparse.Namespace) -> int:
    with opened(asked) as store:
        if not store.revoke_token(asked.id):
            raise Refused(
                Refusal.UNKNOWN, f"there is no token {asked.id} in force", hint="deploy-gates token list"
            )
    if asked.json:
        print_json({"id": asked.id, "revoked": True})
    else:
        print(f"{asked.id} is revoked; servers refuse it within seconds")
    return DONE


def _serve(asked: argparse.Namespace) -> int:
    from deploy_gates import envelope, notify, settings, workspace

    try:
        from deploy_gates import server
    except ImportError as error:
        raise SettingsError(
            f"the server needs {error.name}, which is not installed",
            hint="pip install 'pytest-deploy-gates[server]'",
        ) from error
    root = workspace.find_root(Path.cwd())
    settled = settings.load(root)
    keys = envelope.public_keys(root, [str(root / each) for each in settled.public_keys])
    with opened(asked, makes=True) as store:
        _warn(store)

    def announce(address: str) -> None:
        print(f"serving {asked.environment} over OFREP, and everything over {address}", flush=True)

    server.serve(
        store_url(asked, root),
        host=asked.host,
        port=asked.port,
        announce=announce,
        environment=asked.environment,
        root=root,
        keys=keys,
        require_signature=bool(keys),
        policy=settled.policy,
        origins=asked.allow_origin,
        carries=not asked.no_carry,
        telling=notify.Telling.of(settled.notify, os.environ),
    )
    return DONE


# --- The store and the screen -------------------------------------------------------------------


def _warn(store: Store) -> None:
    for said in store.warnings():
        print(f"warning: {said}", file=sys.stderr)
