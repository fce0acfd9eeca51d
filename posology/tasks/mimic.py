"""The three MIMIC-III tasks: death in hospital, length of stay, and triage by groups of first diagnoses.

Here: which admissions and notes count, in what order, and how they are split. What is done to a text, and which label
it gets, is in `mimic_paper`, `mimic_standard` and `triage`.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from posology.console import progress
from posology.corpus import mimic3
from posology.corpus.document import Document
from posology.corpus.mimic3 import Admission, Notes, Summary
from posology.errors import UserError
from posology.tasks import mimic_marks, mimic_paper, mimic_standard, triage
from posology.tasks.built import Built, Flow, Protocol
from posology.tasks.mimic_splits import HASHED, hashed_split, random_split, read_patient_lists
from posology.tasks.prepared import SPLITS

_OUTCOMES: dict[str, Sequence[str]] = {
    "mimic-mp": ("survived", "died"),
    "mimic-los": ("<=3 days", "3-7 days", "7-14 days", ">14 days"),
}
"""The classes of the two tasks that look at the admission only."""

_TIES = "Notes of one date are taken in the order of the table; the published code leaves their order open."
_NOTES = (
    "Notes flagged as errors are left out, and so is a text filed under several admissions, since nobody can tell whose "
    "it is. Reports and addenda of an admission are joined in the order of time."
)
_CLEANED = "Phrases that give the outcome away are removed, and de-identification marks replaced by words."
_TRIAGE = (
    "The whole discharge summary is read. Newborns stay: they are a class (Obstetrics). As in the publication, an "
    "admission needs a first procedure, and a first diagnosis among 20 codes."
)
_NO_LISTS = "The published lists of patients were not given, so its splits had other members."
_RANDOM = (
    "Admissions are split 60/20/20 at random with seed 42 by scikit-learn. In what order the published code had them is "
    "not known, so the members of its splits (9,559, 3,114 and 3,172) cannot be told."
)


@dataclass
class _Work:
    """A task on its way: who is still in, and what there is to tell.

    Attributes:
        left: the HADM_IDs that are still in, ascending.
    """

    task: str
    protocol: Protocol
    left: list[int] = field(default_factory=list)
    flow: Flow = field(default_factory=lambda: Flow("admissions", 0))
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def enter(self, admissions: Iterable[int]) -> None:
        self.left = sorted(admissions)
        self.flow = Flow("admissions", len(self.left))

    def keep(self, admissions: Collection[int], otherwise: str) -> None:
        """Leaves out everybody but `admissions`; `otherwise` is the reason."""
        kept = [hadm for hadm in self.left if hadm in admissions]
        self.flow.exclude(otherwise, len(self.left) - len(kept))
        self.left = kept

    def texts(self, text_of: Callable[[int], str | None], otherwise: str) -> dict[int, str]:
        """The text of everybody who is left; leaves out those who have none."""
        found = {}
        with progress("Making documents", len(self.left)) as advance:
            for hadm in self.left:
                if text := text_of(hadm):
                    found[hadm] = text
                advance()
        self.keep(found, otherwise)
        return found

    def count(self, prefix: str, counts: Counter[str]) -> None:
        self.counts.update({f"{prefix}_{key}": number for key, number in counts.items()})


def build(task: str, source: Path, protocol: Protocol, splits: Path | None = None) -> Built:
    """Builds one of the tasks from the folder that holds the tables of MIMIC-III.

    Args:
        task: `mimic-mp`, `mimic-los` or `mimic-triage`.
        splits: a folder with lists of SUBJECT_ID that make the splits.

    Raises:
        UserError: a table or a list of patients is missing or damaged, or nobody is left.
    """
    lists = read_patient_lists(splits) if splits is not None else None
    work = _Work(task, protocol)
    if task in _OUTCOMES:
        tables = ["NOTEEVENTS", "ADMISSIONS"]
        documents = _outcome_documents(work, source)
    else:
        tables = ["NOTEEVENTS", "DIAGNOSES_ICD", "PROCEDURES_ICD"] + ["ADMISSIONS"] * (protocol == "standard")
        documents = (_triage_documents if protocol == "standard" else _paper_triage_documents)(work, source)
    if not documents:
        reasons = ", ".join(f"{number} {reason}" for reason, number in work.flow.steps if number)
        raise UserError(
            f"none of {work.flow.entered} admissions is left ({reasons})",
            "Check that the tables belong together",
            source,
        )
    remarks = _assign_splits(work, documents, lists, splits or source)
    known = {document.label for document in documents if document.split == "train"}
    by_split = {split: [one for one in documents if one.split == split and one.label in known] for split in SPLITS}
    work.flow.exclude("class that training lacks", work.flow.left - sum(map(len, by_split.values())))
    return Built(
        kind="sequence-classification",
        labels=[label for label in _OUTCOMES.get(task) or triage.groups() if label in known],
        splits=by_split,
        metric="auroc" if protocol == "standard" and task in _OUTCOMES else "macro_f1",
        flow=work.flow,
        counts=work.counts,
        defects=mimic_paper.DEFECTS[task] if protocol == "paper" else (),
        remarks=remarks,
        problems=work.problems,
        files=[mimic3.find_table(source, table).name for table in tables],
    )


def _outcome_documents(work: _Work, source: Path) -> list[Document]:
    """Death in hospital and length of stay, from the sections that were known at admission."""
    admissions = mimic3.read_admissions(source)
    work.enter(admissions)
    work.keep({one.hadm for one in admissions.values() if one.type != "NEWBORN"}, "newborn")
    with mimic3.read_notes(source) as notes:
        _count_notes(work, notes)
        _check_patients(work, notes, admissions)
        work.keep(notes.admissions, "not in NOTEEVENTS")
        chosen = (_paper_notes if work.protocol == "paper" else _standard_notes)(work, notes)
        classes = _classes(work, admissions)

        def joined(hadm: int) -> str:
            return "\n\n".join(notes.text(summary) for summary in chosen[hadm]).strip()

        if work.protocol == "paper":
            all_empty = "chief complaint, present illness and medical history all empty"
            texts = work.texts(lambda hadm: mimic_paper.admission_view(joined(hadm)), all_empty)
            if work.task == "mimic-mp":
                views = texts
                texts = work.texts(lambda hadm: mimic_paper.mortality_text(views[hadm]), "a death is told of")
        else:
            none = "no chief complaint, present illness or medical history"
            texts = work.texts(lambda hadm: _standard_view(joined(hadm), work), none)
        places = {hadm: notes.place(chosen[hadm][0]) for hadm in texts}
    labels = _OUTCOMES[work.task]
    return [
        Document(str(hadm), text, str(admissions[hadm].subject), labels[classes[hadm]], place=places[hadm])
        for hadm, text in texts.items()
    ]


def _standard_view(note: str, work: _Work) -> str | None:
    text = mimic_standard.admission_text(mimic_standard.sections(note))
    if text is None:
        return None
    text, marks = mimic_standard.normalise_marks(text)
    text, leaks = mimic_standard.remove_leaks(text, work.task)
    work.count("mark_replaced", marks)
    work.count("leak_removed", leaks)
    return text


def _classes(work: _Work, admissions: Mapping[int, Admission]) -> dict[int, int]:
    """The class of everybody who is left; leaves out those who have none."""
    left = [admissions[hadm] for hadm in work.left]
    work.keep({one.hadm for one in left if one.died is not None}, "HOSPITAL_EXPIRE_FLAG is empty")
    if work.task == "mimic-mp":
        return {hadm: int(bool(admissions[hadm].died)) for hadm in work.left}
    work.keep({one.hadm for one in left if not one.died}, "died in hospital")
    work.keep({one.hadm for one in left if one.admitted and one.discharged}, "ADMITTIME or DISCHTIME is empty")
    times = {hadm: (admissions[hadm].admitted, admissions[hadm].discharged) for hadm in work.left}
    stays = {hadm: (start, end) for hadm, (start, end) in times.items() if start is not None and end is not None}
    backwards = {hadm for hadm, (start, end) in stays.items() if end < start}
    taken = "its class is that of the shortest stays" if work.protocol == "paper" else "it is left out"
    for hadm in sorted(backwards):
        work.problems.append((admissions[hadm].place, f"DISCHTIME of HADM_ID {hadm} is before ADMITTIME: {taken}"))
    if work.protocol == "standard":
        work.keep(stays.keys() - backwards, "DISCHTIME is before ADMITTIME")
    los_class = mimic_paper.los_class if work.protocol == "paper" else mimic_standard.los_class
    return {hadm: los_class(*stays[hadm]) for hadm in work.left}


def _count_notes(work: _Work, notes: Notes) -> None:
    work.counts["notes"] = notes.rows
    work.counts["discharge_summaries"] = notes.categories[mimic3.DISCHARGE]
    work.counts["discharge_summaries_without_admission"] = notes.without_admission


def _check_patients(work: _Work, notes: Notes, admissions: Mapping[int, Admission]) -> None:
    """Reports discharge summaries whose patient is not that of their admission."""
    for summary in notes.summaries:
        admission = admissions.get(summary.hadm)
        if admission is None:
            work.counts["discharge_summaries_of_unknown_admissions"] += 1
        elif admission.subject != summary.subject:
            what = f"SUBJECT_ID is not that of HADM_ID {summary.hadm} in ADMISSIONS, which counts"
            work.problems.append((notes.place(summary), what))


def _by_admission(summaries: Iterable[Summary]) -> dict[int, list[Summary]]:
    grouped = defaultdict(list)
    for summary in summaries:
        grouped[summary.hadm].append(summary)
    return grouped


def _paper_notes(work: _Work, notes: Notes) -> dict[int, list[Summary]]:
    """The notes of each admission by date; of equal texts only the last by date, whatever its admission."""
    left = set(work.left)
    texts = [summary for summary in notes.summaries if summary.length and summary.hadm in left]
    work.keep(_by_admission(texts), "no discharge summary")
    texts.sort(key=lambda summary: (summary.date is None, summary.date, summary.row))
    last = {summary.digest: summary for summary in texts}
    chosen = _by_admission(summary for summary in texts if last[summary.digest] is summary)
    work.counts["repeated_texts_left_out"] = len(texts) - len(last)
    work.keep(chosen, "its text is that of a later admission")
    reported = {hadm for hadm, group in chosen.items() if any(one.description == "Report" for one in group)}
    work.keep(reported, "no summary is a Report")
    return chosen


def _standard_notes(work: _Work, notes: Notes) -> dict[int, list[Summary]]:
    """The notes of each admission in the order of time, reports before addenda of the same date."""
    summaries = notes.summaries
    work.keep(_by_admission(summaries), "no discharge summary")
    summaries = [summary for summary in summaries if not summary.flagged]
    work.keep(_by_admission(summaries), "every discharge summary is flagged as an error")
    summaries = [summary for summary in summaries if summary.length]
    work.keep(_by_admission(summaries), "every discharge summary is empty")
    admissions_of = defaultdict(set)
    for summary in summaries:
        admissions_of[summary.digest].add(summary.hadm)
    own = [summary for summary in summaries if len(admissions_of[summary.digest]) == 1]
    work.keep(_by_admission(own), "every discharge summary is filed under other admissions, too")
    own.sort(key=_time_of)
    first: dict[bytes, Summary] = {}
    for summary in own:  # what is filed twice under one admission is read once
        first.setdefault(summary.digest, summary)
    work.counts["texts_filed_under_several_admissions"] = len(summaries) - len(own)
    work.counts["repeated_texts_left_out"] = len(own) - len(first)
    return _by_admission(first.values())


def _time_of(summary: Summary) -> tuple[object, ...]:
    addendum = summary.description.casefold() != "report"
    return (summary.date is None, summary.date, addendum, summary.time or datetime.max, summary.row)


def _first_groups(work: _Work, source: Path) -> tuple[dict[int, str], dict[int, str | None]]:
    """The first procedure of admissions, and the group of their first diagnosis."""
    procedures = mimic3.read_first_codes(source, "PROCEDURES_ICD", work.problems)
    diagnoses = mimic3.read_first_codes(source, "DIAGNOSES_ICD", work.problems)
    found = set(diagnoses.values())
    for code in triage.codes():
        if code not in found and code.lstrip("0") in found:
            raise UserError(
                f"ICD9_CODE lost its leading zeros: there is {code.lstrip('0')} and no {code}",
                "Give the table as downloaded: its codes are text",
                mimic3.find_table(source, "DIAGNOSES_ICD"),
            )
    return procedures, {hadm: triage.group_of(code, work.protocol) for hadm, code in diagnoses.items()}


def _keep_grouped(work: _Work, procedures: Collection[int], groups: Mapping[int, str | None]) -> None:
    work.keep(groups, "no first diagnosis")
    work.keep(procedures, "no first procedure")
    work.keep({hadm for hadm, group in groups.items() if group}, "first diagnosis is not among the codes of the task")


def _triage_documents(work: _Work, source: Path) -> list[Document]:
    admissions = mimic3.read_admissions(source)
    procedures, groups = _first_groups(work, source)
    work.enter(admissions)
    with mimic3.read_notes(source) as notes:
        _count_notes(work, notes)
        _check_patients(work, notes, admissions)
        work.keep(notes.admissions, "not in NOTEEVENTS")
        _keep_grouped(work, procedures, groups)
        chosen = _standard_notes(work, notes)

        def text_of(hadm: int) -> str:
            joined = "\n\n".join(notes.text(summary) for summary in chosen[hadm])
            text, changes = mimic_standard.triage_text(joined)
            marks = Counter({key: number for key, number in changes.items() if key in mimic_marks.WORDS})
            work.count("mark_replaced", marks)
            work.count("removed", changes - marks)
            return text

        texts = work.texts(text_of, "nothing is left of the text")
        places = {hadm: notes.place(chosen[hadm][0]) for hadm in texts}
    return [
        Document(str(hadm), text, str(admissions[hadm].subject), groups[hadm], place=places[hadm])
        for hadm, text in texts.items()
    ]


def _paper_triage_documents(work: _Work, source: Path) -> list[Document]:
    """The published code takes notes in the order of the table, each cleaned text once, and does not read ADMISSIONS."""
    procedures, groups = _first_groups(work, source)
    wanted = {hadm for hadm, group in groups.items() if group and hadm in procedures}
    seen: set[bytes] = set()
    pieces: dict[int, list[str]] = defaultdict(list)
    cleaned: set[int] = set()
    with mimic3.read_notes(source) as notes, progress("Making documents", len(notes.summaries)) as advance:
        _count_notes(work, notes)
        work.enter(notes.admissions)
        work.keep(_by_admission(notes.summaries), "no discharge summary")
        for summary in notes.summaries:
            text = mimic_paper.triage_text(notes.text(summary))
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            if text:
                cleaned.add(summary.hadm)
                if digest in seen:
                    work.counts["repeated_texts_left_out"] += 1
                else:
                    # All texts are compared, few are needed.
                    pieces[summary.hadm].append(text if summary.hadm in wanted else "")
            seen.add(digest)
            advance()
        first = {summary.hadm: summary for summary in reversed(notes.summaries)}
        places = {hadm: notes.place(first[hadm]) for hadm in pieces}
    work.keep(cleaned, "nothing is left of the text")
    work.keep(pieces, "its text is that of an earlier admission")
    _keep_grouped(work, procedures, groups)
    return [
        Document(str(hadm), " ".join(pieces[hadm]), str(first[hadm].subject), groups[hadm], place=places[hadm])
        for hadm in work.left
    ]


def _assign_splits(work: _Work, documents: list[Document], lists: Mapping[int, str] | None, place: Path) -> list[str]:
    """Sets the split of each document; with lists, `paper` leaves None for patients who are in none of them.

    Returns:
        Remarks on the task as a whole.
    """
    paper, triaged = work.protocol == "paper", work.task == "mimic-triage"
    if lists is not None:
        for document in documents:
            document.split = lists.get(int(document.group))
        unlisted = [document.group for document in documents if document.split is None]
        if unlisted and not paper:
            raise UserError(
                f"{len(unlisted)} of {len(documents)} admissions are of patients in no list, the first of "
                f"SUBJECT_ID {unlisted[0]}",
                "Add the patients to one of the lists",
                place,
            )
        work.flow.exclude("patient is in none of the lists", len(unlisted))
        remarks = ["Patients are split by the given lists of SUBJECT_ID."]
    elif paper and triaged:
        for document, split in zip(documents, random_split(len(documents), place), strict=True):
            document.split = split
        remarks = [_RANDOM]
    else:
        for document in documents:
            document.split = hashed_split(int(document.group))
        remarks = [HASHED, _NO_LISTS] if paper else [HASHED]
    if paper:
        return remarks if triaged else [*remarks, _TIES]
    return [*remarks, _NOTES, _TRIAGE if triaged else _CLEANED]
