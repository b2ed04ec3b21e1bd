"""The play server's door: who may come in, and what a page that is sent away is told.

Knows requests, no games. Used by play_server.py and blind_server.py; play.py decides whether there is a token.
"""

import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Why a connection was closed; 4000 to 4999 are an application's own.
REFUSED, TOO_MUCH, FULL, REPLACED, IDLE = 1008, 1008, 4001, 4002, 4003
NO_TOKEN = "This game asks for a token. Open the whole address that play.py printed, with ?token= at its end.\n"


def _host_name(host: str) -> str | None:
    """The name in a Host header, without its port; None where it is none."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


@dataclass(frozen=True)
class Door:
    """Who may come in. token: demanded where there is one; without one only pages of this machine are let in."""

    token: str | None

    def refusal(self, connection: HTTPConnection) -> str | None:
        """Why a request is turned away, None when it is not.

        Without a token the Host must be this machine's: another site's name that leads here (DNS rebinding) is not."""
        host = connection.headers.get("host", "")
        if self.token is None and _host_name(host) not in LOOPBACK:
            return "This server answers this machine only; start play.py with --host to let others in.\n"
        origin = connection.headers.get("origin", "")
        if isinstance(connection, WebSocket) and origin not in (f"http://{host}", f"https://{host}"):
            return "Pages of another origin are not let in.\n"
        given = connection.query_params.get("token", "")
        if self.token is not None and not secrets.compare_digest(given.encode(), self.token.encode()):
            return NO_TOKEN
        return None
