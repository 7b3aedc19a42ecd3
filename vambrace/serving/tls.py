"""TLS of the services: 1.3 and nothing older."""

from __future__ import annotations

import ssl
from pathlib import Path

from vambrace.errors import ConfigError


def server_context(certificate: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """The identity in these files, shown to everybody; or only to clients with a certificate of the authority in
    ``client_ca``, where it is given. Raises ``ConfigError``."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # No client resumes a session. A ticket that comes before the first answer wakes a client that waits for it, and can
    # leave it waiting (seen with websockets 17).
    context.num_tickets = 0
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        if client_ca:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
    except (OSError, ssl.SSLError) as error:
        names = "certificate, key, client_ca" if client_ca else "certificate and key"
        raise ConfigError(f"TLS cannot be set up: {error}", hint=f"see {names} in the settings") from error
    return context
