"""Reflection endpoints: the real litellm against a server on this machine."""

import logging
import math
import re
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from endpoints import KEY, TEXT, answer, completion, cut, drip, hang, raw, reflection, serve, status, well
from p2o import P2OConfig
from p2o.engines import endpoint as module
from p2o.engines.endpoint import retry_after
from p2o.prompt_phase.types import Reflection, ReflectionError
from p2o.reflection.endpoint import EndpointReflection
from test_endpoint_runs import train
from trainers import options

# -- when all is well ------------------------------------------------------------------------------------------------


def test_answers_come_in_the_order_of_the_prompts_with_what_they_cost():
    def echo(handler):
        prompt = handler.body["messages"][-1]["content"]
        time.sleep(0.3 if prompt == "first" else 0.0)
        handler.send(200, completion(f"```\n{prompt}!\n```"))

    with serve(echo) as server:
        reflect = reflection(server, max_tokens=77, temperature=0.5)
        answers = reflect(["first", "second", "third"], seed=3)
        assert answers == [Reflection(f"```\n{p}!\n```", 70, 30) for p in ("first", "second", "third")]
        assert all(r["model"] == "some-model" and r["max_tokens"] == 77 for r in server.requests)
        assert all(r["temperature"] == 0.5 for r in server.requests)
        assert server.keys == {"unused"}, "a server without a key of its own gets a placeholder"
        # A server that samples from seeds answers a repeated batch alike, and each prompt from a stream of its own.
        seeds = {r["messages"][0]["content"]: r["seed"] for r in server.requests}
        reflect(["first", "second", "third"], seed=3)
        assert {r["messages"][0]["content"]: r["seed"] for r in server.requests[3:]} == seeds
        assert len(set(seeds.values())) == 3


def test_no_more_requests_at_once_than_allowed():
    def slowly(handler):
        time.sleep(0.1)
        well(handler)

    with serve(slowly) as server:
        answers = reflection(server, concurrency=3)(["x"] * 9, seed=0)
        assert [a.text for a in answers] == [TEXT] * 9
        assert server.most_at_once == 3


def test_the_price_is_what_litellm_says():
    with serve(well) as server:
        reflect = EndpointReflection("openai/gpt-4o", base_url=server.url)
        (answer,) = reflect(["x"], seed=0)
        assert reflect.priced and not reflection(server).priced
        assert answer.cost == pytest.approx(sum(reflect.litellm.cost_per_token("openai/gpt-4o", 70, 30)))
        assert answer.cost > 0


# -- every fault -----------------------------------------------------------------------------------------------------

PASSING = {
    "408": (status(408), "no luck"),
    "429": (status(429), "RateLimitError: no luck"),
    "500": (status(500), "InternalServerError: no luck"),
    "503": (status(503), "no luck"),
    "hanging": (hang, "No whole answer within 1 s"),
    "dripping": (drip, "No whole answer within 1 s"),
    "cut in mid-body": (cut, "Connection error"),
    "empty choices": (answer(choices=[]), "without choices"),
    "no choices": (raw({"hello": "there"}), "no 'choices'"),
    "no text": (answer(None), "An answer without text (finish_reason 'stop')"),
    "invalid JSON": (raw(b'{"choices": ['), "Expecting value"),
    "a list": (raw([1, 2]), "Received: [1, 2]"),
    "wrong content type": (raw(b"<html>Welcome</html>", "text/html"), "<html>Welcome</html>"),
    "not even text": (raw(bytes(range(256)), "application/octet-stream"), ""),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_is_tried_again(fault):
    act, _ = PASSING[fault]
    with serve(act, well) as server:
        (got,) = reflection(server, timeout=2.0 if act in (hang, drip) else 30.0)(["x"], seed=0)
        assert (got.text, got.error, len(server.requests)) == (TEXT, "", 2)
        # An answer that is of no use was paid for as well.
        assert got.prompt_tokens == (140 if fault in ("empty choices", "no text") else 70)


@pytest.mark.parametrize("fault", PASSING)
def test_a_lasting_fault_is_given_up(fault):
    act, message = PASSING[fault]
    with serve(act) as server:
        began = time.monotonic()
        with pytest.raises(ReflectionError) as caught:
            reflection(server, timeout=1.0 if act in (hang, drip) else 30.0)(["x", "y"], seed=0)
        assert time.monotonic() - began < 30
        assert len(server.requests) == 4
    assert "None of 2 reflection(s) by openai/some-model succeeded" in str(caught.value)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 700
    # The original holds the request with its headers.
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (400, "reflection_max_tokens"),
        (401, "Check the key in the environment"),
        (403, "Check the key in the environment"),
        (404, "Check reflection_model and reflection_base_url"),
        (422, "reflection_max_tokens"),
    ],
)
def test_what_cannot_pass_is_not_tried_again_and_says_what_to_check(code, message):
    with serve(status(code)) as server:
        with pytest.raises(ReflectionError, match=message):
            reflection(server)(["x"], seed=0)
        assert len(server.requests) == 1


def test_nobody_there():
    with serve(well) as server:
        pass
    with pytest.raises(ReflectionError, match="Is the server at reflection_base_url running"):
        reflection(server)(["x"], seed=0)


def test_one_failure_costs_one_reflection_and_is_told(caplog):
    def moody(handler):
        (status(400) if handler.body["messages"][0]["content"] == "bad" else well)(handler)

    with serve(moody) as server:
        answers = reflection(server)(["a", "bad", "b"], seed=0)
    assert [a.text for a in answers] == [TEXT, "", TEXT]
    assert "no luck" in answers[1].error
    assert "1 of 3 reflections by openai/some-model failed: 1 × BadRequestError" in caplog.text


def test_retry_after_is_heeded():
    with serve(status(429, Retry_After="1"), well) as server:
        (got,) = reflection(server)(["x"], seed=0)
        assert got.text == TEXT
        assert server.times[1] - server.times[0] >= 1


def test_retry_after_is_heeded_within_bounds(monkeypatch):
    monkeypatch.setattr(module, "MAX_DELAY", 0.3)
    with serve(status(503, Retry_After="86400"), well) as server:
        (got,) = reflection(server)(["x"], seed=0)
        assert got.text == TEXT
        assert 0.3 <= server.times[1] - server.times[0] < 60


@pytest.mark.parametrize(
    ("value", "seconds"), [("3", 3), ("0.5", 0.5), ("-1", 0), ("nan", 0), ("inf", 0), ("soon", 0), ("", 0)]
)
def test_reading_retry_after(value, seconds):
    assert retry_after({"retry-after": value}) == seconds
    assert retry_after({}) == 0


def test_retry_after_may_be_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 25 < retry_after({"retry-after": soon}) <= 30
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00"}) == 0


def test_waits_grow():
    with serve(status(500)) as server:
        with pytest.raises(ReflectionError):
            reflection(server, max_retries=3, backoff=0.2)(["x"], seed=0)
        waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    # Doubled each time, times something between a half and one and a half.
    assert len(waits) == 3 and all(wait >= 0.2 * 2**i * 0.5 for i, wait in enumerate(waits))


def test_a_megabyte_of_text_is_one_short_line(caplog):
    caplog.set_level(logging.INFO)
    with serve(answer("```\n" + "word " * 200_000 + "\n```")) as server:
        with pytest.raises(ReflectionError, match="more than 32,768 characters") as caught:
            reflection(server)(["x"], seed=0)
        assert len(server.requests) == 1, "it would be as long again"
    assert caught.value.reflections == [Reflection("", 70, 30, 0.0, caught.value.reflections[0].error)]
    assert len(str(caught.value)) < 300 and len(caplog.text) < 5000


def test_a_long_error_is_one_short_line(caplog):
    caplog.set_level(logging.INFO)
    with (
        serve(lambda handler: handler.send(400, {"error": {"message": "word " * 20_000}})) as server,
        pytest.raises(ReflectionError) as caught,
    ):
        reflection(server)(["x"], seed=0)
    assert len(str(caught.value)) < 600 and len(caplog.text) < 5000


def test_an_answer_that_no_tokenizer_takes_is_made_one():
    with serve(answer("```\nTry \ud800 it.\n```")) as server:
        (got,) = reflection(server)(["x"], seed=0)
    assert got.text == "```\nTry ? it.\n```"


def test_a_thinker_without_room_is_told_to_have_more():
    choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": ""}}
    with serve(answer(choices=[choice])) as server, pytest.raises(ReflectionError, match="Raise reflection_max_tokens"):
        reflection(server)(["x"], seed=0)


def test_unknown_usage_is_said_once(caplog):
    with serve(answer(usage=None)) as server:
        reflect = reflection(server)
        assert reflect(["x", "y"], seed=0) == [Reflection(TEXT, None, None)] * 2
        reflect(["x"], seed=0)
    assert caplog.text.count("does not say how many tokens") == 1


def test_a_mistake_of_ours_is_loud(monkeypatch):
    with serve(well) as server:
        reflect = reflection(server)
        monkeypatch.setattr(module, "redact", lambda text: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reflect(["x"], seed=0)


def test_nothing_holds_up_the_process_and_nothing_is_fetched():
    script = """
import faulthandler, socket, sys
faulthandler.dump_traceback_later(300, exit=True)  # where it stands, should it not end
lookup = socket.getaddrinfo
def local(host, *args, **kwargs):
    assert host == "127.0.0.1", f"{host} was looked up"
    return lookup(host, *args, **kwargs)
socket.getaddrinfo = local
from p2o.reflection.endpoint import EndpointReflection
try:
    EndpointReflection("openai/some-model", base_url=sys.argv[1], timeout=0.5, max_retries=0)(["x", "y"], seed=0)
except Exception as error:
    print(error)
"""
    with serve(drip) as server:  # for a day, if it were up to the server
        done = subprocess.run([sys.executable, "-c", script, server.url], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0 and "No whole answer within 0.5 s" in done.stdout, done.stdout + done.stderr
    assert "looked up" not in done.stdout + done.stderr


pytestmark = pytest.mark.usefixtures("no_keys")


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "name"),
    [((250, math.inf), "reflection_token_limit"), ((math.inf, 0.002), "reflection_cost_limit")],
)
def test_no_request_begins_once_a_limit_is_reached(left, name):
    with serve(well) as server:
        reflect = EndpointReflection("openai/gpt-4o", base_url=server.url, concurrency=1, left=lambda: left)
        answers = reflect(["x"] * 9, seed=0)
        asked = len(server.requests)
        # 100 tokens a reflection, of which 70 cost 2.5 and 30 cost 10 millionths of a dollar.
        assert asked == math.ceil(left[0] / 100 if name == "reflection_token_limit" else left[1] / (475e-6))
        assert [bool(a.text) for a in answers] == [True] * asked + [False] * (9 - asked)
        assert all(name in a.error for a in answers[asked:])
        left = (0, 0)
        with pytest.raises(ReflectionError, match="has spent the"):
            reflect(["x"], seed=0)
        assert len(server.requests) == asked


# -- at start --------------------------------------------------------------------------------------------------------


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm", None)
    with pytest.raises(ImportError, match=re.escape("pip install 'p2o-rl[reflection]'")):
        EndpointReflection("openai/some-model", base_url="http://127.0.0.1:1/v1")


def test_a_missing_key_is_named():
    with pytest.raises(ValueError, match="needs OPENAI_API_KEY in the environment"):
        EndpointReflection("openai/some-model")


@pytest.mark.parametrize("name", ["refrence", "some-org/some-model", ""])
def test_a_name_that_nobody_knows(name):
    with pytest.raises(ValueError, match="neither 'reference' nor 'policy' nor a name that litellm can place"):
        EndpointReflection(name)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reflection_base_url": "http://127.0.0.1/v1"}, "reflection_model='reference' is none"),
        ({"reflection_model": "policy", "reflection_token_limit": 1}, "reflection_model='policy' is none"),
        ({"reflection_cost_limit": 1.0}, "reflection_cost_limit is about an endpoint"),
        ({"reflection_model": "openai/x", "reflection_base_url": "127.0.0.1:8000"}, "no address such as http"),
        ({"reflection_model": "openai/x", "reflection_base_url": "file:///etc/x"}, "no address such as http"),
        ({"reflection_model": "openai/x", "reflection_timeout": 0}, "reflection_timeout=0 must be greater than 0"),
        ({"reflection_model": "openai/x", "reflection_timeout": math.nan}, "must be greater than 0"),
        ({"reflection_model": "openai/x", "reflection_cost_limit": -1}, "must be greater than 0"),
        ({"reflection_concurrency": 0}, "must be at least 1"),
        ({"reflection_max_retries": -1}, "must be at least 0"),
        ({"reflection_model": "openai/x", "reflection_token_limit": 0}, "must be at least 1"),
    ],
)
def test_bad_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        P2OConfig(**options(tmp_path, **changes))


@pytest.mark.parametrize("url", [f"http://user:{KEY}@127.0.0.1/v1", f"https://{KEY}@127.0.0.1/v1"])
def test_an_address_with_a_password_is_refused_without_repeating_it(tmp_path, url):
    with pytest.raises(ValueError, match="user name or a password") as caught:
        P2OConfig(**options(tmp_path, reflection_model="openai/x", reflection_base_url=url))
    assert KEY not in str(caught.value)


def test_a_cost_limit_needs_a_price(tmp_path):
    with pytest.raises(ValueError, match="litellm knows no price for 'openai/some-model'"):
        train(tmp_path, "http://127.0.0.1:1/v1", reflection_cost_limit=1.0)
