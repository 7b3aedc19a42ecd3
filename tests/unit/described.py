"""Answers of a service, each of which its openapi.yaml must describe."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from openapi_schema_validator import OAS30Validator


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def check(specification: dict[str, Any], method: str, path: str, answer: Answer) -> None:
    """Fail unless the ``specification`` describes this answer to this request."""
    operation = next(
        (
            item[method.lower()]
            for template, item in specification["paths"].items()
            if re.fullmatch(re.sub(r"{\w+}", "[^/]+", template), path.partition("?")[0]) and method.lower() in item
        ),
        None,
    )
    components = specification["components"]
    responses = operation["responses"] if operation else {}
    problem = responses.get("default") or {"$ref": "#/components/responses/Problem"}
    response = responses.get(str(answer.status)) or problem
    if reference := response.get("$ref"):
        response = components["responses"][reference.rpartition("/")[2]]
    if answer.status < 400:
        assert str(answer.status) in responses, f"{method} {path}: {answer.status} is not described"
    if method == "HEAD" or "content" not in response:
        assert not answer.body
        return
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert kind in response["content"], f"{method} {path}: {kind}"
    schema = response["content"][kind]["schema"]
    if kind.endswith("json"):
        OAS30Validator({**schema, "components": components}).validate(answer.json)
