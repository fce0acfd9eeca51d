"""The card that lies in every prepared task as README.md: what it is, who is in it, and what to be wary of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SHOWN_LABELS = 60


def task_card(content: Mapping[str, Any]) -> str:
    """Markdown without any text of documents.

    Args:
        content: the content of `task.json`.
    """
    notes, source = content["notes"], content["source"]
    labels = content["labels"]
    shown = ", ".join(f"`{label}`" for label in labels[:_SHOWN_LABELS])
    lines = [
        f"# {content['name']}",
        "",
        f"Prepared by Posology {content['version']}: {content['kind'].replace('-', ' ')}, protocol "
        f"`{content['protocol']}`, read from `{source.get('format', 'documents')}`. Checkpoints are chosen by "
        f"`{content['metric']}`. Scores count {'word pieces' if content.get('unit') == 'piece' else 'documents' if content['kind'].startswith('sequence') else 'entities on words'}.",
        "",
        f"{len(labels)} labels: {shown}{' ...' if len(labels) > _SHOWN_LABELS else ''}.",
        "",
        *_table(
            ("split", "documents", "SHA-256"),
            (
                (split, f"{content['counts'][split]:,}", f"`{content['sha256'][split][:16]}`")
                for split in content["counts"]
            ),
        ),
    ]
    if notes.get("flow"):
        rows = ((what, f"{number:,}") for what, number in flow_rows(notes["flow"]))
        lines += ["", "## Who is in it", "", *_table(("", notes["flow"]["unit"]), rows)]
    if notes.get("published"):
        rows = (
            (key, *(f"{entry[name]:,}" for name in ("here", "paper")), f"{entry['difference']:+,}")
            for key, entry in notes["published"].items()
        )
        lines += ["", "## Beside the published task", "", *_table(("", "here", "paper", "difference"), rows)]
    if notes.get("counts"):
        rows = ((key.replace("_", " "), f"{number:,}") for key, number in notes["counts"].items())
        lines += ["", "## Counted on the way", "", *_table(("", "number"), rows)]
    lines += _sentences("How it was made", notes.get("remarks", ()))
    lines += _sentences("Defects of the published protocol, reproduced here", notes.get("defects", ()))
    lines += _overlap(notes)
    if notes.get("problems_found"):
        lines += [
            "",
            f"{notes['problems_found']:,} places of the source were read leniently or left out: see `task.json`.",
        ]
    return "\n".join(lines) + "\n"


def flow_rows(flow: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """The rows of a flow table: who entered, who was left out why, who is left."""
    yield f"{flow['unit']} in", flow["entered"]
    for step in flow["steps"]:
        yield f"left out: {step['reason']}", step["excluded"]
    yield f"{flow['unit']} out", flow["left"]


def published_rows(published: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    """Our counts beside the study's, a line each."""
    for key, entry in published.items():
        yield f"{entry['here']:>12,}  {key} (paper {entry['paper']:,}; {entry['difference']:+,})"


def _overlap(notes: Mapping[str, Any]) -> list[str]:
    if "group_overlap" not in notes:
        return []
    overlap = notes["group_overlap"]
    if not overlap:
        return ["", "No patient (or record, where patients are unknown) is in two splits."]
    rows = ((pair, f"{number:,}") for pair, number in overlap.items())
    return [
        "",
        "**The same patients (or records) are in two splits**, so scores are too good:",
        "",
        *_table(("splits", "documents of the latter"), rows),
    ]


def _sentences(title: str, sentences: Any) -> list[str]:
    return ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)] if sentences else []


def _table(header: tuple[str, ...], rows: Any) -> list[str]:
    lines = [header, tuple("---" for _ in header), *rows]
    return [f"| {' | '.join(row)} |" for row in lines]
