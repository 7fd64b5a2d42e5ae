"""Falcon and Bottle: for each of them the same pages, made the way that framework makes them."""

from __future__ import annotations

import os


def falcon_app(version: str):
    import falcon

    class Greeting:
        def on_get(self, request, response):
            response.media = {"version": version, "who": request.get_param("who")}

        def on_post(self, request, response):
            response.media = {"got": request.get_media()}

    class Upload:
        def on_put(self, request, response):
            response.media = {"length": len(request.bounded_stream.read())}

    class Stream:
        def on_get(self, request, response):
            response.stream = iter([b"one", b"two", b"three"])

    class File:
        def on_get(self, request, response):
            response.stream, response.content_length = open(__file__, "rb"), os.path.getsize(__file__)  # noqa: SIM115

    app = falcon.App()
    for path, resource in (("/greet", Greeting()), ("/upload", Upload()), ("/stream", Stream()), ("/file", File())):
        app.add_route(path, resource)
    return app


def bottle_app(version: str):
    import bottle

    app = bottle.Bottle()

    @app.get("/greet")
    def greet():
        return {"version": version, "who": bottle.request.query.who}

    @app.post("/greet")
    def post():
        return {"got": bottle.request.json}

    @app.put("/upload")
    def upload():
        return {"length": len(bottle.request.body.read())}

    @app.get("/stream")
    def stream():
        yield from (b"one", b"two", b"three")

    @app.get("/file")
    def file():
        return bottle.static_file(os.path.basename(__file__), root=os.path.dirname(__file__))

    return app


def flask_app(version: str):
    import flask

    app = flask.Flask("frames")

    @app.get("/greet")
    def greet():
        return {"version": version, "who": flask.request.args.get("who")}

    @app.post("/greet")
    def post():
        return {"got": flask.request.get_json()}

    @app.put("/upload")
    def upload():
        return {"length": len(flask.request.get_data())}

    @app.get("/stream")
    def stream():
        return flask.Response(iter([b"one", b"two", b"three"]))

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    return app
