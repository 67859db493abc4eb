"""The live channel: what happens, told to the browsers of its owner over a WebSocket (Flask-SocketIO).

What is told is read from the database, by the process that holds the socket: nobody else can put a word into it, and
nothing is lost with a message between processes. These only say that there is something to read; without a word, a look
once a second finds it. A client that was away asks with the last event id it knows: `resume`, or `GET /api/events`.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa
import structlog
from flask import Flask, current_app, request
from flask_socketio import ConnectionRefusedError, SocketIO
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import ORMExecuteState, Session

from auth import read_token
from delivery.live_door import MOST_BYTES, PATH, Door, StartResponse, is_knock
from delivery.live_rooms import Rooms
from delivery.live_wake import Hearer, Teller
from errors import Problem, problem_response
from farm.events import Cursor, read_page
from models import PrintEvent, db
from newsroom import LiveLimits, Newsroom, Seat, plain
from settings import Settings

log = structlog.get_logger()

LOOK_SECONDS = 1.0
SOON_SECONDS = 0.05
READY_SECONDS = 10.0
PAGE = 200
PING_SECONDS, PONG_SECONDS = 25, 20
CURSOR = re.compile(r"[0-9]{1,10}-?", re.ASCII)
Answer = dict[str, Any]

BUSY: Answer = {"error": "The database does not answer right now. Try again.", "code": "database_busy"}
NOT_IN: Answer = {"error": "Log in: send {token}.", "code": "unauthorized"}
TOO_MANY: Answer = {"error": "Too many live connections of this account.", "code": "too_many_requests"}


class Live:
    """One for each app, in front of it. Its thread runs while somebody is connected."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self.limits = LiveLimits(clients=settings.live_clients)
        self._teller = Teller(settings.redis_url) if settings.redis_url else None
        self._lock = threading.Lock()
        self._doors: set[Door] = set()
        self._seats: dict[str, Seat] = {}
        self._thread: threading.Thread | None = None
        self._is_ready, self._has_news = threading.Event(), threading.Event()
        self._is_stopping = False
        # A logger of ours: theirs brings a handler of its own, which writes past the log. Below a warning they would
        # write down what was received, tokens among it.
        logger = logging.getLogger("farm.live")
        logger.setLevel(logging.WARNING)
        self._socketio = SocketIO(
            app,
            async_mode="threading",
            client_manager=Rooms(),
            transports=["websocket"],
            # Each client is answered in its own thread, one message after the other.
            async_handlers=False,
            manage_session=False,
            cors_allowed_origins=[],
            max_http_buffer_size=MOST_BYTES,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            logger=logger,
            engineio_logger=logger,
        )
        engine: Any = self._socketio.server.eio
        engine._async = {
            **engine._async,
            "websocket": partial(Door, on_open=self._opened, on_close=self._closed),
        }
        middleware: Any = app.wsgi_app
        self._to_socketio, self._to_flask = middleware, middleware.wsgi_app
        app.wsgi_app = self._serve  # type: ignore[method-assign]
        self._socketio.on_event("connect", self._connect)
        self._socketio.on_event("disconnect", self._disconnect)
        self._socketio.on_event("resume", partial(self._answer, self._resume))
        self._socketio.on_event("token", partial(self._answer, self._renew))

    def _serve(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Only what opens a WebSocket goes to Socket.IO, and only while there is room."""
        if environ["PATH_INFO"] != PATH or not is_knock(environ):
            answer: Iterable[bytes] = self._to_flask(environ, start_response)
            return answer
        if not self._is_page_of_ours(environ):
            sentence = "This page may not connect. CORS_ORIGINS names those that may."
            refusal = problem_response(400, "bad_origin", sentence)
        elif self._is_stopping or len(self._doors) >= self.limits.clients:
            sentence = "There is no room for another live connection right now."
            refusal = problem_response(503, "live_full", sentence, headers={"Retry-After": "5"})
        else:
            served: Iterable[bytes] = self._to_socketio(environ, start_response)
            return served
        return refusal(environ, start_response)

    def _is_page_of_ours(self, environ: dict[str, Any]) -> bool:
        """The same pages as may call the API. A program that is no browser sends no origin."""
        origin = environ.get("HTTP_ORIGIN")
        public = urlsplit(self._settings.public_url)
        own = (f"{environ['wsgi.url_scheme']}://{environ.get('HTTP_HOST')}", f"{public.scheme}://{public.netloc}")
        return origin is None or origin in own or bool({origin, "*"} & {*self._settings.cors_origins})

    def wake(self) -> None:
        """There may be new events. In any thread, after a commit; waits for nobody."""
        self._has_news.set()
        if self._teller is not None:
            self._teller.tell()

    def stop(self) -> None:
        """Nobody comes in any more, and whoever is in is sent away, to come back later. Takes two seconds at most."""
        self._is_stopping = True
        for seat in self.seats():
            self.end(seat, "restarting")
        until = time.monotonic() + self.limits.leave_seconds
        while self._doors and time.monotonic() < until:
            time.sleep(0.02)
        for door in self.doors():
            door.cut()

    def seats(self) -> list[Seat]:
        with self._lock:
            return list(self._seats.values())

    def doors(self) -> list[Door]:
        with self._lock:
            return list(self._doors)

    def is_seated(self, seat: Seat) -> bool:
        return bool(self._socketio.server.manager.is_connected(seat.sid, "/"))

    def tell(self, to: str, name: str, value: Any) -> None:
        self._socketio.emit(name, value, to=to)

    def end(self, seat: Seat, code: str) -> None:
        """The client's stay ends, with a word why."""
        self.tell(seat.sid, "ended", {"code": code})
        self._socketio.server.disconnect(seat.sid)
        seat.door.engine.close(wait=False)

    def _opened(self, door: Door) -> None:
        door.login_seconds = self.limits.login_seconds
        with self._lock:
            self._doors.add(door)
            if self._thread is None:
                self._is_ready.clear()
                self._thread = threading.Thread(target=self._run, name="live", daemon=True)
                self._thread.start()

    def _closed(self, door: Door) -> None:
        with self._lock:
            self._doors.discard(door)
            self._seats = {sid: seat for sid, seat in self._seats.items() if seat.door is not door}

    def _run(self) -> None:
        newsroom = Newsroom(self, self._app.extensions["clock"])
        url = self._settings.redis_url
        hearer = Hearer(url, self._has_news.set) if url else None
        while self._has_visitors():
            self._guarded(newsroom)
            if newsroom.is_ready:
                self._is_ready.set()
            self._has_news.wait(SOON_SECONDS if newsroom.has_arrivals else LOOK_SECONDS)
            self._has_news.clear()
        if hearer is not None:
            hearer.close()

    def _has_visitors(self) -> bool:
        with self._lock:
            if not self._doors:
                self._thread = None
            return bool(self._doors)

    def _guarded(self, newsroom: Newsroom) -> None:
        """A fault in one event or with the database must not silence the channel for all."""
        try:
            with self._app.app_context():
                newsroom.look()
        except Exception:
            log.exception("live_look_failed")

    def _connect(self, auth: Any = None) -> None:
        # What was committed before the newsroom looks is for `resume` to ask, what comes after is told.
        is_ready = self._is_ready.wait(READY_SECONDS)
        token = auth.get("token") if isinstance(auth, dict) else None
        if not isinstance(token, str):
            raise _refused(NOT_IN)
        try:
            bearer = read_token(token)
        except Problem as problem:
            raise _refused(_said(problem)) from None
        except SQLAlchemyError:
            raise _refused(BUSY) from None
        if not is_ready:
            raise _refused(BUSY)
        seat = Seat(sid=_sid(), door=request.environ["live.door"], bearer=bearer)
        with self._lock:
            if (
                sum(each.bearer.user_id == bearer.user_id for each in self._seats.values())
                >= self.limits.clients_a_user
            ):
                raise _refused(TOO_MANY)
            self._seats[seat.sid] = seat
        seat.door.seat, seat.door.end = seat, partial(self.end, seat)
        self._socketio.server.enter_room(seat.sid, seat.room)
        self._has_news.set()

    def _disconnect(self, reason: Any = None) -> None:
        with self._lock:
            seat = self._seats.pop(_sid(), None)
        if seat is not None:
            seat.door.seat = None

    def _answer(self, handler: Callable[[Seat, Answer], Answer], data: Answer) -> Answer:
        """What a client's question is acknowledged with; a fault is an answer, too."""
        seat = self._seats.get(_sid())
        if seat is None:
            return NOT_IN
        try:
            return handler(seat, data)
        except Problem as problem:
            return _said(problem)
        except SQLAlchemyError as error:
            log.error("live_unanswered", kind=type(error).__name__)
            return BUSY

    def _resume(self, seat: Seat, data: Answer) -> Answer:
        """What happened after an event, page by page."""
        after = data.get("after")
        text = str(after) if isinstance(after, int | str) else ""
        if not CURSOR.fullmatch(text):
            return {"error": "after is an event's id, or the next of a page.", "code": "invalid"}
        events, following = read_page(seat.bearer.user_id, Cursor.read(text), PAGE)
        return {"events": plain(events), "next": str(following) if following else None}

    def _renew(self, seat: Seat, data: Answer) -> Answer:
        """A new access token in place of the one that is about to expire."""
        token = data.get("token")
        bearer = read_token(token) if isinstance(token, str) else None
        if bearer is None or bearer.user_id != seat.bearer.user_id:
            return {"error": "This token is not valid here.", "code": "bad_token"}
        seat.bearer = bearer
        return {"expires_at": plain(bearer.expires_at)}


def _said(problem: Problem) -> Answer:
    return {"error": problem.sentence, "code": problem.code}


def _refused(why: Answer) -> ConnectionRefusedError:
    """In a browser the sentence is the error's `message`, and the rest its `data`."""
    return ConnectionRefusedError(why["error"], why)


def _sid() -> str:
    sid: str = request.sid  # type: ignore[attr-defined]
    return sid


def go_live(app: Flask, settings: Settings) -> Live:
    """Once for each app, in `create_app`."""
    live = app.extensions["live"] = Live(app, settings)
    for name, handler in HANDLERS.items():
        if not sa.event.contains(db.session, name, handler):
            sa.event.listen(db.session, name, handler)
    return live


def _after_flush(session: Session, context: Any) -> None:
    if any(isinstance(each, PrintEvent) for each in session.new):
        session.info["has_events"] = True


def _on_statement(statement: ORMExecuteState) -> None:
    """Many events in one INSERT pass the unit of work by."""
    table = getattr(getattr(statement.statement, "table", None), "name", None)
    if statement.is_insert and table == PrintEvent.__tablename__:
        statement.session.info["has_events"] = True


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        # Of a savepoint alone: nothing is written down yet.
        return
    live: Live | None = current_app.extensions.get("live")
    if session.info.pop("has_events", False) and live is not None:
        live.wake()


def _after_rollback(session: Session) -> None:
    session.info.pop("has_events", None)


HANDLERS: dict[str, Callable[..., None]] = {
    "after_flush": _after_flush,
    "do_orm_execute": _on_statement,
    "after_commit": _after_commit,
    "after_rollback": _after_rollback,
}
