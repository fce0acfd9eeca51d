"""Notes written from the state of a patient: discharge summaries in sections, and shorter notes of a stay.

What the sections of an admission say of severity is true but partial, and stands among denials, old troubles and other
people's (`mark` and `decoy` phrases), so that the end can be guessed from the sense of a note better than from its
words. Deaths show outside the discharge sections only in the phrases that outcome filters look for (`leak`).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from posology.synthetic.course import discharge_drugs
from posology.synthetic.lexicon import lexicon, phrasebook
from posology.synthetic.phrases import Identifiers, Scribe, Term
from posology.synthetic.scene import Scene
from posology.synthetic.sections import ADMISSION_SECTIONS, HEADINGS, Author, Section, joined
from posology.synthetic.state import Admission, Dose, Event, Patient
from posology.synthetic.written import Written

__all__ = ["ADMISSION_SECTIONS", "Author", "Section", "discharge_summary", "joined", "short_note"]

_MARK_TOLD, _DECOY_TOLD = 0.8, 0.21
"""How often a sign of severity that is there is written of, and one that is not is denied or told of another time."""
_LEAKS = {"physical exam": 0.1, "medications on admission": 0.05, "present illness": 0.025}
_SURVIVOR_WORDS = 0.03
_IN_EXAM = ("distress", "obtunded", "mottled", "cachectic")


def discharge_summary(
    patient: Patient,
    admission: Admission,
    identifiers: Identifiers,
    rng: random.Random,
    *,
    author: Author | None = None,
    seen_only: bool = False,
    leaks: bool = True,
    earlier: Sequence[Section] = (),
) -> list[Section]:
    """Writes a discharge summary without its frame of names and dates.

    Args:
        author: how it is written; drawn if not given.
        seen_only: whether rare wordings are left out, as in texts for training.
        leaks: whether the admission sections of the dead may say so.
        earlier: the summary of an earlier stay, parts of whose history are copied into this one.

    Returns:
        The sections in order; those of `ADMISSION_SECTIONS` tell what was known on admission.
    """
    author = author or Author.drawn(rng)
    writer = _Writer(patient, admission, identifiers, rng, author, seen_only)
    sections = writer.newborn() if admission.kind == "NEWBORN" else writer.adult()
    if leaks and admission.kind != "NEWBORN":
        writer.leak(sections)
    writer.copy(earlier, sections)
    return [section for section in sections if section.lines]


def short_note(
    kind: str, patient: Patient, admission: Admission, identifiers: Identifiers, rng: random.Random
) -> Written:
    """Writes a note of a few lines.

    Args:
        kind: `nursing`, `physician`, `radiology`, `ecg`, `echo`, `outpatient` or `addendum`.
    """
    writer = _Writer(patient, admission, identifiers, rng, Author.drawn(rng), False)
    wanted = {"ecg": 1, "addendum": 2, "outpatient": 2}.get(kind, 5)
    return Section(kind, "", writer.several(kind, rng.randint(max(1, wanted - 2), wanted))).text()


class _Writer:
    """The sections of one note, one method each."""

    def __init__(
        self, patient: Patient, admission: Admission, identifiers: Identifiers, rng: random.Random, author: Author,
        seen_only: bool,
    ):  # fmt: skip
        self.patient, self.admission, self.rng, self.author = patient, admission, rng, author
        self.scene = Scene(patient, admission, rng, seen_only=seen_only)
        self.scribe = Scribe(
            phrasebook(), rng, self.scene.fill, identifiers, possessive="her" if patient.sex == "F" else "his",
            misspelling=author.misspelling, seen_only=seen_only,
        )  # fmt: skip
        self.told = self._marks()

    def say(self, pool: str, **bound: Term | str) -> Written:
        """One phrase of a pool."""
        return self.scribe.write(pool, capital=True, **bound)

    def several(self, pool: str, wanted: int) -> list[Written]:
        """Different phrases of a pool, as many as wanted or a few less."""
        lines = {line.text: line for line in (self.say(pool) for _ in range(wanted)) if line.text}
        return list(lines.values())

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def section(self, name: str, lines: Iterable[Written], prose: bool = False) -> Section:
        variants = HEADINGS[name]
        heading = variants[min(self.author.variant, len(variants) - 1)]
        return Section(name, heading, [line for line in lines if line.text], prose)

    def items(self, lines: Iterable[Written]) -> list[Written]:
        """Lines with the author's bullets."""
        kept, made = [line for line in lines if line.text], []
        for number, line in enumerate(kept, start=1):
            mark = f"{number}. " if self.author.bullet == "1." else f"{self.author.bullet} ".lstrip()
            made.append(Written(mark).add(line))
        return made

    def _marks(self) -> dict[str, list[Written]]:
        """What is said of severity, by where it stands: `exam`, or `story`."""
        told: dict[str, list[Written]] = {"exam": [], "story": []}
        if self.admission.kind == "NEWBORN":
            return told
        for mark in lexicon().marks:
            there = mark in self.admission.marks
            if self.chance(_MARK_TOLD if there else _DECOY_TOLD):
                place = "exam" if mark in _IN_EXAM and self.chance(0.6) else "story"
                told[place].append(self.say(f"{'mark' if there else 'decoy'} {mark}"))
        self.rng.shuffle(told["story"])
        return told

    # --- the parts known on admission

    def adult(self) -> list[Section]:
        admission = self.admission
        sections = [
            self.section("allergies", self.allergies()),
            self.section("chief complaint", [self.say("complaint")]),
            self.section("procedure", self.procedures()),
            self.section("present illness", self.present_illness(), prose=True),
            self.section("medical history", self.history()),
            self.section("social history", self.social(), prose=True),
            self.section("family history", self.family(), prose=True),
            self.section("physical exam", self.exam()),
            self.section("results", self.results()),
            self.section("hospital course", self.course(), prose=not self.author.brief),
            self.section("medications on admission", self.drugs(admission.home_drugs)),
        ]
        if not admission.died:
            admission.discharge_drugs = admission.discharge_drugs or discharge_drugs(self.rng, admission)
            sections.append(self.section("discharge medications", self.drugs(admission.discharge_drugs)))
        sections += self.ending()
        return sections

    def allergies(self) -> list[Written]:
        if not self.patient.allergies:
            return [self.say("allergy none")]
        words = self.scene.words
        return [
            self.say(
                "allergy", allergen=self.scene.treatment(drug), reaction=self.scene.term("problem", words.symptoms[how])
            )
            for drug, how in self.patient.allergies
        ]

    def procedures(self) -> list[Written]:
        done = [event for event in self.admission.events if event.kind == "procedure"]
        if not done:
            return [Written("None")]
        return [self._about("procedure line", event) for event in done]

    def present_illness(self) -> list[Written]:
        rng, known = self.rng, bool(self.patient.chronic)
        opening = "opening" if known else "opening without history"
        if self.admission.kind == "ELECTIVE" and self.chance(0.8):
            opening = "opening elective"
        lines = [self.say(opening)]
        lines += self.several("story", rng.choice((1, 2, 2, 3)))
        lines += self.several("denied", rng.choice((0, 1, 1, 2)))
        if self.admission.kind != "ELECTIVE" and self.chance(0.75):
            lines.append(self.say("emergency"))
        lines += self.several("workup", rng.choice((1, 2, 3, 3)))
        if self.chance(_SURVIVOR_WORDS):
            lines.append(self.say("survivor words"))
        for line in self.told["story"]:
            lines.insert(rng.randint(min(2, len(lines)), len(lines)), line)
        return lines

    def history(self) -> list[Written]:
        rng, keys = self.rng, self.patient.chronic
        others = self.several("past other", rng.choice((0, 1, 1, 2, 3)))
        if not keys and not others:
            return [self.say("past none")]
        if self.author.brief and keys and self.chance(0.3):
            return [self.say("past prose"), *others]
        lines = []
        for key in rng.sample(keys, len(keys)):
            self.scene.speak_of(lexicon().conditions[key])
            lines.append(self.say("past item"))
        return self.items([*lines, *others])

    def social(self) -> list[Written]:
        return [self.say("social prose")] if self.chance(0.95) else []

    def family(self) -> list[Written]:
        if not self.patient.family:
            return [self.say("family none")]
        lines = []
        for relative, key in self.patient.family[: self.rng.choice((1, 2, 3))]:
            problem = self.scene.term("problem", lexicon().conditions[key].names)
            lines.append(self.say("family prose", relative=relative, family=problem))
        return lines

    def exam(self) -> list[Written]:
        """Vital signs and findings; what is abnormal is more often so in the severely ill, and told by the organ."""
        severity, rng = self.admission.severity, self.rng
        ill = 1 / (1 + 2.718 ** (-(severity - 0.6)))
        lines = [self.say("vitals")]
        if self.told["exam"]:
            first = Written(rng.choice(("Gen: ", "General: ", "GEN: ", ""))).add(self.told["exam"][0])
            lines += [first, *self.told["exam"][1:]]
        elif self.chance(1 - 0.5 * ill):
            lines.append(self.say("general well", general=rng.choice(("Gen: ", "General: ", "GENERAL: "))))
        lines.append(self.say("exam other"))
        for part in ("heart", "lungs"):
            lines.append(self.say(f"{part} {'abnormal' if self.chance(0.2 + 0.4 * ill) else 'normal'}"))
        lines += [self.say("abdomen"), self.say("extremities")]
        lines.append(self.say("neuro normal") if self.chance(0.85 - 0.5 * ill) else self.say("exam other"))
        if self.chance(0.5):
            lines.append(self.say("exam finding"))
        return lines

    def drugs(self, doses: Sequence[Dose]) -> list[Written]:
        if not doses:
            return [Written("None")]
        lines = []
        for dose in doses:
            self.scene.timing.often = dose.frequency
            bound: dict[str, Term | str] = {
                "drug": self.scene.treatment(dose), "amount": dose.amount, "route": dose.route,
                "form": self.rng.choice(("Tablet", "Capsule", "Tablet")),
            }  # fmt: skip
            if dose.problem:
                bound["problem"] = self.scene.problem(lexicon().conditions[dose.problem])
            lines.append(self.say("drugs sig", **bound))
        return self.items(lines)

    # --- what happened then

    def results(self) -> list[Written]:
        tests = [event for event in self.admission.events if event.kind == "test"]
        lines = [self.say("results heading"), self.say("labs line")]
        if self.chance(0.4):
            lines.append(self.say("labs line"))
        lines += [self._about("imaging line", event) for event in tests[: self.rng.choice((1, 2, 3))]]
        return lines

    def course(self) -> list[Written]:
        rng = self.rng
        lines = [self.say("course opening")]
        for event in self.admission.events:
            pool = {"complication": "course complication", "test": "course test", "procedure": "course procedure"}
            lines.append(self._about(pool.get(event.kind, "course treatment"), event))
            if self.chance(0.3):
                lines.append(self.say("course filler"))
        for key in self.patient.chronic[: rng.choice((1, 2, 3))]:
            self.scene.speak_of(lexicon().conditions[key])
            lines.append(self.say("course chronic"))
        lines += self.several("course filler", rng.choice((0, 1, 2)))
        if self.admission.died:
            self.scene.timing.day = int(self.admission.days)
            lines.append(self.say("course death"))
        return lines

    def _about(self, pool: str, event: Event) -> Written:
        """A phrase about an event; its test, treatment, problem and finding are bound."""
        scene = self.scene
        about = lexicon().conditions[event.why or self.admission.reason]
        scene.event = event
        bound: dict[str, Term | str] = {"problem": scene.problem(about)}
        if event.kind == "test":
            bound["test"] = scene.test(event.what)
            if about.findings:
                bound["finding"] = scene.finding(about)
        elif event.kind == "complication":
            bound["problem"] = scene.problem(lexicon().conditions[event.what])
        else:
            bound["treatment"] = scene.treatment(event)
        line = self.say(pool, **bound)
        scene.event = None
        return line

    def ending(self) -> list[Section]:
        died, rng, say = self.admission.died, self.rng, self.say
        diagnoses = [self.scene.problem(lexicon().conditions[self.admission.reason])]
        diagnoses += [self.scene.problem(lexicon().conditions[key]) for key in self.admission.comorbid[:4]]
        disposition = rng.choice(_DISPOSITIONS.get(self.admission.disposition, ("Home",)))
        sections = [
            self.section("disposition", [say("disposition alive", disposition=disposition)] if not died else [
                Written("Expired")]),
            self.section("discharge diagnosis", [say("diagnosis line", problem=one) for one in diagnoses]),
            self.section("discharge condition", [say("condition dead" if died else "condition alive")]),
        ]  # fmt: skip
        if not died:
            lines = self.several("instructions", rng.choice((1, 2, 3)))
            sections.append(self.section("instructions", lines, prose=True))
            sections.append(self.section("followup", [say("followup") for _ in range(rng.choice((1, 2)))]))
        return sections

    def leak(self, sections: Sequence[Section]) -> None:
        """Lets the admission sections of some of the dead say how it ended."""
        pools = {
            "physical exam": "leak exam", "medications on admission": "leak drugs", "present illness": "leak present",
        }  # fmt: skip
        for section in sections:
            if self.admission.died and section.name in _LEAKS and self.chance(_LEAKS[section.name]):
                section.lines.append(self.say(pools[section.name]))

    def copy(self, earlier: Sequence[Section], sections: Sequence[Section]) -> None:
        """Copies lines of an earlier history into this one, as they were."""
        old = {section.name: section for section in earlier}
        for section in sections:
            if section.name == "present illness" and section.name in old:
                lines = old[section.name].lines[: self.rng.choice((1, 2))]
                section.lines += [self.say("copied"), *lines]
            elif section.name == "family history" and section.name in old and self.chance(0.7):
                section.lines = list(old[section.name].lines)

    # --- newborns

    def newborn(self) -> list[Section]:
        rng = self.rng
        course = self.several("newborn course", rng.choice((3, 4, 5)))
        if self.admission.died:
            course.append(self.say("newborn death"))
        history = [self.say("newborn opening"), *self.several("newborn history", rng.choice((2, 3)))]
        sections = [
            self.section("chief complaint", [self.say("newborn complaint")]) if self.chance(0.3) else None,
            self.section("present illness", history, prose=True),
            self.section("physical exam", self.several("newborn exam", rng.choice((2, 3, 4))), prose=True),
            self.section("hospital course", course),
            self.section("discharge condition", [self.say("condition dead" if self.admission.died else "newborn well")]),
        ]  # fmt: skip
        return [section for section in sections if section is not None]


_DISPOSITIONS = {
    "HOME": ("Home", "home", "Home."),
    "HOME HEALTH CARE": ("Home With Service", "Home with VNA"),
    "SNF": ("Extended Care", "Skilled nursing facility"),
    "REHAB/DISTINCT PART HOSP": ("Extended Care", "Acute rehab"),
    "LONG TERM CARE HOSPITAL": ("Extended Care", "LTAC"),
}
