"""A thousand requests made from the server's own schema, good ones and bad ones: no error of the server, and it lives."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")
pytest.importorskip("httpx")
pytest.importorskip("schemathesis")

import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import status_code_conformance

from tests.ship.serve.conftest import Server, body

ROUTES = {
    "POST /v1/classify": 260,
    "POST /v1/entities": 260,
    "POST /v1/redact": 260,
    "PUT /v1/models/{name}": 120,
    "DELETE /v1/models/{name}": 100,
}
"""How many requests each gets: half of them as the schema has it, half of them otherwise."""
OTHERS = {"GET /v1/models", "GET /healthz", "GET /readyz", "GET /metrics"}


@pytest.mark.slow
def test_no_request_breaks_it(start: Callable[..., Server], artifacts: Path) -> None:
    server = start(artifacts / "lora-class", artifacts / "ia3-tags", "--artifacts", artifacts).ready()
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = {found.ok().label: found.ok() for found in schema.get_all_operations()}
    assert set(operations) == {*ROUTES, *OTHERS}
    answers: Counter[tuple[str, int]] = Counter()
    for label, count in ROUTES.items():
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            send = _sending(answers, label, known=mode == schemathesis.GenerationMode.POSITIVE)
            strategy = operations[label].as_strategy(generation_mode=mode)
            settings(
                max_examples=count // 2,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )(given(strategy)(send))()
    assert sum(answers.values()) >= 900, answers
    assert {status for _, status in answers} >= {200, 201, 204, 404, 422} and max(status for _, status in answers) < 500
    with server.client() as client:
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/classify", json=body("fever")).status_code in (200, 404)
    assert server.process.is_alive() and "failed" not in server.text()
    assert server.stop() == 0


def _sending(answers: Counter[tuple[str, int]], label: str, *, known: bool) -> Callable[[Any], None]:
    """What sends a request, and checks that its answer is no error of the server, and one that the schema knows.

    Every second one names what is there, where `known`: names that are made up are hardly ever a model's.
    """
    turns = itertools.count()

    def send(case: Any) -> None:
        if known and next(turns) % 2:
            if case.path_parameters:
                case.path_parameters["name"] = "extra"
            for key, value in {"artifact": "ia3-class", "models": None, "model": "ia3-tags"}.items():
                if isinstance(case.body, dict) and key in case.body:
                    case.body[key] = value
        answer = case.call(timeout=60)
        answers[label, answer.status_code] += 1
        case.validate_response(answer, checks=[not_a_server_error, status_code_conformance])

    return send
