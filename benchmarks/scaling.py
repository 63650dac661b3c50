"""Memory and hours to expect, by arithmetic: nothing is run, and nothing here was measured.

    python benchmarks/scaling.py                  # the tables of docs/scaling.md
    python benchmarks/scaling.py --mfu 0.25 --mean_length 0.7

Settings are read from the recipes, shapes are those that the models' own `config.json` state. What cannot be computed
is an option of this command with its assumed value as default; everything else follows from the formulas in
`estimates.py`. GiB are 2³⁰ bytes, and a 24 GB GPU is taken to have 24 of them. Left out: the time to exchange weights
between trainer and engine, to load and save, and what vLLM's prefix cache saves.
"""

import argparse
import json
import warnings
from pathlib import Path

from estimates import GIB, SETUPS, SHAPES, Estimate


def table(head: str, rows: list[list[str]], numbers: str = "---:") -> str:
    columns = head.split("|")
    lines = [columns, ["---"] + [numbers] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def models() -> str:
    """What a model of each shape takes, whatever the recipe."""
    rows = []
    for name, shape in SHAPES.items():
        gib = shape.parameters / GIB
        rows.append(
            [
                name,
                f"{shape.parameters / 1e9:.2f}",
                f"{2 * gib:.1f}",
                f"{16 * gib:.1f}",
                f"{28 * gib:.0f}",
                f"{shape.kv_bytes / 1024:.0f}",
                f"{2 * shape.layers * shape.hidden / 1024:.0f}",
                f"{2 * shape.layer_activations / 1024:.0f}",
                f"{2 * shape.multiplied / 1e9:.1f}",
            ]
        )
    return table(
        "model|parameters (10⁹)|in bfloat16 (GiB)|full training state (GiB)|disk for a run (GiB)|"
        "KV cache (KiB a token)|layer inputs (KiB a token)|one layer in full (KiB a token)|"
        "forward pass (10⁹ operations a token)",
        rows,
    )


def memory(estimates: list[Estimate]) -> str:
    """Of one GPU, in its two states."""
    rows = [
        [
            e.setup.name,
            f"{e.state:.1f}",
            f"{e.working:.1f}",
            f"{e.activations:.1f}",
            f"**{e.training_peak:.0f}**",
            f"{e.engine_weights:.1f}",
            f"{e.cache:.1f}",
            f"{e.cached_tokens / e.longest:.1f}",
            f"**{e.generation_peak:.0f}**",
            f"{e.longest_reflection:,}" if e.own_reflection else "–",
            f"{e.copy:.0f}",
            "yes" if e.fits else "no",
        ]
        for e in estimates
    ]
    return table(
        "GiB a GPU|state|working|activations|learning|engine's weights|its KV cache|rollouts of full length in it|"
        "generating|tokens of the longest reflection|disk a machine for the frozen copy|fits",
        rows,
    )


def hours(estimates: list[Estimate]) -> str:
    """Of an epoch, a prompt phase, and the run."""
    rows = []
    for e in estimates:
        generating, learning = e.generation(e.epoch_rollouts, e.batch), e.learning()
        evolving, reflecting = e.evolving(), e.reflecting()
        epochs = int(e.training.num_train_epochs)
        whole = epochs * (generating + learning) + (epochs - 1) * (evolving + reflecting)
        rows.append(
            [
                e.setup.name,
                f"{e.epoch_rollouts:,}",
                f"{e.epoch_rollouts * e.mean_length / 1e6:.0f}",
                f"{generating:.1f}",
                f"{learning:.1f}",
                f"{e.prompt_rollouts:,}",
                f"{e.proposals}",
                f"{evolving:.1f}",
                f"{reflecting:.1f}",
                f"{epochs}",
                f"**{whole:.0f}**",
                f"{e.prompt_rollouts / e.epoch_rollouts:.0%}",
            ]
        )
    return table(
        "hours|rollouts an epoch|tokens generated (10⁶)|generating|learning|rollouts a prompt phase|reflections|"
        "evolving|reflecting|epochs|whole run|prompt phase's rollouts over an epoch's",
        rows,
    )


def assumptions(parser: argparse.ArgumentParser, assumed: argparse.Namespace) -> str:
    rows = [
        [f"`--{action.dest}`", f"{getattr(assumed, action.dest):g}", str(action.help)]
        for action in parser._actions
        if isinstance(action.default, int | float)
    ]
    return table("assumed|value|what", rows, numbers="---")


def parser_of_assumptions() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mean_length", type=float, default=0.5, help="mean completion, over the longest allowed")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a mean prompt, template included")
    parser.add_argument("--collapsed", type=float, default=0.5, help="share of rollouts without advantage, left out")
    parser.add_argument("--hard", type=float, default=0.3, help="share of questions that are hard after an epoch")
    parser.add_argument("--accepted", type=float, default=0.25, help="share of proposals that beat their parent")
    parser.add_argument("--mfu", type=float, default=0.35, help="share of the arithmetic peak that learning reaches")
    parser.add_argument("--decoding", type=float, default=0.4, help="share of the roofline that vLLM reaches")
    parser.add_argument("--request", type=int, default=400, help="tokens of a reflection prompt beside its examples")
    parser.add_argument("--context", type=float, default=2.0, help="GiB of CUDA, NCCL and fragmentation")
    parser.add_argument("--engine", type=float, default=2.0, help="GiB of vLLM's own activations and graphs")
    parser.add_argument("--asleep", type=float, default=1.0, help="GiB that a sleeping engine keeps")
    parser.add_argument("--json", type=Path, help="write the estimates here, too")
    return parser


def main() -> None:
    parser = parser_of_assumptions()
    assumed = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers|trl")
    estimates = [Estimate(setup, assumed) for setup in SETUPS]
    print("\n\n".join([models(), memory(estimates), hours(estimates), assumptions(parser, assumed)]))
    if assumed.json:
        names = ("training_peak", "generation_peak", "longest_reflection", "fits", "epoch_rollouts", "prompt_rollouts")
        found = [{"setup": e.setup.name, **{name: getattr(e, name) for name in names}} for e in estimates]
        assumed.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
