"""How far off the estimate of collapsed groups is for groups larger than the rollouts, on made-up pass rates.

Prints, for sets of questions whose pass rates are known, the share of groups that collapse and the root mean square
error of what `p2o profile` would estimate.
"""

import argparse
from collections.abc import Callable

import numpy as np

from p2o.difficulty.groups import forecast
from p2o.prompt_phase.hard_samples import Outcome
from p2o.seeding import derive_seed

Rates = Callable[[np.random.Generator, int], np.ndarray]
SETS: dict[str, Rates] = {
    "beta(0.3, 0.9)": lambda rng, count: rng.beta(0.3, 0.9, count),
    "beta(2, 3)": lambda rng, count: rng.beta(2, 3, count),
    "beta(0.05, 0.2)": lambda rng, count: rng.beta(0.05, 0.2, count),
    "all 0": lambda rng, count: np.zeros(count),
    "all 0.03": lambda rng, count: np.full(count, 0.03),
    "half 0, half 0.5": lambda rng, count: np.where(np.arange(count) % 2, 0.5, 0.0),
    "half 0.005, a quarter 0.1, a quarter beta(8, 2)": lambda rng, count: np.choose(
        np.arange(count) % 4, [np.full(count, 0.005), np.full(count, 0.005), np.full(count, 0.1), rng.beta(8, 2, count)]
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=8, help="of each question (default: %(default)s)")
    parser.add_argument("--group", type=int, default=32, help="rollouts of a group (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    for name, rates in SETS.items():
        rng = np.random.default_rng(derive_seed(arguments.seed, "collapse", name))
        truths, errors = [], []
        for _ in range(arguments.repeats):
            known = rates(rng, arguments.questions)
            successes = rng.binomial(arguments.rollouts, known)
            found = forecast([Outcome(int(s), arguments.rollouts) for s in successes], [arguments.group])
            truths.append(np.mean(known**arguments.group + (1 - known) ** arguments.group))
            errors.append(found[arguments.group].collapsed - truths[-1])
        print(f"{name:48} collapsed {np.mean(truths):6.1%}  error {np.sqrt(np.mean(np.square(errors))):6.1%}")


if __name__ == "__main__":
    main()
