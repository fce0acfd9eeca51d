"""The server's API without its models: answers worked out from the text by words and patterns, faults on demand."""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from posology.ship.serve.page import POLICY, files

PATTERNS = {
    "deid": {
        "DATE": r"\d{4}-\d\d-\d\d|\b\d{1,2}/\d{1,2}\b",
        "NAME": r"(?:Corell )?Garenby|Harfield|O'Ashuini|Christina Whitquist|Zoë",
        "HOSPITAL": r"(?i:whiteport community hospital)",
        "PHONE": r"\(\d{3}\) \d{3}-\d{4}",
        "AGE": r"\b59\b",
    },
    "findings": {
        "problem": r"type 2 diabetes|high blood pressure|fever|pneumonia|chronic kidney disease|stroke|chest pain",
        "treatment": r"lisinopril|(?:IV )?vancomycin|ceftriaxone|Epogen",
        "test": r"Chest film|BP 147/80",
    },
    "organs": {"organ": r"kidney|lung|chest|leg", "site": r"chronic kidney|left leg"},
}
WORDS = {"urgent": "fever|emergency|pneumonia|pain", "Pulmonology": "pneumonia|chest|sputum|cough|lobe",
         "Nephrology": "kidney|renal", "Cardiology": "pressure|rrr|bp", "Neurology": "stroke"}  # fmt: skip
SURROGATES = {"NAME": "Ada Lovell", "DATE": "1999-01-01", "HOSPITAL": "General Hospital", "PHONE": "(555) 010-0000",
              "AGE": "61"}  # fmt: skip


def _model(name: str, kind: str, labels: list[str], **other: Any) -> dict[str, Any]:
    given = {"name": name, "kind": kind, "task": name, "labels": labels, "method": "lora", "metric": "macro_f1",
             "value": 0.84, "low": 0.8, "high": 0.87, "text_pair": False, "threshold": None, "temperature": 1.0}  # fmt: skip
    return given | other


MODELS = [
    _model("triage", "sequence-classification", ["routine", "urgent"], task="mimic-triage", metric="auroc",
           threshold={"positive": "urgent", "probability": 0.3}, temperature=1.42),
    _model("specialty", "sequence-classification", ["Cardiology", "Nephrology", "Neurology", "Pulmonology", "Surgery",
           "Urology", "Orthopedic", "Radiology"], value=0.712, low=0.668, high=0.754, method="ia3", temperature=0.91),
    _model("same-topic", "sequence-classification", ["no", "yes"], text_pair=True, method="head", value=None, low=None,
           high=None),
    _model("findings", "token-classification", list(PATTERNS["findings"]), task="i2b2-2010-ner", metric="entity_f1",
           value=0.861, low=0.846, high=0.875),
    _model("organs", "token-classification", list(PATTERNS["organs"]), metric="entity_f1", value=0.655, low=0.6, high=0.7),
    _model("deid", "token-classification", list(PATTERNS["deid"]), task="i2b2-2014-ner", metric="entity_f1", value=0.943,
           low=0.935, high=0.951, method="rslora"),
]  # fmt: skip


def classify(model: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """Probabilities from how often the text holds the words of each label."""
    words = document["text"].lower() + " " + (document.get("text_pair") or "").lower()
    weights = {label: 1.0 + len(re.findall(WORDS.get(label, "(?!)"), words)) ** 2 for label in model["labels"]}
    if document.get("text_pair"):
        weights["yes"] += 3 * len(set(document["text"].split()) & set(document["text_pair"].split()))
    total = sum(weights.values())
    likely = {label: weight / total for label, weight in weights.items()}
    label = max(likely, key=lambda one: likely[one])
    if model["threshold"]:
        positive = model["threshold"]["positive"]
        label = positive if likely[positive] >= model["threshold"]["probability"] else "routine"
    return {"model": model["name"], "label": label, "score": likely[label], "probabilities": likely, "coverage": 1.0}


def spans_of(model: str, text: str) -> list[dict[str, Any]]:
    found = [
        {
            "start": match.start(),
            "end": match.end(),
            "label": label,
            "score": round(0.99 - 0.01 * (match.start() % 40), 2),
        }
        for label, pattern in PATTERNS[model].items()
        for match in re.finditer(pattern, text)
    ]
    return sorted(found, key=lambda span: span["start"])


def redact(document: dict[str, Any], model: str, style: str) -> dict[str, Any]:
    text, spans, counts = document["text"], spans_of(model, document["text"]), {}
    for span in reversed(spans):
        start, end, label = span["start"], span["end"], span["label"]
        counts[label] = counts.get(label, 0) + 1
        put = {"tags": f"[{label}]", "asterisks": "*" * (end - start), "surrogates": SURROGATES.get(label, "other")}[
            style
        ]
        text = text[:start] + put + text[end:]
    return {"id": document["id"], "text": text, "spans": spans, "counts": counts}


@dataclass
class Fault:
    """What the next request to a path gets instead of its answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: Any = None


class StandIn:
    """A server on a free port of this machine for as long as the `with` lasts."""

    def __init__(self, token: str = "") -> None:
        self.token = token
        self.models = [dict(model) for model in MODELS]
        self.faults: dict[str, Fault] = {}
        self.held = threading.Event()
        self.held.set()
        self.asked: list[tuple[str, Any]] = []
        self.connections: list[socket.socket] = []

    def __enter__(self) -> StandIn:
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                owner.connections.append(self.connection)

            def log_message(self, format: str, *args: Any) -> None:
                """Nothing is logged."""

            def send(self, status: int, content_type: str, body: bytes, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": content_type, "Content-Length": str(len(body)),
                                    "Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", **headers}.items():  # fmt: skip
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def answer(self, body: Any) -> None:
                owner.asked.append((self.path, body))
                fault = owner.faults.pop(self.path, None)
                if fault is None and owner.token and self.headers["Authorization"] != f"Bearer {owner.token}":
                    fault = Fault(401, {}, {"detail": "a token is wanted"})
                if fault is not None:
                    self.send(fault.status, "application/json", json.dumps(fault.body).encode(), fault.headers)
                    return
                owner.held.wait(10)
                self.send(200, "application/json", json.dumps(owner.answer(self.path, body)).encode(), {})

            def do_GET(self) -> None:
                if (file := files().get(self.path)) is not None:
                    self.send(200, file.content_type, file.content, {"ETag": file.etag})
                else:
                    self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.address = f"http://127.0.0.1:{self._server.server_port}/"
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Takes no more connections, and ends those that a browser keeps for its next request; may be called twice."""
        self.held.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with suppress(OSError):  # the other side was first
                connection.shutdown(socket.SHUT_RDWR)

    def answer(self, path: str, body: Any) -> Any:
        if path == "/v1/models":
            backbone = {"name": "minilm", "parameters": 22_713_216, "sha256": "0" * 64}
            return {"backbone": backbone, "models": self.models}
        known = {model["name"]: model for model in self.models}
        if path == "/v1/redact":
            return {"documents": [redact(one, body["model"], body["style"]) for one in body["documents"]]}
        documents = []
        for document in body["documents"]:
            if path == "/v1/classify":
                results = [classify(known[name], document) for name in body["models"]]
            else:
                results = [
                    {"model": name, "spans": spans_of(name, document["text"]), "coverage": 1.0}
                    for name in body["models"]
                ]
            documents.append({"id": document["id"], "results": results})
        return {"documents": documents}
