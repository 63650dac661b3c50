"""What a run makes of faults of a connection, some of them; `benchmarks/endpoint_faults.py` has all faults."""

import pytest

import endpoint_faults

pytestmark = [pytest.mark.usefixtures("no_keys"), pytest.mark.slow]


@pytest.mark.parametrize(
    ("fault", "when"),
    [
        (endpoint_faults.REFUSED, "once"),
        (endpoint_faults.REFUSED, "always"),
        (endpoint_faults.CERTIFICATE, "once"),
        (endpoint_faults.CERTIFICATE, "from the middle on"),
        ("reset", "once"),
    ],
)
def test_the_run_goes_on_and_counts_what_it_was_told(tmp_path, monkeypatch, fault, when):
    endpoint_faults.make_certificates(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "good.pem"))
    result = endpoint_faults.run(fault, when, tmp_path)
    assert result.sound, result
    assert (result.failed > 0) == (when != "once")
