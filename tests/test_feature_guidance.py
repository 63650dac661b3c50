"""Features that weigh tokens and stand in for rewards: the pure parts, and training with them."""

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictionaries import save_dictionary
from p2o.cli import main
from p2o.features.activations import read_activations
from p2o.features.guidance import Guidance
from p2o.features.shards import Passage
from p2o.methods import with_method
from p2o.policy_phase.feature_guidance import (
    TOKEN_WEIGHTS,
    ProxyWatch,
    failed_groups,
    movement_weights,
    proxy_advantages,
    weigh_tokens,
)
from p2o.policy_phase.rewards import Rewards
from trainers import K, Watch, assert_same, length_reward, load, make, watched_batch, weights

BOTH = {"feature_token_weight": 0.5, "feature_proxy_reward": 0.2}


def fails(completions, **columns):
    return [0.0] * len(completions)


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    return save_dictionary(tmp_path_factory.mktemp("dictionary"))


# -- pure --------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 5), st.integers(1, 8), st.floats(0, 1), st.integers(0, 99))
def test_weights_are_one_on_average(rows, tokens, weight, seed):
    generator = torch.Generator().manual_seed(seed)
    strength = torch.rand(rows, tokens + 1, generator=generator)
    mask = (torch.arange(tokens) < torch.randint(1, tokens + 1, (rows, 1), generator=generator)).long()
    found = movement_weights(strength, mask, weight)
    assert torch.allclose((found * mask).sum(1) / mask.sum(1), torch.ones(rows), atol=1e-4)
    assert found.min() >= 0
    still = movement_weights(torch.full((rows, tokens + 1), 0.5), mask, weight)
    assert torch.allclose(still, torch.ones(rows, tokens), atol=1e-6)


def test_where_reasoning_begins_weighs_most():
    strength = torch.tensor([[0.0, 0.0, 0.9, 0.9, 0.9]])
    found = movement_weights(strength, torch.ones(1, 4), 0.5)
    assert found.tolist() == [pytest.approx([0.5, 2.5, 0.5, 0.5])]


def test_only_groups_that_failed_alike_get_proxies():
    nan = float("nan")
    scores = [0, 0, 0, 0, 1, 0, 0, 0, 1, 1, 1, 1, nan, nan, nan, nan, 0, nan, 0, 0]
    rewards = Rewards(torch.tensor(scores)[:, None].float(), torch.ones(1))
    guided = failed_groups(rewards, 4)
    assert guided.tolist() == [True, False, False, False, True]
    strength = torch.tensor([0.1, 0.3, 0.5, 0.7] * 5)
    found = proxy_advantages(strength, guided, 4, 0.2).view(-1, 4)
    assert torch.all(found[1:4] == 0) and found[0].sum().abs() < 1e-6
    assert found[0].tolist() == sorted(found[0].tolist()) and 0.2 < found[0].max() < 0.3
    noise = proxy_advantages(0.5 + 1e-4 * strength, guided, 4, 0.2)
    assert noise.abs().max() < 1e-3, "differences that are noise are not blown up"


def test_weighing_is_done_once():
    batch = {"advantages": torch.tensor([1.0, -2.0]), TOKEN_WEIGHTS: torch.tensor([[0.5, 1.5], [1.0, 1.0]])}
    weigh_tokens(batch)
    assert batch["advantages"].tolist() == [[0.5, 1.5], [-2.0, -2.0]] and TOKEN_WEIGHTS not in batch
    weigh_tokens(batch)
    assert batch["advantages"].tolist() == [[0.5, 1.5], [-2.0, -2.0]]


def watched(strengths, successes, patience=0.1):
    watch, found = ProxyWatch(), []
    for strength, success in zip(strengths, successes, strict=True):
        watch = watch.after(strength, success, patience)
        found.append(watch.stopped)
    assert ProxyWatch.from_dict(json.loads(json.dumps(dataclasses.asdict(watch)))) == watch
    return found


def test_features_that_grow_in_vain_are_switched_off_for_good():
    """The hack: a policy that excites the features and solves nothing."""
    rising = [0.2] * 10 + [0.6] * 10
    assert not any(watched(rising[:10], [0.0] * 10))
    hacked = watched([*rising, *[0.2] * 20], [0.0] * 40)
    assert hacked[19] and all(hacked[19:]), "it does not come back"
    assert not any(watched(rising, [0.0] * 10 + [0.3] * 10)), "it solves more"
    assert not any(watched([0.2] * 20, [0.0] * 20))
    assert not any(watched([None] * 20, [1.0] * 20)), "nothing failed"


# -- in training -------------------------------------------------------------------------------------------------------


def test_strengths_are_those_of_the_dictionary(dictionary):
    guidance, model = Guidance.load(dictionary), load()
    prompts, completions = [[7, 8, 9], [5]], [[11, 12], [13, 14, 15]]
    batch = {
        "prompt_ids": torch.tensor([[7, 8, 9], [0, 0, 5]]),
        "prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]),
        "completion_ids": torch.tensor([[11, 12, 0], [13, 14, 15]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
    }
    found, read = guidance.strengths(model, batch, torch.tensor([True, True]))
    assert read == 9 and found.shape == (2, 4) and found[0, 3] == 0, "behind its end there is nothing"
    alone, read = guidance.strengths(model, batch, torch.tensor([True, False]))
    assert read == 5 and torch.allclose(alone[0], found[0], atol=1e-6) and not alone[1].any()
    assert guidance.strengths(model, batch, torch.tensor([False, False]))[1] == 0
    passages = [Passage([p[-1], *c], p[:-1], 0, "") for p, c in zip(prompts, completions, strict=True)]
    for row, inner in zip(found, read_activations(model, guidance.saved.origin.layer, passages, 2), strict=True):
        features = guidance.saved.dictionary.encode(inner)
        true = features[:, guidance.reasoning].sum(1) / features.sum(1)
        assert torch.allclose(row[: len(true)], true, atol=1e-4)
    assert not model.get_submodule(guidance.saved.origin.layer)._forward_hooks


def train(path, dictionary, **options):
    trainer = make(path, **{"feature_dictionary": dictionary, **options})
    trainer.train()
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def test_without_weights_a_dictionary_changes_nothing(tmp_path, dictionary):
    plain = make(tmp_path / "a")
    plain.train()
    assert_same(weights(plain), weights(train(tmp_path / "b", dictionary)))


def test_groups_that_all_fail_learn_from_features(tmp_path, dictionary):
    common = {"reward": fails, "prompt_phase": False}
    nothing = train(tmp_path / "a", None, **common)
    assert_same(weights(nothing), {name: value for name, value in load().state_dict().items()})
    guided = train(tmp_path / "b", dictionary, **common, **BOTH)
    assert any(not torch.equal(a, b) for a, b in zip(weights(nothing).values(), weights(guided).values(), strict=True))
    assert logged(guided, "p2o/features/guided_groups") == [1.0, 1.0]
    assert all(0 < value < 1 for value in logged(guided, "p2o/features/reasoning"))
    assert guided.p2o.ledger.forward_tokens > nothing.p2o.ledger.forward_tokens, "what it costs is in the ledger"
    assert guided.p2o.proxy.successes.recent == (0.0, 0.0) and len(guided.p2o.proxy.strengths.recent) == 2


def test_groups_with_variance_keep_their_rewards(tmp_path, dictionary):
    plain = watched_batch(make(tmp_path / "a"), assign={})[0]
    guided = watched_batch(make(tmp_path / "b", feature_dictionary=dictionary, **BOTH), assign={})[0]
    assert torch.equal(plain["advantages"], guided["advantages"])
    mask = guided["completion_mask"]
    mean = (guided[TOKEN_WEIGHTS] * mask).sum(1) / mask.sum(1)
    assert torch.allclose(mean, torch.ones(2 * K), atol=1e-4) and guided[TOKEN_WEIGHTS].max() > 1.1


def test_groups_that_learn_nothing_are_not_read(tmp_path, dictionary):
    """Without variance there are no advantages to weigh, and without proxies nothing to be had in their place."""

    def first_succeeds(completions, **columns):
        return [float(row < K or row % 2) for row in range(len(completions))]

    def tokens(options):
        trainer = make(tmp_path / str(len(options)), reward=first_succeeds, feature_dictionary=dictionary, **options)
        batch = watched_batch(trainer, assign={})[0]
        return trainer.p2o.ledger.forward_tokens, batch

    read, batch = tokens({"feature_token_weight": 0.5})
    mask = batch["completion_mask"]
    assert read == int((batch["prompt_mask"].sum(1) + mask.sum(1))[K:].sum())
    assert torch.equal(batch[TOKEN_WEIGHTS][:K], torch.ones_like(batch[TOKEN_WEIGHTS][:K]))
    assert batch[TOKEN_WEIGHTS][K:].max() > 1.1
    assert tokens(BOTH)[0] == read, "a group that succeeds needs no proxy"


def test_templates_are_masked_and_weighed(tmp_path, dictionary):
    """With the mask applied as late as the loss's own pass, and as early as the batch."""
    for name, options in {"late": {}, "early": {"old_logprobs_context": "rollout"}}.items():
        trainer = make(tmp_path / name, feature_dictionary=dictionary, **BOTH, **options)
        batch, _ = watched_batch(trainer)
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model, batch)
        assert torch.isfinite(loss) and loss.requires_grad
        assert (batch["advantages"].dim() == 2) == (name == "early")
        assert (TOKEN_WEIGHTS in batch) == (name == "late")


def test_a_resumed_run_is_the_same(tmp_path, dictionary):
    common = {"reward": fails, "prompt_phase": False, "max_steps": 3, **BOTH}
    straight = train(tmp_path / "a", dictionary, **common)
    train(tmp_path / "b", dictionary, **common, save_strategy="steps", save_steps=1)
    resumed = make(tmp_path / "b", feature_dictionary=dictionary, **common)
    resumed.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-2"))
    assert_same(weights(straight), weights(resumed))
    assert resumed.p2o.proxy == straight.p2o.proxy and resumed.p2o.ledger == straight.p2o.ledger


def test_a_stopped_proxy_gives_nothing(tmp_path, dictionary):
    trainer = make(tmp_path, feature_dictionary=dictionary, reward=fails, prompt_phase=False, **BOTH)
    trainer.p2o.proxy = ProxyWatch(stopped=True)
    trainer.add_callback(Watch())
    trainer.train()
    assert_same(weights(trainer), {name: value for name, value in load().state_dict().items()})
    assert not logged(trainer, "p2o/features/guided_groups")


def test_the_warning_is_counted(tmp_path, dictionary, caplog):
    trainer = make(tmp_path, feature_dictionary=dictionary, reward=length_reward, **BOTH)
    for strength in [0.1] * 10 + [0.9] * 10:
        trainer.p2o.watch_proxy(strength, 0.0, 0.1)
    assert trainer.p2o.events["feature_proxy_stopped"] == 1
    assert caplog.text.count("proxy rewards are switched off") == 1


# -- what does not go --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_dictionary": None}, "need a feature_dictionary: `p2o features MODEL` trains one"),
        ({"feature_dictionary": "nowhere"}, "nowhere holds no dictionary: name a directory that `p2o features` wrote"),
        ({"feature_token_weight": 2.0}, r"feature_token_weight=2.0 must be in \[0, 1\]"),
        ({"dynamic_sampling_rounds": 1}, "replaces the groups that feature_proxy_reward is for"),
    ],
)
def test_what_cannot_guide_is_refused(tmp_path, dictionary, options, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **{"feature_dictionary": dictionary, **BOTH, **options})


def test_a_dictionary_that_says_nothing_of_the_model_is_refused(tmp_path):
    silent = save_dictionary(tmp_path / "silent", kinds=("direct answer",))
    with pytest.raises(
        ValueError, match=r"No feature of the dictionary in .* is labelled as one of computation or del"
    ):
        make(tmp_path / "a", feature_dictionary=silent, **BOTH)
    other = save_dictionary(tmp_path / "other")
    about = tmp_path / "other" / "dictionary.json"
    about.write_text(about.read_text().replace('"hidden_size": 128', '"hidden_size": 64'))
    with pytest.raises(ValueError, match="is another model: hidden_size was 64, is 128"):
        make(tmp_path / "b", feature_dictionary=other, **BOTH)
    with pytest.raises(ValueError, match="Methods with features need a feature_dictionary"):
        with_method({"method": "grpo-features"})
    settings = with_method({"method": "p2o-features", "feature_dictionary": other, "feature_proxy_reward": 0.4})
    assert settings["feature_token_weight"] == 0.5 and settings["feature_proxy_reward"] == 0.4


def test_the_check_before_training_looks_at_the_dictionary(tmp_path, dictionary, config, capsys):
    command = ["train", "--config", config(), "--check-only", "--method", "grpo-features", "--feature_dictionary"]
    assert main([*command, dictionary]) == 0
    assert main([*command, "nowhere"]) == 2
    assert "nowhere holds no dictionary" in capsys.readouterr().err
