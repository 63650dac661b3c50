"""Labels of features by an endpoint: what it is shown, what is kept of its answers, and that it resumes."""

import threading

import pytest

from endpoints import completion, serve, status
from p2o.engines.endpoint import Endpoint
from p2o.features.endpoint_labels import endpoint_labels, known_labels, label_in, label_request

pytestmark = pytest.mark.usefixtures("no_keys")

REQUESTS = {7: "about seven", 3: "about three", 5: "about five", 9: "about nine", 1: "about one"}


def says_what_it_was_asked(handler):
    handler.send(200, completion(f"Label: {handler.body['messages'][0]['content']}"))


def endpoint(server, **options):
    return Endpoint("openai/m", base_url=server.url, **{"concurrency": 2, "max_retries": 0, **options})


def test_active_tokens_are_marked():
    pieces = [["Work: ", False], ["3*4=", True], ["12\n", False]]
    request = label_request([{"pieces": pieces}, {"pieces": [["Answer: ", True], ["5", False]]}])
    assert "\n\n1. Work: ⟦3*4=⟧12\n\n\n2. ⟦Answer: ⟧5\n\n" in request


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Signs of equality", "Signs of equality"),
        ('\n\n**Label:** "Signs of equality."\nBecause they are.', "Signs of equality"),
        ("```\nlabel: `x*y`\n```", "x*y"),
        ("…\n\x1b[31mred\x1b[0m", "[31mred[0m"),
        (" \n--\n", ""),
        ("", ""),
        ("a" * 99, "a" * 79 + "…"),
    ],
)
def test_what_is_kept_of_an_answer(answer, label):
    assert label_in(answer) == label


def test_the_label_of_each_feature_is_its_own_and_is_asked_for_once(tmp_path):
    journal, progress = tmp_path / "labels.jsonl", []
    with serve(says_what_it_was_asked) as server:
        found = endpoint_labels(
            endpoint(server), REQUESTS, journal, seed=0, on_progress=lambda *done: progress.append(done)
        )
        assert found.by_feature == {feature: text for feature, text in REQUESTS.items()} and not found.failures
        assert progress == [(2, 5), (4, 5), (5, 5)] and server.most_at_once <= 2
        again = endpoint_labels(endpoint(server), {**REQUESTS, 2: "about two"}, journal, seed=0)
        assert again.by_feature == {**REQUESTS, 2: "about two"} and len(server.requests) == 6
        assert known_labels(journal, {**REQUESTS, 4: "about four"}) == REQUESTS


def test_what_failed_is_asked_for_again(tmp_path):
    journal = tmp_path / "labels.jsonl"
    with serve(says_what_it_was_asked, status(500)) as server:
        found = endpoint_labels(endpoint(server, concurrency=1), REQUESTS, journal, seed=0)
        assert found.by_feature == {7: "about seven"} and found.failures.total() == 4
    journal.write_bytes(journal.read_bytes()[:-9])  # killed while it wrote
    with serve(says_what_it_was_asked) as server:
        assert endpoint_labels(endpoint(server), REQUESTS, journal, seed=0).by_feature == REQUESTS
        assert len(server.requests) == 5


def test_a_kill_between_batches_loses_none_that_was_answered(tmp_path):
    class Killed(Exception):
        pass

    def kill(done, total):
        raise Killed

    journal, threads = tmp_path / "labels.jsonl", threading.active_count()
    with serve(says_what_it_was_asked) as server:
        with pytest.raises(Killed):
            endpoint_labels(endpoint(server), REQUESTS, journal, seed=0, on_progress=kill)
        assert endpoint_labels(endpoint(server), REQUESTS, journal, seed=0).by_feature == REQUESTS
        assert len(server.requests) == 5
    assert threading.active_count() < threads + 20


def test_another_model_is_asked_anew(tmp_path):
    journal = tmp_path / "labels.jsonl"
    with serve(says_what_it_was_asked) as server:
        endpoint_labels(endpoint(server), REQUESTS, journal, seed=0)
        other = Endpoint("openai/other", base_url=server.url, concurrency=5)
        endpoint_labels(other, {7: "about seven"}, journal, seed=0)
        assert len(server.requests) == 6
