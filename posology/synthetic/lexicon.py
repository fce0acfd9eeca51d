"""What the synthetic hospital knows: conditions, symptoms, drugs, tests, procedures and how each may be worded.

The content is in `content/*.yaml`. Every wording may hold the markup of `phrases.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from posology.synthetic.phrases import CONTENT, Phrasebook, Pool, read_yaml, wordings

FILES = ("conditions", "conditions2", "symptoms", "treatments", "tests", "social")


@dataclass(frozen=True, slots=True)
class Condition:
    """A disease and what tends to come with it; see `content/conditions.yaml` for the meaning of its fields."""

    key: str
    names: Pool
    codes: Mapping[str, float]
    other_codes: Mapping[str, float]
    chronic_code: str
    group: str
    reason: float
    other_reason: float
    chronic: float
    family: float
    symptoms: Sequence[str]
    findings: Pool | None
    tests: Sequence[str]
    drugs: Sequence[str]
    procedures: Sequence[str]
    complications: Sequence[str]
    risk: float
    stay: float
    elective: float
    ward: str
    age: tuple[float, float]
    sex: str
    newborn: bool


@dataclass(frozen=True, slots=True)
class Drug:
    """A drug; `names` are all ways to speak of it, `written` those for a prescription."""

    key: str
    names: Pool
    written: Pool
    amounts: Sequence[str]
    routes: Sequence[str]
    often: Sequence[str]
    inpatient: bool


@dataclass(frozen=True, slots=True)
class Procedure:
    """A procedure, its ICD-9 code, and codes that often go with it."""

    key: str
    names: Pool
    code: str
    more: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Lab:
    """A laboratory value; `severity` is the shift of its mean, in standard deviations, per unit of severity."""

    key: str
    names: Sequence[str]
    mean: float
    sd: float
    decimals: int
    severity: float
    low: float


@dataclass(frozen=True)
class Lexicon:
    """All of it; get it with `lexicon()`."""

    conditions: Mapping[str, Condition]
    symptoms: Mapping[str, Pool]
    drugs: Mapping[str, Drug]
    procedures: Mapping[str, Procedure]
    tests: Mapping[str, Pool]
    labs: Mapping[str, Lab]
    marks: Mapping[str, Mapping[str, float]]
    social: Mapping[str, Any]
    wards: Mapping[str, Mapping[str, Any]]
    frequencies: Mapping[str, Mapping[str, Any]]
    general: Mapping[str, Pool] = field(default_factory=dict)

    def of_code(self, code: str) -> Condition | None:
        """The condition with an ICD-9 code, or with the code that shares most of its first digits (three at least)."""
        best: tuple[int, Condition] | None = None
        for known, condition in _codes().items():
            same = next((n for n, (one, two) in enumerate(zip(known, code, strict=False)) if one != two), None)
            length = min(len(known), len(code)) if same is None else same
            if length >= 3 and (best is None or length > best[0]):
                best = (length, condition)
        return best[1] if best else None


@cache
def lexicon() -> Lexicon:
    """Reads the lexicon, once."""
    content: dict[str, Any] = {}
    for name in FILES:
        for key, value in read_yaml(CONTENT / f"{name}.yaml").items():
            content[key] = {**content[key], **value} if key in content else value
    general = {name: wordings(content[name], skew=0.2) for name in (
        "old_problems", "old_operations", "general_treatments", "general_tests", "departments", "consultants",
    )}  # fmt: skip
    made = Lexicon(
        conditions={key: _condition(key, entry) for key, entry in content["conditions"].items()},
        symptoms={key: wordings(words) for key, words in content["symptoms"].items()},
        drugs={key: _drug(key, entry) for key, entry in content["drugs"].items()},
        procedures={
            key: Procedure(key, wordings(entry["names"]), entry["code"], tuple(entry.get("more", ())))
            for key, entry in content["procedures"].items()
        },
        tests={key: wordings(words) for key, words in content["tests"].items()},
        labs={key: Lab(key=key, **entry) for key, entry in content["labs"].items()},
        marks=content["marks"],
        social=content["social"],
        wards={key: {**ward, "names": wordings(ward["names"])} for key, ward in content["wards"].items()},
        frequencies=content["frequencies"],
        general=general,
    )
    _check(made)
    return made


@cache
def phrasebook() -> Phrasebook:
    """The grammar and the templates of the notes."""
    return Phrasebook.load(*(CONTENT / f"{name}.yaml" for name in ("grammar", "admission", "course", "shorter")))


@cache
def _codes() -> dict[str, Condition]:
    codes: dict[str, Condition] = {}
    for condition in lexicon().conditions.values():
        for code in [*condition.codes, *condition.other_codes, condition.chronic_code]:
            if code:
                codes.setdefault(code, condition)
    return codes


def _condition(key: str, entry: Mapping[str, Any]) -> Condition:
    newborn = bool(entry.get("newborn", False))
    findings = entry.get("findings")
    return Condition(
        key=key,
        names=wordings([str(name) for name in entry["names"]]),
        codes=entry["codes"],
        other_codes=entry.get("other_codes", {}),
        chronic_code=str(entry.get("chronic_code", "")),
        group=entry.get("group", "other"),
        reason=float(entry.get("reason", 0)),
        other_reason=float(entry.get("other_reason", 0)),
        chronic=float(entry.get("chronic", 0)),
        family=float(entry.get("family", 0)),
        symptoms=tuple(entry.get("symptoms", ())),
        findings=wordings(findings, skew=0.2) if findings else None,
        tests=tuple(entry.get("tests", ())),
        drugs=tuple(entry.get("drugs", ())),
        procedures=tuple(entry.get("procedures", ())),
        complications=tuple(entry.get("complications", ())),
        risk=float(entry.get("risk", 0)),
        stay=float(entry.get("stay", 0)),
        elective=float(entry.get("elective", 0)),
        ward=entry.get("ward", "neonatal" if newborn else "medicine"),
        age=tuple(entry.get("age", (66, 15))),
        sex=entry.get("sex", ""),
        newborn=newborn,
    )


def _drug(key: str, entry: Mapping[str, Any]) -> Drug:
    names = entry["names"]
    brands = [name for name in names[1:] if name.isalpha() and name.istitle()]
    return Drug(
        key, wordings(names), wordings([names[0], *brands]), tuple(entry.get("amounts", ())), tuple(entry.get("routes", ("PO",))),
        tuple(entry.get("often", ("daily",))), bool(entry.get("inpatient", False)),
    )  # fmt: skip


def _check(made: Lexicon) -> None:
    """Every key that a condition names exists: a typing error in the YAML shows at once."""
    tables: dict[str, Mapping[str, Any]] = {
        "symptoms": made.symptoms, "tests": made.tests, "drugs": made.drugs, "procedures": made.procedures,
        "complications": made.conditions,
    }  # fmt: skip
    for condition in made.conditions.values():
        for name, table in tables.items():
            unknown = [key for key in getattr(condition, name) if key not in table]
            if unknown:
                raise ValueError(f"condition {condition.key}: unknown {name} {unknown}")
        if condition.ward not in made.wards:
            raise ValueError(f"condition {condition.key}: unknown ward {condition.ward}")
