"""Every fault of a reflection endpoint, once, from the middle of a prompt phase on, and always: what a run makes of it.

    python benchmarks/endpoint_faults.py
    python benchmarks/endpoint_faults.py --faults hangs refused --json endpoint_faults.json

A small run of the embedded world, two epochs with a prompt phase between, whose reflections are asked of a server on
this machine. It has to take all of its steps, with a whole prompt phase where the fault came once; and its ledger has
to have the tokens of every answer that said what it cost, whatever else was wrong with it.
"""

import argparse
import json
import os
import shutil
import socket
import ssl
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback

from chance import chance
from endpoints import USAGE, Server, completion, cut, drip, hang, raw, serve, status
from p2o import P2OCallback, P2OConfig, P2OTrainer
from p2o.pico import model_path, world

Act = Callable[[Any], None]
TIMEOUT = 2.0
"""Seconds that a request may take."""
BEGINS_WITH = 2
"""Of the requests, counted from 0, the one that meets with a fault which is not there always."""


def well(handler: Any) -> None:
    """Another instruction each time."""
    handler.server.told += 1
    handler.send(200, completion(f"```\nTry way number {len(handler.server.requests)}.\n```"), Connection="close")


def with_usage(*arguments: Any, **changes: Any) -> Act:
    """An answer that says what it cost, and is of no use."""

    def act(handler: Any) -> None:
        handler.server.told += 1
        handler.send(200, completion(*arguments, **changes), Connection="close")

    return act


def reset(handler: Any) -> None:
    """The connection is broken off, rudely."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def elsewhere(handler: Any) -> None:
    handler.send(307, b"", Location=f"http://127.0.0.1:9{handler.server.server_port % 1000:03d}/v1/chat/completions")


FAULTS: dict[str, Act] = {
    "reset": reset,
    "hangs before the answer": hang,
    "hangs within the answer": drip,
    "an answer cut off": cut,
    "429 with Retry-After": status(429, Retry_After="1"),
    "429 without": status(429),
    "500": status(500),
    "503": status(503),
    "401": status(401),
    "a megabyte": with_usage("```\n" + "Carry. " * 150_000 + "\n```"),
    "no text": with_usage(None),
    "an empty text": with_usage(" "),
    "no JSON": raw(b"{'id': nothing"),
    "another type": raw(json.dumps({"id": 3, "choices": "none", "usage": []}).encode()),
    "a list": raw(b"[1, 2, 3]"),
    "a page": raw(b"<html><body>Bad gateway</body></html>", "text/html"),
    "an empty answer": raw(b""),
    "a redirect to nowhere": elsewhere,
}
# Not acts of a handler, which sees only requests that have come through.
REFUSED, CERTIFICATE = "refused", "a wrong certificate"
WHEN = ("once", "from the middle on", "always")


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Args:
        whole: whether it took all of its steps.
        counted: whether its ledger has the tokens that the server said.
        failed: reflections that failed after all attempts.
        ended_early: whether the prompt phase was given up.
    """

    fault: str
    when: str
    whole: bool
    counted: bool
    failed: int
    ended_early: bool
    seconds: float

    @property
    def sound(self) -> bool:
        return self.whole and self.counted and not (self.when == "once" and self.ended_early)


def train(directory: Path, url: str) -> P2OTrainer:
    torch.set_num_threads(1)
    options: dict[str, Any] = {
        **{"num_train_epochs": 2, "num_generations": 4, "per_device_train_batch_size": 16},
        **{"max_completion_length": 8, "min_hard_questions": 2, "evolution_budget": "90"},
        **{"parents_per_iteration": 2, "reflection_model": "openai/some-model", "reflection_base_url": url},
        **{"reflection_timeout": TIMEOUT, "reflection_max_retries": 1, "save_strategy": "no", "report_to": "none"},
        **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "disable_tqdm": True},
    }
    trainer = P2OTrainer(
        model=AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32),
        reward_funcs=chance,
        args=P2OConfig(output_dir=str(directory), **options),
        train_dataset=world.train_dataset(hard=24, easy=0),
        processing_class=AutoTokenizer.from_pretrained(model_path()),
        callbacks=[Ended()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


class Ended(P2OCallback):
    """Whether the last prompt phase was given up."""

    early = True

    def on_prompt_phase_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        result = kwargs.get("result")
        self.early = result is None or bool(result.ended_early)


def acts(fault: Act, when: str) -> list[Act]:
    """What the server does, request by request; the last for ever."""
    before = [] if when == "always" else [well] * BEGINS_WITH
    return [*before, fault, *([well] if when == "once" else [])]


# -- faults of the connection ------------------------------------------------------------------------------------------


def closed(when: str) -> Act:
    """The server's port is closed, for so long that the next attempt finds it so."""

    def act(handler: Any) -> None:
        server = handler.server
        if not server.down.is_set():
            server.down.set()
            server.socket.close()
            if when == "once":
                threading.Thread(target=reopen, args=(server,), daemon=True).start()
        reset(handler)

    return act


def reopen(server: Any) -> None:
    time.sleep(0.7)
    fresh = socket.socket()
    fresh.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    fresh.bind(server.server_address)
    fresh.listen()
    server.socket = fresh
    threading.Thread(target=accept, args=(server,), daemon=True).start()


def accept(server: Any) -> None:
    while not server.over.is_set():
        request, address = server.socket.accept()
        server.process_request(request, address)


class Secure(Server):
    """Shows a certificate that nobody vouches for where its act is a fault."""

    def __init__(self, plan: list[Act], certificates: Path) -> None:
        super().__init__([well])
        self.plan, self.certificates, self.connections = plan, certificates, 0

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        act = self.plan[min(self.connections, len(self.plan) - 1)]
        self.connections += 1
        name = "good" if act is well else "bad"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificates / f"{name}.pem", self.certificates / f"{name}.key")
        return context.wrap_socket(connection, server_side=True), address


def make_certificates(directory: Path) -> None:
    for name in ("good", "bad"):
        options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        options += ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        files = ["-keyout", str(directory / f"{name}.key"), "-out", str(directory / f"{name}.pem")]
        subprocess.run(["openssl", "req", "-x509", *options, *files], check=True, capture_output=True)


# -- runs --------------------------------------------------------------------------------------------------------------


def run(fault: str, when: str, work: Path) -> Result:
    """One run against a server with this fault."""
    if fault == CERTIFICATE:
        server = serve(server=Secure(acts(reset, when), work))
    else:
        server = serve(*acts(closed(when) if fault == REFUSED else FAULTS[fault], when))
    began = time.monotonic()
    with server as served:
        if fault == REFUSED and when == "always":
            served.socket.close()
        trainer = train(work / "run", served.url)
    shutil.rmtree(work / "run", ignore_errors=True)
    ledger, events = trainer.p2o.ledger, trainer.p2o.events
    spent = (ledger.prompt_tokens["reflection"], ledger.completion_tokens["reflection"])
    told = (served.told * USAGE["prompt_tokens"], served.told * USAGE["completion_tokens"])
    ended = next(c for c in trainer.callback_handler.callbacks if isinstance(c, Ended)).early
    whole = trainer.state.global_step == trainer.state.max_steps
    seconds = round(time.monotonic() - began, 1)
    return Result(fault, when, whole, spent == told, events.get("reflection_failed", 0), ended, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*FAULTS, REFUSED, CERTIFICATE]
    parser.add_argument("--faults", nargs="+", choices=every, default=every, metavar="FAULT", help=", ".join(every))
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        make_certificates(Path(work))
        os.environ["SSL_CERT_FILE"] = str(Path(work) / "good.pem")
        for fault in arguments.faults:
            results += [run(fault, when, Path(work)) for when in WHEN]
    table = Table("fault", "when", "took all steps", "cost counted", "reflections failed", "phase ended early", "s")
    for r in results:
        marks = ["yes" if mark else "NO" for mark in (r.whole, r.counted)]
        table.add_row(r.fault, r.when, *marks, str(r.failed), "yes" if r.ended_early else "no", f"{r.seconds:g}")
    Console().print(table)
    lost, uncounted = (sum(not getattr(r, name) for r in results) for name in ("whole", "counted"))
    gave_up = sum(r.ended_early for r in results if r.when == "once")
    said = (
        f"{len(results)} runs with {len(arguments.faults)} faults: {lost} lost, {uncounted} with a cost uncounted; of "
        f"{len(arguments.faults)} faults that came once {gave_up} ended the prompt phase early."
    )
    print(said)
    if arguments.json:
        content = {"said": [said], "runs": [asdict(r) for r in results]}
        Path(arguments.json).write_text(json.dumps(content, indent=1) + "\n")
    if not all(r.sound for r in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
