"""A small backbone on disk and small prepared tasks of both kinds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from posology.corpus.document import Document, Span
from posology.corpus.tags import words_of
from posology.tasks.prepared import PreparedTask, write_prepared
from tests.engine.tiny import KINDS, save_backbone


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbones") / "tiny")


@pytest.fixture(scope="session")
def classification(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    """Notes of fever or of pain, which a tiny model learns."""
    return _write(tmp_path_factory.mktemp("tasks") / "complaint", KINDS[0])


@pytest.fixture(scope="session")
def tagging(tmp_path_factory: pytest.TempPathFactory) -> PreparedTask:
    """Entities are "fever" and "pain"."""
    return _write(tmp_path_factory.mktemp("tasks") / "mentions", KINDS[1])


def _write(folder: Path, kind: str) -> PreparedTask:
    draw = random.Random(0)
    splits = {}
    for split, size in (("train", 64), ("validation", 24), ("test", 24)):
        documents = []
        for index in range(size):
            words = draw.choices(["no", "patient", "abc", "d1", "the"], k=draw.randint(3, 12))
            label = draw.choice(["fever", "pain"])
            words.insert(draw.randint(0, len(words)), label)
            text = f"{index} " + " ".join(words)
            document = Document(id=f"{split}-{index}", group=f"{split}-{index // 2}", text=text)
            if kind == KINDS[0]:
                document.label = label
            else:
                start = text.index(label)
                document.words, document.spans = words_of(text), [Span(start, start + len(label), "Finding")]
            documents.append(document)
        splits[split] = documents
    labels = ["fever", "pain"] if kind == KINDS[0] else ["Finding"]
    metric = "macro_f1" if kind == KINDS[0] else "entity_f1"
    return write_prepared(folder, name=folder.name, kind=kind, labels=labels, metric=metric, splits=splits)
