"""Figures of a real server: nothing is forgotten, whoever dies, and whoever asks for them holds up nobody."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading

import pytest
from harness import Server, UnixConnection, ask, wait_for
from prometheus_client.parser import text_string_to_metric_families

from reuseport.master.scrape import CLIENTS

ANYWHERE = "127.0.0.1:0"
COUNT = ("reuseport_request_duration_seconds_count", ("generation", "1"))


def metrics_of(server: Server) -> str:
    return server.status()["master"]["metrics"]


def scrape(server: Server) -> dict[tuple, float]:
    address = metrics_of(server)
    connection = UnixConnection(address[5:], 20) if address.startswith("unix:") else server.client(address)
    answer = ask(connection, "/metrics")
    connection.close()
    assert answer.status == 200
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


def requests(found: dict[tuple, float], name: str = "reuseport_server_requests_total") -> float:
    return sum(value for (sample, *_), value in found.items() if sample == name)


class Scraper:
    """Scrapes all the time, and sees that no total goes back."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.trouble: list[str] = []
        self.scrapes = 0

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ending.set()
        self._thread.join(20)

    def _run(self) -> None:
        last: dict[tuple, float] = {}
        while not self._ending.wait(0.02):
            try:
                found = scrape(self._server)
            except Exception as error:  # noqa: BLE001
                self.trouble.append(repr(error))
                return
            self.scrapes += 1
            for key, value in last.items():
                if key[0].endswith(("_total", "_bucket", "_count", "_sum")) and found.get(key, -1) < value:
                    self.trouble.append(f"{key}: {value} and then {found.get(key)}")
            last = found


def test_no_total_goes_back_over_releases_and_dead_workers(serve):
    server = serve("--metrics", ANYWHERE).start()
    with Scraper(server) as scraper:
        with server.load(one_shot=1, keep_alive=2) as load:
            load.more(50)
            server.write("two")
            assert server.release("--wait", "drained").exit == 0
            load.more(50)
        assert not load.failures
        for _ in range(2):
            victim = min(server.status().pids())
            os.kill(victim, signal.SIGKILL)
            server.wait(lambda status, gone=victim: gone not in status.pids() and status.is_settled(), "a substitute")
        more = [server.get() for _ in range(20)]
        # It is counted when its client may have the answer already.
        made = load.answers + len(more)
        found = wait_for(lambda: made == requests(found := scrape(server)) and found, f"{made} requests")
        wait_for(lambda: scraper.scrapes > 10, "more scrapes")
    assert scraper.trouble == []
    assert requests(found, "reuseport_requests_total") == made
    assert found[("reuseport_worker_restarts_total", ("reason", "crashed"))] == 2
    assert found[("reuseport_releases_total", ("outcome", "serving"))] == 2
    assert found[("reuseport_handovers_total", ("generation", "2"))] >= 2
    assert found[("reuseport_up",)] == 1


def test_the_totals_go_on_under_the_next_master(serve):
    server = serve("--metrics", ANYWHERE).start()
    for _ in range(15):
        server.get()
    wait_for(lambda: requests(scrape(server)) == 15, "15 requests")
    server.process.kill()
    server.process.wait()
    server.start()
    server.settle()
    server.get()
    found = wait_for(lambda: requests(found := scrape(server)) == 16 and found, "16 requests")
    assert requests(found, "reuseport_requests_total") == 16
    # What was served before is not taken for the traffic of a moment.
    assert server.status()["numbers"]["requests_per_second"] <= 1.1


def test_an_upgrade_in_place_forgets_nothing_and_opens_nothing_anew(serve, tmp_path):
    path, elsewhere = tmp_path / "metrics.sock", tmp_path / "statsd"
    elsewhere.mkdir()
    server = serve("--metrics", f"unix:{path}", "--statsd-host", f"unix:{elsewhere}/s").start()
    for _ in range(15):
        server.get()
    server.write("two")
    assert server.renew() == 2
    gone = lambda: requests(scrape(server), "reuseport_requests_total")  # noqa: E731
    wait_for(lambda: gone() == 15, "15 requests")
    elsewhere.rmdir()  # which would be a mistake at a start
    with Scraper(server) as scraper:
        for _ in range(2):
            assert server.question(do="upgrade")["ok"]
            assert gone() == 15, "a generation that has gone lately is still told of"
    assert scraper.trouble == [] and scraper.scrapes
    elsewhere.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as statsd:
        statsd.bind(str(elsewhere / "s"))
        statsd.settimeout(20)
        assert statsd.recv(65536).startswith(b"gunicorn.workers:2|g\n")
    server.cli("stop")
    assert server.await_exit() == 0 and not path.exists()


def test_a_slow_or_silent_scraper_holds_up_nobody(serve):
    server = serve("--metrics", ANYWHERE).start()
    host, port = metrics_of(server).split(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(CLIENTS)]
    slow = socket.create_connection((host, int(port)))
    slow.sendall(b"GET /metrics HTTP/1.1\r\nHo")
    try:
        assert server.status().serving == 1
        assert requests(scrape(server)) == 0
        # There were too many: the oldest had to go, before its time, and the others are still there.
        silent[0].settimeout(20)
        assert silent[0].recv(1) == b""
        silent[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            silent[-1].recv(1)
        slow.sendall(b"st: x\r\n\r\n")
        slow.settimeout(20)
        assert slow.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")
        # And whoever stays silent is let go in time.
        silent[-1].settimeout(60)
        assert silent[-1].recv(1) == b""
    finally:
        for one in (*silent, slow):
            one.close()


def test_a_request_that_is_too_long_is_refused(serve):
    server = serve("--metrics", ANYWHERE).start()
    host, port = metrics_of(server).split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.settimeout(20)
        sock.sendall(b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1500)
        assert sock.recv(100).startswith(b"HTTP/1.1 431 ")


def test_at_a_unix_socket(serve, tmp_path):
    path = tmp_path / "metrics.sock"
    server = serve("--metrics", f"unix:{path}").start()
    assert scrape(server)[("reuseport_up",)] == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    server.cli("stop")
    assert server.await_exit() == 0
    assert not path.exists()
    path.write_text("")
    other = serve("--metrics", f"unix:{path}").run()
    assert (other.exit, other.err) == (1, f"reuseport: --metrics: cannot listen on unix:{path}: file exists\n")


def test_an_address_in_use_is_an_error_that_names_the_option(serve):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        outcome = serve("--metrics", address).run()
    assert outcome.exit == 1
    assert outcome.err == f"reuseport: --metrics: cannot listen on {address}: address already in use\n"


def test_a_statsd_whose_name_means_nothing_is_an_error_that_names_the_option(serve):
    outcome = serve("--statsd-host", "no-such-host.invalid:8125").run()
    assert outcome.exit == 1
    assert outcome.err.startswith("reuseport: --statsd-host: no-such-host.invalid cannot be resolved: ")


def test_a_statsd_is_told_of_every_request_once(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        server = serve("--statsd-host", f"127.0.0.1:{statsd.getsockname()[1]}", "--statsd-prefix", "shop").start()
        for _ in range(12):
            server.get()
        told = 0
        while told < 12:
            for line in statsd.recv(65536).decode().split("\n"):
                name, _, value = line.partition(":")
                told += int(value.removesuffix("|c")) if name == "shop.gunicorn.requests" else 0
        assert told == 12
        assert statsd.recv(65536).decode().startswith("shop.gunicorn.workers:2|g\n")


def test_a_statsd_that_is_not_there_costs_nothing(serve):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    server = serve("--statsd-host", f"127.0.0.1:{port}").start()
    server.get()
    server.wait(lambda status: status["numbers"]["window"] > 2, "two rounds of datagrams")
    assert server.renew() == 2
    assert "defect" not in server.log.read_text()


@pytest.mark.parametrize("options", [(), ("--threads", "2")], ids=["greenlets", "threads"])
def test_status_has_rates_quantiles_and_queues(serve, options):
    server = serve(*options).start()
    gate = server.gate("slow")
    waits = server.get_later("/gate?name=slow")
    gate.await_entered()
    for _ in range(10):
        server.get()
    status = server.wait(lambda status: status["numbers"]["p99"], "a quantile")
    numbers = status["numbers"]
    assert numbers == status.current["numbers"] | {"window": numbers["window"]}
    assert numbers["in_flight"] == 1 and numbers["errors_per_second"] == 0
    assert 0 < numbers["p50"] <= numbers["p99"] < 20
    assert [(slot["address"], slot["index"], slot["queue"]) for slot in status["slots"]] == [
        (server.address, index, 0) for index in range(2)
    ]
    assert all(slot["limit"] > 0 for slot in status["slots"])
    gate.open()
    assert waits.result().status == 200


# Its framework logs the exception of a view, and no handler of the framework's logging prints it.
BREAKS = """
import logging, sys
logger = logging.getLogger("framework")
logger.addHandler(logging.NullHandler())
logger.propagate = False
whole = application
def broken(environ, start_response):
    try:
        {}["stock"]
    except KeyError:
        logger.exception("Internal Server Error")
    start_response("500 Internal Server Error", [("Content-Length", "0")])
    return [b""]
application = broken
"""


def test_a_warm_up_is_no_traffic(serve, tmp_path):
    """Neither one that succeeds nor one that fails a release; the asker of that release gets its traceback."""
    log = tmp_path / "log"
    server = serve(
        "--metrics", ANYWHERE, "--warmup", "/", "--warmup", "/?again", "--max-requests", "2", "--log-file", str(log),
        workers=1,
    ).start()  # fmt: skip
    server.get()
    found = wait_for(
        lambda: found if (found := scrape(server))[COUNT] else None, "the latency of the one request that a client made"
    )
    assert (found[COUNT], requests(found)) == (1, 1)
    warm_ups, failed = "reuseport_warmup_requests_total", "reuseport_warmup_errors_total"
    assert (found[warm_ups, ("generation", "1")], found[failed, ("generation", "1")]) == (2, 0)
    server.write("broken", BREAKS)
    outcome = server.release()
    assert outcome.exit == 1 and "--warmup /: answered with 500" in outcome.err
    assert 'app.py", line' in outcome.err and outcome.err.count("KeyError: 'stock'") == 1
    assert log.read_text().count("KeyError: 'stock'") == 1
    found = scrape(server)
    assert (found[warm_ups, ("generation", "2")], found[failed, ("generation", "2")]) == (1, 1)
    assert (requests(found), requests(found, "reuseport_server_errors_total")) == (1, 0)
    (worker,) = server.status().workers()
    assert (worker["requests"]["total"], worker["errors"]) == (1, 0), "and --max-requests has not replaced it"
    assert worker["warmups"] == {"total": 2, "errors": 0}


def test_a_queue_that_nobody_takes_from_is_seen(serve, tmp_path):
    server = serve(workers=1, bind=(ANYWHERE, f"unix:{tmp_path}/s")).start()
    (pid,) = server.status().pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        host, port = server.address.split(":")
        clients = [socket.create_connection((host, int(port))) for _ in range(3)]
        slots = server.wait(lambda status: status["slots"][0]["queue"] == 3, "a queue of three")["slots"]
        assert (slots[1]["queue"], slots[1]["limit"]) == (None, None)
        for client in clients:
            client.close()
    finally:
        os.kill(pid, signal.SIGCONT)


def test_samples_are_kept_in_the_state_directory(serve, tmp_path):
    server = serve("--state-dir", str(tmp_path)).start()
    for _ in range(10):
        server.get()
    (sample, *_) = wait_for(
        lambda: server.question(do="history", samples=True)["samples"], "the first sample", within=40
    )
    assert (sample["requests"], sample["errors"], sample["generations"]) == (10, 0, {"1": 10})
    assert "samples" not in server.question(do="history")
    server.cli("stop")
    assert server.await_exit() == 0
    server.start()
    assert server.question(do="history", samples=True)["samples"][0] == sample
