"""Reports for programs: everything as JSON, and the gates as JUnit XML."""

from __future__ import annotations

import json
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from deploy_gates.core.canonical import Json, JsonObject
from deploy_gates.core.config import ConfigChange, Snapshot
from deploy_gates.core.evidence import gate_json, settled
from deploy_gates.core.gate import GateResult, Verdict
from deploy_gates.report.text import visible
from deploy_gates.report.values import GateReport, RunReport

VERSION = 1
"""Changes whenever a program that reads the older form would misread the newer."""


def json_report(run: RunReport) -> str:
    """The run as JSON text."""
    text = json.dumps(data(run), indent=2, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair has no UTF-8; with a backslash it is what JSON calls it.
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def data(run: RunReport) -> JsonObject:
    """Everything that a report shows, as values."""
    return {
        "version": VERSION,
        "tool": {"name": "pytest-deploy-gates", "version": run.tool_version},
        "verdict": run.verdict.value,
        "conclusion": run.conclusion,
        "base": run.base,
        "started_at": run.started_at.isoformat(),
        "finished_at": run.finished_at.isoformat(),
        "asked": run.asked,
        "replayed": run.replayed,
        "spent_nanousd": run.spent_nanousd,
        "budget_usd": None if run.budget_usd is None else str(run.budget_usd),
        "notes": list(run.notes),
        "unchanged": list(run.unchanged),
        "deleted": list(run.deleted),
        "configs": [_config(report) for report in run.changes],
    }


def _config(report: GateReport) -> Json:
    change = report.change
    return {
        "name": change.name,
        "file": change.candidate.config_file,
        "renamed_from": change.renamed_from,
        "verdict": report.verdict.value,
        "conclusion": report.conclusion,
        "baseline": _digest(change.baseline),
        "candidate": _digest(change.candidate),
        "fields": [
            {"key": each.key, "baseline": each.baseline, "candidate": each.candidate}
            for each in change.fields
        ],
        "gates": [
            gate_json(each) | {"figures": settled(each.figures), "hint": each.hint} for each in report.results
        ],
        "open_to": list(report.open_to),
        "evidence": report.evidence_path,
        "hints": list(report.all_hints),
    }


def _digest(snapshot: Snapshot | None) -> Json:
    return snapshot.config.digest if snapshot and snapshot.config else None


# --- JUnit --------------------------------------------------------------------------------------


def junit(run: RunReport) -> str:
    """The gates as JUnit XML: a suite for each config, a case for each gate."""
    root = Element("testsuites", name="deploy gates")
    for report in run.changes:
        root.append(_suite(report, run))
    _count(root, [result for report in run.changes for result in report.results])
    ElementTree.indent(root)
    written: bytes = ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)
    return written.decode() + "\n"


def _suite(report: GateReport, run: RunReport) -> Element:
    suite = Element("testsuite", name=visible(report.change.name), timestamp=run.started_at.isoformat())
    _count(suite, report.results)
    for result in report.results:
        suite.append(_testcase(report.change, result))
    return suite


def _count(element: Element, results: list[GateResult] | tuple[GateResult, ...]) -> None:
    verdicts = [result.verdict for result in results]
    element.set("tests", str(len(verdicts)))
    element.set("failures", str(verdicts.count(Verdict.FAIL)))
    element.set("errors", str(verdicts.count(Verdict.INCONCLUSIVE)))
    element.set("skipped", str(verdicts.count(Verdict.SKIP)))
    element.set("time", f"{sum(result.took_s for result in results):.3f}")


_ELEMENTS = {Verdict.FAIL: "failure", Verdict.INCONCLUSIVE: "error", Verdict.SKIP: "skipped"}


def _testcase(change: ConfigChange, result: GateResult) -> Element:
    case = Element(
        "testcase",
        classname=visible(change.name),
        name=result.gate.value,
        file=visible(change.candidate.config_file),
        time=f"{result.took_s:.3f}",
    )
    if result.verdict in _ELEMENTS:
        said = SubElement(case, _ELEMENTS[result.verdict], message=visible(_numbers(result)))
        said.set("type", result.verdict.value)
        hint = (f"hint: {result.hint}",) if result.hint else ()
        said.text = "\n".join(map(visible, (*result.reasons, *hint)))
    return case


def _numbers(result: GateResult) -> str:
    """What was measured, beside what was required: `372 of 400, baseline 384; required ≥ −2.0 pt`."""
    measured, required = "; ".join(result.measured), "; ".join(filter(None, result.required))
    return f"{measured}; required {required}" if required else measured
