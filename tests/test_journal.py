"""Append-only files: whatever a kill leaves, the whole batches before it are read again."""

import json

from hypothesis import given
from hypothesis import strategies as st

from p2o.journal import JsonLines

values = st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3))


@given(st.lists(st.lists(values, min_size=1, max_size=3), min_size=1, max_size=4), st.data())
def test_a_torn_file_is_read_up_to_the_tear_and_goes_on_there(tmp_path_factory, batches, data):
    path = tmp_path_factory.mktemp("journal") / "deep" / "a.jsonl"
    with JsonLines(path) as lines:
        assert not path.exists(), "nothing is written before there is something"
        for batch in batches:
            lines.append(batch)
    content = path.read_bytes()
    written = [record for batch in batches for record in batch]
    assert [json.loads(line) for line in content.splitlines()] == written

    cut = data.draw(st.integers(0, len(content)))
    path.write_bytes(content[:cut])
    with JsonLines(path) as lines:
        whole = content[:cut].count(b"\n")
        assert lines.records == written[:whole]
        lines.append(written[whole:])
    assert path.read_bytes() == content


@given(st.lists(values, min_size=1, max_size=5), st.data())
def test_records_that_do_not_fit_are_left_out(tmp_path_factory, written, data):
    path = tmp_path_factory.mktemp("journal") / "a.jsonl"
    with JsonLines(path) as lines:
        lines.append(written)
    kept = data.draw(st.integers(0, len(written)))
    with JsonLines(path) as lines:
        lines.append(["other"], after=kept)
        lines.append(["more"])
    with JsonLines(path) as lines:
        assert lines.records == [*written[:kept], "other", "more"]
        lines.replace(["new"])
        lines.append(["last"])
    assert JsonLines(path).records == ["new", "last"]
    assert [file.name for file in path.parent.iterdir()] == ["a.jsonl"]
