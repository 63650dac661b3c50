"""vLLM's own server with the embedded model on a CPU, as README says to start it."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def vllm_server(log: Path) -> Iterator[str]:
    """Its URL. It may still be starting, for which the trainer waits.

    Args:
        log: the file for what it prints.
    """
    from p2o.engines.vllm import EXTENSION
    from p2o.pico import model_path
    from p2o.ranks import free_port

    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model_path()]
    command += ["--logprobs-mode", "processed_logprobs", "--max-logprobs", "-1", "--dtype", "float32"]
    command += ["--worker-extension-cls", EXTENSION, "--no-enable-chunked-prefill"]
    # Half a minute less than compiled, as the colocated one is.
    command += ["--enforce-eager"]
    command += ["--max-model-len", "1536", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as out:
        environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=environment)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
