"""Scenarios that tests share."""

from __future__ import annotations

from typing import Any

import msgspec

from moesim.scenarios import Request, make_scenario
from moesim.specs.scenario import Scenario


def scenario(model: str = "mixtral-8x7b", hardware: str = "h200", **words: Any) -> Scenario:
    """A checked scenario; `deployment` and `workload` fields may be replaced by name."""
    known = set(Request.__struct_fields__)
    request = Request(model=model, hardware=hardware, **{k: v for k, v in words.items() if k in known})
    built = make_scenario(request)
    fields = {k: v for k, v in words.items() if k not in known}
    if not fields:
        return built
    return msgspec.structs.replace(built, deployment=msgspec.structs.replace(built.deployment, **fields))
