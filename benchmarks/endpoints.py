"""A server on this machine that answers as an OpenAI-compatible endpoint does, well or badly."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from p2o.reflection.endpoint import EndpointReflection

KEY = "planted-4f9c2d81-never-to-be-seen"
TEXT = "```\nTry it line by line.\n```"
USAGE = {"prompt_tokens": 70, "completion_tokens": 30, "total_tokens": 100}


def completion(text=TEXT, **changes):
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
    return {k: v for k, v in {**answer, **changes}.items() if v is not None}


class Server(ThreadingHTTPServer):
    """Plays `acts` one after the other, the last for ever: functions of the request's handler."""

    daemon_threads = True

    def __init__(self, acts):
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts, self.requests, self.times, self.keys = acts, [], [], set()
        self.lock, self.over = threading.Lock(), threading.Event()
        self.at_once, self.most_at_once = 0, 0
        self.told = 0  # answers that said what they cost, where acts count them

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass  # who hangs up on us is part of the play


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        server = self.server
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.key = self.headers.get("Authorization", "").removeprefix("Bearer ")
        with server.lock:
            number = len(server.requests)
            server.requests.append(self.body)
            server.times.append(time.monotonic())
            server.keys.add(self.key)
            server.at_once += 1
            server.most_at_once = max(server.at_once, server.most_at_once)
        try:
            server.acts[min(number, len(server.acts) - 1)](self)
        finally:
            with server.lock:
                server.at_once -= 1

    def send(self, status, body, content_type="application/json", length=None, **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *args):
        pass


@contextmanager
def serve(*acts, server=None):
    server = server or Server(acts)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()


def well(handler):
    handler.send(200, completion())


def status(code, **headers):
    # As careless as a server can be: it says the key in its error and in a header.
    def act(handler):
        error = {"message": f"no luck with key {handler.key}", "type": "x", "code": code}
        handler.send(code, {"error": error}, X_Your_Key=handler.key, **headers)

    return act


def hang(handler):
    handler.server.over.wait(60)


def drip(handler):
    """A byte now and then, for ever: no time-out between bytes ends it."""
    handler.send(200, b" ", length=10**6)
    while not handler.server.over.wait(0.1):
        handler.wfile.write(b" ")
        handler.wfile.flush()


def cut(handler):
    handler.send(200, b'{"id": "1", "choices": [{"mess', length=5000)
    handler.close_connection = True


def answer(*args, **changes):
    return lambda handler: handler.send(200, completion(*args, **changes))


def raw(body, content_type="application/json"):
    return lambda handler: handler.send(200, body, content_type)


def reflection(server, **changes):
    settings = {"base_url": server.url, "timeout": 30.0, "max_retries": 1, "backoff": 0.02, **changes}
    return EndpointReflection("openai/some-model", **settings)
