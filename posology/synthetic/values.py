"""Numbers in notes: vital signs, laboratory values and a newborn's measures."""

from __future__ import annotations

import random

from posology.synthetic.lexicon import lexicon
from posology.synthetic.phrases import Filling, Slot, Unfillable
from posology.synthetic.state import Admission
from posology.synthetic.written import Written

_TOLD = ("lactate", "creatinine", "white cells", "hematocrit", "potassium", "bicarbonate", "INR", "urea", "platelets")


class Values:
    """What a scene needs to state values of an admission."""

    SLOTS = (
        "temperature", "pulse", "pressure", "breaths", "saturation", "lab", "lab_phrase", "lab_list", "lab_line",
        "weight", "weeks", "apgar1", "apgar5", "gravida", "para", "delivery", "rate", "ef", "ecg_finding",
        "echo_finding", "follows", "lungs",
    )  # fmt: skip

    def __init__(self, admission: Admission, rng: random.Random):
        self.admission, self.signs, self.rng = admission, admission.signs, rng

    def fill(self, slot: Slot) -> Filling:
        """The filling of one of `SLOTS`."""
        name, rng = slot.name, self.rng
        if name in _PHRASES:
            return rng.choice(_PHRASES[name])
        if name == "weight":
            return str(self.admission.weight)
        if name in ("gravida", "para", "rate", "ef"):
            low, high = {"gravida": (1, 6), "para": (1, 4), "rate": (48, 130), "ef": (20, 70)}[name]
            return str(rng.randrange(low, high))
        if not self.signs:
            raise Unfillable(name)
        if name == "pressure":
            return f"{self.signs['systolic']:.0f}/{self.signs['diastolic']:.0f}"
        if name == "temperature":
            fahrenheit = self.signs["temperature"]
            return f"{fahrenheit:.1f}" if rng.random() < 0.8 else f"{(fahrenheit - 32) / 1.8:.1f}"
        if name == "lab":
            return self._value(slot.argument)
        if name == "lab_phrase":
            return self._phrase()
        if name in ("lab_list", "lab_line"):
            return self._several(rng.sample(_TOLD, 4 if name == "lab_list" else 6), ", " if name == "lab_list" else " ")
        return f"{self.signs[name]:.0f}"

    def _value(self, key: str) -> str:
        return f"{self.signs[key]:.{lexicon().labs[key].decimals}f}"

    def _phrase(self) -> Written:
        key = self.rng.choice(("lactate", "creatinine", *_TOLD))
        name = self.rng.choice(lexicon().labs[key].names)
        middle = self.rng.choice((" was ", " of ", " ", " was ", " came back at "))
        return Written().add(name, "test").add(middle + self._value(key))

    def _several(self, keys: list[str], between: str) -> Written:
        written = Written()
        joint = "-" if between == " " else " "
        for number, key in enumerate(keys):
            written.add(between if number else "").add(self.rng.choice(lexicon().labs[key].names), "test")
            written.add(joint + self._value(key))
        return written


_PHRASES = {
    "delivery": ("spontaneous vaginal delivery", "cesarean section", "repeat c-section", "vacuum-assisted delivery"),
    "follows": ("follows commands", "follows simple commands", "conversant"),
    "lungs": ("clear", "coarse", "diminished at bases", "with scattered wheezes"),
    "ecg_finding": (
        "Left axis deviation", "Non-specific ST-T wave changes", "Left bundle-branch block", "First degree A-V block",
        "Possible prior inferior infarct", "Right bundle-branch block", "Low QRS voltage in the limb leads",
        "Poor R wave progression", "Left ventricular hypertrophy", "Occasional ventricular premature beats",
    ),
    "echo_finding": (
        "Mild symmetric LVH", "Trivial mitral regurgitation", "Normal regional wall motion", "Mild pulmonary hypertension",
        "Moderate tricuspid regurgitation", "Suboptimal image quality", "No thrombus seen", "Calcified mitral annulus",
        "Inferior hypokinesis", "Normal chamber size",
    ),
}  # fmt: skip
