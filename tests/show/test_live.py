"""The server of the running node's page, as browsers and strangers meet it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import ExitStack

import pytest

from occ_core.errors import CannotWrite

pytest.importorskip("websockets", reason="needs websockets (pip install -e '.[live]')")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from occ_core.show.live import MOST_VIEWERS, NEXT, LiveServer


@pytest.fixture
def server():
    with LiveServer("a <robot>", "127.0.0.1", 0) as running:
        yield running


def ask(server, path="/", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.getheader("Content-Type"), answer.read().decode()


def browser(server, **about):
    return connect(f"ws://127.0.0.1:{server.port}/frames", **about)


def until(met, timeout_s=20.0):
    end = time.monotonic() + timeout_s
    while not met():
        assert time.monotonic() < end
        time.sleep(0.01)


def give(server, number):
    """Frame of a number, if a browser is ready for it."""
    if ready := server.came():
        server.publish({"grid": 0}, {"name": str(number)}, "caption")
    return ready


def test_the_page_may_connect_to_its_server_alone(server):
    status, kind, text = ask(server)
    assert status == 200 and kind == "text/html; charset=utf-8"
    assert "connect-src 'self'" in text and "default-src 'none'" in text and "a &lt;robot>" in text
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    assert data["live"] and data["scene"] is None
    assert ask(server, "/etc/passwd")[0] == 404


def test_other_sites_get_nothing(server):
    assert ask(server, Host="robot.example")[0] == 403  # a name that somebody made point to this machine
    assert ask(server, Host=f"localhost:{server.port}")[0] == 200
    with pytest.raises(InvalidStatus) as refused, browser(server, origin="http://site.example"):
        pass
    assert refused.value.response.status_code == 403
    with browser(server, origin=f"http://127.0.0.1:{server.port}"):
        until(lambda: server.viewers == 1)
    until(lambda: server.viewers == 0)


def test_a_slow_browser_misses_frames_and_none_waits_for_it(server):
    assert not give(server, 0)  # nobody looks
    with browser(server) as slow, browser(server) as quick:
        until(lambda: server._waiting == 2)
        assert give(server, 1)
        assert [json.loads(who.recv(timeout=10))["frame"]["name"] for who in (slow, quick)] == ["1", "1"]
        for number in range(2, 30):  # the slow one draws and draws
            quick.send(NEXT)
            until(lambda: server._waiting == 1)
            assert give(server, number)
            assert json.loads(quick.recv(timeout=10))["frame"]["name"] == str(number)
        assert not give(server, 30)  # nobody is ready, nothing has to be made
        with pytest.raises(TimeoutError):
            slow.recv(timeout=0.2)
        slow.send(NEXT)
        assert json.loads(slow.recv(timeout=10))["frame"]["name"] == "29"  # the newest that was made, and only that


def test_nonsense_and_floods_of_browsers_harm_nobody(server):
    with browser(server) as good:
        with browser(server) as bad:
            bad.send("x" * 1000)
            with pytest.raises(ConnectionClosed):
                until(lambda: server._waiting == 2)
                give(server, 1)
                while True:
                    bad.recv(timeout=10)
        with ExitStack() as others:
            for _ in range(MOST_VIEWERS - 1):
                others.enter_context(browser(server))
            until(lambda: server.viewers == MOST_VIEWERS)
            with pytest.raises(InvalidStatus) as refused, browser(server):
                pass
            assert refused.value.response.status_code == 503
        until(lambda: server.viewers == 1)
        give(server, 2)
        assert json.loads(good.recv(timeout=10))["caption"] == "caption"


def test_a_taken_port_is_named(server):
    with pytest.raises(CannotWrite, match=rf"cannot serve on 127\.0\.0\.1:{server.port}"):
        LiveServer("x", "127.0.0.1", server.port)


def test_it_ends_while_browsers_look():
    before = threading.active_count()
    with ExitStack() as stack:
        with LiveServer("x", "127.0.0.1", 0) as server:
            waits, draws = (stack.enter_context(browser(server)) for _ in range(2))
            until(lambda: server._waiting == 2)
            give(server, 1)
            waits.recv(timeout=10)
            waits.send(NEXT)
            draws.recv(timeout=10)  # and never says that it is done
            began = time.monotonic()
        assert time.monotonic() - began < 10
        for who in (waits, draws):
            with pytest.raises(ConnectionClosed):
                who.recv(timeout=10)
    until(lambda: threading.active_count() <= before)
