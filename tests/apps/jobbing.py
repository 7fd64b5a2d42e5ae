"""What the tests of jobs serve: every path does something with a job, and gates say when it may end."""

from __future__ import annotations

import json
import os
from urllib.parse import parse_qs

import basic
from gevent import get_hub

import reuseport

drained: list[str] = []


@reuseport.on_drain
def note() -> None:
    basic.enter("drain-hook")


def finish(name: str) -> str:
    basic.pass_gate(name)
    basic.enter(f"{name}-ended")
    return "finished"


def finish_in_thread(name: str) -> str:
    """Computes and never yields: only a native thread can do that beside the loop."""
    basic.burn(name)
    basic.enter(f"{name}-ended")
    return "finished"


def work(name: str, code: str) -> str:
    """In a process of its own: it computes, and tells how far it is."""
    reuseport.progress(0.5, "half")
    basic.burn(name)
    basic.enter(f"{name}-{'draining' if reuseport.draining else 'serving'}")
    basic.enter(f"{name}-ended")
    return f"{code} in {os.getpid()}"


def fail(name: str, code: str) -> None:
    basic.pass_gate(name)
    raise LookupError(f"{code} has no {name}")


def obey(name: str, code: str) -> None:
    """Ends when it is told to, and cleans up."""
    try:
        basic.burn(name)
    except reuseport.JobTimeout:
        basic.enter(f"{name}-cleaned")
        raise


def refuse(name: str, code: str) -> None:
    """Goes on whatever it is told."""
    while not basic.is_open(name):
        try:
            basic.burn(name)
        except reuseport.JobCancelled:
            basic.enter(f"{name}-refused")


WORKS = {one.__name__: one for one in (work, fail, obey, refuse)}
kept: dict[str, object] = {}  # handles


def make(version: str):
    def application(environ, start_response):
        query = {key: values[-1] for key, values in parse_qs(environ["QUERY_STRING"]).items()}
        path, name = environ["PATH_INFO"], query.get("name", "")
        answer = {"version": version, "pid": os.getpid(), "draining": reuseport.draining}
        if path == "/spawn":
            where = query.get("where", "greenlet")
            work = finish if where == "greenlet" else finish_in_thread
            handle = reuseport.spawn(work, name, name="export", tenant="acme", where=where)
            handle.job.progress(0.5, "half")
        elif path == "/begin":
            deadline = float(query["deadline"]) if "deadline" in query else None
            where = query.get("where", "process")
            todo = WORKS[query.get("do", "work")]
            handle = reuseport.spawn(todo, name, version, name="export", tenant="acme", deadline=deadline, where=where)
            kept[name] = handle
            if "wait" in query:
                try:
                    answer["result"] = handle.result(20)
                except BaseException as error:  # noqa: BLE001
                    answer["result"] = f"{type(error).__name__}: {error}"
                    answer["notes"] = getattr(error, "__notes__", [])
                answer["process"] = handle.pid
        elif path == "/refuse":
            with reuseport.job("in the request", deadline=0.2):
                while not basic.is_open(name):
                    try:
                        basic.pass_gate(name)
                    except reuseport.JobTimeout:
                        basic.enter(f"{name}-refused")
        elif path == "/cancel-kept":
            answer["cancelled"] = kept[name].cancel()
        elif path == "/cancel":
            handle = reuseport.spawn(finish, name)
            if "begun" in query:
                while not list(basic.GATES.glob(f"{name}.*.entered")):
                    get_hub().loop.update_now()
                    basic.time.sleep(0.01)
            answer["cancelled"] = handle.cancel()
            try:
                handle.result(10)
            except reuseport.JobCancelled as error:
                answer["result"] = type(error).__name__
        elif path == "/result":
            answer["result"] = reuseport.spawn(finish_in_thread, name, where="thread").result()
        elif path == "/block":
            with reuseport.job("in the request", tenant="globex"):
                basic.pass_gate(name)
        body = json.dumps(answer).encode()
        start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    return application
