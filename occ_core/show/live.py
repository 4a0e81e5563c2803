"""The page of a running node: served to browsers on this machine, one frame at a time, the newest."""

from __future__ import annotations

import json
import logging
import threading
from http import HTTPStatus
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from occ_core.errors import CannotWrite, need
from occ_core.show.page import page_text
from occ_core.show.page_figures import Figures

MOST_VIEWERS = 8
LOOKS_S = 0.5  # how often a viewer without news is looked at: whether it is still there, whether all ends
NEXT = "next"
"""What a browser says when it has drawn a frame: until then it is sent no other, so that nothing queues up for it."""
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class LiveServer:
    """Serves `http://host:port` while its `with` block runs, to at most MOST_VIEWERS browsers at once.

    Args:
        title: of the page.
        host: 127.0.0.1: to this machine alone, and to no page of another site.
        port: 0: any that is free.

    Raises:
        MissingPackage: websockets is not installed. CannotWrite: the port is taken or not allowed.
    """

    def __init__(self, title: str, host: str, port: int) -> None:
        self._sockets = need("websockets.sync.server", "live")
        self._closed: Any = need("websockets.exceptions", "live").ConnectionClosed
        figures = Figures().packed()
        self._page = page_text({"title": title, "live": True, "scene": None, **figures})
        self._host, self._news, self._ends = host, threading.Condition(), False
        self._viewers = self._waiting = 0
        self._number, self._newest = 0, ""  # of frames that there were; of the last one that was made
        self._made = 0
        quiet = logging.getLogger("occ_core.show.live.websockets")
        quiet.setLevel(logging.CRITICAL)  # what a stranger sends is no news
        try:
            self._server = self._sockets.serve(
                self._follow, host, port, process_request=self._answer, compression=None, max_size=64, logger=quiet
            )
        except OSError as error:
            raise CannotWrite(f"cannot serve on {host}:{port}: {error.strerror or error}") from error
        self.port = int(self._server.socket.getsockname()[1])
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LiveServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._news:
            self._ends = True
            self._news.notify_all()
        self._server.shutdown()
        self._thread.join(timeout=5)

    @property
    def url(self) -> str:
        """For the browser."""
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{self.port}"

    @property
    def viewers(self) -> int:
        """Browsers that show the page."""
        return self._viewers

    def came(self) -> bool:
        """Count a frame; returns whether a browser is ready for it, so that it is worth making."""
        with self._news:
            self._number += 1
            return self._waiting > 0

    def publish(self, scene: dict[str, Any], frame: dict[str, Any], caption: str) -> None:
        """Give the frame that `came` last to all who are ready; others miss it.

        Args:
            scene: what all frames have in common, see `page_data.scene_of`. frame: see `page_data.pack_view`.
            caption: what stands beside it.
        """
        text = json.dumps({"scene": scene, "frame": frame, "caption": caption}, separators=(",", ":"), allow_nan=False)
        with self._news:
            self._newest, self._made = text, self._number
            self._news.notify_all()

    def _answer(self, connection: Any, request: Any) -> Any:
        """The page, or None: a browser that wants frames goes on to `_follow`."""
        path, host = urlsplit(request.path).path, request.headers.get("Host", "")
        if self._host in LOOPBACK and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return connection.respond(HTTPStatus.FORBIDDEN, "this page is for this machine alone\n")
        if path == "/frames":
            if request.headers.get("Origin", f"http://{host}") != f"http://{host}":
                return connection.respond(HTTPStatus.FORBIDDEN, "another site's page has no business here\n")
            if self._viewers >= MOST_VIEWERS:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, f"{MOST_VIEWERS} browsers look already\n")
            return None
        if path != "/":
            return connection.respond(HTTPStatus.NOT_FOUND, "there is one page, /\n")
        page = connection.respond(HTTPStatus.OK, self._page)
        del page.headers["Content-Type"]
        page.headers.update({"Content-Type": "text/html; charset=utf-8", "Cache-Control": "no-store"})
        page.headers["X-Frame-Options"] = "DENY"
        return page

    def _follow(self, browser: Any) -> None:
        """One browser, in a thread of its own, until it goes or all ends."""
        seen = 0
        with self._news:
            self._viewers += 1
        try:
            while (found := self._next(browser, seen)) is not None:
                seen, text = found
                browser.send(text)
                while not self._drawn(browser):
                    pass
        except (self._closed, UnicodeError):
            pass
        finally:
            with self._news:
                self._viewers -= 1

    def _next(self, browser: Any, seen: int) -> tuple[int, str] | None:
        """Number and text of a frame newer than `seen`, as soon as there is one; None: all ends."""
        with self._news:
            self._waiting += 1
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._ends or self._made > seen, LOOKS_S)
                    if self._ends:
                        return None
                    if self._made > seen:
                        return self._made, self._newest
                browser.ping()  # raises where it has gone
        finally:
            with self._news:
                self._waiting -= 1

    def _drawn(self, browser: Any) -> bool:
        """It has drawn what it was sent, or all ends."""
        try:
            return browser.recv(timeout=LOOKS_S) == NEXT or self._ends
        except TimeoutError:
            return self._ends
