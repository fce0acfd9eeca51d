"""Fills the slots of a note's phrases from the state of a patient and an admission.

A slot's name says what is wanted: `{reason}`, `{symptoms:2}`, `{past}`, `{any_test}`, `{when}`. Whoever writes a phrase
about one thing in particular binds it, as in `scribe.write("course treatment", treatment=..., problem=...)`. Names
that begin with `any_` are drawn from the whole lexicon: they are distractors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

from posology.synthetic.lexicon import Condition, Lexicon, lexicon
from posology.synthetic.phrases import Filling, Pool, Slot, Term, Unfillable
from posology.synthetic.state import Admission, Dose, Event, Patient
from posology.synthetic.timing import Timing
from posology.synthetic.values import Values

_SPOUSE = {"F": "husband", "M": "wife"}


class Scene:
    """Everything a scribe may ask about one admission.

    Args:
        patient: whose; only read.
        admission: which; only read.
        rng: of the choice of words.
        seen_only: whether rare wordings are left out.
    """

    def __init__(self, patient: Patient, admission: Admission, rng: random.Random, *, seen_only: bool = False):
        self.patient, self.admission, self.rng, self.seen_only = patient, admission, rng, seen_only
        self.words: Lexicon = lexicon()
        self.reason = self.words.conditions[admission.reason]
        self.timing = Timing(patient, admission, rng)
        self.values = Values(admission, rng)
        self.event: Event | None = None
        self._past: list[str] = []
        self._spoken_of: Condition | None = None
        female = patient.sex == "F"
        self._fixed = {
            "he": "she" if female else "he",
            "him": "her" if female else "him",
            "his": "her" if female else "his",
            "mr": ("Ms." if patient.number % 3 else "Mrs.") if female else "Mr.",
            "boy": "girl" if female else "boy",
            "sex": patient.sex,
        }
        self._makers = _makers()

    def fill(self, slot: Slot) -> Filling:
        """The filling of a slot that the caller did not bind.

        Raises:
            Unfillable: this patient has no such thing.
            KeyError: no slot has this name.
        """
        name = slot.name
        fixed = self._fixed.get(name)
        if fixed is not None:
            return fixed
        if name == "DATE":
            return self.timing.day_of(slot.argument)
        if name == "AGE":
            return str(self.rng.randrange(17, 44) if slot.argument == "mother" else self._age(slot.argument))
        return self._makers[name](self, slot)

    def term(self, kind: str, pool: Pool, **attributes: str) -> Term:
        """A wording from a pool."""
        return Term(kind, pool.draw(self.rng, self.seen_only), attributes)

    def problem(self, condition: Condition) -> Term:
        """A condition by one of its names, often with what else belongs to the mention."""
        words = condition.names.draw(self.rng, self.seen_only)
        place = self.rng.random()
        if place < 0.26:
            words = _modified(words, "{@change}" if place < 0.2 else "{@change} {@side}")
        if self.rng.random() < 0.06:
            words += " {@due}"
        return Term("problem", self._owned(words))

    def symptom(self, key: str) -> Term:
        """A symptom by one of its wordings, often with modifiers."""
        words = self.words.symptoms[key].draw(self.rng, self.seen_only)
        if self.rng.random() < 0.34:
            words = _modified(words, "{@severity}")
        if self.rng.random() < 0.15:
            somewhere = key.endswith(("pain", "swelling"))
            words += " {@onside}" if somewhere else " {@occasion}"
        return Term("problem", self._owned(words))

    def _owned(self, words: str) -> str:
        """Now and then "his" or "the" instead of an article or of none."""
        place = self.rng.random()
        if place > 0.13 or words.startswith("<"):
            return words
        noun = words.partition(" ")[2] if words.startswith(("a ", "an ")) else words
        return f"the {noun}" if place < 0.04 else f"{self._fixed['his']} {noun}"

    def treatment(self, event_or_dose: Event | Dose | str) -> Term:
        """A drug or a procedure by one of its names; what is taken by its generic name or brand."""
        if isinstance(event_or_dose, Event) and event_or_dose.kind == "procedure":
            return self.term("treatment", self.words.procedures[event_or_dose.what].names)
        if isinstance(event_or_dose, Dose):
            return self.term("treatment", self.words.drugs[event_or_dose.drug].written)
        key = event_or_dose.what if isinstance(event_or_dose, Event) else event_or_dose
        words = self.words.drugs[key].names.draw(self.rng, self.seen_only)
        place = self.rng.random()
        if place < 0.2:
            words = _modified(words, "{@manner}")
        elif place < 0.28:
            words += " {@regimen}"
        return Term("treatment", words)

    def test(self, key: str) -> Term:
        """A test by one of its names, now and then with a modifier."""
        words = self.words.tests[key].draw(self.rng, self.seen_only)
        place = self.rng.random()
        if place < 0.22:
            words = _modified(words, "{@timing}")
        elif place < 0.28:
            words += " {@reading}"
        return Term("test", words)

    def finding(self, condition: Condition | None = None) -> Term:
        """What a test may show in a condition (that of the admission where the condition has none)."""
        pool = (condition or self.reason).findings or self.reason.findings
        if pool is None:
            raise Unfillable("finding")
        return self.term("problem", pool)

    # Fillings that need more than a line

    def _age(self, which: str) -> int:
        if which.partition("/")[0] == "age":
            return self.patient.age(self.admission.admitted)
        return self.rng.randrange(38, 96)

    def man(self, slot: Slot) -> str:
        """`man` or `woman`, in one of the usual words."""
        female = self.patient.sex == "F"
        return self.rng.choice(("woman", "woman", "female", "lady") if female else ("man", "man", "male", "gentleman"))

    def chronic(self, slot: Slot) -> Sequence[Term]:
        """As many chronic conditions as there are, up to the slot's argument."""
        keys = self.patient.chronic
        if not keys:
            raise Unfillable(slot.name)
        wanted = min(int(slot.argument or 2), len(keys))
        return [self.problem(self.words.conditions[key]) for key in self.rng.sample(keys, wanted)]

    def past(self, slot: Slot) -> Term:
        """A chronic condition; `{past_drug}` in the same phrase is a drug for it."""
        if not self.patient.chronic:
            raise Unfillable(slot.name)
        if not self._past:
            self._past = self.rng.sample(self.patient.chronic, len(self.patient.chronic))
        self._spoken_of = self.words.conditions[self._past.pop()]
        return self.problem(self._spoken_of)

    def speak_of(self, condition: Condition) -> None:
        """Makes `{past}` and `{past_drug}` of the next phrase about this condition."""
        self._past.append(condition.key)

    def past_drug(self, slot: Slot) -> Term:
        if self._spoken_of is None or not self._spoken_of.drugs:
            raise Unfillable(slot.name)
        return self.treatment(self.rng.choice(self._spoken_of.drugs))

    def home_drug(self, slot: Slot) -> Term:
        if not self.admission.home_drugs:
            raise Unfillable(slot.name)
        return self.treatment(self.rng.choice(self.admission.home_drugs))

    def symptoms(self, slot: Slot) -> Sequence[Term]:
        keys = self.admission.symptoms
        if not keys:
            raise Unfillable(slot.name)
        wanted = min(self.rng.choice((1, 2, 2, int(slot.argument or 2))), len(keys))
        return [self.symptom(key) for key in self.rng.sample(keys, wanted)]

    def one_symptom(self, slot: Slot) -> Term:
        """A symptom on arrival; `{symptom2}` is another one than `{symptom}` is by default."""
        keys = self.admission.symptoms
        if len(keys) < (2 if slot.name == "symptom2" else 1):
            raise Unfillable(slot.name)
        return self.symptom(keys[1] if slot.name == "symptom2" else self.rng.choice((keys[0], keys[-1])))

    def denied(self, slot: Slot) -> Sequence[Term]:
        keys = self.admission.denied
        if not keys:
            raise Unfillable(slot.name)
        chosen = self.rng.sample(keys, min(int(slot.argument or 2), len(keys)))
        return [self.term("problem", self.words.symptoms[key]) for key in chosen]

    def denied_one(self, slot: Slot) -> Term:
        keys = self.admission.denied
        if not keys:
            raise Unfillable(slot.name)
        half = len(keys) // 2
        key = self.rng.choice(keys[:half] if slot.name == "denied_one" else keys[half:])
        return self.term("problem", self.words.symptoms[key])

    def any_problem(self, slot: Slot) -> Term:
        """Any condition or finding, composed ones among them."""
        place = self.rng.random()
        if place < 0.35:
            return Term("problem", "{@imaging_finding}")
        if place < 0.45:
            return self.symptom(self.rng.choice(_keys("symptoms")))
        return self.problem(self.words.conditions[self.rng.choice(_keys("conditions"))])

    def any_treatment(self, slot: Slot) -> Term:
        if self.rng.random() < 0.35:
            return self.term("treatment", self.words.general["general_treatments"])
        return self.treatment(self.rng.choice(_keys("drugs")))

    def any_test(self, slot: Slot) -> Term:
        if self.rng.random() < 0.35:
            return self.term("test", self.words.general["general_tests"])
        return self.test(self.rng.choice(_keys("tests")))

    def only_words(self, slot: Slot) -> str:
        """The words of a problem, test or treatment where they are none: in the name of a place or a paper."""
        table, rng = slot.argument, self.rng
        if table == "problem":
            words = self.words.conditions[rng.choice(_keys("conditions"))].names.draw(rng, self.seen_only)
        elif table == "test":
            words = self.words.tests[rng.choice(_keys("tests"))].draw(rng, self.seen_only)
        else:
            words = self.words.drugs[rng.choice(_keys("drugs"))].written.draw(rng, self.seen_only)
        if any(character.isdigit() for character in words):
            raise Unfillable(slot.name)
        return words.partition(" ")[2] if words.startswith(("a ", "an ")) else words

    def adverse(self, slot: Slot) -> Term:
        """What treatments are blamed for."""
        place = self.rng.random()
        if place < 0.4:
            return self.symptom(self.rng.choice(_ADVERSE_SYMPTOMS))
        if place < 0.6:
            return Term("problem", self.rng.choice(_ADVERSE))
        return self.problem(self.words.conditions[self.rng.choice(_ADVERSE_CONDITIONS)])

    def drug(self, slot: Slot) -> Term:
        if not self.reason.drugs:
            raise Unfillable(slot.name)
        half = (len(self.reason.drugs) + 1) // 2
        keys = self.reason.drugs[half:] if slot.name == "drug2" else self.reason.drugs[:half]
        return self.treatment(self.rng.choice(keys or self.reason.drugs))

    def one_test(self, slot: Slot) -> Term:
        keys = self.reason.tests
        if not keys:
            raise Unfillable(slot.name)
        half = (len(keys) + 1) // 2
        return self.test(self.rng.choice((keys[half:] if slot.name == "test2" else keys[:half]) or keys))

    def procedure(self, slot: Slot) -> Term:
        done = [event.what for event in self.admission.events if event.kind == "procedure"] or self.reason.procedures
        if not done:
            raise Unfillable(slot.name)
        return self.term("treatment", self.words.procedures[self.rng.choice(done)].names)

    def relative(self, slot: Slot) -> str:
        if self.patient.living == "spouse" and self.rng.random() < 0.5:
            return _SPOUSE[self.patient.sex]
        return self.rng.choice(self.words.social["relatives"])

    def family_problem(self, slot: Slot) -> Term:
        """A disease of the family: one that the patient's relatives have, or else any that families have."""
        if self.patient.family and self.rng.random() < 0.8:
            return self.problem(self.words.conditions[self.rng.choice(self.patient.family)[1]])
        return self.problem(self.words.conditions[self.rng.choice(_FAMILIAL)])

    def ward(self, slot: Slot) -> Term:
        return self.term("clinical_dept", self.words.wards[self.admission.ward]["names"])

    def habit(self, slot: Slot) -> str:
        """A clause of the social history."""
        state = {"smokes": self.patient.smoking, "drinks": self.patient.alcohol,
                 "lives": self.patient.living, "functions": self.patient.function}[slot.name]  # fmt: skip
        return f"{{@{slot.name} {state}}}" if state else ""


def _modified(words: str, modifier: str) -> str:
    """The modifier before the noun, where the wording is simple enough for one."""
    article, _, noun = words.partition(" ") if words.startswith(("a ", "an ")) else ("", "", words)
    if any(mark in noun for mark in "<{0123456789") or " of " in noun or len(noun.split()) > 3:
        return words
    return f"{article} {modifier} {noun}" if article else f"{modifier} {noun}"


@cache
def _keys(table: str) -> list[str]:
    known = getattr(lexicon(), table)
    if table == "conditions":
        return [key for key, condition in known.items() if not condition.newborn]
    return list(known)


_FAMILIAL = ("breast cancer", "coronary artery disease", "diabetes", "abdominal cancer", "stroke", "hypertension")
_ADVERSE_SYMPTOMS = ("nausea", "itching", "dizziness", "diarrhea", "confusion", "bleeding", "drowsiness")
_ADVERSE = (
    "{@exam_finding}", "a rising creatinine", "bleeding gums", "an elevated INR", "oozing from the site",
    "a prolonged QT", "hives", "a <maculopapular|diffuse|pruritic> rash", "oversedation", "thrombocytopenia",
    "a low heart rate", "<red man|a drug|an allergic> reaction", "muscle aches", "constipation",
)  # fmt: skip
_ADVERSE_CONDITIONS = (
    "hypotension", "hypokalemia", "hyperkalemia", "acute kidney injury", "drug rash", "delirium", "coagulopathy",
    "diarrhea from antibiotics", "hypoglycemia", "gastrointestinal bleeding", "heart block", "recurrent bleeding",
)  # fmt: skip


def _unfillable(scene: Scene, slot: Slot) -> Filling:
    """For slots that are filled only where the writer binds them."""
    raise Unfillable(slot.name)


Maker = Callable[[Scene, Slot], Filling]


@cache
def _makers() -> dict[str, Maker]:
    """What fills a slot, by its name."""
    makers: dict[str, Maker] = {
        "man": Scene.man,
        "reason": lambda scene, slot: scene.problem(scene.reason),
        "symptom": Scene.one_symptom, "symptom2": Scene.one_symptom, "symptoms": Scene.symptoms,
        "denied": Scene.denied, "denied_one": Scene.denied_one, "denied_two": Scene.denied_one,
        "denied_condition": lambda scene, slot: scene.term("problem", scene.words.conditions[
            scene.rng.choice(_FAMILIAL)].names),
        "old_symptom": lambda scene, slot: scene.symptom(scene.rng.choice(_keys("symptoms"))),
        "cold": lambda scene, slot: scene.term("problem", scene.words.symptoms["cold symptoms"]),
        "finding": lambda scene, slot: scene.finding(),
        "imaging": lambda scene, slot: Term("problem", "{@imaging_finding}"),
        "exam_finding": lambda scene, slot: Term("problem", "{@exam_finding}"),
        "heart_finding": lambda scene, slot: Term("problem", "a <2|3>/6 <systolic|diastolic> murmur {@murmur}"),
        "lung_finding": lambda scene, slot: Term("problem", "{@lungnoise}"),
        "abdomen_finding": lambda scene, slot: Term("problem", "{@degree} {@quadrant} tenderness"),
        "leg_finding": lambda scene, slot: Term("problem", "<1|2|3|trace>+ <pitting |>edema {@edema}"),
        "structure": lambda scene, slot: "{@structure}",
        "chronic": Scene.chronic, "past": Scene.past, "past_drug": Scene.past_drug, "home_drug": Scene.home_drug,
        "old_problem": lambda scene, slot: scene.term("problem", scene.words.general["old_problems"]),
        "old_operation": lambda scene, slot: scene.term("treatment", scene.words.general["old_operations"]),
        "any_problem": Scene.any_problem, "any_test": Scene.any_test, "any_treatment": Scene.any_treatment,
        "adverse": Scene.adverse,
        "drug": Scene.drug, "drug2": Scene.drug, "test": Scene.one_test, "test2": Scene.one_test,
        "procedure": Scene.procedure, "treatment": Scene.drug,
        "relative": Scene.relative, "relative2": Scene.relative,
        "family": Scene.family_problem, "family2": Scene.family_problem,
        "maternal": lambda scene, slot: scene.problem(scene.words.conditions[scene.rng.choice(
            ("hypothyroidism", "asthma", "depression", "anxiety", "hypertension", "diabetes"))]),
        "ward": Scene.ward,
        "dept": lambda scene, slot: scene.term("clinical_dept", scene.words.general["departments"]),
        "the_ed": lambda scene, slot: Term("clinical_dept", "<the ED|the emergency department|ED|the ER>"),
        "consultant_dept": lambda scene, slot: scene.term("clinical_dept", scene.words.general["consultants"]),
        "occasion": lambda scene, slot: "{@occasion}",
        "smokes": Scene.habit, "drinks": Scene.habit, "lives": Scene.habit, "functions": Scene.habit,
        "diet": lambda scene, slot: Term("treatment", "<clears|a regular diet|tube feeds|a cardiac diet>"),
        "problem": _unfillable,
        "only_words": Scene.only_words,
        "past_note": lambda scene, slot: "{@past_note}",
    }  # fmt: skip
    for name in Timing.SLOTS:
        makers[name] = lambda scene, slot: scene.timing.fill(slot, scene.event)
    for name in Values.SLOTS:
        makers[name] = lambda scene, slot: scene.values.fill(slot)
    return makers
