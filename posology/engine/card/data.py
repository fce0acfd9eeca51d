"""The part of a card about data: who is in it, who was left out and why, what each split holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from posology.engine.card.text import code, plain, share, table
from posology.tasks.card import flow_rows
from posology.tasks.prepared import SPLITS


def source(record: dict[str, Any]) -> list[str]:
    """Sentences on where the data come from and how they were split."""
    task, data = record["task"], record["task"].get("data") or {}
    said = f"Task {code(task['name'])}, protocol {code(task['protocol'])}, fingerprint `{task['fingerprint'][:16]}`"
    lines = [said + (f", read from {code(data['format'])}." if data.get("format") else ".")]
    if data.get("synthetic"):
        lines.append("**The text is generated, not written about people.** Scores say nothing of real notes.")
    made = data.get("splits") or {}
    if made.get("made"):
        shares = ", ".join(f"{10 * tenths} % {split}" for split, tenths in made["made"].items())
        lines.append(f"Splits were made here, by group and label, with seed {made['seed']}: {shares}.")
    elif made:
        lines.append("Splits are those that the source came with.")
    lines += [plain(remark) for remark in data.get("remarks", ())]
    if not data:
        lines.append("The version of Posology that made this did not record the data flow: see the task's own README.")
    return lines


def flow(record: dict[str, Any]) -> str:
    """The table of who came in, who was left out for what reason, and who stayed, before the split."""
    data = record["task"].get("data") or {}
    rows: list[tuple[str, str]] = []
    if data.get("flow"):
        rows = [(plain(what), f"{count:,}") for what, count in flow_rows(data["flow"])]
    elif data.get("documents"):
        gone = {name: count for name, count in data.get("counts", {}).items() if "document" in name or "empty" in name}
        leaks = sum((data.get("dropped_leaks") or {}).values())
        left = sum(data["documents"].values())
        rows = [("documents read", f"{left + leaks + sum(gone.values()):,}")]
        rows += [(f"left out: {plain(name.replace('_', ' '))}", f"{count:,}") for name, count in gone.items()]
        if leaks or data.get("leak_rule") == "drop":
            rows.append(("left out: same text or group in a later split", f"{leaks:,}"))
        rows.append(("documents kept", f"{left:,}"))
    return table(("before the split", data["flow"]["unit"] if data.get("flow") else "documents"), rows)


def splits(record: dict[str, Any]) -> str:
    """The table of what each split holds and what of it was used."""
    data, coverage = record["task"].get("data") or {}, record["coverage"]
    documents = data.get("documents") or {}
    rows = []
    if documents:
        rows.append(("documents in the task", [f"{documents[split]:,}" for split in SPLITS]))
    groups = dict(data.get("groups") or {})
    if record["test"] is not None:
        groups.setdefault("test", record["test"]["groups"])
    if groups:
        counted = [f"{groups[split]:,}" if split in groups else "not counted" for split in SPLITS]
        rows.append(("groups (patients where the data say so)", counted))
    for split, count in (data.get("dropped_leaks") or {}).items():
        if count:
            cells = [f"{count:,}" if each == split else "" for each in SPLITS]
            rows.append((f"left out of {split}: in a later split too", cells))
    tested = record["test"]["documents"] if record["test"] is not None else 0
    validated = documents.get("validation", (record.get("calibration") or {}).get("documents"))
    used = [record["training"]["documents"], validated, tested]
    rows.append(("documents used", ["not recorded" if count is None else f"{count:,}" for count in used]))
    read = [share(coverage[split]) if coverage.get(split) is not None else "" for split in SPLITS]
    rows.append(("share of their text read", read))
    return table(("", *SPLITS), ((name, *cells) for name, cells in rows))


def labels(record: dict[str, Any]) -> str:
    """The table of how often each label occurs in training and in test."""
    trained = record["training"].get("per_label") or {}
    tested = (record["test"] or {}).get("per_label", {})
    if not trained:
        return ""
    what = "documents" if record["kind"] == "sequence-classification" else "entities"
    rows = [
        (code(label), f"{trained[label]:,}", f"{tested[label]['support']:,}" if label in tested else "")
        for label in record["labels"]
    ]
    return table(("label", f"{what} trained on", f"{what} in test"), rows)


def warnings(record: dict[str, Any]) -> Iterator[str]:
    """What in the data makes scores less than they seem."""
    data = record["task"].get("data") or {}
    if data.get("synthetic"):
        yield "The data are generated. Train and test on real text before you conclude anything."
    if overlap := data.get("group_overlap"):
        pairs = "; ".join(f"{pair}: {count:,} documents of the latter" for pair, count in overlap.items())
        yield f"The same patients (or records) are in two splits, so scores are too good ({pairs})."
    if data.get("leak_rule") == "allow" and (leaks := data.get("leaks")):
        pairs = "; ".join(
            f"{pair}: {count['texts']:,} same texts, {count['groups']:,} same groups" for pair, count in leaks.items()
        )
        yield f"Splits share documents, which was allowed when the task was prepared ({pairs})."
    conflicts = (data.get("same_text_other_label") or {}).get("test")
    if conflicts:
        yield f"{conflicts:,} test documents have the text of another one with another label: no model gets both right."
    if count := data.get("problems_found"):
        yield f"{count:,} places of the source were read leniently or left out: see the task's `task.json`."
    for defect in data.get("defects", ()):
        yield f"Defect of the published protocol, reproduced on purpose: {plain(defect)}"
