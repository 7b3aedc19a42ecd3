"""nginx, under Apache's benchmark of HTTP servers (ab)."""

from __future__ import annotations

import re
from pathlib import Path

from examples.gallery.exhibit import Address, ContainerService
from examples.gallery.images import Image
from examples.gallery.load import run_client
from examples.gallery.web import request
from vambrace.errors import VambraceError

PAGE = Path(__file__).with_name("files") / "srv/index.html"
REQUESTS = 60
AT_ONCE = 4

IMAGE = Image(
    packages=("nginx",),
    says={
        "Env": ["PATH=/usr/sbin:/usr/bin"],
        "Cmd": ["nginx", "-c", "/etc/nginx/gallery.conf"],
        "StopSignal": "SIGQUIT",  # requests that are being answered are answered
    },
)


class Nginx(ContainerService):
    port = 80
    program = "ab"
    image = IMAGE

    def ask(self, address: Address) -> None:
        if request(address, "/") != PAGE.read_bytes():
            raise VambraceError("nginx serves another page")

    def do_round(self, address: Address) -> int:
        url = f"http://{address[0]}:{address[1]}/index.html"
        words = ["ab", "-q", "-s", "120", "-n", str(REQUESTS), "-c", str(AT_ONCE), url]
        return completed(run_client(words), len(PAGE.read_bytes()))


def completed(report: str, size: int) -> int:
    """How many requests ``ab`` reports, all answered with a page of ``size`` bytes. Raises ``VambraceError``."""
    figures = dict(re.findall(r"^([\w -]+):\s+(\d+)\b", report, re.MULTILINE))
    if "Non-2xx responses" in figures or figures.get("Failed requests") != "0":
        raise VambraceError(f"ab reports {figures.get('Failed requests', 'no figure of')} failed requests")
    if figures.get("Complete requests") != str(REQUESTS) or figures.get("Document Length") != str(size):
        raise VambraceError("ab reports other requests than it was to make")
    return REQUESTS


EXHIBIT = Nginx
