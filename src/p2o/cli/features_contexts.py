"""Where features are most active, and what an endpoint says of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from p2o.cli.console import Meter
from p2o.cli.errors import InputError
from p2o.cli.features_options import FeatureArguments
from p2o.engines.endpoint import Endpoint, OptionNames
from p2o.features.endpoint_labels import endpoint_labels, known_labels, label_request
from p2o.features.labels import Labels
from p2o.features.spans import KINDS

JOURNAL = "endpoint-labels.jsonl"
UNLABELLED = "no label by contrast"

Contexts = Sequence[list[dict[str, Any]]]
"""Of each feature, as [`p2o.features.labels.top_contexts`] returns them."""


def contexts_by_kind(
    labels: Labels, high: int, contexts: Contexts, said: Mapping[int, str] | None = None
) -> dict[str, list[dict[str, Any]]]:
    """The content of `contexts.json`: features by their label by contrast, those that it says most about first.

    Args:
        high: number of high-level features, which are the first.
        said: labels by an endpoint; a feature that has only such a one is under "no label by contrast".
    """
    said = said or {}
    found: dict[str, list[dict[str, Any]]] = {}

    def entry(feature: int, share: float | None) -> dict[str, Any]:
        known = {"feature": feature, "high": feature < high, "share": share, "activity": labels.activity[feature]}
        label = {"endpoint_label": said[feature]} if feature in said else {}
        return {**known, **label, "contexts": contexts[feature]}

    for place, kind in enumerate(KINDS):
        group = sorted(labels.group(kind), key=lambda feature: -labels.shares[feature][place])
        found[kind] = [entry(feature, labels.shares[feature][place]) for feature in group]
    if others := [feature for feature in said if labels.kinds[feature] is None]:
        found[UNLABELLED] = [entry(feature, None) for feature in others]
    return found


def label_endpoint(arguments: FeatureArguments) -> Endpoint | None:
    """The endpoint that labels features; None where none is named.

    Raises:
        InputError: one that cannot be used.
    """
    if arguments.label_endpoint_model is None:
        return None
    try:
        return Endpoint(
            arguments.label_endpoint_model,
            base_url=arguments.label_endpoint_base_url,
            max_tokens=arguments.label_endpoint_max_tokens,
            temperature=0.0,
            concurrency=arguments.label_endpoint_concurrency,
            timeout=arguments.label_endpoint_timeout,
            max_retries=arguments.label_endpoint_max_retries,
            options=OptionNames("label_endpoint_model", "label_endpoint_base_url", "label_endpoint_max_tokens", "not"),
        )
    except (ValueError, ImportError) as error:
        raise InputError(str(error)) from None


def ask_endpoint(
    arguments: FeatureArguments,
    endpoint: Endpoint | None,
    labels: Labels,
    contexts: Contexts,
    directory: Path,
    console: Console,
) -> tuple[dict[int, str], bool]:
    """Labels of the most active features, of the journal and of the endpoint, and whether any request failed.

    Without an endpoint they are those that the journal has from before.
    """
    most = sorted(range(len(contexts)), key=lambda feature: -labels.activity[feature])
    most = [feature for feature in most if contexts[feature]]
    requests = {feature: label_request(contexts[feature]) for feature in most}
    if endpoint is None:
        return known_labels(directory / JOURNAL, requests), False
    requests = {feature: requests[feature] for feature in most[: arguments.label_endpoint_features]}
    with Meter(console) as meter:
        found = endpoint_labels(
            endpoint,
            requests,
            directory / JOURNAL,
            seed=arguments.seed,
            on_progress=lambda done, total: meter.update("labels", done, total),
        )
    if found.failures:
        causes = "; ".join(f"{count} × {cause}" for cause, count in found.failures.most_common(3))
        console.print(
            f"{found.failures.total()} of {len(requests)} labels could not be had of {endpoint.model}: {causes} The "
            "same command asks for them again.",
            markup=False,
            soft_wrap=True,
        )
    return found.by_feature, bool(found.failures)
