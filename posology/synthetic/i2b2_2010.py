"""The records of i2b2 2010: discharge summaries of two hospitals with concepts, assertions and relations."""

from __future__ import annotations

from posology.corpus.i2b2 import TokenLines
from posology.corpus.i2b2_2010 import RELATIONS, TYPES, Concept, Record, Relation
from posology.synthetic.sentences import tokenised
from posology.synthetic.written import Written

_FIRST = {"Tr": "treatment", "Te": "test", "PI": "problem"}
"""The type of a relation's first argument by how its label begins; the second is always a problem."""


def as_record(written: Written, id: str, hospital: str, split: str) -> Record:
    """The record for a note: one sentence a line, its problems, tests and treatments, and how they are related.

    Of concepts inside one another the outer one counts, and relations hold within a line, as in the real corpus.
    """
    note = tokenised(written, TYPES)
    record = Record(id, note.text, hospital, split)
    tokens = TokenLines(note.text)
    concepts: dict[int, Concept] = {}
    reached = 0
    for index, one in sorted(enumerate(note.mentions), key=lambda item: (item[1].start, -item[1].end)):
        if one.start >= reached:
            assertion = one.attributes.get("assertion", "present") if one.kind == "problem" else None
            concepts[index] = Concept.at(tokens, one.start, one.end, one.kind, assertion)
            reached = one.end
    record.concepts = list(concepts.values())
    related = set()
    for link in note.links:
        first, second = concepts.get(link.first), concepts.get(link.second)
        if link.label not in RELATIONS or first is None or second is None or first.line != second.line:
            continue
        pair = frozenset((link.first, link.second))
        if (first.type, second.type) == (_FIRST[link.label[:2]], "problem") and pair not in related:
            related.add(pair)
            record.relations.append(Relation(link.label, first, second))
    record.relations.sort(key=lambda relation: (relation.first.start, relation.second.start))
    return record
