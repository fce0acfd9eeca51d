"""What goes over the wire, as pydantic models, from which `/openapi.json` is made."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from posology.ship.serve.fleet import NAME

MOST_DOCUMENTS = 1024


def _is_text(value: str) -> str:
    """JSON can hold halves of characters, which no tokenizer and no answer can."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("has a surrogate that is not one of a pair") from None
    return value


Text = Annotated[str, Field(strict=True, min_length=1), AfterValidator(_is_text)]
Id = Annotated[str, Field(strict=True, max_length=256), AfterValidator(_is_text)]
Name = Annotated[str, Field(strict=True, pattern=f"^{NAME}$")]


def _example(value: dict[str, Any]) -> ConfigDict:
    return ConfigDict(extra="forbid", json_schema_extra={"examples": [value]})


class TextIn(BaseModel):
    """A text to be read."""

    model_config = ConfigDict(extra="forbid")

    id: Id = Field(description="comes back with the answer")
    text: Text
    text_pair: Text | None = Field(default=None, description="a second text, for models of pairs")


class Texts(BaseModel):
    """Texts, and the models that are to read them."""

    model_config = _example({"documents": [{"id": "1", "text": "No fever. Chest pain on exertion."}], "models": ["m1"]})

    documents: list[TextIn] = Field(min_length=1, max_length=MOST_DOCUMENTS)
    models: list[Name] | None = Field(
        default=None, min_length=1, max_length=256, description="all that fit the texts, where none are named"
    )


class ClassResult(BaseModel):
    """What a classifier says of a text."""

    model: str
    label: str
    score: float = Field(description="the calibrated probability of the label")
    probabilities: dict[str, float]
    coverage: float | None = Field(description="the share of the text that was read; null where nobody knows")


class Classified(BaseModel):
    """A text with its labels."""

    id: str
    results: list[ClassResult]


class ClassAnswer(BaseModel):
    """The answer of `/v1/classify`."""

    documents: list[Classified]


class SpanOut(BaseModel):
    """An entity: `text[start:end]`, counted in Unicode code points of the text as it was sent."""

    start: int
    end: int
    label: str
    score: float


class SpanResult(BaseModel):
    """What a tagger finds in a text."""

    model: str
    spans: list[SpanOut]
    coverage: float | None = Field(description="the share of the text that was read; null where nobody knows")


class Tagged(BaseModel):
    """A text with its entities."""

    id: str
    results: list[SpanResult]


class SpanAnswer(BaseModel):
    """The answer of `/v1/entities`."""

    documents: list[Tagged]


class Note(BaseModel):
    """A text to be de-identified."""

    model_config = ConfigDict(extra="forbid")

    id: Id
    text: Text
    group: Id | None = Field(default=None, description="the patient, within whose texts surrogates agree")


class Notes(BaseModel):
    """Texts, and how they are to be de-identified."""

    model_config = _example(
        {
            "documents": [{"id": "1", "text": "Seen by Dr. Roe on 3/4/2015.", "group": "7"}],
            "model": "deid",
            "style": "tags",
        }
    )

    documents: list[Note] = Field(min_length=1, max_length=MOST_DOCUMENTS)
    model: Name = Field(description="a tagger of identifiers")
    style: Literal["tags", "asterisks", "surrogates"] = "tags"


class RedactedOut(BaseModel):
    """A text without its identifiers; `spans` are those of the text as it was sent."""

    id: str
    text: str
    spans: list[SpanOut]
    counts: dict[str, int]


class RedactAnswer(BaseModel):
    """The answer of `/v1/redact`."""

    documents: list[RedactedOut]


class Artifact(BaseModel):
    """What a model is loaded from."""

    model_config = _example({"artifact": "m1"})

    artifact: Name = Field(description="a folder below the one that the server was started with (--artifacts)")


class BackboneOut(BaseModel):
    """What adapters share."""

    name: str
    parameters: int
    sha256: str


class ThresholdOut(BaseModel):
    """At which probability of `positive` that is the answer."""

    positive: str
    probability: float


class ModelOut(BaseModel):
    """A model, and how well it did on its test split (95 % interval)."""

    name: str
    kind: Literal["sequence-classification", "token-classification"]
    task: str
    labels: list[str]
    method: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    text_pair: bool
    threshold: ThresholdOut | None
    temperature: float
    backbone: str | None


class Models(BaseModel):
    """The answer of `/v1/models`; `backbone` is the one that most models share."""

    backbone: BackboneOut | None
    models: list[ModelOut]


class State(BaseModel):
    """Whether the server is well."""

    status: Literal["ok", "ready"]


class Problem(BaseModel):
    """Why there is no answer. Nothing that was sent is in it."""

    detail: str
    problems: list[dict[str, str]] | None = None
