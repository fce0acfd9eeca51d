"""Two demo tasks made of generated clinical text, so that the program can show its work without any real note.

`triage`: which department admits the patient of a short note. What decides is the new, worsening complaint and
what was found now; past diseases, stable complaints, denials, old and normal findings and the family speak of
other departments in the same words. `findings`: mentions of problems, treatments and tests in sentences. Negated
and hypothetical problems are mentions too (as in the i2b2 2010 guidelines); places and papers named after a
disease are not; some words are an entity in one sentence and none in another; some wordings occur in
the test split only.

Every text is built from a patient's state through phrases drawn from `synthetic.yaml`. All of it is fictional.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.errors import UserError
from posology.tasks.leaks import text_key
from posology.tasks.prepared import write_prepared

ENTITY_TYPES = ("problem", "treatment", "test")

_HELD_OUT = 0.1
"""Share of the wordings of each entity type that only the test split of `findings` uses."""
_MARKUP = re.compile(r"\{(?P<slot>\w+)\}|\[(?P<words>[^|\]]+)\|(?P<label>\w+)\]")
_ARTICLE = re.compile(r"^(?:a|an|the) ")

Piece = tuple[str, str | None]
"""Words, and the entity type they are a mention of, if any."""


def write_demo_tasks(
    folder: Path, *, seed: int = 7, train: int = 600, validation: int = 150, test: int = 400, overwrite: bool = False
) -> dict[str, Path]:
    """Writes the prepared tasks `triage` and `findings` as folders of these names.

    The same seed and counts give the same documents on every machine. Each patient belongs to one split, and no
    text occurs twice.

    Args:
        folder: where the two folders go.
        seed: of everything that is drawn.
        train: documents for training.
        validation: documents for choosing.
        test: documents for the final score.
        overwrite: replace tasks that are there already.

    Returns:
        The folder of each task by its name.

    Raises:
        UserError: a split would be empty, or a folder is in the way or cannot be written.
    """
    sizes = {"train": train, "validation": validation, "test": test}
    for split, size in sizes.items():
        if size < 1:
            raise UserError(f"{size} documents were asked for, and a split needs at least one", "Ask for more", split)
    lexicon = Lexicon.load()
    findings_patients = partial(_findings_patients, lexicon, lexicon.held_out(seed))
    made: dict[str, tuple[str, Sequence[str], Callable[[random.Random, str], Iterator[Document]]]] = {
        "triage": ("sequence-classification", list(lexicon.departments), partial(_triage_patients, lexicon)),
        "findings": ("token-classification", ENTITY_TYPES, findings_patients),
    }
    paths = {}
    for name, (kind, labels, patients) in made.items():
        rng = random.Random(f"{name} {seed}")
        splits = _distinct(sizes, partial(patients, rng))
        write_prepared(
            Path(folder) / name, name=name, kind=kind, labels=labels, splits=splits,
            source={"format": "generated", "seed": seed}, overwrite=overwrite,
        )  # fmt: skip
        paths[name] = Path(folder) / name
    return paths


def _distinct(sizes: Mapping[str, int], patients: Callable[[str], Iterator[Document]]) -> dict[str, list[Document]]:
    """Fills the splits from endless streams of documents, leaving out every text that there was before."""
    seen: set[bytes] = set()
    splits: dict[str, list[Document]] = {}
    for split, size in sizes.items():
        splits[split] = documents = []
        for document in patients(split):
            key = text_key(document)
            if key not in seen:
                seen.add(key)
                documents.append(document)
            if len(documents) == size:
                break
    return splits


@dataclass(frozen=True, slots=True)
class Condition:
    """A disease with what tends to come with it; symptoms are keys of the lexicon's `symptoms`."""

    department: str
    names: list[str]
    symptoms: list[str]
    findings: list[str]
    tests: list[str]
    drugs: list[str]
    procedures: list[str]


class Lexicon:
    """`synthetic.yaml`, and choices from it that both tasks need."""

    def __init__(self, content: Mapping[str, Any]):
        self.departments: dict[str, float] = content["departments"]
        self.symptoms: dict[str, list[str]] = content["symptoms"]
        self.conditions = [Condition(**entry) for entry in content["conditions"]]
        self.drugs = list(dict.fromkeys(drug for condition in self.conditions for drug in condition.drugs))
        self.normal: dict[str, list[str]] = content["normal"]
        self.words: dict[str, list[str]] = content["words"]
        self.triage: dict[str, list[str]] = content["triage"]
        self.findings: dict[str, list[str]] = content["findings"]
        self.modifiers: dict[str, dict[str, list[str]]] = content["modifiers"]
        self.entities: dict[str, list[str]] = content["entities"]
        self.names: dict[str, list[str]] = content["names"]

    @classmethod
    @cache
    def load(cls) -> Lexicon:
        import yaml

        return cls(yaml.safe_load((Path(__file__).parent / "synthetic.yaml").read_text(encoding="utf-8")))

    def mentions(self, condition: Condition, label: str) -> list[str]:
        """Wordings of one entity type that fit a condition, in a fixed order."""
        if label == "problem":
            return [*condition.names, *(word for symptom in condition.symptoms for word in self.symptoms[symptom])]
        return condition.tests if label == "test" else condition.drugs + condition.procedures

    def held_out(self, seed: int) -> frozenset[str]:
        """The wordings that only the test split of `findings` uses."""
        rng = random.Random(f"held out {seed}")
        written_out = {words for clauses in self.findings.values() for words in _written_out(clauses)}
        chosen: set[str] = set()
        for label in ENTITY_TYPES:
            every = [
                *self.entities[label],
                *(word for condition in self.conditions for word in self.mentions(condition, label)),
            ]
            candidates = sorted(set(every) - written_out)
            chosen.update(rng.sample(candidates, round(_HELD_OUT * len(candidates))))
        return frozenset(chosen)


def _written_out(clauses: Sequence[str]) -> Iterator[str]:
    return (match["words"] for clause in clauses for match in _MARKUP.finditer(clause) if match["words"])


class Patient:
    """Who a text is about; `words` fills the slots of phrases that depend on the person alone."""

    def __init__(self, lexicon: Lexicon, rng: random.Random):
        self.lexicon, self.rng = lexicon, rng
        self.sex = rng.choice("FM")
        self.age = min(97, max(19, round(rng.gauss(63, 17))))
        # Drawn without regard to the reason of admission: otherwise a past disease would tell what it is not.
        self.past = rng.sample(lexicon.conditions, rng.choice((1, 2, 2, 3)))
        self.relative = rng.choice(lexicon.words["relative"])

    def words(self, slot: str) -> str:
        """The words for a slot such as `age`, `He` or `duration`.

        Raises:
            KeyError: no list of words has this name.
        """
        female = self.sex == "F"
        fixed = {
            "age": str(self.age),
            "sex": self.sex,
            "person": "woman" if female else "man",
            "he": "she" if female else "he",
            "his": "her" if female else "his",
            "him": "her" if female else "him",
            "relative": self.relative,
        }
        return fixed[slot] if slot in fixed else self.rng.choice(self.lexicon.words[slot])


def _render(phrase: str, fill: Callable[[str], Piece]) -> list[Piece]:
    """Fills the slots of a phrase; a slot with a capital initial gets its words with one."""
    pieces: list[Piece] = []
    position = 0
    for match in _MARKUP.finditer(phrase):
        pieces.append((phrase[position : match.start()], None))
        position = match.end()
        if match["slot"]:
            words, label = fill(match["slot"].lower())
            pieces.append((_capital(words) if match["slot"][0].isupper() else words, label))
        else:
            pieces.append((match["words"], match["label"]))
    return [*pieces, (phrase[position:], None)]


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _misspelt(rng: random.Random, words: str, rate: float) -> str:
    """Swaps, drops or doubles a letter inside some of the longer words."""

    def slip(match: re.Match[str]) -> str:
        word = match[0]
        if rng.random() >= rate:
            return word
        place = rng.randrange(1, len(word) - 2)
        middle = rng.choice((word[place + 1] + word[place], word[place + 1], word[place] * 2 + word[place + 1]))
        return word[:place] + middle + word[place + 2 :]

    return re.sub(r"[A-Za-z]{6,}", slip, words)


# Triage


def _triage_patients(lexicon: Lexicon, rng: random.Random, split: str) -> Iterator[Document]:
    number = 0
    names, shares = list(lexicon.departments), list(lexicon.departments.values())
    while True:
        number += 1
        patient = Patient(lexicon, rng)
        for admission in range(1, rng.choice((1, 1, 2)) + 1):
            department = rng.choices(names, shares)[0]
            reason = rng.choice([condition for condition in lexicon.conditions if condition.department == department])
            text = _triage_note(patient, reason)
            group = f"{split}-patient-{number:04d}"
            yield Document(id=f"{group}-{admission}", group=group, text=text, label=department)


def _triage_note(patient: Patient, reason: Condition) -> str:
    """A note of an admission for `reason`: an opening and a few of the other parts in any order."""
    lexicon, rng = patient.lexicon, patient.rng
    fill = _triage_slots(patient, reason)
    parts = [part for part, chance in _TRIAGE_PARTS if rng.random() < chance]
    rng.shuffle(parts)
    phrases = [rng.choice(lexicon.triage[part]) for part in ("opening", *parts)]
    text = " ".join("".join(words for words, _ in _render(phrase, fill)) for phrase in phrases)
    return _misspelt(rng, text, 0.02)


_TRIAGE_PARTS = (
    ("worse", 0.55), ("stable", 0.75), ("denied", 0.6), ("examined", 0.9), ("old_finding", 0.5),
    ("normal", 0.35), ("drugs", 0.4), ("family", 0.3), ("filler", 0.3),
)  # fmt: skip
"""Parts of a note after its opening, with the chance that each is there."""


def _triage_slots(patient: Patient, reason: Condition) -> Callable[[str], Piece]:
    lexicon, rng = patient.lexicon, patient.rng
    past = patient.past
    acute = rng.sample(reason.symptoms, min(rng.choice((1, 2, 2, 3)), len(reason.symptoms)))
    others = [symptom for condition in past for symptom in condition.symptoms if symptom not in acute]
    foreign = [symptom for symptom in lexicon.symptoms if symptom not in reason.symptoms and symptom not in others]
    denied = rng.sample(foreign, min(3, len(foreign)))
    # Old complaints come in the same words as the new ones.
    stable = others or [symptom for symptom in foreign if symptom not in denied]
    elsewhere = [department for department in lexicon.departments if department != reason.department]

    def worded(symptom: str) -> str:
        return rng.choice(lexicon.symptoms[symptom])

    def words(slot: str) -> str:
        match slot:
            case "acute":
                return _listed([worded(symptom) for symptom in acute])
            case "acute_one":
                return worded(rng.choice(acute))
            case "stable":
                return worded(rng.choice(stable))
            case "denied":
                return " or ".join(worded(symptom) for symptom in denied[:2])
            case "denied_one" | "denied_two":
                return worded(denied[0] if slot == "denied_one" else denied[1])
            case "past":
                return _listed([rng.choice(condition.names) for condition in past])
            case "finding":
                return _listed(rng.sample(reason.findings, rng.choice((1, 2))))
            case "old_finding":
                return rng.choice(rng.choice(past).findings)
            case "normal":
                return rng.choice(lexicon.normal[rng.choice(elsewhere)])
            case "drugs":
                drugs = list(dict.fromkeys(drug for condition in past for drug in condition.drugs))
                return _listed(rng.sample(drugs, min(rng.choice((1, 2)), len(drugs))))
            case "family":
                return rng.choice(rng.choice(lexicon.conditions).names)
            case _:
                return patient.words(slot)

    return lambda slot: (words(slot), None)


# Findings


def _findings_patients(
    lexicon: Lexicon, held_out: frozenset[str], rng: random.Random, split: str
) -> Iterator[Document]:
    banned: frozenset[str] = frozenset() if split == "test" else held_out
    number = 0
    while True:
        number += 1
        patient = Patient(lexicon, rng)
        reason = rng.choice(lexicon.conditions)
        group = f"{split}-patient-{number:04d}"
        for sentence in range(1, rng.randint(3, 6) + 1):
            text, spans = _sentence(patient, reason, banned)
            yield Document(id=f"{group}-{sentence}", group=group, text=text, words=words_of(text), spans=spans)


def _sentence(patient: Patient, reason: Condition, banned: frozenset[str]) -> tuple[str, list[Span]]:
    """Clauses joined to between 12 and about 25 words, and the mentions in them."""
    lexicon, rng = patient.lexicon, patient.rng
    fill = _findings_slots(patient, reason, banned)
    lead = rng.choice(lexicon.findings["lead"])
    pieces = _render(f"{lead} " if lead else "", fill)
    enough = rng.randint(11, 19)
    used: list[str] = []
    while True:
        kind = rng.choices(("clauses", "ambiguous", "plain"), (0.5, 0.32, 0.18))[0]
        clause = rng.choice([clause for clause in lexicon.findings[kind] if clause not in used])
        used.append(clause)
        pieces += _render(clause, fill)
        if sum(len(words.split()) for words, _ in pieces) >= enough:
            break
        pieces.append((rng.choice(lexicon.findings["joint"]), None))
    pieces += [*_render(rng.choice(lexicon.findings["tail"]), fill), (".", None)]
    return _joined(rng, pieces)


def _joined(rng: random.Random, pieces: Sequence[Piece]) -> tuple[str, list[Span]]:
    text, spans = "", []
    for words, label in pieces:
        words = _misspelt(rng, words, 0.05 if label else 0.01)
        if not text or text.endswith(". "):
            words = _capital(words)
        if label:
            spans.append(Span(len(text), len(text) + len(words), label))
        text += words
    return text, spans


def _findings_slots(patient: Patient, reason: Condition, banned: frozenset[str]) -> Callable[[str], Piece]:
    lexicon, rng = patient.lexicon, patient.rng
    used: set[str] = set()

    def wording(label: str) -> str:
        """A wording of an entity type from the patient's diseases or from the rest, not yet in this sentence."""
        about = rng.choices((reason, rng.choice(patient.past), None), (0.5, 0.2, 0.3))[0]
        pool = lexicon.mentions(about, label) if about else []
        free = [word for word in pool if word not in banned and word not in used]
        free = free or [word for word in lexicon.entities[label] if word not in banned and word not in used]
        used.add(chosen := rng.choice(free))
        return chosen

    def mention(label: str) -> str:
        words, modifiers = wording(label), lexicon.modifiers[label]
        if label == "treatment" and words not in lexicon.drugs:
            return words
        if rng.random() < 0.18:
            before = rng.choice(modifiers["before"])
            if before not in words:
                words = f"{before} {_ARTICLE.sub('', words)}"
        if rng.random() < 0.05:
            words = f"{words} {rng.choice(modifiers['after'])}"
        return words

    def fill(slot: str) -> Piece:
        if slot in ENTITY_TYPES:
            return mention(slot), slot
        if slot == "drug":
            return rng.choice([drug for drug in lexicon.drugs if drug not in banned]), "treatment"
        if slot in lexicon.names:
            about = rng.choices(ENTITY_TYPES, (3, 1, 1))[0]
            return f"{_ARTICLE.sub('', wording(about))} {rng.choice(lexicon.names[slot])}", None
        return patient.words(slot), None

    return fill
