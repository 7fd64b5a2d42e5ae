"""WebSockets, in the ecosystem's own way: flask-sock, and Flask-SocketIO where it is asked for."""

from __future__ import annotations

import os

from flask import Flask, request
from flask_sock import Sock


def make(version: str) -> Flask:
    app = Flask(__name__)
    # A ping interval makes simple-websocket select on its socket.
    app.config["SOCK_SERVER_OPTIONS"] = {"ping_interval": 25}
    sock = Sock(app)

    @sock.route("/echo")
    def echo(ws):
        ws.send(version)
        while True:
            ws.send(ws.receive())

    @app.route("/")
    def index():
        names = ("REMOTE_ADDR", "wsgi.url_scheme", "HTTPS", "SSL_CLIENT_VERIFY", "SSL_CLIENT_S_DN")
        return {"version": version, "pid": os.getpid(), **{name: request.environ.get(name) for name in names}}

    @app.post("/upload")
    def upload():
        return str(len(request.get_data()))

    @app.route("/download")
    def download():
        return b"x" * 20_000_000

    return app


def make_without_pings(version: str) -> Flask:
    """simple-websocket reads its socket without a select before each read."""
    app = make(version)
    app.config["SOCK_SERVER_OPTIONS"] = {}
    return app


def make_socketio(version: str) -> Flask:
    from flask_socketio import SocketIO

    app = make(version)
    socketio = SocketIO(app, async_mode="gevent")

    @socketio.on("message")
    def message(data):
        socketio.send(f"{version}: {data}")

    return app
