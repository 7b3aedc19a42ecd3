"""In the emulated host: what a guest's agent hears from a monitor until it is ready. Only the standard library."""

from __future__ import annotations

import json

#: Seconds that anything of a guest or its VMM may take.
PATIENCE = 120.0
PACKET = 65 << 10
INSTANCE = bytes(range(16))


class Agent:
    """What a monitor answers an agent until it is ready (docs/architecture.md, section 6)."""

    def __init__(self) -> None:
        self.ready = False
        self._partial = b""

    def receive(self, data: bytes) -> list[bytes]:
        """The answers, as bytes to send, to what ``data`` completes."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        answers = []
        for line in lines:
            request = json.loads(line)
            answer = {"id": request["id"], "ok": True}
            if request["op"] == "identity":
                answer["instance"] = INSTANCE.hex()
            elif request["op"] == "report":
                if request["state"] != "ready":
                    raise RuntimeError(f"the agent reports {request['state']}: {request.get('detail')}")
                self.ready = True
            answers.append(json.dumps(answer).encode() + b"\n")
        return answers
